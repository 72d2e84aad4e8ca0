"""Rules whose latents fire where they are above a floor: ReLU with L1, JumpReLU, Gated. The penalty's coefficient is
steered until L0 is k.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.config.train import SAEConfig
from strata.kernels import select
from strata.kernels.capacity import Capacity
from strata.kernels.entries import Entries
from strata.sae.gates import Gate
from strata.sae.gates import Gated as GatedGate
from strata.sae.gates import JumpReLU as JumpReLUGate
from strata.sae.gates import ReLU as ReLUGate
from strata.sae.rules.base import (
    RECENT_ROWS,
    Batch,
    Outcome,
    Params,
    PerEntry,
    Rule,
    all_entries,
    sum_of_squares,
    weight_gradient,
)
from strata.sae.rules.steering import Steering

_LIFT = 10.0  # added to scores, so that a search among the positive ones finds those below 0 too


class ThresholdRule(Rule):
    """What the three have in common; abstract.

    Entries are listed while they are few. Where more than `dense_share` of the latents fire, the step works on all of
    them by matrix products.
    """

    start_coefficient: float
    n_recent_rows = RECENT_ROWS

    def __init__(self, config: SAEConfig, *, d_sae: int) -> None:
        super().__init__(config, d_sae=d_sae)
        self.dense_share = 1 / 16  # lists and matrices take the same time at about d_sae/15 (docs/LOG.md)
        self._entries_per_row = 0.0
        self.capacity = Capacity()
        self.steering: Steering | None = None

    @property
    def coefficient(self) -> Float[Tensor, ""]:
        """The penalty's weight in the next step."""
        assert self.steering is not None, "the rule has made no tensors yet"
        return self.steering.coefficient

    def own_tensors(self, start: Float[Tensor, ""]) -> Params:
        """Biases that let k latents per row fire from the first step."""
        self.steering = Steering(self.config, start=self.start_coefficient, device=start.device)
        return {"b_enc": (-start).expand(self.d_sae).clone()}

    @abstractmethod
    def floor(self, params: Params) -> Tensor:
        """Above which pre-activation an entry matters to the step: 0-d or [d_sae]."""

    def look(self, batch: Batch, params: Params, *, score_dtype: torch.dtype) -> tuple[PerEntry, Entries]:
        """The entries above the floor, or all of them."""
        z, bias, floor = batch.inputs, params[self.bias], self.floor(params)
        if padded := select.lists_are_padded(z.device):
            self.capacity.fit(len(z), k=self.k, d_sae=self.d_sae, device=z.device)
        if self.looks_at_all:
            pre, entries = all_entries(batch, params, self.bias)
            n_above = (pre > floor).sum()
            if padded:
                self.capacity.note(n_above)
            else:
                entries = replace(entries, n_listed=int(n_above))
        elif padded:
            pre, entries = select.select_above_in(
                self.capacity, z, params["W_enc"], bias, floor, score_dtype=score_dtype
            )
        else:
            pre, entries = select.select_above(z, params["W_enc"], bias, floor, score_dtype=score_dtype)
        return pre, entries

    @property
    def looks_at_all(self) -> bool:
        """Whether the next step works on all entries: where the last ones listed too many."""
        return self._entries_per_row > self.dense_share * self.d_sae or self.dense_share == 0

    def last_level(self, params: Params, recent: Batch | None) -> Tensor:
        """The pre-activation above which exactly k latents per row are active on the last rows: near 0 where steering
        has done its work. 0 where the coefficient is fixed.
        """
        bias = params[self.bias]
        if recent is None or self.config.sparsity_coefficient != "auto":
            return bias.new_zeros(())
        n_active = self.k * int(recent.n_kept)
        pre, entries, _ = select.select_batch_topk(
            recent.inputs, params["W_enc"], bias + _LIFT, n_entries=2 * n_active, keep=recent.keep
        )
        ranked = (pre - _LIFT)[self.has_value(pre - _LIFT, entries, params)]
        return ranked.kthvalue(len(ranked) - n_active + 1).values if len(ranked) >= n_active else bias.new_zeros(())

    def has_value(self, pre: PerEntry, entries: Entries, params: Params) -> Tensor:
        """Which entries would have a value above 0 if their gate opened."""
        return torch.ones_like(pre, dtype=torch.bool)

    def after_step(self, outcome: Outcome, batch: Batch) -> None:
        """Steer by the L0 of the step, and choose the way of the next by how many entries this one had."""
        assert self.steering is not None
        self.steering.note((outcome.values > 0).sum() / batch.n_kept)
        if not select.lists_are_padded(batch.inputs.device):
            self._entries_per_row = outcome.entries.n_listed / max(len(batch.keep), 1)

    def look_at_capacity(self) -> bool:
        """After a step with padded lists: True where the next one has other shapes, a longer list or none at all."""
        before = self.looks_at_all
        grew = self.capacity.look()
        self._entries_per_row = self.capacity.largest / self.capacity.n_rows
        return grew or self.looks_at_all != before

    def state(self) -> dict[str, Any]:
        """Steering, and which way the next step works."""
        assert self.steering is not None
        own = {"capacity": self.capacity.state()} if self.capacity.size else {}
        return {"steering": self.steering.state(), "entries_per_row": self._entries_per_row, **own}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        assert self.steering is not None
        self.steering.load_state(state["steering"])
        self._entries_per_row = state["entries_per_row"]
        if "capacity" in state:
            self.capacity.load_state(state["capacity"])


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


class JumpReLU(ThresholdRule):
    """pre where it is above exp(log_threshold), with a penalty on L0; both reach the thresholds through a rectangular
    kernel (Rajamanoharan et al. 2024b, section 3 and appendix B).

    Differs: SAELens' default (Anthropic's) penalises tanh and lets the kernel's gradient reach the pre-activations.
    """

    start_coefficient = 1e-3

    def own_tensors(self, start: Float[Tensor, ""]) -> Params:
        """Biases 0, thresholds that let k latents per row fire."""
        bias = torch.zeros_like(super().own_tensors(start)["b_enc"])
        return {"b_enc": bias, "log_threshold": torch.zeros_like(bias) + start.clamp_min(1e-3).log()}

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


class Gated(ThresholdRule):
    """A gate path decides what fires, a magnitude path with shared weights how much; the penalty and an auxiliary
    reconstruction train the gate path (Rajamanoharan et al. 2024a, section 3.2).
    """

    bias = "b_gate"
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
