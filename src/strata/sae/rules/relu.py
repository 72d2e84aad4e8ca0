"""ReLU with an L1 penalty."""

from jaxtyping import Float
from torch import Tensor

from strata.kernels.entries import Entries
from strata.sae.gates import Gate
from strata.sae.gates import ReLU as ReLUGate
from strata.sae.rules.base import Batch, Params, PerEntry
from strata.sae.rules.threshold import ThresholdRule


class ReLU(ThresholdRule):
    """max(pre, 0) with an L1 penalty weighted by the decoder's norms, which are 1 (Bricken et al. 2023; Anthropic's
    April 2024 update).
    """

    start_coefficient = 3e-3

    def floor(self, params: Params) -> Tensor:
        """0."""
        return params["b_enc"].new_zeros(())

    def values(self, pre: PerEntry, entries: Entries, params: Params) -> PerEntry:
        """max(pre, 0)."""
        return pre.relu()

    def backward(
        self, pre: PerEntry, values: PerEntry, d_values: PerEntry, entries: Entries, *, batch: Batch, params: Params
    ) -> tuple[PerEntry, Params, Float[Tensor, ""]]:
        """The penalty pulls every active latent down by the same amount."""
        pull = self.coefficient / batch.n_kept
        return (d_values + pull) * (values > 0), {}, pull * values.sum()

    def finished(self, params: Params, recent: Batch | None) -> tuple[Gate, Tensor]:
        """ReLU; all biases are moved by the little that makes L0 on the last rows exactly k."""
        return ReLUGate(), params["b_enc"] - self.last_level(params, recent)
