"""Entries in a list of fixed length, for devices that nobody waits for: how many there are, only the device knows."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strata.kernels import triton
from strata.kernels.entries import PerEntry, PerLatent, SparseEntries, Weight, any_by_latent
from strata.kernels.operands import ByLatent, RowStarts


@dataclass(frozen=True)
class PaddedEntries(SparseEntries):
    """Entries among padding, an arithmetic in which padding counts nowhere.

    Padding has the latent d_sae, wherever it stands, and behind the last entry the row n_rows. What it is asked for per
    row is 0, so that its value is 0, and its gradient too; no latent is listed by it.
    """

    @cached_property
    def _bounds(self) -> Int[Tensor, " rows_and_end"]:
        """Where each row's entries begin, and where the last row's end."""
        return torch.searchsorted(self.rows, torch.arange(self.n_rows + 1, device=self.rows.device))

    @cached_property
    def row_starts(self) -> RowStarts:
        """Where each row's entries begin."""
        return self._bounds[:-1]

    @property
    def n_listed(self) -> int:
        """The length of the list; what is in it only the device knows (`capacity`)."""
        return len(self.latents)

    def kept(self, kept: Tensor) -> "PaddedEntries":
        """The list with padding where `kept` is False."""
        return replace(self, latents=torch.where(kept, self.latents, self.d_sae))

    def per_entry(self, amounts: PerLatent) -> PerEntry:
        """What each entry's latent has; of padding anything."""
        return amounts[self.latents.clamp_max(self.d_sae - 1)]

    def per_row(self, amounts: Float[Tensor, " rows"]) -> PerEntry:
        """What each entry's row has; 0 for padding."""
        return torch.where(self.latents < self.d_sae, amounts[self.rows.clamp_max(self.n_rows - 1)], 0.0)

    def sum_by_latent(self, amounts: PerEntry) -> PerLatent:
        """Σ over a latent's entries, in their order: on CUDA `index_add_` takes any."""
        order, starts = self._order
        listed = ByLatent(torch.zeros_like(order), amounts[order], starts, amounts.new_ones(1, 1))
        return triton.row_sums(listed).squeeze(1)

    def decode(self, values: PerEntry, weight: Weight) -> Float[Tensor, "rows _"]:
        """Σ over a row's entries of value · weight[latent]."""
        return triton.decode(values, self.latents, self.row_starts, weight, end=self._bounds[-1])

    def residual(
        self, values: PerEntry, weight: Weight, target: Float[Tensor, "rows _"], keep: Float[Tensor, " rows"]
    ) -> tuple[Float[Tensor, "rows _"], PerEntry]:
        """(target − decoded) · keep, and of every entry ⟨its row of that, weight[latent]⟩."""
        end = self._bounds[-1]
        return triton.residual(values, self.rows, self.latents, self.row_starts, weight, target, keep, end=end)

    def fired(self, values: PerEntry) -> Bool[Tensor, " d_sae"]:
        """Which latents have a value above 0."""
        return any_by_latent(self.latents.clamp_max(self.d_sae - 1), values > 0, self.d_sae)
