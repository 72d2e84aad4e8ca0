"""Where a run's numbers go beside metrics.jsonl: Weights & Biases and TensorBoard, behind one small protocol."""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from strata.atomic import write_json
from strata.errors import MissingExtraError, UserError

Tracker = Literal["wandb", "tensorboard"]
_WANDB_FILE = "wandb.json"


@runtime_checkable
class Logger(Protocol):
    """Takes the records of a run, one per logged step."""

    def write(self, record: dict[str, Any]) -> None:
        """Keep a record: nested dicts of numbers, with its `step`."""
        ...

    def close(self) -> None:
        """There will be no more."""
        ...


def flat_numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record by path: `fvu/layers.3`, `held_out/fvu/layers.3`, `rows_per_second`.

    The name of a measurement stands before the site, so that trackers draw one chart per measurement and one line per
    site.
    """
    for name, value in record.items():
        if name in ("sites", "held_out"):
            start = "" if name == "sites" else "held_out/"
            sites: Mapping[str, Mapping[str, Any]] = value or {}
            for site, numbers in sites.items():
                yield from flat_numbers({f"{start}{key}/{site}": number for key, number in numbers.items()}, prefix)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def check_trackers(names: Sequence[Tracker]) -> None:
    """That the libraries of these trackers are installed.

    Raises:
        MissingExtraError: one is not.
    """
    for name in names:
        library, _ = _TRACKERS[name]
        library()


def open_trackers(
    names: Sequence[Tracker], *, folder: Path | None, step: int, description: Mapping[str, Any]
) -> list[Logger]:
    """The trackers of a run, ready to be written to.

    Args:
        names: which.
        folder: the run folder, in which they keep what they keep; a run that goes on finds its W&B run by it.
        step: steps done: 0, or those of a run that goes on.
        description: what the run is, for those that show it.

    Raises:
        MissingExtraError: a library is not installed.
        UserError: trackers without a folder.
    """
    if not names:
        return []
    if folder is None:
        raise UserError(f"`loggers` needs a run folder. Got {', '.join(names)} without one. Give `folder` too.")
    opened: list[Logger] = []
    for name in names:
        _, logger = _TRACKERS[name]
        opened.append(logger(folder, step=step, description=description))
    return opened


class WandbLogger:
    """Weights & Biases. The run's id is kept in `wandb.json`, so that a training that goes on continues its run.

    Args:
        folder: the run folder.
        step: steps done.
        description: shown as the run's config.
    """

    def __init__(self, folder: Path, *, step: int, description: Mapping[str, Any]) -> None:
        path = folder / _WANDB_FILE
        known = json.loads(path.read_text(encoding="utf-8"))["id"] if step and path.exists() else None
        identifier = known or uuid.uuid4().hex[:12]
        write_json(path, {"id": identifier})
        self._run = _wandb().init(
            project="strata",
            name=folder.name,
            id=identifier,
            resume="allow",
            dir=str(folder),
            config=dict(description),
        )

    def write(self, record: dict[str, Any]) -> None:
        """Send the numbers of a step; W&B passes over steps that it has seen."""
        self._run.log(dict(flat_numbers(record)), step=record["step"])

    def close(self) -> None:
        """End the W&B run."""
        self._run.finish()


class TensorBoardLogger:
    """TensorBoard: event files in `tensorboard/` of the run folder.

    Args:
        folder: the run folder.
        step: steps done: what was written of later steps before is hidden.
        description: shown as text.
    """

    def __init__(self, folder: Path, *, step: int, description: Mapping[str, Any]) -> None:
        purge = {"purge_step": step + 1} if step else {}
        self._writer = _summary_writer()(log_dir=str(folder / "tensorboard"), **purge)
        if not step:
            text = json.dumps(description, indent=1, default=str)
            self._writer.add_text("run", "\n".join(f"    {line}" for line in text.splitlines()))

    def write(self, record: dict[str, Any]) -> None:
        """Add one point to each chart."""
        for name, value in flat_numbers(record):
            if name != "step":
                self._writer.add_scalar(name, value, global_step=record["step"])
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


def _wandb() -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("wandb", extra="wandb", purpose="Logging to Weights & Biases") from error
    return wandb


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", extra="tensorboard", purpose="Logging to TensorBoard") from error
    return SummaryWriter


_TRACKERS: dict[Tracker, tuple[Callable[[], Any], Callable[..., Logger]]] = {
    "wandb": (_wandb, WandbLogger),
    "tensorboard": (_summary_writer, TensorBoardLogger),
}
"""By name the library, which is imported where it is asked for, and the logger that uses it."""
