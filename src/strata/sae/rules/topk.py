"""TopK and BatchTopK: a fixed number of entries, per row or per batch."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.config.train import SAEConfig
from strata.kernels import select
from strata.kernels.capacity import Capacity
from strata.kernels.entries import Entries, SparseEntries
from strata.kernels.padded import PaddedEntries
from strata.sae.gates import Gate, JumpReLU
from strata.sae.gates import TopK as TopKGate
from strata.sae.rules.base import RECENT_ROWS, Batch, Params, PerEntry, Rule


class TopK(Rule):
    """The k largest pre-activations of every row (Gao et al. 2024, section 2.2)."""

    def look(self, batch: Batch, params: Params, *, score_dtype: torch.dtype) -> tuple[PerEntry, Entries]:
        """The k largest of every row."""
        pre, indices = select.select_topk(
            batch.inputs, params["W_enc"], params["b_enc"], self.k, score_dtype=score_dtype
        )
        kind = PaddedEntries if select.lists_are_padded(pre.device) else SparseEntries
        return pre.view(-1), kind.of_topk(indices, self.d_sae)

    def values(self, pre: PerEntry, entries: Entries, params: Params) -> PerEntry:
        """max(pre, 0)."""
        return pre.relu()

    def finished(self, params: Params, recent: Batch | None) -> tuple[Gate, Tensor]:
        """TopK with the same k."""
        return TopKGate(self.k), params["b_enc"]


class BatchTopK(TopK):
    """The k·rows largest positive pre-activations of the batch (Bussmann et al. 2024); for use, a threshold.

    The threshold is the one that gives exactly k per row on the last 8,192 training rows.

    Differs: the paper and SAELens average the smallest winner over the batches of the training.
    """

    n_recent_rows = RECENT_ROWS

    def __init__(self, config: SAEConfig, *, d_sae: int) -> None:
        super().__init__(config, d_sae=d_sae)
        self.capacity = Capacity()
        self._floor: Float[Tensor, ""] | None = None  # where the search starts; what it finds does not depend on it

    def look(self, batch: Batch, params: Params, *, score_dtype: torch.dtype) -> tuple[PerEntry, Entries]:
        """The k·n_kept largest positive entries of rows that count."""
        if select.lists_are_padded(batch.inputs.device):
            return self._look_in_list(batch, params, score_dtype=score_dtype)
        pre, entries, threshold = select.select_batch_topk(
            batch.inputs,
            params["W_enc"],
            params["b_enc"],
            n_entries=self.k * int(batch.keep.sum()),
            keep=batch.keep,
            floor=self._floor,
            score_dtype=score_dtype,
        )
        self._floor = 0.9 * threshold
        return pre, entries

    def _look_in_list(self, batch: Batch, params: Params, *, score_dtype: torch.dtype) -> tuple[PerEntry, Entries]:
        """The same without waiting for the device."""
        z = batch.inputs
        capacity = self.capacity.fit(len(z), k=self.k, d_sae=self.d_sae, device=z.device)
        pre, entries, floor = select.select_batch_topk_in(
            capacity,
            *(z, params["W_enc"], params["b_enc"]),
            k=self.k,
            keep=batch.keep,
            floor=self._floor,
            score_dtype=score_dtype,
        )
        if self._floor is None:
            self._floor = floor
        else:
            self._floor.copy_(floor)  # in place: a recorded step finds it where it was
        return pre, entries

    def look_at_capacity(self) -> bool:
        """After a step with padded lists: True where the next one's is longer."""
        return self.capacity.look()

    def state(self) -> dict[str, Any]:
        """Where the search starts, where that matters."""
        return {"floor": self._floor, "capacity": self.capacity.state()} if self.capacity.size else {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        if state:
            self._floor = None if state["floor"] is None else state["floor"].clone()
            self.capacity.load_state(state["capacity"])

    @property
    def n_searched_per_row(self) -> float:
        """Those above the guess of the search."""
        return 2.0 * self.k

    def finished(self, params: Params, recent: Batch | None) -> tuple[Gate, Tensor]:
        """JumpReLU with one threshold for all latents."""
        threshold = torch.zeros(self.d_sae, device=params["b_enc"].device)
        if recent is not None:
            _, _, found = select.select_batch_topk(
                recent.inputs, params["W_enc"], params["b_enc"], n_entries=self.k * int(recent.n_kept), keep=recent.keep
            )
            threshold += found * (1 - 1e-6)  # the gate fires above it
        return JumpReLU(threshold), params["b_enc"]
