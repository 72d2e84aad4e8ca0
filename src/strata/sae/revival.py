"""Revival of dead latents: gradients that reach latents which no longer fire.

A method sees the main step's residual on a sample of rows and the dead latents only, and gives gradients for their rows
of encoder, encoder bias and decoder, computed by hand (no autograd). None of them reaches b_dec or a living latent. A
new method is a function here and a row in METHODS.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_LOWEST = -1e30  # of a row's maximum: where all is padding, −∞ − −∞ would be NaN


@dataclass(frozen=True)
class DeadLatents:
    """The dead latents of a step and their weights.

    Attributes:
        latents: their numbers, [dead]; d_sae, of latents that there are not, is padding.
        W_enc: their encoder rows, [dead d_in].
        W_dec: their decoder rows, [dead d_out].
        bias: their encoder biases, the decoder's folded in, [dead]; −∞ of padding, which gets no gradient.
    """

    latents: Int[Tensor, " dead"]
    W_enc: Float[Tensor, "dead d_in"]
    W_dec: Float[Tensor, "dead d_out"]
    bias: Float[Tensor, " dead"]

    @property
    def number(self) -> Int[Tensor, ""]:
        """How many there are, without padding."""
        return (self.bias != -torch.inf).sum()


@dataclass(frozen=True)
class DeadGradients:
    """Gradients of the revival term with respect to the dead latents' rows, and the term's value."""

    W_enc: Float[Tensor, "dead d_in"]
    W_dec: Float[Tensor, "dead d_out"]
    b_enc: Float[Tensor, " dead"]
    value: Float[Tensor, ""]


def _through_code(
    z: Float[Tensor, "rows d_in"],
    dead: DeadLatents,
    *,
    code: Float[Tensor, "rows dead"],
    slope: Float[Tensor, "rows dead"],
    d_output: Float[Tensor, "rows d_out"],
    value: Float[Tensor, ""],
) -> DeadGradients:
    """Gradients of a term whose output is code·W_dec, given ∂term/∂output and ∂code/∂pre."""
    d_pre = (d_output @ dead.W_dec.t()).mul_(slope)
    return DeadGradients(W_enc=d_pre.t() @ z, W_dec=code.t() @ d_output, b_enc=d_pre.sum(0), value=value)


def auxk(
    z: Float[Tensor, "rows d_in"],
    residual: Float[Tensor, "rows d_out"],
    dead: DeadLatents,
    *,
    loss: Float[Tensor, ""],
    coefficient: float,
) -> DeadGradients:
    """AuxK (Gao et al. 2024, appendix A.2): the k_aux = d_in/2 largest dead pre-activations, ReLU applied, reconstruct
    the residual.

    The term is coefficient · min(n_dead/k_aux, 1) · Σ‖r − ê‖² / Σ‖r − mean r‖² over the sample, r = z − ẑ detached, no
    bias in ê.

    Args:
        z: normalised rows.
        residual: z − ẑ of the same rows.
        dead: the dead latents.
        loss: not used; part of every method's signature.
        coefficient: 1/32 in the paper.

    Differs: sparsify trains only the decoder by it and SAELens leaves it unnormalised; older code added b_dec to ê or
    let the gradient reach the residual.
    """
    k_aux = max(1, z.shape[1] // 2)
    code = torch.addmm(dead.bias, z, dead.W_enc.t()).relu_()
    if len(dead.latents) > k_aux:
        top = code.topk(k_aux, dim=-1, sorted=False)
        code = torch.zeros_like(code).scatter_(-1, top.indices, top.values)
    error = code @ dead.W_dec - residual
    scale = (dead.number.double() / k_aux).clamp_max(1).mul_(coefficient).to(code.dtype)
    variance = (residual - residual.mean(0)).square().sum()
    weight = torch.where(variance > 0, variance.reciprocal() * scale, 0.0)
    slope = (code > 0).to(code.dtype)
    return _through_code(
        z, dead, code=code, slope=slope, d_output=error * (2 * weight), value=error.square().sum() * weight
    )


def ghost(
    z: Float[Tensor, "rows d_in"],
    residual: Float[Tensor, "rows d_out"],
    dead: DeadLatents,
    *,
    loss: Float[Tensor, ""],
    coefficient: float,
) -> DeadGradients:
    """Ghost gradients (Jermyn & Templeton, Circuits Updates January 2024): dead latents with an exponential gate
    predict the residual.

    g = exp(pre − row maximum)·W_dec, g̃ = g·‖r‖/(2‖g‖) with the factor held constant, term = mean ‖r − g̃‖²/d_in
    rescaled by a constant to the value of the main loss.

    Args:
        z: normalised rows.
        residual: z − ẑ of the same rows, r.
        dead: the dead latents.
        loss: the main loss, to whose value the term is scaled.
        coefficient: not used: the term scales itself; part of every method's signature.

    Differs: SAELens (before v6) rescaled per element; here one scalar per step, as in the definition.
    """
    n_rows, d_out = residual.shape
    pre = torch.addmm(dead.bias, z, dead.W_enc.t())
    code = (pre - pre.amax(1, keepdim=True).clamp_min_(_LOWEST)).exp_()
    g = code @ dead.W_dec
    norms = g.norm(dim=1, keepdim=True)
    factor = torch.where(norms > 0, residual.norm(dim=1, keepdim=True) / (2 * norms), 0.0)
    error = g * factor - residual
    term = error.square().sum() / (n_rows * d_out)
    rescale = torch.where(term > 0, loss / term, 0.0)
    d_output = error * factor * (2 * rescale / (n_rows * d_out))
    return _through_code(z, dead, code=code, slope=code, d_output=d_output, value=term * rescale * (dead.number > 0))


Method = Callable[..., DeadGradients]
METHODS: dict[str, Method] = {"lift": auxk, "auxk": auxk, "ghost": ghost}


def lift_(
    bias: Float[Tensor, " d_sae"],
    latents: Int[Tensor, " dead"],
    silent: Float[Tensor, " dead"],
    *,
    rate: float | Float[Tensor, ""],
) -> None:
    """The part of "lift" beside AuxK: the biases of dead latents rise, in place, by one learning rate a step.

    AuxK teaches a dead latent a direction, but its pre-activations stay as small as the residual, below those that win,
    and Adam's second moments remember the gradients of its life. The lift makes it win somewhere in the end, where the
    main loss then decides what becomes of it (measured: docs/dead-latents.md).

    Args:
        bias: of all latents.
        latents: the dead ones; of padding any latent.
        silent: 1 for those that have still not fired, 0 for those that have since the list was made, and for padding.
        rate: the bias's learning rate in this step.

    Differs: SAELens' `pre_act_loss`, for JumpReLU, puts a loss with a coefficient on how far dead pre-activations lie
    below the threshold.
    """
    bias.index_add_(0, latents, silent * rate)
