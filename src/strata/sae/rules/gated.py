"""Gated: one path decides what fires, another how much."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from strata.kernels.entries import Entries
from strata.sae.gates import Gate
from strata.sae.gates import Gated as GatedGate
from strata.sae.rules.base import Batch, Outcome, Params, PerEntry, sum_of_squares, weight_gradient
from strata.sae.rules.threshold import ThresholdRule


class Gated(ThresholdRule):
    """A gate path decides what fires, a magnitude path with shared weights how much; the penalty and an auxiliary
    reconstruction train the gate path (Rajamanoharan et al. 2024a, section 3.2).
    """

    bias = "b_gate"
    rates: ClassVar[Mapping[str, float]] = {"b_gate": 10.0, "b_mag": 10.0, "r_mag": 3.0}
    makes_transcoders = False
    start_coefficient = 3e-3

    def own_tensors(self, start: Float[Tensor, ""]) -> Params:
        """Gates that let k latents per row open; magnitudes are the scores themselves."""
        b_gate = super().own_tensors(start)["b_enc"]
        return {"b_gate": b_gate, "b_mag": torch.zeros_like(b_gate), "r_mag": torch.zeros_like(b_gate)}

    def scaled(self, own: Params, factor: float | Tensor) -> Params:
        """Biases grow with the scores; the gain does not."""
        return {**super().scaled(own, factor), "r_mag": own["r_mag"]}

    def floor(self, params: Params) -> Tensor:
        """0."""
        return params["b_gate"].new_zeros(())

    def values(self, pre: PerEntry, entries: Entries, params: Params) -> PerEntry:
        """The magnitude where the gate is open."""
        return self._magnitude(pre, entries, params).relu_() * (pre > 0)

    def has_value(self, pre: PerEntry, entries: Entries, params: Params) -> Tensor:
        """Where the magnitude is above 0."""
        return self._magnitude(pre, entries, params) > 0

    def _magnitude(self, pre: PerEntry, entries: Entries, params: Params) -> PerEntry:
        gain, score = entries.per_entry(params["r_mag"].exp()), pre - entries.per_entry(params["b_gate"])
        return gain * score + entries.per_entry(params["b_mag"])

    def step(self, batch: Batch, params: Params, *, score_dtype: torch.dtype) -> Outcome:
        """Loss and gradients of one batch: two residuals over the same entries."""
        pre, entries = self.look(batch, params, score_dtype=score_dtype)
        W_dec = params["W_dec"]
        values = self.values(pre, entries, params) * entries.per_row(batch.keep)
        opened = pre.relu() * entries.per_row(batch.keep)
        residual, dots = entries.residual(values, W_dec, batch.target, batch.keep)
        gate_residual, gate_dots = entries.residual(opened, W_dec, batch.target, batch.keep)
        slope = -2 * batch.share
        pull = self.coefficient / batch.n_kept

        d_mag = dots * slope * (values > 0)
        d_gate = (gate_dots * slope + pull) * (opened > 0)
        gain = entries.per_entry(params["r_mag"].exp())
        d_gain = d_mag * gain * (pre - entries.per_entry(params["b_gate"]))
        d_score = d_gate + d_mag * gain
        return Outcome(
            entries=entries,
            values=values,
            residual=residual,
            loss=sum_of_squares(residual) * batch.share,
            penalty=pull * opened.sum() + sum_of_squares(gate_residual) * batch.share,
            d_rows=residual,
            slope=slope,
            d_scores=entries.sum_by_latent(d_score),
            gradients={
                "W_enc": weight_gradient(entries, d_score, batch.inputs),
                "W_dec": weight_gradient(entries, values * slope, residual),
                "b_gate": entries.sum_by_latent(d_gate),
                "b_mag": entries.sum_by_latent(d_mag),
                "r_mag": entries.sum_by_latent(d_gain),
            },
        )

    def finished(self, params: Params, recent: Batch | None) -> tuple[Gate, Tensor]:
        """Gated. The gates' biases are moved by the little that makes L0 on the last rows exactly k; the magnitudes
        stay.
        """
        b_gate = params["b_gate"] - self.last_level(params, recent)
        return GatedGate(r_mag=params["r_mag"].clone(), b_mag=params["b_mag"].clone(), b_gate=b_gate.clone()), b_gate

    def from_gate(self, gate: Gate, b_enc: Tensor) -> Params | None:
        """Both paths' tensors."""
        if not isinstance(gate, GatedGate):
            return None
        return {name: getattr(gate, name).detach().float() for name in ("b_gate", "b_mag", "r_mag")}
