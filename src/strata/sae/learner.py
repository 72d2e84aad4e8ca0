"""An SAE that is being trained: weights, optimiser, normalisation, firing record, and the fast step."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.config import SAEConfig
from strata.errors import UserError
from strata.kernels import pytorch as kernels
from strata.sae import revival
from strata.sae.gates import make_gate
from strata.sae.model import SAE
from strata.sae.normalization import Normalization
from strata.sae.optim import Schedule, UnitRowAdam, unit_rows_

_REVIVAL_ROWS = 512  # rows of a batch that the revival term looks at
_REVIVAL_LATENTS = 1024  # dead latents it can hold at once, the longest silent first
_REVIVAL_REFRESH_STEPS = 10  # steps between two looks for dead latents


class Learner:
    """One SAE in training, in the normalised space of its site.

    The rows of the step are shifted by b_dec once, which folds it out of encoder and decoder: with u = z − b_dec the
    code is gate(u W_enc + b_enc) and the residual u − code W_dec.

    Args:
        config: the SAE and its training.
        n_steps: steps of the whole run, for the schedule.
        sample: shuffled rows [n d_in] from which normalisation and initial scale are taken.
        site: name of the rows' site, for errors and the SAE's metadata.
        score_dtype: precision in which winners are selected; bf16 pays where the hardware multiplies it fast.
        init: an SAE to start from (warm start) instead of random weights.
    """

    def __init__(
        self,
        config: SAEConfig,
        *,
        n_steps: int,
        sample: Float[Tensor, "n d_in"],
        site: str = "the activations",
        score_dtype: torch.dtype = torch.float32,
        init: SAE | None = None,
    ) -> None:
        self.config, self.site, self.score_dtype, self.n_steps = config, site, score_dtype, n_steps
        d_in = sample.shape[1]
        self.d_sae = config.d_sae(d_in)
        self.gate = make_gate(config.architecture, k=config.k)
        self.normalization = Normalization.estimate(sample, site=site)
        self.params = self._random_weights(sample) if init is None else self._weights_of(init, d_in)
        self.optimizer = UnitRowAdam(self.params)
        self.schedule = Schedule(config, d_sae=self.d_sae, n_steps=n_steps)
        self.window_steps = config.window_steps(n_steps)
        self.n_steps_done = 0
        device = sample.device
        self.last_fired_step: Int[Tensor, " d_sae"] = torch.zeros(self.d_sae, dtype=torch.int32, device=device)
        self.dead_latents: Int[Tensor, " dead"] = torch.zeros(0, dtype=torch.int64, device=device)
        self._sums = torch.zeros(5, device=device)  # loss, fvu, active entries, kept rows, steps since the last reading

    def _random_weights(self, sample: Tensor) -> dict[str, Tensor]:
        """Random unit decoder rows; the encoder is their transpose, scaled so that first reconstructions have the right
        length.
        """
        d_in = sample.shape[1]
        generator = torch.Generator().manual_seed(self.config.seed)
        W_dec = torch.randn(self.d_sae, d_in, generator=generator).to(sample.device)
        unit_rows_(W_dec)
        zeros = torch.zeros(self.d_sae, device=sample.device)
        z = self.normalization.apply(sample[:1024])
        code = self.gate.select(z, W_dec, zeros)
        z_hat = kernels.decode(code.values, code.indices, W_dec)
        scale = (z * z_hat).sum() / z_hat.square().sum().clamp_min(1e-12)
        return {
            "W_enc": W_dec * scale,
            "b_enc": zeros,
            "W_dec": W_dec,
            "b_dec": torch.zeros(d_in, device=sample.device),
        }

    def _weights_of(self, init: SAE, d_in: int) -> dict[str, Tensor]:
        """The SAE's weights in this site's normalised space: the inverse of `finish`."""
        if (init.d_in, init.d_sae) != (d_in, self.d_sae):
            raise UserError(
                f"`init` must have the shape that the config asks for. Got d_in={init.d_in}, d_sae={init.d_sae};"
                f" wanted d_in={d_in},"
                f" d_sae={self.d_sae}. Set expansion_factor={init.d_sae // init.d_in}."
            )
        mean, scale = self.normalization.mean, self.normalization.scale
        weights = {
            "W_enc": init.W_enc.detach().float().t(),
            "b_enc": init.b_enc.detach().float() / scale,
            "W_dec": init.W_dec.detach().float(),
            "b_dec": (init.b_dec.detach().float().to(mean.device) - mean) / scale,
        }
        return {name: tensor.to(mean.device).clone().contiguous() for name, tensor in weights.items()}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.params["W_enc"].device

    @torch.no_grad()
    def step(self, x: Float[Tensor, "rows d_in"]) -> None:
        """Train on one batch of raw activations. Reads nothing back from the device but, every few steps, the list of
        dead latents.
        """
        p = self.params
        keep = (~self.normalization.is_sink(x)).float()
        u = self.normalization.apply(x).sub_(p["b_dec"])
        code = self.gate.select(u, p["W_enc"], p["b_enc"], score_dtype=self.score_dtype)
        values = code.values.mul_(keep.unsqueeze(1))
        residual = (u - kernels.decode(values, code.indices, p["W_dec"])).mul_(keep.unsqueeze(1))
        n_kept = keep.sum().clamp_min(1)
        loss = residual.square().sum() / (n_kept * x.shape[1])

        d_output = residual * (-2 / (n_kept * x.shape[1]))
        d_pre = kernels.rowwise_dot(d_output, p["W_dec"], code.indices).mul_(values > 0)
        by_latent = kernels.transpose_code(code.indices, self.d_sae)
        gradients = {
            "W_enc": kernels.weight_gradient(d_pre, u, by_latent),
            "b_enc": torch.zeros_like(p["b_enc"]).index_add_(0, code.indices.reshape(-1), d_pre.reshape(-1)),
            "W_dec": kernels.weight_gradient(values, d_output, by_latent),
        }
        gradients["b_dec"] = d_output.sum(0) - gradients["b_enc"] @ p["W_enc"]
        total = loss + self._revive(u, residual, gradients, loss)
        self._record(
            values, code.indices, torch.stack([total, loss, (values > 0).sum(), n_kept, torch.ones_like(loss)])
        )
        self.optimizer.step(gradients, lr=self.schedule.at(self.n_steps_done))
        self.n_steps_done += 1

    def _revive(self, u: Tensor, residual: Tensor, gradients: dict[str, Tensor], loss: Tensor) -> Tensor:
        """Add the revival term's gradients to those of the dead latents; gives the term's value."""
        method = revival.METHODS.get(self.config.revival_method())
        if method is None:
            return torch.zeros_like(loss)
        if self.n_steps_done % _REVIVAL_REFRESH_STEPS == 0:
            self.dead_latents = self._longest_silent()
        latents = self.dead_latents
        if len(latents) == 0:
            return torch.zeros_like(loss)
        p = self.params
        dead = revival.DeadLatents(latents, p["W_enc"][latents], p["W_dec"][latents], p["b_enc"][latents])
        sample = slice(0, _REVIVAL_ROWS)
        extra = method(u[sample], residual[sample], dead, loss=loss, coefficient=self.config.revival_coefficient)
        for name in ("W_enc", "W_dec", "b_enc"):
            gradients[name].index_add_(0, latents, getattr(extra, name))
        return extra.value

    def _longest_silent(self) -> Int[Tensor, " dead"]:
        """The dead latents, the longest silent ones where there are more than fit."""
        silent_steps = self.n_steps_done - self.last_fired_step
        longest = silent_steps.topk(min(_REVIVAL_LATENTS, self.d_sae))
        return longest.indices[longest.values > self.window_steps]

    def _record(self, values: Tensor, indices: Tensor, sums: Tensor) -> None:
        """Note which latents fired in this step and add to the running sums."""
        now = torch.where(values > 0, self.n_steps_done + 1, 0).to(torch.int32).reshape(-1)
        self.last_fired_step.scatter_reduce_(0, indices.reshape(-1), now, reduce="amax")
        self._sums += sums

    def dead_share(self) -> float:
        """Share of latents that did not fire in the last `window_steps` steps."""
        return (self.n_steps_done - self.last_fired_step > self.window_steps).float().mean().item()

    def statistics(self) -> dict[str, float]:
        """Means since the last call: loss (with the revival term), fvu, l0; and the dead share now. Waits for the
        device.
        """
        total, loss, active, kept, steps = self._sums.tolist()
        self._sums.zero_()
        steps = max(steps, 1)
        return {
            "loss": total / steps,
            "fvu": loss / steps,
            "l0": active / max(kept, 1),
            "dead_share": self.dead_share(),
        }

    def finish(self, metadata: dict[str, Any] | None = None) -> SAE:
        """The SAE in the model's own scale, normalisation folded into the biases (design, section 5). Copies; training
        can go on.
        """
        mean, scale, p = self.normalization.mean, self.normalization.scale, self.params
        return SAE(
            W_enc=p["W_enc"].clone().t(),
            b_enc=p["b_enc"] * scale,
            W_dec=p["W_dec"].clone(),
            b_dec=p["b_dec"] * scale + mean,
            gate=self.gate,
            metadata=metadata,
        )

    def state(self) -> dict[str, Any]:
        """All that training needs to go on bitwise, for a checkpoint."""
        norm = self.normalization
        return {
            "params": self.params,
            "adam": self.optimizer.adam.state_dict(),
            "normalization": {
                "mean": norm.mean, "scale": norm.scale, "median": norm.median, "sink_radius": norm.sink_radius,
            },
            "last_fired_step": self.last_fired_step,
            "dead_latents": self.dead_latents,
            "sums": self._sums,
            "n_steps_done": self.n_steps_done,
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        for name, tensor in self.params.items():
            tensor.copy_(state["params"][name])
        self.optimizer.adam.load_state_dict(state["adam"])
        self.normalization = Normalization(**state["normalization"])
        self.last_fired_step.copy_(state["last_fired_step"])
        self.dead_latents = state["dead_latents"].to(self.last_fired_step.device)
        self._sums.copy_(state["sums"])
        self.n_steps_done = state["n_steps_done"]
