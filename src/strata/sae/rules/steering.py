"""Steering the sparsity coefficient, so that L0 becomes what `k` names."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.config.train import SAEConfig

_MEMORY = 0.9  # of the running mean of L0: some ten steps
_INTEGRAL = 0.06  # change of log λ per step and unit of log(L0/k)
_PROPORTIONAL = 2.0
_LARGEST_ERROR = 1.0  # of log(L0/k) that counts: λ's integral at most doubles in 12 steps


class Steering:
    """A proportional-integral controller on the logarithm of the coefficient λ: it rises while L0 is above k.

    Everything stays on the device, and its tensors where they are.

    Args:
        config: with k and perhaps a fixed coefficient.
        start: λ at the start.
        device: of the SAE.

    Attributes:
        coefficient: λ of the next step, in units of loss per active latent (JumpReLU) or per unit of L1.

    Differs: peers leave λ to the user. Rajamanoharan et al. 2024b propose a loss (L0/k − 1)² instead, whose gradient
    needs a coefficient of its own.
    """

    def __init__(self, config: SAEConfig, *, start: float, device: torch.device) -> None:
        self._k, self._fixed = config.k, config.sparsity_coefficient != "auto"
        first = start if config.sparsity_coefficient == "auto" else config.sparsity_coefficient
        self.coefficient: Float[Tensor, ""] = torch.tensor(float(first), device=device)
        self._integral: Float[Tensor, ""] = self.coefficient.log()
        self._mean_l0: Float[Tensor, ""] = torch.tensor(float(config.k), device=device)

    def note(self, l0: Float[Tensor, ""]) -> None:
        """The mean L0 of a step."""
        if self._fixed:
            return
        self._mean_l0.copy_(_MEMORY * self._mean_l0 + (1 - _MEMORY) * l0)
        error = (self._mean_l0.clamp_min(1e-3) / self._k).log().clamp(-_LARGEST_ERROR, _LARGEST_ERROR)
        self._integral.copy_(self._integral + _INTEGRAL * error)
        self.coefficient.copy_((self._integral + _PROPORTIONAL * error).exp())

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"coefficient": self.coefficient, "integral": self._integral, "mean_l0": self._mean_l0}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.coefficient.copy_(state["coefficient"])
        self._integral.copy_(state["integral"])
        self._mean_l0.copy_(state["mean_l0"])
