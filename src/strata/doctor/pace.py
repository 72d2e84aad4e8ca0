"""How long a step takes, and which part of it: so far, and between lines while the rows come as they are used.

A stream reads the rows of its buffer before the first step, and none for the last steps, which empty it. The first time
is no slowness and the second no speed: so far, seconds are divided by the rows that were read for them, which at the
end are all; between lines only those count before the buffer is emptied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strata.doctor.facts import Facts
from strata.doctor.record import Record, is_number

_FORWARDS = 4  # passes of the language model that a stretch of lines has to hold
_PARTS = ("seconds", "rows_seconds", "sae_seconds")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds per step.

    Attributes:
        total: of everything.
        rows: waiting for rows; None where the lines do not tell.
        sae: in the SAE steps.
    """

    total: float
    rows: float | None = None
    sae: float | None = None

    @property
    def shares(self) -> tuple[float, float] | None:
        """Of the time, waiting for rows and in the SAE steps."""
        return None if self.rows is None or self.sae is None else (self.rows / self.total, self.sae / self.total)


def pace(run: Record) -> Pace | None:
    """Of the whole run if it has ended; while it goes on, of its later half so far, its start left out."""
    if run.ended:
        return pace_so_far(run)
    lines = steady_lines(run)
    starts = (len(lines) // 2 if len(lines) >= 4 else 0, 0)
    found = (between(lines[start:]) for start in starts if _holds_forwards(run.facts, lines[start:]))
    return next(found, None)


def pace_or_estimate(run: Record) -> Pace | None:
    """The same; before enough lines are there, what the rows read and the steps done took, the start among them."""
    found = pace(run)
    return pace_so_far(run) if found is None else found


def pace_so_far(run: Record) -> Pace | None:
    """Of all that the run has done; None where its lines do not tell the time, or not that of the filled buffer."""
    spent = seconds_so_far(run)
    if not spent or run.step <= 0:
        return None
    rows, sae, total = (spent.get(part, None) for part in ("rows_seconds", "sae_seconds", "seconds"))
    ahead = _read_ahead(run.facts, run.step)
    if total is None or ahead is None or (rows is None and ahead > 1):
        return None
    for_steps = 0.0 if rows is None else rows * (1 - 1 / ahead)  # that were read and wait for later steps
    return Pace(
        total=(total - for_steps) / run.step,
        rows=None if rows is None else rows / ahead / run.step,
        sae=None if sae is None else sae / run.step,
    )


def seconds_so_far(run: Record) -> dict[str, float]:
    """What the last line tells of seconds, rows_seconds and sae_seconds; of an old run what its run.json does."""
    line: Mapping[str, Any] = run.lines[-1] if run.lines else {}
    found = {part: float(line[part]) for part in _PARTS if is_number(line.get(part))}
    whole = run.facts.seconds
    if len(found) < len(_PARTS) and {"total", "rows", "sae"} <= set(whole):
        found = {"seconds": whole["total"], "rows_seconds": whole["rows"], "sae_seconds": whole["sae"]}
    return found if found.get("seconds", 0.0) > 0 else {}


def between(lines: Sequence[Mapping[str, Any]]) -> Pace | None:
    """From the first of some lines to the last; None with fewer than two."""
    if len(lines) < 2 or lines[-1]["step"] <= lines[0]["step"]:
        return None
    first, last = lines[0], lines[-1]
    n_steps = last["step"] - first["step"]
    spent = {
        part: float(last[part] - first[part]) / n_steps
        for part in _PARTS
        if is_number(first.get(part)) and is_number(last.get(part))
    }
    if spent.get("seconds", 0.0) <= 0:
        return None
    return Pace(total=spent["seconds"], rows=spent.get("rows_seconds"), sae=spent.get("sae_seconds"))


def steady_lines(run: Record) -> list[Mapping[str, Any]]:
    """Lines with their time, of a stream those before its buffer is only emptied."""
    timed = [line for line in run.lines if is_number(line.get("seconds"))]
    facts, buffer = run.facts, run.facts.shuffled_ahead
    if not buffer or facts.n_rows is None or not facts.batch_size:
        return timed
    return [line for line in timed if line["step"] * facts.batch_size <= facts.n_rows - buffer]


def _holds_forwards(facts: Facts, lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether rows were read often enough between lines: one pass may serve many steps."""
    if len(lines) < 2:
        return False
    n_rows = (lines[-1]["step"] - lines[0]["step"]) * (facts.batch_size or 0)
    return facts.forward_rows is None or n_rows >= _FORWARDS * facts.forward_rows


def _read_ahead(facts: Facts, step: int) -> float | None:
    """Rows that were read after some steps, over those that were used: 1 without a buffer, and at the end with one."""
    buffer = facts.shuffled_ahead
    if not buffer or not facts.forward_rows:
        return 1.0
    if not facts.batch_size:
        return None
    read = (buffer + (step - 1) * facts.batch_size) // facts.forward_rows * facts.forward_rows
    used = step * facts.batch_size
    return max(1.0, (read if facts.n_rows is None else min(read, facts.n_rows)) / used)
