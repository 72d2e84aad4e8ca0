"""What a run says while it runs: metrics.jsonl in its folder, a progress bar or lines on the terminal."""

import errno
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from strata.atomic import write_whole
from strata.errors import UserError

SiteStatistics = Mapping[str, Mapping[str, float]]


class MetricsFile:
    """metrics.jsonl: one object per logged step, the same keys always. A `strata.loggers.Logger`.

    Args:
        path: the file; None writes nothing.
        keep_to_step: when going on with a run, lines of later steps are dropped; None starts an empty file.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path | None, *, keep_to_step: int | None = None) -> None:
        self._path, self._file = path, None
        if path is None:
            return
        kept = []
        if keep_to_step is not None and path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= keep_to_step]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, "".join(line + "\n" for line in kept))
            self._file = path.open("ab", buffering=0)  # a line is one write: never half of one if the process dies
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, record: dict[str, Any]) -> None:
        """Add a line; the system has it when this returns.

        Raises:
            UserError: the disk is full.
        """
        if self._file is None:
            return
        line = (json.dumps(record) + "\n").encode("utf-8")
        try:
            written = self._file.write(line)
            if written != len(line):  # the last bytes of a disk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"The run folder must be one that can be written. {self._path}: {error.strerror or error}. Make room, or"
            f" give another."
        )


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # the torn last line of a run that was killed


class Progress:
    """A bar on a terminal, a line every few seconds elsewhere, nothing when not wanted.

    Args:
        n_steps: of the whole run.
        first_step: steps done before.
        shown: False is silent.
    """

    def __init__(self, *, n_steps: int, first_step: int = 0, shown: bool = True) -> None:
        self._n_steps, self._shown = n_steps, shown
        self._bar = None
        self._task: Any = None
        self._last_line = float("-inf")
        self._summary = ""
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("training"), BarColumn(bar_width=24), MofNCompleteColumn(),
                TextColumn("{task.fields[summary]}"),
                TextColumn("left"), TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("training", total=n_steps, completed=first_step, summary="")

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def note(self, text: str) -> None:
        """A line that stays: above the bar, or among the lines."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            say(text, shown=self._shown)

    def show(self, step: int, *, rows_per_second: float, sites: SiteStatistics) -> None:
        """New statistics: rate, and means over the sites."""
        if not self._shown:
            return
        fvu, l0, dead = (_mean([s[key] for s in sites.values()]) for key in ("fvu", "l0", "dead_share"))
        summary = f"{rows_per_second:,.0f} rows/s  FVU {fvu:.3f}  L0 {l0:.1f}  dead {100 * dead:.1f} %"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, summary=summary)
        elif time.monotonic() - self._last_line > 5 or step == self._n_steps:
            self._last_line = time.monotonic()
            print(f"step {step}/{self._n_steps}  {summary}", file=sys.stderr, flush=True)


def say(text: str, *, shown: bool = True) -> None:
    """A line for the person at the terminal (stderr, so that stdout stays for results)."""
    if shown:
        print(text, file=sys.stderr, flush=True)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)
