"""Learning rate, schedule, and the optimiser of an SAE's tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.config.train import SAEConfig
from strata.durations import Duration
from strata.kernels.gradient import Gradient, matrix
from strata.kernels.operands import BETAS, EPS
from strata.sae.row_adam import RowAdam

# Peak learning rate of the encoder at 16,384 latents and 4,096 rows per step, and how much faster the other tensors go:
# a bias has to move by as much as a pre-activation, a weight only by 1/√d_in of that. Chosen by the runs in
# docs/LOG.md.
_BASE_LR = 1.53e-3
_RATES = {"W_enc": 1.0, "W_dec": 4.0, "b_dec": 1.0, "W_skip": 1.0}  # the others' stand with their rule
_BASE_LATENTS = 2**14
_BASE_ROWS = 4096


def auto_learning_rate(*, d_sae: int, batch_size: int) -> float:
    """Peak learning rate when none is given: 1.53e-3 · √(2^14/d_sae) · √(batch_size/4096), capped at 1e-2.

    The dependence on width follows Gao et al. 2024 (2e-4/√(d_sae/2^14)), the square root of the batch size is usual for
    Adam, and the constant is chosen for low held-out FVU and few silent latents after short runs (docs/LOG.md).
    Differs: peers use 2e-4 to 1e-3 at this width, which a long run needs less than a short one suffers from.
    """
    return min(1e-2, _BASE_LR * (_BASE_LATENTS / d_sae) ** 0.5 * (batch_size / _BASE_ROWS) ** 0.5)


class Schedule:
    """Linear warm-up from 0 to the peak, constant, linear decay to 0."""

    def __init__(self, config: SAEConfig, *, d_sae: int, n_steps: int) -> None:
        def steps(setting: str) -> int:
            duration = Duration.parse(getattr(config, setting), setting=f"SAEConfig.{setting}")
            return duration.steps(n_steps=n_steps, batch_size=config.batch_size)

        self.peak = auto_learning_rate(d_sae=d_sae, batch_size=config.batch_size) if config.lr == "auto" else config.lr
        self.warmup_steps, self.decay_steps, self.n_steps = steps("warmup"), steps("decay"), n_steps

    def at(self, step: int) -> float:
        """Learning rate of the step (counted from 0)."""
        rising = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        falling = (self.n_steps - step) / self.decay_steps if self.decay_steps else 1.0
        return self.peak * min(1.0, rising, max(falling, 0.0))


class UnitRowAdam:
    """Adam over the tensors of an SAE that keeps the decoder's rows at unit norm and leaves alone what did not fire.

    A latent's rows of encoder and decoder move in the steps in which it is listed (it fired, nearly fired, or is to be
    revived); their moments then decay by as many steps as have passed. The part of the decoder's gradient along its
    row is removed first (it would only change the norm), and the row is renormalised after the update (Bricken et al.
    2023).

    Differs: dense Adam, which peers use, goes on moving a latent for some ten steps after it fired, in the direction
    in which it last went. Peers give all tensors one learning rate; here the encoder's bias learns 10 times and the
    decoder 4 times as fast.

    Args:
        params: W_enc [d_sae d_in], W_dec [d_sae d_out], b_dec [d_out] and the learning rule's own, updated in place.
        rates: of the rule's own; see `Rule.rates`.
    """

    def __init__(self, params: dict[str, torch.Tensor], *, rates: Mapping[str, float]) -> None:
        self.params = params
        self._rates = {**_RATES, **rates}
        self.rows = {name: RowAdam(params[name], unit_rows=name == "W_dec") for name in ("W_enc", "W_dec")}
        groups = [
            {"params": [tensor], "factor": self._rates[name]}
            for name, tensor in params.items()
            if name not in self.rows
        ]
        self._device = params["W_enc"].device
        on_cuda = self._device.type == "cuda"
        self.adam = torch.optim.Adam(groups, lr=0.0, betas=BETAS, eps=EPS, fused=True, capturable=on_cuda)
        if on_cuda:  # warm-up steps run unrecorded; PyTorch would warn of that
            self.adam.__dict__["_warned_capturable_if_run_uncaptured"] = True
        self._n_steps: Int[Tensor, ""] = torch.zeros((), dtype=torch.int32, device=self._device)

    def rate_of(self, name: str, lr: float | Float[Tensor, ""]) -> float | Float[Tensor, ""]:
        """The learning rate of a tensor when the encoder's is `lr`."""
        return lr * self._rates[name]

    @torch.no_grad()
    def step(self, gradients: dict[str, Gradient], *, lr: float | Float[Tensor, ""]) -> None:
        """One update with `lr` for the encoder. `gradients` has the keys of `params`. Nothing changes on the host, so
        that it can be recorded, where `lr` is on the device.
        """
        self._n_steps += 1
        for name, param in self.params.items():
            if name in self.rows:
                self.rows[name].step(gradients[name], rate=self.rate_of(name, lr), step=self._n_steps)
            else:
                param.grad = matrix(gradients[name])
        for group in self.adam.param_groups:
            group["lr"] = lr * group["factor"]
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def forget(self, latents: Tensor) -> None:
        """Reset all moments of some latents."""
        for rows in self.rows.values():
            rows.forget(latents)
        for name, tensor in self.params.items():
            state = self.adam.state.get(tensor, {})
            if name not in ("b_dec", "W_skip") and state:
                state["exp_avg"][latents], state["exp_avg_sq"][latents] = 0, 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint. Waits for the device."""
        rows = {name: one.state() for name, one in self.rows.items()}
        adam = self.adam.state_dict()
        for group in adam["param_groups"]:
            group["lr"] = float(group["lr"])
        return {"n_steps": int(self._n_steps), "rows": rows, "adam": adam}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self._n_steps.fill_(state["n_steps"])
        self.adam.load_state_dict(state["adam"])
        for group in self.adam.param_groups:
            group["capturable"] = self._device.type == "cuda"  # wherever the checkpoint was made
        for name, rows in self.rows.items():
            rows.load_state(state["rows"][name])
