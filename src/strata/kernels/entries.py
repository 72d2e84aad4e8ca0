"""The entries of a batch's code that a step looks at: the few that may be non-zero, or all of them.

A step is written once, in terms of entries (pairs of a row and a latent): `SparseEntries` touches only those that it
lists, `DenseEntries` is the same arithmetic by matrix products, for codes that are not sparse yet.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strata.kernels.backend import kernels
from strata.kernels.operands import ByLatent, LatentStarts, Places, RowStarts

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

    rows: Places
    latents: Places
    n_rows: int
    d_sae: int

    @classmethod
    def of_topk(cls, indices: Int[Tensor, "rows k"], d_sae: int) -> "SparseEntries":
        """The entries of a code with exactly k of them in each row."""
        n_rows, k = indices.shape
        rows = torch.arange(n_rows, device=indices.device).repeat_interleave(k)
        return cls(rows, indices.reshape(-1), n_rows, d_sae)

    @cached_property
    def _order(self) -> tuple[Places, LatentStarts]:
        """The entries' places in the order of their latents, and where each latent's begin, with the end."""
        return kernels(self.latents.device).by_latent(self.latents, self.d_sae)

    @cached_property
    def _rows_by_latent(self) -> Places:
        """The entries' rows in the order of their latents."""
        return self.rows.index_select(0, self._order[0])

    def by_latent(self, amounts: PerEntry, inputs: Float[Tensor, "rows _"]) -> ByLatent:
        """Amounts of the entries and the inputs that go with their rows, in the order of latents."""
        order, starts = self._order
        return ByLatent(self._rows_by_latent, amounts.index_select(0, order), starts, inputs)

    @cached_property
    def row_starts(self) -> RowStarts:
        """Where each row's entries begin."""
        counts = torch.bincount(self.rows, minlength=self.n_rows)
        return counts.cumsum(0) - counts

    @property
    def n_listed(self) -> int:
        """How many there are."""
        return len(self.latents)

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
        return kernels(weight.device).decode(values, self.latents, self.row_starts, weight)

    def residual(
        self, values: PerEntry, weight: Weight, target: Float[Tensor, "rows _"], keep: Float[Tensor, " rows"]
    ) -> tuple[Float[Tensor, "rows _"], PerEntry]:
        """(target − decoded) · keep, and of every entry ⟨its row of that, weight[latent]⟩."""
        ops = kernels(weight.device)
        return ops.residual(values, self.rows, self.latents, self.row_starts, weight, target, keep)

    def dot(self, a: Float[Tensor, "rows _"], weight: Weight) -> PerEntry:
        """⟨a[row], weight[latent]⟩ of every entry."""
        return kernels(weight.device).dot(a, self.rows, weight, self.latents)

    def weight_gradient(self, amounts: PerEntry, inputs: Float[Tensor, "rows _"]) -> Weight:
        """Σ over a latent's entries of amount · inputs[row]: of the decoder (inputs = ∂L/∂ẑ) or the encoder (inputs =
        the rows).
        """
        return kernels(inputs.device).row_sums(self.by_latent(amounts, inputs))

    def fired(self, values: PerEntry) -> Bool[Tensor, " d_sae"]:
        """Which latents have a value above 0."""
        return any_by_latent(self.latents, values > 0, self.d_sae)


@dataclass(frozen=True)
class DenseEntries:
    """All entries of a batch, [rows d_sae]: per-entry amounts are matrices.

    Attributes:
        n_rows: rows of the batch.
        d_sae: latents of the SAE.
        n_listed: how many a list of those that matter would hold.
    """

    n_rows: int
    d_sae: int
    n_listed: int = 0

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

    def residual(
        self, values: PerEntry, weight: Weight, target: Float[Tensor, "rows _"], keep: Float[Tensor, " rows"]
    ) -> tuple[Float[Tensor, "rows _"], PerEntry]:
        """(target − decoded) · keep, and ⟨its rows, weight[latent]⟩ of all pairs."""
        left = (target - self.decode(values, weight)) * keep.unsqueeze(1)
        return left, self.dot(left, weight)

    def weight_gradient(self, amounts: PerEntry, inputs: Float[Tensor, "rows _"]) -> Weight:
        """Σ over rows of amount · inputs[row]."""
        return amounts.t() @ inputs

    def fired(self, values: PerEntry) -> Bool[Tensor, " d_sae"]:
        """Which latents have a value above 0."""
        return (values > 0).any(0)


Entries = SparseEntries | DenseEntries


def any_by_latent(latents: Places, holds: Bool[Tensor, " entries"], d_sae: int) -> Bool[Tensor, " d_sae"]:
    """Of which latents it holds for some entry."""
    found = torch.zeros(d_sae, dtype=torch.int32, device=latents.device)
    return found.scatter_reduce_(0, latents, holds.int(), reduce="amax") > 0
