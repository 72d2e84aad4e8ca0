"""A run as the doctor sees it: its facts and its lines, whole or still growing."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeGuard

from strata.atomic import read_object
from strata.checkpoint import checkpoint_steps
from strata.doctor.expectation import expected_speed, mapping
from strata.doctor.facts import Facts, SAEFacts, facts_of
from strata.doctor.words import number
from strata.errors import UserError
from strata.sae.optim import auto_learning_rate

_FAR = 4.0
_NUMBERS = (int, float)

Points = list[tuple[int, float]]
"""Steps and the values logged there."""


class Record:
    """A run's facts and lines.

    Args:
        facts: what it is.
        lines: of metrics.jsonl, each with `step` and `sites`.
        n_damaged: lines that could not be read, a torn last one apart.
        silent_seconds: since something was last written; None while the run is watched.
        checkpoint_step: of the newest checkpoint; None without one.

    Attributes:
        lines: in the order of their steps, of several with one step the last.
        n_backwards: lines whose step is not above that of the line before.
    """

    def __init__(
        self,
        facts: Facts,
        lines: Sequence[Mapping[str, Any]],
        *,
        n_damaged: int = 0,
        silent_seconds: float | None = None,
        checkpoint_step: int | None = None,
    ) -> None:
        self.facts, self.n_damaged, self.silent_seconds = facts, n_damaged, silent_seconds
        self.checkpoint_step = checkpoint_step
        self.n_backwards = sum(b["step"] <= a["step"] for a, b in pairwise(lines))
        by_step = {line["step"]: line for line in lines}
        self.lines = list(lines) if not self.n_backwards else [by_step[step] for step in sorted(by_step)]
        self.step: int = self.lines[-1]["step"] if self.lines else 0
        self._peak: float | None = None
        self._points: dict[tuple[str, str], Points] = {}

    @property
    def keys(self) -> list[str]:
        """Of the SAEs in the last line."""
        return list(self.lines[-1]["sites"]) if self.lines else []

    @property
    def progress(self) -> float:
        """Share of the run that is done; 0 where its length is not known."""
        return self.step / self.facts.n_steps if self.facts.n_steps else 0.0

    @property
    def ended(self) -> bool:
        """Whether no more lines will come of themselves."""
        return self.facts.status == "trained" or self.progress >= 1

    def sae(self, key: str) -> SAEFacts:
        """What is known of an SAE; nothing is fine."""
        return self.facts.saes.get(key, SAEFacts())

    def points(self, key: str, name: str) -> Points:
        """A site's numbers that are there and finite."""
        if (key, name) not in self._points:
            found = ((line["step"], line["sites"].get(key, {}).get(name)) for line in self.lines)
            self._points[key, name] = _finite(found)
        return self._points[key, name]

    def last(self, key: str, name: str) -> float | None:
        """The newest of them."""
        points = self.points(key, name)
        return points[-1][1] if points else None

    def held_out(self, key: str, name: str) -> Points:
        """A site's numbers on held-out rows."""
        found = ((line["step"], line["held_out"].get(key, {}).get(name)) for line in self.lines if line.get("held_out"))
        return _finite(found)

    def learning_rates(self, key: str) -> tuple[float | None, float | None]:
        """Peak of the learning rate so far, and the automatic one; None of what is not known."""
        if self._peak is None:
            rates = _finite((line["step"], line.get("learning_rate")) for line in self.lines)
            self._peak = max((rate for _, rate in rates), default=None)
        sae, batch = self.sae(key), self.facts.batch_size
        auto = auto_learning_rate(d_sae=sae.d_sae, batch_size=batch) if sae.d_sae and batch else None
        return self._peak, auto

    def rate_is(self, extreme: Literal["high", "low"], key: str) -> bool:
        """Whether the peak is more than four times, or less than a quarter of, the automatic learning rate."""
        peak, auto = self.learning_rates(key)
        if peak is None or auto is None:
            return False
        return peak > _FAR * auto if extreme == "high" else peak < auto / _FAR

    def lower_rate(self, key: str) -> str:
        """What to train with where the learning rate is too high, in the words that all checks use."""
        _, auto = self.learning_rates(key)
        return f"lr=auto ({number(auto)})" if auto and self.rate_is("high", key) else "half the learning rate (lr)"

    def phase(self, key: str) -> tuple[int, int] | None:
        """First and last step at the full learning rate, between warm-up and decay; None if that is not known."""
        sae, n_steps = self.sae(key), self.facts.n_steps
        if n_steps is None or sae.warmup_steps is None or sae.decay_steps is None:
            return None
        return sae.warmup_steps, n_steps - sae.decay_steps


def _finite(found: Iterable[tuple[int, Any]]) -> Points:
    return [(step, float(value)) for step, value in found if type(value) in _NUMBERS and math.isfinite(value)]


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_line(line: Any) -> bool:
    """Whether an object is a line of metrics.jsonl."""
    told = mapping(line)
    sites, held_out = told.get("sites"), told.get("held_out")
    if not is_number(told.get("step")) or not isinstance(sites, Mapping) or not isinstance(held_out, Mapping | None):
        return False
    parts = [*mapping(told["sites"]).values(), *mapping(told.get("held_out")).values()]
    return all(isinstance(part, Mapping) for part in parts)


def read_run(folder: Path) -> Record:
    """The record of a run's folder, finished, stopped or still going.

    Raises:
        UserError: there is no run, or its run.json cannot be read.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise UserError(
            f"`run` must be the folder of a run. {folder} holds no run.json; one that has just been started has none"
            f" until its first step. Give e.g. runs/demo-stdlib, or wait a moment."
        )
    try:
        record = read_object(path)
    except (OSError, ValueError) as error:
        raise UserError(f"`run` must have a whole run.json. {path} is damaged. Train the run again.") from error
    metrics = folder / "metrics.jsonl"
    lines, n_damaged = _read_lines(metrics)
    written = metrics if metrics.exists() else path
    silent = max(0.0, time.time() - written.stat().st_mtime)
    if "predicted" not in record:
        record["predicted"] = expected_speed(record)
    checkpoint = next(iter(checkpoint_steps(folder / "checkpoints")), None)
    facts = facts_of(record, folder=folder)
    return Record(facts, lines, n_damaged=n_damaged, silent_seconds=silent, checkpoint_step=checkpoint)


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Whole lines, and how many others there are; the last one may be torn, since a run may be writing it."""
    if not path.exists():
        return [], 0
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    found: list[dict[str, Any]] = []
    n_damaged = 0
    for place, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line: Any = json.loads(text)
        except ValueError:
            line = None
        if is_line(line):
            found.append(dict(mapping(line)))
        else:
            n_damaged += place < len(texts)  # without a line break behind it, it is the torn last one
    return found, n_damaged
