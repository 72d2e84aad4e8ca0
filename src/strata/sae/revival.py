"""Revival of dead latents: gradients that reach latents which no longer fire.

A method sees the main step's residual on a sample of rows and the dead latents only, and gives gradients for their rows
of encoder, encoder bias and decoder, computed by hand (no autograd). None of them reaches b_dec or a living latent. A
new method is a function here and a row in METHODS.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.kernels.gradient import Gradient, RowGradient
from strata.sae.rules.base import Batch, Outcome
from strata.shapes import lengths

_SAMPLE_ROWS = 512  # of a batch, that the revival term looks at

_LOWEST = -1e30  # of a row's maximum: where all is padding, −∞ − −∞ would be NaN


@dataclass(frozen=True)
class Unexplained:
    """What the main step left unexplained, on a sample of its rows.

    Attributes:
        z: normalised rows, [rows d_in].
        residual: r = z − ẑ of these rows (a transcoder's: of its target), a constant, [rows d_out].
        loss: the reconstruction error of the whole batch.
    """

    z: Float[Tensor, "rows d_in"]
    residual: Float[Tensor, "rows d_out"]
    loss: Float[Tensor, ""]

    @classmethod
    def of(cls, batch: Batch, outcome: Outcome) -> "Unexplained":
        """By a step."""
        return cls(batch.inputs[:_SAMPLE_ROWS], outcome.residual[:_SAMPLE_ROWS], outcome.loss)


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

    def part(self, first: int, end: int) -> "DeadGradients":
        """Those of some of the latents; the value is that of all."""
        return DeadGradients(self.W_enc[first:end], self.W_dec[first:end], self.b_enc[first:end], self.value)

    def add_to(self, gradients: dict[str, Gradient], latents: Int[Tensor, " dead"], *, bias: str) -> None:
        """Add these rows, of the latents with these numbers, to a step's gradients; `bias` is the name of b_enc's."""
        for name, rows in (("W_enc", self.W_enc), ("W_dec", self.W_dec), (bias, self.b_enc)):
            gradient = gradients[name]
            if isinstance(gradient, RowGradient):
                gradient.add_rows(latents, rows)
            else:
                gradient.index_add_(0, latents.clamp_max(len(gradient) - 1), rows)  # 0 of padding


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


def auxk(left: Unexplained, dead: DeadLatents, *, coefficient: float) -> DeadGradients:
    """AuxK (Gao et al. 2024, appendix A.2): the k_aux = d_in/2 largest dead pre-activations, ReLU applied, reconstruct
    the residual.

    The term is coefficient · min(n_dead/k_aux, 1) · Σ‖r − ê‖² / Σ‖r − mean r‖² over the sample, r = z − ẑ detached, no
    bias in ê.

    Args:
        left: the residual.
        dead: the dead latents.
        coefficient: 1/32 in the paper.

    Differs: sparsify trains only the decoder by it and SAELens leaves it unnormalised; older code added b_dec to ê or
    let the gradient reach the residual.
    """
    z, residual = left.z, left.residual
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


def ghost(left: Unexplained, dead: DeadLatents, *, coefficient: float) -> DeadGradients:
    """Ghost gradients (Jermyn & Templeton, Circuits Updates January 2024): dead latents with an exponential gate
    predict the residual.

    g = exp(pre − row maximum)·W_dec, g̃ = g·‖r‖/(2‖g‖) with the factor held constant, term = mean ‖r − g̃‖²/d_in
    rescaled by a constant to the value of the main loss.

    Args:
        left: the residual, and the main loss, to whose value the term is scaled.
        dead: the dead latents.
        coefficient: not used: the term scales itself; part of every method's signature.

    Differs: SAELens (before v6) rescaled per element; here one scalar per step, as in the definition.
    """
    z, residual = left.z, left.residual
    n_rows, d_out = residual.shape
    pre = torch.addmm(dead.bias, z, dead.W_enc.t())
    code = (pre - pre.amax(1, keepdim=True).clamp_min_(_LOWEST)).exp_()
    g = code @ dead.W_dec
    norms = lengths(g).unsqueeze(1)
    factor = torch.where(norms > 0, lengths(residual).unsqueeze(1) / (2 * norms), 0.0)
    error = g * factor - residual
    term = error.square().sum() / (n_rows * d_out)
    rescale = torch.where(term > 0, left.loss / term, 0.0)
    d_output = error * factor * (2 * rescale / (n_rows * d_out))
    return _through_code(z, dead, code=code, slope=code, d_output=d_output, value=term * rescale * (dead.number > 0))


class Method(Protocol):
    """What every method is."""

    def __call__(self, left: Unexplained, dead: DeadLatents, *, coefficient: float) -> DeadGradients:
        """The term's gradients with respect to the dead latents' rows, and its value."""
        ...


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
