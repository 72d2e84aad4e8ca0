"""What rules have in common whose latents fire where they are above a floor: the penalty's coefficient is steered until
L0 is k.
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
from strata.sae.rules.base import RECENT_ROWS, Batch, Outcome, Params, PerEntry, Rule, all_entries
from strata.sae.rules.steering import Steering

_LIFT = 10.0  # added to scores, so that a search among the positive ones finds those below 0 too


class ThresholdRule(Rule):
    """A rule with a floor; abstract.

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

    @property
    def n_searched_per_row(self) -> float:
        """Those above the guess of a search for twice k."""
        return 4.0 * self.k

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
