"""Adam on a weight whose rows belong to latents: a row moves in the steps in which its latent is listed."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.kernels.backend import kernels
from strata.kernels.gradient import Gradient, RowGradient


class RowAdam:
    """Adam (Kingma & Ba 2015) over the rows of one weight, each with its own clock.

    A row that is listed in step t and was last in step t' < t has its moments decayed by β^(t − t') before the new
    gradient is added, and moves by the learning rate times first/(1 − β₁^t) over √(second/(1 − β₂^t)) + ε. For rows
    that are listed in every step this is Adam. Rows that are not stay as they are.

    Differs: `torch.optim.SparseAdam` does not decay the moments of the steps between; dense Adam moves the row in them.

    Args:
        weight: [d_sae d], updated in place.
        unit_rows: its rows have unit norm and keep it.

    Attributes:
        first: running mean of the gradients, [d_sae d].
        second: running mean of their squares, [d_sae d].
        last_step: of each row the step of its last update, from 1, 0 before the first, [d_sae].
    """

    def __init__(self, weight: Float[Tensor, "d_sae d"], *, unit_rows: bool) -> None:
        self.weight, self.unit_rows = weight, unit_rows
        self.first, self.second = torch.zeros_like(weight), torch.zeros_like(weight)
        self.last_step: Int[Tensor, " d_sae"] = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        self._rate = torch.zeros((), device=weight.device)
        self._step = torch.zeros((), dtype=torch.int32, device=weight.device)

    def step(self, gradient: Gradient, *, rate: float | Float[Tensor, ""], step: int | Int[Tensor, ""]) -> None:
        """One update.

        Args:
            gradient: of the weight.
            rate: learning rate; on the device where the step is recorded.
            step: its number, from 1; likewise.
        """
        self._rate.fill_(rate)
        self._step.fill_(step)
        held = gradient if isinstance(gradient, RowGradient) else _of_all_rows(gradient)
        rows, amounts, starts, inputs = held.by_latent(len(self.weight), self.weight)
        extra, extra_of = held.extra(len(self.weight), self.weight)
        kernels(self.weight.device).adam_rows_(
            self.weight,
            self.first,
            self.second,
            self.last_step,
            rows=rows,
            amounts=amounts,
            starts=starts,
            inputs=inputs,
            extra=extra,
            extra_of=extra_of,
            rate=self._rate,
            step=self._step,
            unit_rows=self.unit_rows,
        )

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"first": self.first, "second": self.second, "last_step": self.last_step}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        for name in ("first", "second", "last_step"):
            getattr(self, name).copy_(state[name])


def _of_all_rows(gradient: Float[Tensor, "d_sae d"]) -> RowGradient:
    every = torch.arange(len(gradient), device=gradient.device)
    return RowGradient(latents=every, rows=gradient)
