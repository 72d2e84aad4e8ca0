"""What a direction of the residual stream does to the scores of the next token, as far as that is linear."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from strata.lm.model import LanguageModel

_LEAST_CORRELATION = 0.99  # of the model's logits with those of final norm and head alone


def unembedding(lm: LanguageModel) -> Float[Tensor, "vocab d_in"] | None:
    """The matrix from the last residual stream to the logits, the final norm's gain folded in.

    The gain of the final norm multiplies each coordinate, and a norm that subtracts the mean takes the part along
    (1, …, 1) away; both are linear and folded in. Its division by the length is not: effects are in units that are
    right up to one positive factor for each token. The mean over the vocabulary is subtracted, which no probability
    depends on, so that the lowest values are tokens that are made less likely.

    Args:
        lm: the language model.

    Returns:
        None where the logits are not those of a final norm and a head: no head, or more layers between (BERT). That is
        tried on one token.
    """
    head = lm.model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if not lm.sites or not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    norm = next((norm for norm in _final_norms(lm) if _leads_to_logits(lm, norm, head)), None)
    if norm is None:
        return None
    matrix = weight.detach().float()
    if isinstance(norm, nn.Identity):
        return matrix - matrix.mean(0)
    gain, subtracts_mean = _linear_part(norm, matrix.shape[1])
    matrix = matrix * gain.to(matrix.device)
    if subtracts_mean:
        matrix = matrix - matrix.mean(1, keepdim=True)
    return matrix - matrix.mean(0)


def _final_norms(lm: LanguageModel) -> list[nn.Module]:
    """The norms that stand beside the blocks, those behind them first, and none at all."""
    blocks = lm.site(lm.sites[0]).path.rsplit(".", 1)[0]
    parent = lm.model.get_submodule(blocks.rsplit(".", 1)[0]) if "." in blocks else lm.model
    children = list(parent.named_children())
    place = [name for name, _ in children].index(blocks.rsplit(".", 1)[-1])
    ordered = [module for _, module in children[place + 1 :] + children[:place]]
    return [*(module for module in ordered if "norm" in type(module).__name__.lower()), nn.Identity()]


@torch.no_grad()
def _leads_to_logits(lm: LanguageModel, norm: nn.Module, head: nn.Module) -> bool:
    """Whether a norm and the head give the model's logits of a token, up to what keeps their order nearly (a cap)."""
    token = [[lm.vocabulary_size // 2]]
    last = lm.activations(token, [lm.sites[-1]])[lm.sites[-1]]
    weight = next(head.parameters())
    try:
        own = head(norm(last.to(lm.dtype)).to(weight.device, weight.dtype)).flatten().float()
    except RuntimeError:  # the norm is of another width
        return False
    pair = torch.stack([own, lm.logits(token).flatten().float().to(own.device)])
    return pair.shape[1] > 1 and torch.corrcoef(pair)[0, 1].item() > _LEAST_CORRELATION


@torch.no_grad()
def _linear_part(norm: nn.Module, width: int) -> tuple[Float[Tensor, " d_in"], bool]:
    """By what a norm multiplies each coordinate of a vector of length √d, and whether it subtracts the mean.

    Asked of the norm itself, since some store the gain less one (Gemma, Nemotron) and classes have many names.
    """
    weight = next(norm.parameters(), None)
    signs = torch.ones(width, dtype=torch.float32 if weight is None else weight.dtype)
    signs = signs.to("cpu" if weight is None else weight.device)
    signs[1::2] = -1  # mean 0 (of an even width), mean square 1

    def odd(x: Tensor) -> Tensor:
        return ((norm(x) - norm(-x)) / 2).float()  # without the bias

    plain = odd(signs)
    subtracts_mean = torch.allclose(odd(signs + 1), plain, rtol=0, atol=0.01 * plain.abs().max().item())
    return plain / signs.float(), subtracts_mean
