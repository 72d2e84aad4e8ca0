"""The results on disk, and how numbers are written."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from figure_list import BY_NAME, RESULTS


class Results:
    """What was measured.

    Args:
        root: of the repository.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / RESULTS
        self._read = cache(self._open)

    def _open(self, name: str) -> Any:
        return json.loads((self._folder / f"{name}.json").read_text("utf-8"))

    def __getitem__(self, name: str) -> Any:
        """A result, by its figure's name."""
        return self._read(name)

    def __contains__(self, name: str) -> bool:
        return (self._folder / f"{name}.json").exists()

    def source(self, name: str) -> str:
        """The command of a figure, and when it was run."""
        figure = BY_NAME[name]
        if name not in self:
            return f"Not measured yet: `{figure.shown()}`"
        when = self["when"].get(name) if "when" in self else None
        if when is not None:
            return f"Made by `{when['command']}` ({when['date']}, {minutes(when['seconds'])})"
        date = (self.machine(name).get("date") or self[name].get("date") or "")[:10]
        of = f"; the result here is of {date}" if date else ""
        return f"Made again by `{figure.shown()}`{of}"

    def machine(self, name: str) -> dict[str, Any]:
        """On which it was measured."""
        found = self[name]
        return found.get("machine") or (found.get("seconds") or {}).get("machine") or {}


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table; the first columns are aligned left, the others right."""
    lines = [f"| {' | '.join(head)} |", "|" + "|".join(["---"] * left + ["---:"] * (len(head) - left)) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def percent(share: float, digits: int = 1) -> str:
    """`12.3 %` of 0.123."""
    return f"{100 * share:.{digits}f} %"


def signed(number: float, digits: int) -> str:
    """With a sign, the true minus."""
    return f"{number:+.{digits}f}".replace("-", "−")


def plain(number: float, digits: int) -> str:
    """With the true minus."""
    return f"{number:.{digits}f}".replace("-", "−")


def minutes(seconds: float) -> str:
    """`40 s` or `7 min`."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def plus_minus(mean: float, half: float, digits: int = 3) -> str:
    """Mean and half of its interval."""
    return f"{plain(mean, digits)} ± {half:.{digits}f}"


def power(number: float) -> str:
    """`1.8·10¹²`."""
    if number == 0:
        return "0"
    digits, exponent = f"{number:.1e}".split("e")
    return f"{digits}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
