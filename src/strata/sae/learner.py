"""An SAE that is being trained: weights, optimiser, normalisation, firing record, and the step."""

from typing import Any, cast

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from strata.config.layer_groups import Group
from strata.config.train import SAEConfig
from strata.errors import UserError
from strata.kernels import select
from strata.kernels.capacity import KeepsCapacity
from strata.sae import resampling, revival
from strata.sae.folding import GroupSpaces, Spaces, fold, fold_group, group_spaces_of, spaces_of
from strata.sae.gates import Gate
from strata.sae.group import GroupSAE
from strata.sae.initial import first_rows, one_layer, random_weights, weights_of
from strata.sae.model import SAE, Transcoder
from strata.sae.normalization import Normalization
from strata.sae.optim import Schedule, UnitRowAdam
from strata.sae.pieces import Pieces
from strata.sae.recent import MOST_RECENT_ROWS, RecentRows
from strata.sae.rules.base import Batch, Outcome
from strata.sae.rules.registry import make_rule
from strata.sae.tally import Tally

REVIVAL_LATENTS = 1024  # dead latents it can hold at once, the longest silent first
REVIVAL_REFRESH_STEPS = 10  # steps between two looks for dead latents
_RESAMPLING_ROWS = 8192  # the last rows, from which resampling draws
_SILENT_ROWS = 1_000_000

Layers = UInt8[Tensor, " rows"]
"""For each row of a group the number, within the group, of the site that it is from."""


class Learner:
    """One SAE, transcoder or group's SAE in training, in the normalised space of its site or sites.

    The rows of an SAE's step are shifted by b_dec once, which folds it out of encoder and decoder: with u = z − b_dec
    the code is gate(u W_enc + b_enc) and the residual u − code W_dec.

    Args:
        config: the SAE and its training.
        n_steps: steps of the whole run, for the schedule.
        sample: shuffled rows [n d_in] from which normalisation and initial scale are taken.
        site: name of the rows' site or group, for errors.
        score_dtype: precision in which winners are selected; bf16 pays where the hardware multiplies it fast.
        init: an SAE to start from (warm start) instead of random weights.
        target_sample: the same rows at the target site [n d_out]: a transcoder is trained.
        target_site: its name.
        skip: with a skip connection (transcoders).
        group: the rows are of several sites, each normalised by itself.
        layers: of the sample's rows (groups).
    """

    def __init__(
        self,
        config: SAEConfig,
        *,
        n_steps: int,
        sample: Float[Tensor, "n d_in"],
        site: str = "the activations",
        score_dtype: torch.dtype = torch.float32,
        init: SAE | GroupSAE | None = None,
        target_sample: Float[Tensor, "n d_out"] | None = None,
        target_site: str | None = None,
        skip: bool = False,
        group: Group | None = None,
        layers: Layers | None = None,
    ) -> None:
        self.config, self.site, self.score_dtype, self.n_steps = config, site, score_dtype, n_steps
        self.target_site, self.group = target_site, group
        self.d_sae = config.d_sae(sample.shape[1])
        self.rule = make_rule(config, d_sae=self.d_sae)
        self.spaces: Spaces | GroupSpaces
        if group is None:
            self.spaces = spaces_of(sample, target_sample, site=site, target_site=target_site, centring=config.centring)
        else:
            self.spaces = group_spaces_of(group, sample, layers, centring=config.centring)
        if target_sample is not None and not self.rule.makes_transcoders:
            raise UserError(
                f'`SAEConfig.architecture` "{config.architecture}" cannot be a transcoder: no format holds one. Choose'
                " another, or leave target_site out."
            )
        if skip and target_sample is None:
            raise UserError("`skip` is for transcoders. Got it without target_site. Name one, or leave skip out.")
        if init is None:
            rows = first_rows(self.spaces, sample, target_sample, layers)
            self.params = random_weights(self.rule, *rows, seed=config.seed, skip=skip)
        else:
            self.params = weights_of(one_layer(init, group), self.rule, self.spaces.of_site(0), skip=skip)
        self.optimizer = UnitRowAdam(self.params, rates=self.rule.rates)
        self.schedule = Schedule(config, d_sae=self.d_sae, n_steps=n_steps)
        self.window_steps = config.window_steps(n_steps)
        self.n_steps_done = 0
        self.pieces = Pieces()
        device = sample.device
        self.last_fired_step: Int[Tensor, " d_sae"] = torch.zeros(self.d_sae, dtype=torch.int32, device=device)
        self.dead_latents: Int[Tensor, " dead"] = torch.zeros(0, dtype=torch.int64, device=device)
        self._now = torch.zeros((), dtype=torch.int32, device=device)  # steps done before the one at hand
        self._lr: float | Tensor = 0.0  # of the step at hand
        self._tally = Tally(device)
        self._method = config.revival_method()
        n_layers = 1 if group is None else len(group.sites)
        n_recent = max(self.rule.n_recent_rows, _RESAMPLING_ROWS if self._method == "resample" else 0)
        self._recent = RecentRows(min(n_layers * n_recent, MOST_RECENT_ROWS))
        self._layer_rows = torch.zeros(n_layers, dtype=torch.int64, device=device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.params["W_enc"].device

    @property
    def normalization(self) -> Normalization:
        """Of the rows that are encoded, where they are of one site."""
        assert isinstance(self.spaces, Spaces), "a group has one for each site"
        return self.spaces.source

    @property
    def layer_rows(self) -> dict[str, int]:
        """Rows trained on so far by site, attention sinks left out. Waits for the device."""
        sites = [self.site] if self.group is None else self.group.sites
        return dict(zip(sites, cast("list[int]", self._layer_rows.tolist()), strict=True))

    @torch.no_grad()
    def step(
        self,
        x: Float[Tensor, "rows d_in"],
        target: Float[Tensor, "rows d_out"] | None = None,
        layer: Layers | None = None,
    ) -> None:
        """Train on one batch of raw activations.

        With Triton's kernels nothing is read back from the device, but where dead latents are resampled.

        Args:
            x: rows of the site.
            target: the same rows of the target site (transcoders).
            layer: which of its sites each row is from (groups).
        """
        self.before_device_step()
        self.device_step(x, target, layer)
        self.after_device_step(x, target, layer)

    @torch.no_grad()
    def before_device_step(self) -> None:
        """What the host decides about a step: its number, its learning rate, and every few steps which latents are
        dead. See `graphed.Recordable` for this and the two that follow.
        """
        if self._method == "resample":
            self._resample()
        if self._method in revival.METHODS and self.n_steps_done % REVIVAL_REFRESH_STEPS == 0:
            self._look_for_dead()
        self._now.fill_(self.n_steps_done)
        lr = self.schedule.at(self.n_steps_done)
        if not self._nobody_waits:
            self._lr = lr
        elif isinstance(self._lr, Tensor):
            self._lr.fill_(lr)
        else:
            self._lr = torch.full((), lr, device=self.device)

    @torch.no_grad()
    def device_step(self, x: Tensor, target: Tensor | None, layer: Tensor | None) -> None:
        """What the device does in a step: always the same work on the same tensors, which are changed in place, so that
        it can be recorded. With other kernels than Triton's the host waits for the number of entries.
        """
        batch = self._batch(x, target, layer)
        outcome = self._outcome(batch)
        gradients = outcome.gradients
        gradients["b_dec"] = outcome.d_rows.sum(0) * outcome.slope
        if not self._is_transcoder:  # b_dec is on the input too
            gradients["b_dec"] = gradients["b_dec"] - self._through_encoder(outcome.d_scores)
        if "W_skip" in self.params:
            gradients["W_skip"] = (outcome.d_rows * outcome.slope).t() @ batch.inputs
        self._tally.add(outcome, batch, revival=self._revive(batch, outcome))
        fired = outcome.entries.fired(outcome.values)
        torch.where(fired, self._now + 1, self.last_fired_step, out=self.last_fired_step)
        self.optimizer.step(gradients, lr=self._lr)
        self.rule.after_step(outcome, batch)
        self._count(batch, layer)

    def after_device_step(self, x: Tensor, target: Tensor | None, layer: Tensor | None) -> bool:
        """Count the step and keep its rows. True where the next one works on lists of another length."""
        self._recent.add(x, target, layer)
        self.n_steps_done += 1
        return self._nobody_waits and isinstance(self.rule, KeepsCapacity) and self.rule.look_at_capacity()

    @property
    def _nobody_waits(self) -> bool:
        """Whether lists have a fixed length, also that of the dead latents, so that the host reads nothing back."""
        return select.lists_are_padded(self.device)

    def new_lines(self) -> list[str]:
        """What has happened since the last call, for the log."""
        lines, self.pieces.lines = self.pieces.lines, []
        if isinstance(self.rule, KeepsCapacity):
            lines, self.rule.capacity.lines = lines + self.rule.capacity.lines, []
        return lines

    def _outcome(self, batch: Batch) -> Outcome:
        """Loss and gradients of the batch, in pieces where it does not fit."""
        return self.pieces.outcome(
            batch, lambda piece: self.rule.step(piece, self.params, score_dtype=self.score_dtype)
        )

    def _through_encoder(self, d_scores: Float[Tensor, " d_sae"]) -> Float[Tensor, " d_in"]:
        """A gradient with respect to the scores as one with respect to what the encoder multiplies."""
        return d_scores @ self.params["W_enc"]

    def _batch(self, x: Tensor, target: Tensor | None, layer: Tensor | None) -> Batch:
        """The rows in normalised space, shifted by what the decoder adds."""
        p, spaces = self.params, self.spaces.of(layer)
        distance = spaces.source.distance(x)
        keep = ~(distance > spaces.source.sink_radius)  # NaN stays, so that the loss tells of it
        if spaces.target is None:
            inputs = spaces.source.apply(x, minus=p["b_dec"])
            wanted = inputs
        else:
            assert target is not None, "a transcoder's step needs the target's rows"
            inputs = spaces.source.apply(x)
            keep &= ~spaces.target.is_sink(target)
            wanted = spaces.target.apply(target).sub_(p["b_dec"])
            if "W_skip" in p:
                wanted -= inputs @ p["W_skip"].t()
        n_kept = keep.sum().float().clamp_min(1)
        return Batch(inputs, wanted, keep.float(), n_kept, lengths=spaces.source.relative(distance))

    def _revive(self, batch: Batch, outcome: Outcome) -> Tensor:
        """Add the revival term's gradients to those of the dead latents; gives the term's value."""
        method, latents = revival.METHODS.get(self._method), self.dead_latents
        if method is None or len(latents) == 0:
            return torch.zeros_like(outcome.loss)
        p, bias = self.params, self.rule.bias
        places, known = latents.clamp_max(self.d_sae - 1), latents < self.d_sae
        biases = torch.where(known, p[bias][places], -torch.inf)
        dead = revival.DeadLatents(latents, p["W_enc"][places], p["W_dec"][places], biases)
        left = revival.Unexplained.of(batch, outcome)
        extra = method(left, dead, coefficient=self.config.revival_coefficient)
        if self._method == "lift":
            silent = (known & (self._now - self.last_fired_step[places] > self.window_steps)).float()
            revival.lift_(p[bias], places, silent, rate=self.optimizer.rate_of(bias, self._lr))
        extra.add_to(outcome.gradients, latents, bias=bias)
        return extra.value

    def _look_for_dead(self) -> None:
        """List the dead latents, the longest silent ones where there are more than fit."""
        silent = self._silent_steps()
        longest = silent.topk(min(REVIVAL_LATENTS, len(silent)))
        dead = longest.values > self.window_steps
        if not self._nobody_waits:
            self.dead_latents = longest.indices[dead]
            return
        padded = torch.where(dead, longest.indices, self.d_sae)
        if len(self.dead_latents) == len(padded):
            self.dead_latents.copy_(padded)  # in place: a recorded step finds it where it was
        else:
            self.dead_latents = padded

    def _resample(self) -> None:
        """Let dead latents start again where it is time for it."""
        last = self.n_steps - self.schedule.decay_steps
        if not resampling.due(self.n_steps_done, window_steps=self.window_steps, last_step=last):
            return
        dead = (self._silent_steps() > self.window_steps).nonzero().squeeze(1)
        batch = self._recent_batch()
        if len(dead) == 0 or batch is None:
            return
        outcome = self.rule.step(batch, self.params, score_dtype=self.score_dtype)
        losses = outcome.residual.square().sum(1)
        seed = self.config.seed * 1_000_003 + self.n_steps_done
        resampling.resample(dead, batch, losses, rule=self.rule, params=self.params, seed=seed)
        self.optimizer.forget(dead)
        self.last_fired_step[dead] = self.n_steps_done

    def _count(self, batch: Batch, layer: Tensor | None) -> None:
        """Note how many rows of each site were trained on."""
        if layer is None:
            self._layer_rows += batch.n_kept.long()
        else:
            self._layer_rows.index_add_(0, layer.long(), batch.keep.long())

    def _recent_batch(self, number: int | None = None) -> Batch | None:
        """The last rows (of one layer of a group) as they look under the weights now."""
        found = self._recent.last(number)
        return None if found is None else self._batch(*found)

    def _silent_steps(self) -> Int[Tensor, " d_sae"]:
        """Steps since each latent last fired, or since the start."""
        return self.n_steps_done - self.last_fired_step

    def _all_silent_steps(self) -> Int[Tensor, " d_sae"]:
        """The same, of latents that are trained elsewhere too."""
        return self._silent_steps()

    def dead_share(self) -> float:
        """Share of latents that did not fire in the last `window_steps` steps."""
        return (self._all_silent_steps() > self.window_steps).float().mean().item()

    def statistics(self) -> dict[str, float]:
        """Means since the last call, and what is silent now. Waits for the device.

        Returns:
            loss with all its terms; fvu, the reconstruction's share of it; l0; dead_share, of latents silent for longer
            than the window; silent_1m_share, of those that did not fire in the last million rows (or since the start,
            if that is less); silent_step_share, of those that did not fire in the last step; silent_rows_p90, the rows
            since they last fired that 90 % of the latents do not exceed; outlier_share, of rows masked as attention
            sinks; relative_length, the mean distance of the others from the site's median row, over the median of that
            when the normalisation was estimated (about 1; it drifts with the activations).
        """
        means, silent = self._tally.read(), self._all_silent_steps()
        longest = min(self.n_steps_done, max(1, _SILENT_ROWS // self.config.batch_size))
        return {
            "loss": means.loss,
            "fvu": means.fvu,
            "l0": means.l0,
            "dead_share": self.dead_share(),
            "silent_1m_share": (silent >= longest).float().mean().item(),
            "silent_step_share": (silent >= min(1, self.n_steps_done)).float().mean().item(),
            "outlier_share": means.outlier_share,
            "relative_length": means.relative_length,
            "silent_rows_p90": silent.float().quantile(0.9).item() * self.config.batch_size,
        }

    @torch.no_grad()
    def finish(self, metadata: dict[str, Any] | None = None) -> SAE | Transcoder | GroupSAE:
        """The SAE in the model's own scale, normalisation folded in. Copies; training can go on.

        Args:
            metadata: what it says of its origin; of a group what each layer's SAE says, by site.
        """
        own, given = self.rule.description(), metadata or {}
        if isinstance(self.spaces, GroupSpaces):
            described = {site: {"site": site, **given.get(site, {}), **own} for site in self.spaces.sites}
            finished = [self._finished(number) for number in range(len(described))]
            return fold_group(self.params, self.spaces, finished, metadata=described)
        gate, b_enc = self._finished()
        return fold(self.params, self.spaces, gate=gate, b_enc=b_enc, metadata={**given, **own})

    def _finished(self, number: int | None = None) -> tuple[Gate, Tensor]:
        """Gate and encoder bias for use, in normalised units; of a group those of one layer, whose L0 becomes k too."""
        return self.rule.finished(self.params, self._recent_batch(number) if self.rule.n_recent_rows else None)

    @property
    def _is_transcoder(self) -> bool:
        return self.target_site is not None

    def state(self) -> dict[str, Any]:
        """All that training needs to go on bitwise, for a checkpoint."""
        return {
            "params": self.params,
            "optimizer": self.optimizer.state(),
            "spaces": self.spaces.state(),
            "layer_rows": self._layer_rows,
            "rule": self.rule.state(),
            "recent": self._recent.state(),
            "last_fired_step": self.last_fired_step,
            "dead_latents": self.dead_latents[self.dead_latents < self.d_sae],
            "sums": self._tally.sums,
            "n_steps_done": self.n_steps_done,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        for name, tensor in self.params.items():
            tensor.copy_(state["params"][name])
        self.optimizer.load_state(state["optimizer"])
        self.spaces = self.spaces.loaded(state["spaces"])
        self._layer_rows.copy_(state["layer_rows"])
        self.rule.load_state(state["rule"])
        self._recent.load_state(state["recent"], device=self.device)
        self.last_fired_step.copy_(state["last_fired_step"])
        dead = state["dead_latents"].to(self.last_fired_step.device)
        n_missing = min(REVIVAL_LATENTS, self.d_sae) - len(dead) if self._nobody_waits else 0
        self.dead_latents = torch.nn.functional.pad(dead, (0, n_missing), value=self.d_sae)
        self._tally.sums.copy_(state["sums"])
        self.n_steps_done = state["n_steps_done"]
