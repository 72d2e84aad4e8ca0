"""TopK and BatchTopK: a fixed number of entries, per row or per batch."""

import torch
from jaxtyping import Float
from torch import Tensor

from strata.kernels import select
from strata.kernels.entries import Entries, SparseEntries
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
        return pre.view(-1), SparseEntries.of_topk(indices, self.d_sae)

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

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._floor: Float[Tensor, ""] | None = None  # where the search starts; what it finds does not depend on it

    def look(self, batch: Batch, params: Params, *, score_dtype: torch.dtype) -> tuple[PerEntry, Entries]:
        """The k·n_kept largest positive entries of rows that count."""
        pre, entries, threshold = select.select_batch_topk(
            batch.inputs,
            params["W_enc"],
            params["b_enc"],
            n_entries=self.k * int(batch.n_kept),
            keep=batch.keep,
            floor=self._floor,
            score_dtype=score_dtype,
        )
        self._floor = 0.9 * threshold
        return pre, entries

    def finished(self, params: Params, recent: Batch | None) -> tuple[Gate, Tensor]:
        """JumpReLU with one threshold for all latents."""
        threshold = torch.zeros(self.d_sae, device=params["b_enc"].device)
        if recent is not None:
            _, _, found = select.select_batch_topk(
                recent.inputs, params["W_enc"], params["b_enc"], n_entries=self.k * int(recent.n_kept), keep=recent.keep
            )
            threshold += found * (1 - 1e-6)  # the gate fires above it
        return JumpReLU(threshold), params["b_enc"]
