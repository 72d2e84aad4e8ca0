"""What the benchmarks need of an SAE trainer."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Given:
    """What every contender is told.

    Attributes:
        d_in: width of the rows.
        d_sae: latents, any number.
        k: active latents per row.
        lr: learning rate; None is the trainer's own default.
        n_steps: of the run that its schedules believe in.
        n_rows: per step.
        seed: of the initial weights.
        device: where it trains.
    """

    d_in: int
    d_sae: int
    k: int
    lr: float | None
    n_steps: int
    n_rows: int = 4096
    seed: int
    device: torch.device


@runtime_checkable
class Contender(Protocol):
    """One TopK SAE in training; rows are fp32 [rows d_in] in the model's own scale, on the contender's device.

    Made from what is `Given`, and keywords of its own.
    """

    def prepare(self, sample: Float[Tensor, "sample d_in"]) -> None:
        """Whatever is estimated from data before the first step, e.g. a scale. Not part of the step's time."""
        ...

    def step(self, x: Float[Tensor, "rows d_in"]) -> object:
        """One whole optimisation step."""
        ...

    def reconstruct(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """Reconstruction, as a user of the trained SAE would get it. Training can go on as if nothing had been."""
        ...

    def codes(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """Latents, dense."""
        ...
