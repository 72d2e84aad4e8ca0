"""The dense oracle: one training step's loss in plain autograd, which judges every fast path in values and
gradients.

It shares no code with the fast paths, holds every [rows d_sae] array whole, and is never called in training.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Inputs = Float[Tensor, "rows d_in"]
Outputs = Float[Tensor, "rows d_out"]
Latents = Float[Tensor, "rows d_sae"]
PerRow = Float[Tensor, " rows"]
Scalar = Float[Tensor, ""]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a step minimises, in the words of SAEConfig.

    Attributes:
        architecture: a name in CODES.
        k: entries per row (topk), or per row on average (batchtopk, matryoshka).
        coefficient: λ, the weight of the sparsity penalty (relu, jumprelu, gated).
        bandwidth: ε, the width of the straight-through estimator's kernel (jumprelu).
        prefixes: ascending shares of the latents, the last 1.0 (matryoshka).
    """

    architecture: str
    k: int = 1
    coefficient: float = 0.0
    bandwidth: float = 1.0
    prefixes: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Code:
    """A batch's code, its sparsity penalty per row (before λ), and the second code that the Gated loss decodes."""

    values: Latents
    penalty: PerRow
    auxiliary: Latents | None = None


@dataclass(frozen=True)
class Losses:
    """The whole objective, and the reconstruction error of the full code alone."""

    total: Scalar
    reconstruction: Scalar


def losses(
    objective: Objective,
    params: Mapping[str, Tensor],
    z: Inputs,
    keep: Bool[Tensor, " rows"],
    *,
    z_target: Outputs | None = None,
) -> Losses:
    """The loss of one step without revival.

    Args:
        objective: the gate and its constants.
        params: W_enc [d_sae d_in], W_dec [d_sae d_out], b_dec [d_out] and b_enc [d_sae]; log_threshold for jumprelu;
            b_gate, b_mag, r_mag instead of b_enc for gated; W_skip [d_out d_in] for a transcoder with skip connection.
        z: normalised inputs.
        keep: False for rows that are masked.
        z_target: normalised rows of the other site for a transcoder, whose encoder sees z itself; None for an SAE.
    """
    if z_target is None:
        u = target = z - params["b_dec"]
    else:
        u, target = z, z_target - params["b_dec"]
    if "W_skip" in params:
        target = target - z @ params["W_skip"].t()
    code, W_dec = CODES[objective.architecture](objective, params, u, keep), params["W_dec"]
    reconstruction = reconstruction_loss(target, code.values @ W_dec, keep)
    total = torch.stack(
        [reconstruction_loss(target, code.values[:, :n] @ W_dec[:n], keep) for n in prefix_sizes(objective, len(W_dec))]
    ).mean()
    total = total + objective.coefficient * (code.penalty * keep).sum() / keep.sum()
    if code.auxiliary is not None:
        total = total + reconstruction_loss(target.detach(), code.auxiliary @ W_dec.detach(), keep)
    return Losses(total, reconstruction)


def reconstruction_loss(z: Outputs, z_hat: Outputs, keep: Bool[Tensor, " rows"] | PerRow) -> Scalar:
    """Mean over the kept rows of ‖z − ẑ‖² / d_out. `keep` is 1 or True for a row that counts."""
    return ((z - z_hat).square().mean(-1) * keep).sum() / keep.sum()


def prefix_sizes(objective: Objective, d_sae: int) -> list[int]:
    """Latents in each prefix whose reconstruction counts: all of them but for matryoshka."""
    shares = objective.prefixes if objective.architecture == "matryoshka" else (1.0,)
    return [max(1, round(share * d_sae)) for share in shares]


def _topk(objective: Objective, params: Mapping[str, Tensor], u: Inputs, keep: Bool[Tensor, " rows"]) -> Code:
    """ReLU of the k largest of every row (Gao et al. 2024, section 2.2)."""
    pre = u @ params["W_enc"].t() + params["b_enc"]
    chosen = torch.zeros_like(pre).scatter(1, pre.topk(objective.k).indices, 1.0)
    return Code(pre.relu() * chosen, _no_penalty(u))


def _batchtopk(objective: Objective, params: Mapping[str, Tensor], u: Inputs, keep: Bool[Tensor, " rows"]) -> Code:
    """ReLU of the k·n largest of all n kept rows together (Bussmann et al. 2024, section 3)."""
    pre = u @ params["W_enc"].t() + params["b_enc"]
    eligible = pre.masked_fill(~keep.unsqueeze(1), -torch.inf).flatten()
    winners = eligible.topk(objective.k * int(keep.sum())).indices
    chosen = torch.zeros_like(eligible).scatter(0, winners, 1.0).view_as(pre)
    return Code(pre.relu() * chosen, _no_penalty(u))


def _relu(objective: Objective, params: Mapping[str, Tensor], u: Inputs, keep: Bool[Tensor, " rows"]) -> Code:
    """ReLU; penalty Σ_j code_j ‖W_dec_j‖ with the norm held constant, since the rows are kept at unit norm."""
    values = (u @ params["W_enc"].t() + params["b_enc"]).relu()
    return Code(values, values @ params["W_dec"].square().sum(1).sqrt().detach())


def _jumprelu(objective: Objective, params: Mapping[str, Tensor], u: Inputs, keep: Bool[Tensor, " rows"]) -> Code:
    """pre where it is above θ; penalty L0. Straight-through gradients of both for θ, with a rectangle of width ε as
    kernel (Rajamanoharan et al. 2024b, section 4); `theta − θ` is 0 in value and carries the gradient.
    """
    pre, theta = u @ params["W_enc"].t() + params["b_enc"], params["log_threshold"].exp()
    constant = theta.detach()
    fires = (pre > constant).to(pre.dtype).detach()
    kernel = ((pre - constant).abs() < objective.bandwidth / 2).detach() / objective.bandwidth
    values = pre * fires - constant * kernel * (theta - constant)
    return Code(values, (fires - kernel * (theta - constant)).sum(1))


def _gated(objective: Objective, params: Mapping[str, Tensor], u: Inputs, keep: Bool[Tensor, " rows"]) -> Code:
    """Magnitudes where the gate is open; penalty and auxiliary code are the gate's own ReLU (Rajamanoharan et al.
    2024a, section 3.2).
    """
    shared = u @ params["W_enc"].t()
    gate = shared + params["b_gate"]
    magnitude = params["r_mag"].exp() * shared + params["b_mag"]
    return Code((gate > 0) * magnitude.relu(), gate.relu().sum(1), auxiliary=gate.relu())


def _no_penalty(u: Inputs) -> PerRow:
    return u.new_zeros(len(u))


CODES: dict[str, Callable[..., Code]] = {
    "topk": _topk,
    "batchtopk": _batchtopk,
    "relu": _relu,
    "jumprelu": _jumprelu,
    "gated": _gated,
    "matryoshka": _batchtopk,
}
