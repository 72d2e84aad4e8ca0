"""The training loop: SAEs side by side on the same batches, what it records, and how it stops and goes on."""

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from strata.activations.source import ShuffledRows, SiteRows, layers_of
from strata.checkpoint import checkpoint_steps, load_checkpoint, save_checkpoint
from strata.config.settings import check_kinds, names_unknown_settings, require
from strata.distributed.checkpoint import restored, save_shared
from strata.distributed.replicated import ReplicatedLearner
from strata.distributed.spread import Spread
from strata.doctor.live import Watch
from strata.durations import Duration
from strata.errors import UserError
from strata.evaluate.logged import logged_quality
from strata.log import MetricsFile, Progress
from strata.loggers import Logger, Tracker, check_trackers, open_trackers
from strata.sae.graphed import GraphedSteps, are_recorded
from strata.sae.learner import Learner
from strata.signals import Interrupted, StopSignals


@names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a training leaves behind while it runs, and how often; nothing in it changes what is trained.

    With a folder, SIGINT (Ctrl-C) and SIGTERM let the step end, write a checkpoint and then leave.
    """

    folder: Path | None = None
    """For metrics.jsonl, checkpoints/ and what `loggers` keep; None records nothing."""
    resume: bool = False
    """Go on from the folder's last checkpoint."""
    log_every_steps: int = 10
    """Steps between two lines."""
    checkpoint_every: str = "10%"
    """Distance between two checkpoints, as a duration: "10%", "500 steps", "1M tokens"."""
    keep_checkpoints: int = 2
    """Checkpoints that stay, the newest ones."""
    keep_buffer: bool = False
    """Keep the shuffle buffer's activations in checkpoints too (streaming): larger ones, but going on runs the language
    model for new rows only. Without it the forward passes whose rows lie in the buffer are repeated; the result is the
    same."""
    held_out_every: str = "10%"
    """Distance between two measurements on held-out rows, as a duration; they are made when a line is logged."""
    loggers: tuple[Tracker, ...] = ()
    """Where the lines go besides: "wandb", "tensorboard"."""
    progress: bool = True
    """Show a progress bar or lines on stderr."""

    def __post_init__(self) -> None:
        check_kinds(self)
        for name in ("log_every_steps", "keep_checkpoints"):
            value = getattr(self, name)
            require(value >= 1, f"Recording.{name}", "be at least 1", value, "Give a positive number.")
        for name in ("checkpoint_every", "held_out_every"):
            Duration.parse(getattr(self, name), setting=f"Recording.{name}")
        for name in ("resume", "loggers"):
            given = getattr(self, name)
            rule = "be left out without a folder"
            require(not given or self.folder is not None, f"Recording.{name}", rule, given, "Give `folder` too.")

    @property
    def checkpoints(self) -> Path | None:
        """The folder of the checkpoints."""
        return None if self.folder is None else Path(self.folder) / "checkpoints"

    def check_loggers(self) -> None:
        """That what `loggers` names is installed.

        Raises:
            MissingExtraError: it is not.
        """
        check_trackers(self.loggers)

    def check(self) -> None:
        """That it can begin: libraries installed, and no checkpoints of another training in the way.

        Raises:
            UserError: it cannot.
        """
        self.check_loggers()
        if self.checkpoints is not None and not self.resume and checkpoint_steps(self.checkpoints):
            raise UserError(
                f"`Recording.folder` must be a new folder. {self.folder} holds checkpoints of a training before. Go on"
                f" with resume=True, or give another."
            )


@dataclass(frozen=True)
class Prepared:
    """A training that can begin: everything that its input can be wrong about has been looked at.

    Attributes:
        learners: by key, normalised and initialised.
        rows: in their shuffled order.
        batch_size: rows of a step.
        n_steps: of the whole run.
        metadata: by key, what the SAEs will say of their origin (see `strata.origins`).
        identity: what has to be the same for a training to go on, JSON-able.
        held_out: by site, rows that are measured now and then; may be empty.
        seconds: spent on the first rows (streaming: of the language model, to fill the buffer).
        facts: of what is trained, for run.json and for those who look on: see `strata.training_facts`.
        spread: over which processes; `learners` are those of this one.
    """

    learners: dict[str, Learner]
    rows: ShuffledRows
    batch_size: int
    n_steps: int
    metadata: dict[str, dict[str, Any]]
    identity: dict[str, Any]
    held_out: Mapping[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    spread: Spread = field(default_factory=Spread)


def run_loop(prepared: Prepared, recording: Recording) -> dict[str, float]:
    """Train all learners to their end, from the last checkpoint if the recording says so.

    Returns:
        Seconds of the whole run, resumed parts included: `total`, in the `sae` steps, and waiting for `rows`.

    Raises:
        UserError: a loss that is not finite, nothing to resume, a run that was another, or a folder that cannot be
            written.
        Interrupted: a signal came, and a checkpoint is written.
    """
    learners, n_steps, ranks = prepared.learners, prepared.n_steps, prepared.spread.ranks
    recording.check()
    step, seconds = _restore(prepared, recording) if recording.resume else (0, _seconds_before(prepared))
    saved_step, stopped_by = step if recording.resume else None, 0
    checkpoint_every = _steps(recording.checkpoint_every, prepared)
    batches = prepared.rows.batches(start_step=step)
    record = _Record(prepared, recording, step=step, seconds=seconds["total"])
    watch = Watch(prepared.facts)
    recorded = {key for key, one in learners.items() if type(one) is Learner and are_recorded(one.device)}
    steps = {key: GraphedSteps(one) if key in recorded else one for key, one in learners.items()}
    bar = Progress(n_steps=n_steps, first_step=step, shown=recording.progress and ranks.is_first)
    stopping = StopSignals(wanted=recording.folder is not None)
    with closing(batches), closing(record), bar as progress, stopping as stop:
        while step < n_steps:
            start = time.perf_counter()
            batch = next(batches)
            got_rows = time.perf_counter()
            step_all(learners, batch, steps)
            step += 1
            for key, stepping in steps.items():
                for happened in stepping.new_lines():
                    progress.note(f"{key}: {happened}")
            end = time.perf_counter()
            for part, spent in (("rows", got_rows - start), ("sae", end - got_rows), ("total", end - start)):
                seconds[part] += spent
            progress.advance(step)
            if step % recording.log_every_steps == 0 or step == n_steps:
                line = record.write(step, seconds=seconds)
                progress.show(step, rows_per_second=line["rows_per_second"], sites=line["sites"])
                for finding in watch.see(line):
                    progress.note(finding)
            due = step % checkpoint_every == 0 and step < n_steps
            stopped_by = ranks.largest(stop.received or 0)  # all stop after the same step
            if recording.checkpoints and (due or stopped_by):
                _save(prepared, recording, step=step, seconds=seconds)
                saved_step, stopped_by = step, ranks.largest(stop.received or 0)  # one may have come meanwhile
            if stopped_by:
                break
    if stopped_by:
        raise _interrupted(recording, number=stopped_by, step=saved_step, n_steps=n_steps)
    return seconds


def step_all(
    learners: Mapping[str, Learner], batch: SiteRows, steps: Mapping[str, Learner | GraphedSteps] | None = None
) -> None:
    """One step of every learner; rows that several of them read are moved to their device once.

    Args:
        learners: by key.
        batch: rows.
        steps: who takes each one's step, recorded or not; None is the learners themselves.
    """
    moved: dict[tuple[str, torch.device], Tensor] = {}

    def rows(site: str, device: torch.device) -> Tensor:
        if (site, device) not in moved:
            moved[site, device] = batch[site].to(device)
        return moved[site, device]

    for key, learner in learners.items():
        target = None if learner.target_site is None else rows(learner.target_site, learner.device)
        layer = None if learner.group is None else rows(layers_of(learner.site), learner.device)
        (steps or learners)[key].step(rows(learner.site, learner.device), target, layer)


class _Record:
    """The lines of a run: metrics.jsonl and the trackers, the same keys always.

    Args:
        prepared: the training.
        recording: where lines go, and when held-out rows are measured.
        step: steps done.
        seconds: spent on them.
    """

    def __init__(self, prepared: Prepared, recording: Recording, *, step: int, seconds: float) -> None:
        self._prepared, self._recording = prepared, recording
        self._step, self._seconds = step, seconds
        self._held_out_every = _steps(recording.held_out_every, prepared)
        mine = prepared.spread.ranks.is_first
        folder = Path(recording.folder) if mine and recording.folder is not None else None
        path = None if folder is None else folder / "metrics.jsonl"
        metrics = MetricsFile(path, keep_to_step=step if recording.resume else None)
        wanted = recording.loggers if mine else ()
        trackers = open_trackers(wanted, folder=folder, step=step, description=prepared.identity)
        self._loggers: list[Logger] = [metrics, *trackers]

    def write(self, step: int, *, seconds: Mapping[str, float]) -> dict[str, Any]:
        """Write and give back the line of a step, all ranks together.

        Args:
            step: its number.
            seconds: spent so far, by part; see `run_loop`.

        Raises:
            UserError: a loss that is not finite.
        """
        prepared = self._prepared
        own = {key: learner.statistics() for key, learner in prepared.learners.items()}
        statistics = self._of_all(own)
        _check_finite(statistics, step=step)
        own_rates = {key: learner.schedule.at(step - 1) for key, learner in prepared.learners.items()}
        rates = set(self._of_all(own_rates).values())
        n_rows = (step - self._step) * prepared.batch_size
        line = {
            "step": step,
            "rows": step * prepared.batch_size,
            "tokens": step * prepared.batch_size,  # a token is one row of every site
            "seconds": round(seconds["total"], 3),
            "rows_seconds": round(seconds["rows"], 3),
            "sae_seconds": round(seconds["sae"], 3),
            "rows_per_second": round(n_rows / max(seconds["total"] - self._seconds, 1e-9), 1),
            "learning_rate": rates.pop() if len(rates) == 1 else None,  # None: that of a sweep differs
            "sites": statistics,
            "held_out": self._held_out(step),
        }
        self._step, self._seconds = step, seconds["total"]
        for logger in self._loggers:
            logger.write(line)
        return line

    def _held_out(self, step: int) -> dict[str, dict[str, float | None]] | None:
        """Numbers on held-out rows by key when they are due since the line before; None when not, or without rows."""
        rows, every = self._prepared.held_out, self._held_out_every
        passed = step // every > max(step - self._recording.log_every_steps, 0) // every
        if not rows or not (passed or step == self._prepared.n_steps):
            return None
        found = {}
        for key, learner in self._prepared.learners.items():
            if not self._prepared.spread.speaks and isinstance(learner, ReplicatedLearner):
                continue
            sae = learner.finish()
            if self._prepared.spread.speaks:
                found[key] = logged_quality(sae, rows, site=learner.site, target_site=learner.target_site)
        return self._of_all(found)

    def _of_all(self, own: dict[str, Any]) -> dict[str, Any]:
        """By key what the ranks say that trained it, in the order of the run."""
        spread = self._prepared.spread
        said = spread.ranks.gathered_objects(own if spread.speaks else {})
        found = {key: value for part in said for key, value in part.items()}
        return {key: found[key] for key in self._prepared.metadata}

    def close(self) -> None:
        """Close all loggers."""
        for logger in self._loggers:
            logger.close()


def _seconds_before(prepared: Prepared) -> dict[str, float]:
    return {"total": prepared.seconds, "sae": 0.0, "rows": prepared.seconds}


def _steps(duration: str, prepared: Prepared) -> int:
    parsed = Duration.parse(duration, setting="duration")
    return max(1, parsed.steps(n_steps=prepared.n_steps, batch_size=prepared.batch_size))


def _check_finite(statistics: dict[str, dict[str, float]], *, step: int) -> None:
    for key, values in statistics.items():
        if not values["loss"] < float("inf"):  # NaN too
            raise UserError(
                f"Activations must be finite and the training stable. The loss of {key} is {values['loss']} at step"
                f" {step}. Lower lr, or load the language model in fp32 or bf16."
            )


def _save(prepared: Prepared, recording: Recording, *, step: int, seconds: dict[str, float]) -> None:
    assert recording.checkpoints is not None
    rows = prepared.rows.state(step) if recording.keep_buffer else {}
    if prepared.spread.ranks.size > 1:
        save_shared(
            recording.checkpoints,
            ranks=prepared.spread.ranks,
            step=step,
            learners=prepared.learners,
            rows=rows,
            state={"step": step, "seconds": seconds},
            identity=prepared.identity,
            keep=recording.keep_checkpoints,
        )
        return
    learners = {key: learner.state() for key, learner in prepared.learners.items()}
    save_checkpoint(
        recording.checkpoints,
        step=step,
        state={"step": step, "seconds": seconds, "learners": learners, "rows": rows},
        identity=prepared.identity,
        keep=recording.keep_checkpoints,
    )


def _restore(prepared: Prepared, recording: Recording) -> tuple[int, dict[str, float]]:
    """Bring the learners to the last checkpoint of the folder; gives its step and the seconds spent until then."""
    assert recording.checkpoints is not None, "resume without a folder"
    device = next((learner.device for learner in prepared.learners.values()), torch.device("cpu"))
    found = load_checkpoint(recording.checkpoints, device=device)
    changed = [name for name, value in prepared.identity.items() if found.identity.get(name) != value]
    if changed:
        raise UserError(
            f"`resume` needs the settings, sites, model and rows of the training before. Changed: {', '.join(changed)}."
            f" Give what {recording.folder} was begun with, or start another."
        )
    states, rows = restored(found, prepared.learners, prepared.spread.ranks)
    for key, learner in prepared.learners.items():
        learner.load_state(states[key])
    if rows:
        prepared.rows.load_state(rows)
    return found.state["step"], found.state["seconds"]


def _interrupted(recording: Recording, *, number: int, step: int | None, n_steps: int) -> Interrupted:
    return Interrupted(
        f"stopped at step {step} of {n_steps}; a checkpoint is in {recording.checkpoints}, and --resume (in Python"
        f" Recording(resume=True)) goes on from it.",
        number=number,
    )
