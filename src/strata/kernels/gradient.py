"""A gradient of a weight that is held as what fired, not as a matrix of the weight's size."""

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.kernels.entries import SparseEntries
from strata.kernels.operands import ByLatent, WholeRows


@dataclass(frozen=True)
class Part:
    """Σ over each latent's entries of amount · inputs[row], of one list of entries.

    Attributes:
        entries: the list.
        amounts: of each entry.
        inputs: a row for each of the entries' rows.
    """

    entries: SparseEntries
    amounts: Float[Tensor, " entries"]
    inputs: Float[Tensor, "rows d"]


@dataclass
class RowGradient:
    """The gradient of a weight [d_sae d], a sum of parts and of whole rows for a few latents.

    The optimiser consumes it latent by latent, so that no array of the weight's size is written. Parts are added in
    their order: micro-batches and ranks give the same sum, bit for bit, wherever they were computed.

    Attributes:
        parts: lists of entries.
        latents: those with a whole row beside their entries, each once, [few]; see `add_rows`. d_sae is padding, whose
            row is 0.
        rows: these rows, [few d].
    """

    parts: list[Part] = field(default_factory=list[Part])
    latents: Int[Tensor, " few"] | None = None
    rows: Float[Tensor, "few d"] | None = None

    def add_rows(self, latents: Int[Tensor, " few"], rows: Float[Tensor, "few d"]) -> None:
        """Add whole rows for some latents, no latent twice; once for each gradient."""
        assert self.latents is None, "rows were added before"
        self.latents, self.rows = latents, rows

    def dense(self) -> Float[Tensor, "d_sae d"]:
        """The matrix itself; for tests and where the optimiser wants one."""
        total = None
        for part in self.parts:
            found = part.entries.weight_gradient(part.amounts, part.inputs)
            total = found if total is None else total.add_(found)
        assert total is not None, "a gradient of whole rows alone is a matrix already"
        if self.latents is not None and self.rows is not None:
            total.index_add_(0, self.latents.clamp_max(len(total) - 1), self.rows)
        return total

    def by_latent(self, d_sae: int, like: Tensor) -> ByLatent:
        """All entries in the order of their latents.

        Args:
            d_sae: latents.
            like: a tensor on the same device, for a gradient without entries.
        """
        if not self.parts:
            none = torch.zeros(0, dtype=torch.int64, device=like.device)
            return ByLatent(none, like.new_zeros(0), none.new_zeros(d_sae + 1), like[:0])
        if len(self.parts) == 1:
            part = self.parts[0]
            return part.entries.by_latent(part.amounts, part.inputs)
        firsts = [0, *accumulate(part.entries.n_rows for part in self.parts)]
        rows = torch.cat([part.entries.rows + first for part, first in zip(self.parts, firsts, strict=False)])
        latents = torch.cat([part.entries.latents for part in self.parts])
        amounts = torch.cat([part.amounts for part in self.parts])
        inputs = torch.cat([part.inputs for part in self.parts])
        return SparseEntries(rows, latents, firsts[-1], d_sae).by_latent(amounts, inputs)

    def beside(self, d_sae: int, like: Tensor) -> WholeRows:
        """The whole rows beside the entries; arguments as of `by_latent`."""
        number_of = torch.full((d_sae + 1,), -1, dtype=torch.int32, device=like.device)  # the last one of padding
        if self.latents is None or self.rows is None:
            return WholeRows(like[:0], number_of[:d_sae])
        number_of[self.latents] = torch.arange(len(self.latents), dtype=torch.int32, device=like.device)
        return WholeRows(self.rows, number_of[:d_sae])


Gradient = Float[Tensor, "..."] | RowGradient


def matrix(gradient: Gradient) -> Tensor:
    """The gradient as a tensor, whichever way it is held."""
    return gradient.dense() if isinstance(gradient, RowGradient) else gradient


def total(gradients: list[Gradient]) -> Gradient:
    """The sum, in order."""
    if isinstance(gradients[0], RowGradient):
        return RowGradient([part for one in gradients if isinstance(one, RowGradient) for part in one.parts])
    found = matrix(gradients[0])
    for one in gradients[1:]:
        found = found + matrix(one)
    return found
