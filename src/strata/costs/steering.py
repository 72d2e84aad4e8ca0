"""What steering costs, in FLOPs: once for everything, once per concept, and for every token that is written.

A multiplication and its addition are two. Texts from which a vector is made are counted by
`strata.costs.interpretation.contrast_flops`.
"""

from dataclasses import dataclass

from strata.costs.flops import sae_step_flops
from strata.errors import UserError

Number = int | float


@dataclass(frozen=True, kw_only=True)
class SteeringCost:
    """FLOPs of a way to steer.

    Attributes:
        training: once, before any concept: an SAE's training with the language model's forwards that fed it; 0 for
            what needs no training.
        concept: for each concept: forwards over its texts, and what is done with them.
        token: for each token that is written, on top of the language model's own work. What is done to the prompt's
            tokens is shared out among those written after it.
    """

    training: float
    concept: float
    token: float


def sae_training_flops(n_rows: Number, *, forward_flops: Number, d_in: int, d_sae: int, k: int) -> float:
    """FLOPs of one site's SAE as if trained alone: rows · (f + step), the step of `strata.costs.flops`.

    Differs from what a suite costs per SAE: SAEs that are trained side by side share the forwards.

    Args:
        n_rows: that it was trained on.
        forward_flops: f, of the language model as far as the site, per token.
        d_in: width of the site.
        d_sae: number of latents.
        k: active ones per row.
    """
    if not n_rows > 0:
        raise UserError(f"`n_rows` must be above 0. Got {n_rows}. Give the rows that the SAE was trained on.")
    return float(n_rows) * (forward_flops + sae_step_flops(d_in, d_sae, k))


def addition_flops(d_in: int) -> float:
    """FLOPs per token of adding a vector that is scaled beforehand: d."""
    return float(d_in)


def clamp_flops(d_in: int, d_sae: int) -> float:
    """FLOPs per token of setting a latent, error kept: the encoder's product 2·d·h, and 2·d to add the change.

    The decoder is not run: h + (c − f_i)·W_dec[i] is the same as decoding and adding the error back. For gates without
    competition between latents (JumpReLU, ReLU, Gated) one latent's pre-activation, 2·d, would do; the implementation
    encodes all of them for every gate.
    """
    return 2.0 * d_in * d_sae + 2.0 * d_in


def prefix_flops(
    prefix_tokens: Number, *, n_tokens: Number, forward_flops: Number, d_attention: int, n_layers: int
) -> float:
    """FLOPs that a prefix adds to one text: its own forward, and that each token behind it attends to it: P·f +
    n·4·P·d·L.

    Args:
        prefix_tokens: P.
        n_tokens: n, of the text behind it: prompt and what is written.
        forward_flops: f, of the whole language model, per token, attention included.
        d_attention: d, heads times their width.
        n_layers: L, of the language model.
    """
    return float(prefix_tokens) * (forward_flops + 4.0 * n_tokens * d_attention * n_layers)
