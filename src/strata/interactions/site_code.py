"""The code and the error of a site in one batch: what a feature reads from its site, and what features write to it."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from strata.kernels.entries import SparseEntries
from strata.sae.gates import Gated
from strata.sae.model import SAE
from strata.sae.sinks import Sinks

Grid = Float[Tensor, "batch seq d_in"]


@dataclass(frozen=True)
class Sources:
    """What one site's features, and what its SAE misses, contribute to a target.

    Attributes:
        effects: Σ over positions of a_i · ∂m/∂a_i of each feature, [d_sae], in the units of the target's activation.
        error: ⟨∂m/∂x, ε⟩, the same of the SAE's error; where no SAE stands (special tokens, attention sinks) x is all
            error.
        bias: ⟨∂m/∂x, b_dec⟩, the same of the decoder's bias.
    """

    effects: Float[Tensor, " d_sae"]
    error: float
    bias: float

    @property
    def total(self) -> float:
        """All of it: ⟨∂m/∂x, x⟩."""
        return self.effects.double().sum().item() + self.error + self.bias


class SiteCode:
    """A site's code and error in one batch.

    Args:
        sae: the site's SAE.
        x: the site's activations.
        is_row: where features are looked at.
        sinks: of the site; they count as no rows.
    """

    def __init__(self, sae: SAE, x: Grid, is_row: Bool[Tensor, "batch seq"], sinks: Sinks) -> None:
        self.sae, self.x_like = sae, x
        rows = (is_row.to(x.device) & sinks.spared(x.detach())).to(sae.device)[..., None]
        x = x.detach().to(sae.device, sae.dtype)
        code = sae.encode_sparse(x)
        self.values = code.values * rows
        self.indices = code.indices
        self.bias = sae.b_dec * rows
        self.error = x - sae.decode(code) * rows
        self.entries = SparseEntries.of_topk(code.indices.flatten(0, 1), sae.d_sae)

    def readout(self, latent: int, where: Bool[Tensor, "batch seq"]) -> tuple[Grid, float, int]:
        """∂m/∂x of a feature of this site, m, and on how many positions it fires."""
        values = (self.values * (self.indices == latent)).sum(-1) * where.to(self.values.device)
        fires = values > 0
        direction = self.sae.W_enc[:, latent] * slopes(self.sae)[latent]
        readout = (fires[..., None] * direction).to(self.x_like.device, self.x_like.dtype)
        return readout, values.double().sum().item(), int(fires.sum())

    def sources(self, gradient: Grid) -> Sources:
        """What this site's features contribute, given ∂m/∂x."""
        gradient = gradient.to(self.sae.device, self.sae.dtype)
        along = self.entries.dot(gradient.flatten(0, 1).contiguous(), self.sae.W_dec)
        effects = self.entries.sum_by_latent(self.values.reshape(-1) * along)
        return Sources(
            effects, (gradient * self.error).double().sum().item(), (gradient * self.bias).double().sum().item()
        )


def slopes(sae: SAE) -> Float[Tensor, " d_sae"]:
    """∂(activation)/∂(pre-activation) of each latent where it fires.

    1 for TopK, ReLU and JumpReLU; exp(r_mag) for a Gated SAE, whose value is exp(r_mag)·(pre − b_gate) + b_mag.
    """
    return sae.gate.r_mag.exp() if isinstance(sae.gate, Gated) else torch.ones_like(sae.b_enc)
