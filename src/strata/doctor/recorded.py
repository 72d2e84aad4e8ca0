"""What Strata's own recorded runs looked like: recorded.json, each entry with its source."""

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

_REACH = 4.0  # how many times fewer or more rows a recorded run still speaks for


@dataclass(frozen=True)
class Expected:
    """Dead shares of recorded runs at some number of rows.

    Attributes:
        low: the smallest.
        high: the largest.
        names: of the runs.
        alike: they had the same gate, revival method and centring; else they are what comes nearest.
    """

    low: float
    high: float
    names: tuple[str, ...]
    alike: bool


@cache
def recorded() -> dict[str, Any]:
    """The content of recorded.json."""
    return json.loads(files("strata.doctor").joinpath("recorded.json").read_text(encoding="utf-8"))


@cache
def expected_dead(*, rows: int, architecture: str, revival: str | None, centring: bool) -> Expected:
    """The range of dead shares at so many rows; runs of other lengths do not count while there is one that fits.

    Args:
        rows: trained on so far.
        architecture: the gate.
        revival: the method; None where it is not known.
        centring: whether the mean is subtracted.
    """
    runs = recorded()["runs"]
    same = [
        run for run in runs
        if (run["architecture"], run["revival"], run["centring"]) == (architecture, revival, centring)
    ]  # fmt: skip
    likely = same or [run for run in runs if run["centring"] == centring]
    near = [run for run in likely if run["curve"][0][0] / _REACH <= rows <= run["curve"][-1][0] * _REACH]
    chosen = near or [min(likely, key=lambda run: abs(math.log(run["curve"][-1][0] / max(rows, 1))))]
    shares = [_at(run["curve"], rows) for run in chosen]
    return Expected(min(shares), max(shares), tuple(run["name"] for run in chosen), alike=bool(same))


def silent_on_held_out(architecture: str) -> float:
    """Share of latents that were silent on 65,536 held-out rows after a short run with a gate: more than are dead."""
    return recorded()["silent_on_held_out_rows"]["shares"].get(architecture, 0.0)


def _at(curve: list[list[Any]], rows: int) -> float:
    """The dead share at so many rows, between the two nearest points; beyond the ends that of the end."""
    for (before, _, low), (after, _, high) in pairwise(curve):
        if before <= rows <= after:
            return low + (high - low) * (rows - before) / (after - before)
    return curve[0][2] if rows < curve[0][0] else curve[-1][2]
