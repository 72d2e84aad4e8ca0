"""Adam on a weight whose rows belong to latents: a row moves in the steps in which its latent is listed."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.kernels.backend import kernels
from strata.kernels.gradient import Gradient, RowGradient
from strata.kernels.operands import AdamRows


class RowAdam:
    """Adam (Kingma & Ba 2015) over the rows of one weight, each with its own clock.

    A row that is listed in step t and was last in step t' < t has its moments decayed by β^(t − t') before the new
    gradient is added, and moves by the learning rate times first/(1 − β₁^t) over √(second/(1 − β₂^t)) + ε. For rows
    that are listed in every step this is Adam. Rows that are not stay as they are.

    Differs: `torch.optim.SparseAdam` does not decay the moments of the steps between; dense Adam moves the row in them.

    Args:
        weight: [d_sae d], updated in place.
        unit_rows: its rows have unit norm and keep it.
    """

    def __init__(self, weight: Float[Tensor, "d_sae d"], *, unit_rows: bool) -> None:
        last_step = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        self._held = AdamRows(weight, torch.zeros_like(weight), torch.zeros_like(weight), last_step, unit_rows)
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
        weight = self._held.weight
        listed = gradient if isinstance(gradient, RowGradient) else _of_all_rows(gradient)
        kernels(weight.device).adam_rows_(
            self._held,
            listed.by_latent(len(weight), weight),
            listed.beside(len(weight), weight),
            rate=self._rate,
            step=self._step,
        )

    def forget(self, latents: Int[Tensor, " some"]) -> None:
        """Reset the moments of some rows."""
        self._held.first[latents], self._held.second[latents] = 0, 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"first": self._held.first, "second": self._held.second, "last_step": self._held.last_step}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


def _of_all_rows(gradient: Float[Tensor, "d_sae d"]) -> RowGradient:
    every = torch.arange(len(gradient), device=gradient.device)
    return RowGradient(latents=every, rows=gradient)
