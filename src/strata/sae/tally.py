"""Sums over a learner's steps since they were last read."""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from strata.sae.rules.base import Batch, Outcome


@dataclass(frozen=True, kw_only=True)
class Means:
    """What the steps between two readings came to; 0 of none.

    Attributes:
        loss: with all its terms, per step.
        fvu: the reconstruction's share of it, per step.
        l0: active latents per row that counts.
        outlier_share: of rows masked as attention sinks.
        relative_length: how far rows that count lie from the site's median row, over the usual distance.
    """

    loss: float
    fvu: float
    l0: float
    outlier_share: float
    relative_length: float


class Tally:
    """The sums, on the device; nobody waits for it but where they are read.

    Args:
        device: of the learner.

    Attributes:
        sums: loss, reconstruction error, active latents, rows that count, rows, relative lengths, steps: [7].
    """

    def __init__(self, device: torch.device) -> None:
        self.sums: Float[Tensor, " sums"] = torch.zeros(7, device=device)

    def add(self, outcome: Outcome, batch: Batch, *, revival: Float[Tensor, ""]) -> None:
        """Count a step, whose revival term has this value."""
        total = outcome.loss + outcome.penalty + revival
        active, lengths = (outcome.values > 0).sum(), (batch.lengths * batch.keep).sum()
        n_rows, one = torch.full_like(total, len(batch.keep)), torch.ones_like(total)
        self.sums += torch.stack([total, outcome.loss, active, batch.n_kept, n_rows, lengths, one])

    def read(self) -> Means:
        """The means since the last reading. Waits for the device."""
        total, loss, active, kept, rows, lengths, steps = cast("list[float]", self.sums.tolist())
        self.sums.zero_()
        steps = max(steps, 1)
        return Means(
            loss=total / steps,
            fvu=loss / steps,
            l0=active / max(kept, 1),
            outlier_share=1 - min(kept, rows) / rows if rows else 0.0,
            relative_length=lengths / max(kept, 1),
        )
