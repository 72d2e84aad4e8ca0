"""What a direction of the residual stream does to the scores of the next token, as far as that is linear."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from strata.lm.model import LanguageModel


def unembedding(lm: LanguageModel) -> Float[Tensor, "vocab d_in"] | None:
    """The matrix from the last residual stream to the logits, the final norm's gain folded in; None without a head.

    The gain of the final norm multiplies each coordinate, and a norm that subtracts the mean takes the part along
    (1, …, 1) away; both are linear and folded in. Its division by the length is not: effects are in units that are
    right up to one positive factor for each token. The mean over the vocabulary is subtracted, which no probability
    depends on, so that the lowest values are tokens that are made less likely.

    Args:
        lm: the language model.
    """
    head = lm.model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    matrix = weight.detach().float()
    norm = _final_norm(lm)
    if norm is not None:
        gain = _gain(norm)
        if gain is not None and gain.shape == matrix.shape[1:]:
            matrix = matrix * gain.to(matrix.device)
        if isinstance(norm, nn.LayerNorm):
            matrix = matrix - matrix.mean(1, keepdim=True)
    return matrix - matrix.mean(0)


def _final_norm(lm: LanguageModel) -> nn.Module | None:
    """The norm that stands beside the blocks, behind them."""
    if not lm.sites:
        return None
    blocks = lm.site(lm.sites[0]).path.rsplit(".", 1)[0]
    parent = lm.model.get_submodule(blocks.rsplit(".", 1)[0]) if "." in blocks else lm.model
    children = list(parent.named_children())
    names = [name for name, _ in children]
    behind = children[names.index(blocks.rsplit(".", 1)[-1]) + 1 :]
    return next((module for _, module in behind if "norm" in type(module).__name__.lower()), None)


def _gain(norm: Any) -> Tensor | None:
    """The gain of a norm; 1 + weight for those that store it so (Gemma)."""
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    weight = weight.detach().float()
    return weight + 1 if "gemma" in type(norm).__name__.lower() and not _scales_by_weight(norm, weight) else weight


def _scales_by_weight(norm: Any, weight: Tensor) -> bool:
    """Whether a vector of equal length comes out times the weight, and not times one more than it."""
    with torch.no_grad():
        ones = torch.ones_like(weight)
        out = norm(ones.to(next(norm.parameters()).dtype)).float()
    return bool((out - weight).abs().sum() < (out - weight - 1).abs().sum())
