"""What the benchmarks need of an SAE trainer."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Contender(Protocol):
    """One TopK SAE in training; rows are fp32 [rows d_in] in the model's own scale, on the contender's device.

    Made with the keywords d_in, d_sae, k, lr (None: the trainer's own default), n_steps (of the run that its schedules
    believe in), n_rows (per step), seed and device.
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
