"""What training one SAE per group of layers would cost, in FLOPs."""

from dataclasses import dataclass

from strata.costs.flops import sae_step_flops
from strata.errors import UserError


@dataclass(frozen=True, kw_only=True)
class GroupingCost:
    """What is needed per token to train SAEs on all layers, in FLOPs.

    Attributes:
        forward: of the language model, as far as the last layer; 0 where the activations are on disk, None where its
            configuration does not tell.
        sae_step: of one SAE.
        published_sae_step: of one SAE in Group-SAE's accounting: 10·d·h, dense.
    """

    forward: float | None
    sae_step: float
    published_sae_step: float

    def share(self, n_saes: int, n_layers: int) -> float | None:
        """Of the cost of one SAE per layer, in (0, 1]; rows per SAE and the language model's pass are the same."""
        return self._share(n_saes, n_layers, self.sae_step)

    def published_share(self, n_saes: int, n_layers: int) -> float | None:
        """The same in Group-SAE's accounting, C(G) = A + T·G (arXiv 2410.21508, section 4)."""
        return self._share(n_saes, n_layers, self.published_sae_step)

    def _share(self, n_saes: int, n_layers: int, step: float) -> float | None:
        return None if self.forward is None else (self.forward + n_saes * step) / (self.forward + n_layers * step)


def grouping_cost(d_in: int, *, expansion_factor: int, sae_k: int, forward: float | None) -> GroupingCost:
    """Predicted cost per token.

    Args:
        d_in: the width of the layers.
        expansion_factor: latents per dimension.
        sae_k: active latents per row.
        forward: FLOPs of the language model, see `GroupingCost`.

    Raises:
        UserError: more active latents than there are.
    """
    d_sae = expansion_factor * d_in
    if sae_k > d_sae:
        raise UserError(f"`sae_k` must be in [1, {d_sae}], the number of latents. Got {sae_k}. Lower it.")
    step = sae_step_flops(d_in, d_sae, sae_k)
    return GroupingCost(forward=forward, sae_step=step, published_sae_step=10.0 * d_in * d_sae)
