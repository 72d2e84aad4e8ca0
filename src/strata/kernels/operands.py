"""What the kernels are given: names of the shapes, a gradient listed by latent, a weight with Adam's moments."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

Weight = Float[Tensor, "d_sae d_in"]
Rows = Float[Tensor, "rows d_in"]
Bias = Float[Tensor, " d_sae"]
PerEntry = Float[Tensor, " entries"]
Places = Int[Tensor, " entries"]
RowStarts = Int[Tensor, " rows"]
LatentStarts = Int[Tensor, " latents_and_end"]

BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam, in every kernel


@dataclass(frozen=True)
class ByLatent:
    """Entries in the order of their latents: Σ over a latent's entries of amount · inputs[row] is its row of a weight's
    gradient.

    Attributes:
        rows: of each entry.
        amounts: of each entry.
        starts: where each latent's entries begin, with the end: [d_sae + 1].
        inputs: what the rows number.
    """

    rows: Places
    amounts: PerEntry
    starts: LatentStarts
    inputs: Float[Tensor, "inputs d"]


@dataclass(frozen=True)
class WholeRows:
    """Rows of a gradient beside its entries, for a few latents.

    Attributes:
        rows: one for each of the few.
        number_of: of each latent the number of its row (int32), -1 without.
    """

    rows: Float[Tensor, "few d"]
    number_of: Int[Tensor, " d_sae"]


@dataclass(frozen=True)
class AdamRows:
    """A weight and what Adam remembers of each of its rows; all of it is updated in place.

    Attributes:
        weight: fp32, contiguous.
        first: mean of the gradients.
        second: mean of their squares.
        last_step: of each row the step of its last update, from 1 (int32); 0 before the first.
        unit_rows: rows have unit norm and keep it: the part of the gradient along a row is taken out first, and the row
            is normalised afterwards.
    """

    weight: Weight
    first: Weight
    second: Weight
    last_step: Int[Tensor, " d_sae"]
    unit_rows: bool
