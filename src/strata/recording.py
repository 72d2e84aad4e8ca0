"""What a training leaves behind while it runs: the settings of it, and the lines that it logs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata.checkpoint import checkpoint_steps
from strata.config.settings import check_kinds, names_unknown_settings, require
from strata.distributed.replicated import ReplicatedLearner
from strata.durations import Duration
from strata.errors import UserError
from strata.evaluate.quality import logged_quality
from strata.log import MetricsFile
from strata.loggers import Logger, Tracker, check_trackers, open_trackers
from strata.prepare import Prepared


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


class RunLines:
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
        self._held_out_every = prepared.steps(recording.held_out_every)
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
        found: dict[str, dict[str, float | None]] = {}
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


def _check_finite(statistics: dict[str, dict[str, float]], *, step: int) -> None:
    for key, values in statistics.items():
        if not values["loss"] < float("inf"):  # NaN too
            raise UserError(
                f"Activations must be finite and the training stable. The loss of {key} is {values['loss']} at step"
                f" {step}. Lower lr, or load the language model in fp32 or bf16."
            )
