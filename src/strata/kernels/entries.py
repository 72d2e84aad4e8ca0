"""The entries of a batch's code that a step looks at: the few that may be non-zero, or all of them.

A step is written once, in terms of entries (pairs of a row and a latent): `SparseEntries` touches only those that it
lists, `DenseEntries` is the same arithmetic by matrix products, for codes that are not sparse yet.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

Weight = Float[Tensor, "d_sae _"]
PerEntry = Float[Tensor, "..."]
PerLatent = Float[Tensor, " d_sae"]


@dataclass(frozen=True)
class SparseEntries:
    """A list of entries in the order of their rows.

    Attributes:
        rows: the row of each entry, ascending, [entries].
        latents: the latent of each entry, [entries].
        n_rows: rows of the batch.
        d_sae: latents of the SAE.
    """

    rows: Int[Tensor, " entries"]
    latents: Int[Tensor, " entries"]
    n_rows: int
    d_sae: int

    @classmethod
    def of_topk(cls, indices: Int[Tensor, "rows k"], d_sae: int) -> "SparseEntries":
        """The entries of a code with exactly k of them in each row."""
        n_rows, k = indices.shape
        rows = torch.arange(n_rows, device=indices.device).repeat_interleave(k)
        return cls(rows, indices.reshape(-1), n_rows, d_sae)

    @cached_property
    def _by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """Entries sorted by latent: their rows, their places in the list, and where each latent's begin."""
        order = torch.sort(self.latents.to(torch.int32), stable=True).indices
        return self.rows[order], order, _starts(self.latents, self.d_sae)

    @cached_property
    def _row_starts(self) -> Int[Tensor, " rows"]:
        return _starts(self.rows, self.n_rows)

    def per_entry(self, amounts: PerLatent) -> PerEntry:
        """What each entry's latent has."""
        return amounts[self.latents]

    def per_row(self, amounts: Float[Tensor, " rows"]) -> PerEntry:
        """What each entry's row has."""
        return amounts[self.rows]

    def sum_by_latent(self, amounts: PerEntry) -> PerLatent:
        """Σ over a latent's entries."""
        return amounts.new_zeros(self.d_sae).index_add_(0, self.latents, amounts)

    def decode(self, values: PerEntry, weight: Weight) -> Float[Tensor, "rows _"]:
        """Σ over a row's entries of value · weight[latent]."""
        return torch.nn.functional.embedding_bag(
            self.latents, weight, self._row_starts, per_sample_weights=values, mode="sum"
        )

    def dot(self, a: Float[Tensor, "rows _"], weight: Weight) -> PerEntry:
        """⟨a[row], weight[latent]⟩ of every entry."""
        return dot(a, self.rows, weight, self.latents)

    def weight_gradient(self, amounts: PerEntry, inputs: Float[Tensor, "rows _"]) -> Weight:
        """Σ over a latent's entries of amount · inputs[row]: of the decoder (inputs = ∂L/∂ẑ) or the encoder (inputs =
        the rows).
        """
        rows, order, starts = self._by_latent
        return torch.nn.functional.embedding_bag(rows, inputs, starts, per_sample_weights=amounts[order], mode="sum")

    def note_fired(self, last_fired: Int[Tensor, " d_sae"], values: PerEntry, now: int) -> None:
        """Set `now` for the latents that have a value above 0."""
        times = torch.where(values > 0, now, 0).to(last_fired.dtype)
        last_fired.scatter_reduce_(0, self.latents, times, reduce="amax")


@dataclass(frozen=True)
class DenseEntries:
    """All entries of a batch, [rows d_sae]: per-entry amounts are matrices."""

    n_rows: int
    d_sae: int

    def per_entry(self, amounts: PerLatent) -> PerEntry:
        """What each entry's latent has, to be broadcast over the rows."""
        return amounts

    def per_row(self, amounts: Float[Tensor, " rows"]) -> PerEntry:
        """What each entry's row has, to be broadcast over the latents."""
        return amounts.unsqueeze(1)

    def sum_by_latent(self, amounts: PerEntry) -> PerLatent:
        """Σ over rows."""
        return amounts.sum(0)

    def decode(self, values: PerEntry, weight: Weight) -> Float[Tensor, "rows _"]:
        """Code times decoder."""
        return values @ weight

    def dot(self, a: Float[Tensor, "rows _"], weight: Weight) -> PerEntry:
        """⟨a[row], weight[latent]⟩ of every pair."""
        return a @ weight.t()

    def weight_gradient(self, amounts: PerEntry, inputs: Float[Tensor, "rows _"]) -> Weight:
        """Σ over rows of amount · inputs[row]."""
        return amounts.t() @ inputs

    def note_fired(self, last_fired: Int[Tensor, " d_sae"], values: PerEntry, now: int) -> None:
        """Set `now` for the latents that have a value above 0."""
        last_fired.masked_fill_((values > 0).any(0), now)


Entries = SparseEntries | DenseEntries


def dot(
    a: Float[Tensor, "bags _"], bags: Int[Tensor, " entries"], weight: Weight, latents: Int[Tensor, " entries"]
) -> Float[Tensor, " entries"]:
    """⟨a[bag], weight[latent]⟩ for pairs of the two, by the per-sample-weights backward of `embedding_bag`: no
    [entries d_in] gather.
    """
    unused = latents.new_zeros(1)  # offsets: the bags are named entry by entry
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(a, weight, latents, unused, bags, 0)


def _starts(sorted_or_not: Int[Tensor, " entries"], n: int) -> Int[Tensor, " n"]:
    """Where the entries of each number in [0, n) begin once they are sorted."""
    counts = torch.bincount(sorted_or_not, minlength=n)
    return counts.cumsum(0) - counts
