"""Counted floating-point operations: a multiplication and its addition are two."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from strata.errors import UserError

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_ACTIVE_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk")


def sae_step_flops(d_in: int, d_sae: int, k: int) -> float:
    """FLOPs of one training step of an SAE, per row: 2·d·h for the one dense product, 10·k·d for what fired.

    The sparse part is decoding, its two gradients, the encoder's, and scoring the winners again in fp32 (2·k·d each).
    Revival, which works on a sample, is not counted, nor is the optimiser.

    Differs: Group-SAE counts 10·d·h, a dense forward and backward.
    """
    return 2.0 * d_in * d_sae + 10.0 * k * d_in


def forward_flops(blocks: Sequence[nn.Module], config: Any, *, context_tokens: int) -> float:
    """FLOPs of a language model's forward through some blocks, per token: Σ (2·P_matmul + 4·C·H·d_head); 2·C·H times
    the widths of a head's keys and values where they differ (latent attention).

    P_matmul are the block's parameters of two axes or more that are no embeddings: matrices that multiply each token.
    Of experts only the active share counts. Attention is counted in full, as if each token looked at all C tokens of
    the sequence, which is what an eager implementation computes; a causal one that leaves out the later half, or a
    sliding window, does less. Norms, biases, activation functions and logits are not counted.

    Args:
        blocks: of the loaded model, those that are run.
        config: the model's Hugging Face configuration: heads, their width, experts.
        context_tokens: C, the length of the sequences.

    Raises:
        UserError: the configuration does not tell how many heads or, of a model with experts, how many are active.
    """
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    n_heads = getattr(text_config, "num_attention_heads", None)
    if not isinstance(n_heads, int):
        raise UserError(
            "The cost of a forward needs a model with attention heads. Its configuration names no num_attention_heads."
            " Count it by yourself."
        )
    n_parameters = sum(_multiplying(block, text_config) for block in blocks)
    return 2.0 * n_parameters + 2.0 * context_tokens * n_heads * _compared_and_summed(text_config) * len(blocks)


def _compared_and_summed(config: Any) -> int:
    """Width of a head's keys and of its values together: twice d_head, but for latent attention (DeepSeek)."""
    rotated, plain, summed = (getattr(config, f"{n}_head_dim", None) for n in ("qk_rope", "qk_nope", "v"))
    if isinstance(rotated, int) and isinstance(plain, int) and isinstance(summed, int):
        return rotated + plain + summed
    return 2 * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _multiplying(block: nn.Module, config: Any) -> float:
    embeddings = {id(weight) for module in block.modules() if isinstance(module, nn.Embedding)
                  for weight in module.parameters()}  # fmt: skip
    share = None
    total = 0.0
    for name, weight in block.named_parameters():
        parts = name.split(".")
        if weight.ndim < 2 or id(weight) in embeddings or parts[-1].endswith("bias"):  # experts' biases are stacked
            continue
        if "experts" in parts:
            share = _active_share(config) if share is None else share
        total += weight.numel() * (share if "experts" in parts and share is not None else 1)
    return total


def active_experts(config: Any) -> int:
    """How many experts each token passes, by the model's text configuration.

    Raises:
        UserError: it does not tell.
    """
    return _experts(config)[0]


def _active_share(config: Any) -> float:
    n_active, n_experts = _experts(config)
    return n_active / n_experts


def _experts(config: Any) -> tuple[int, int]:
    """Experts that each token passes, and all."""
    n_active, n_experts = (next(_whole_numbers(config, names), None) for names in (_ACTIVE_EXPERTS, _EXPERTS))
    if n_active is None or n_experts is None:
        raise UserError(
            "The cost of a forward needs the number of active experts. The model's configuration names none of"
            f" {', '.join(_ACTIVE_EXPERTS)}, or none of {', '.join(_EXPERTS)}. Count it by yourself."
        )
    return n_active, n_experts


def _whole_numbers(config: Any, names: Sequence[str]) -> Iterator[int]:
    return (value for name in names if isinstance(value := getattr(config, name, None), int))
