"""JumpReLU: learned thresholds, and a penalty on L0."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from strata.kernels import select
from strata.kernels.entries import Entries
from strata.sae.gates import Gate
from strata.sae.gates import JumpReLU as JumpReLUGate
from strata.sae.rules.base import Batch, Params, PerEntry
from strata.sae.rules.threshold import ThresholdRule


class JumpReLU(ThresholdRule):
    """pre where it is above exp(log_threshold), with a penalty on L0; both reach the thresholds through a rectangular
    kernel (Rajamanoharan et al. 2024b, section 3 and appendix B).

    Differs: SAELens' default (Anthropic's) penalises tanh and lets the kernel's gradient reach the pre-activations.
    """

    rates: ClassVar[Mapping[str, float]] = {"b_enc": 10.0, "log_threshold": 3.0}
    start_coefficient = 1e-3

    def own_tensors(self, start: Float[Tensor, ""]) -> Params:
        """Biases 0, thresholds that let k latents per row fire."""
        bias = torch.zeros_like(super().own_tensors(start)["b_enc"])
        return {"b_enc": bias, "log_threshold": torch.zeros_like(bias) + start.log()}

    def scaled(self, own: Params, factor: float | Tensor) -> Params:
        """Thresholds grow with the scores."""
        by = torch.as_tensor(factor, device=own["b_enc"].device).log()
        return {"b_enc": own["b_enc"] * factor, "log_threshold": own["log_threshold"] + by}

    def floor(self, params: Params) -> Tensor:
        """Half a kernel below the threshold."""
        return params["log_threshold"].exp() - self.config.bandwidth / 2

    def values(self, pre: PerEntry, entries: Entries, params: Params) -> PerEntry:
        """pre where it is above the threshold."""
        return pre * (pre > entries.per_entry(params["log_threshold"].exp()))

    def backward(
        self, pre: PerEntry, values: PerEntry, d_values: PerEntry, entries: Entries, *, batch: Batch, params: Params
    ) -> tuple[PerEntry, Params, Float[Tensor, ""]]:
        """Above the threshold the gradient passes; inside the kernel the threshold learns from loss and penalty."""
        width = self.config.bandwidth
        threshold = entries.per_entry(params["log_threshold"].exp())
        near = ((pre - threshold).abs() < width / 2) * entries.per_row(batch.keep)
        pull = self.coefficient / batch.n_kept
        d_threshold = near * (threshold * d_values + pull) * (-threshold / width)
        own = {"log_threshold": entries.sum_by_latent(d_threshold)}
        return d_values * (values > 0), own, pull * (values > 0).sum()

    @property
    def n_searched_per_row(self) -> float:
        """Those above a quarter of their threshold, counted as a quarter of the latents."""
        return self.d_sae / 4

    def finished(self, params: Params, recent: Batch | None) -> tuple[Gate, Tensor]:
        """JumpReLU with the learned thresholds; steered ones get a common factor near 1 that makes L0 on the last rows
        exactly k.
        """
        threshold = params["log_threshold"].exp()
        if recent is not None and self.config.sparsity_coefficient == "auto":
            threshold = threshold * self._last_correction(threshold, params, recent)
        return JumpReLUGate(threshold), params["b_enc"]

    def _last_correction(self, threshold: Tensor, params: Params, recent: Batch) -> Tensor:
        """The factor by which all thresholds have to grow for k active latents per row."""
        low = 0.25 * threshold
        pre, entries = select.select_above(recent.inputs, params["W_enc"], params["b_enc"], low)
        multiples = (pre / entries.per_entry(threshold))[entries.per_row(recent.keep) > 0]
        n_active = self.k * int(recent.n_kept)
        if len(multiples) < n_active:
            return threshold.new_ones(())
        return multiples.kthvalue(len(multiples) - n_active + 1).values * (1 - 1e-6)

    def from_gate(self, gate: Gate, b_enc: Tensor) -> Params | None:
        """JumpReLU's own thresholds."""
        if not isinstance(gate, JumpReLUGate):
            return None
        return {"b_enc": b_enc, "log_threshold": gate.threshold.detach().float().clamp_min(1e-6).log()}
