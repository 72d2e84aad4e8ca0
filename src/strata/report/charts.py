"""Charts as geometry: axes, ticks, bars and lines in a square of 1000 units that the page stretches to its width.

Labels are HTML beside the square, placed in percent, so that they stay legible at any width.
"""

import math
from dataclasses import dataclass
from typing import Any

from strata.report.numbers import NBSP, number, numbers, short_count, show

SIDE = 1000
N_POINTS_FEW_SITES, N_POINTS_MANY_SITES, MANY_SITES = 240, 120, 12


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A stretch of numbers, low < high, laid out evenly or by logarithm (then low > 0)."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: list[float], *, log: bool = False) -> "Axis":
        """An axis on which all values lie: from 0 to a round number or, with ``log``, closely around them."""
        known = [v for v in values if v > 0] if log else values
        if log and known:
            return cls(low=min(known) / 1.06, high=max(known) * 1.06, log=True)
        low, high = min([0.0, *known]), max([0.0, *known])
        if low == high:
            return cls(low=0.0, high=1e-2)
        step = _round_step(high - low, n_most=5)
        return cls(low=math.floor(low / step + 1e-9) * step, high=math.ceil(high / step - 1e-9) * step)

    def at(self, value: float) -> float:
        """Where the value lies, 0 at the low end and 1 at the high end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def holds(self, value: float | None) -> bool:
        """Whether there is such a place."""
        return value is not None and (value > 0 or not self.log)

    def ticks(self, *, n_most: int = 6) -> list[float]:
        """Round numbers on the axis, at most about ``n_most``."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
                found = [d * 10.0**e for e in decades for d in digits if self.low <= d * 10.0**e <= self.high]
                if len(found) <= n_most:
                    break
            if len(found) >= 3:
                return found[:: math.ceil(len(found) / n_most)]
        step = _round_step(self.high - self.low, n_most=n_most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def curves(
    name: str, *, title: str, rows: list[float | None], lines: dict[str, list[float | None]], log: bool, percent: bool
) -> dict[str, Any]:
    """One line per site over the rows seen.

    Args:
        name: an identifier for the page.
        title: the chart's title, which names the quantity.
        rows: rows seen at every logged step.
        lines: site to its values, as many as rows.
        log: whether the y axis is logarithmic.
        percent: whether the values are shares, shown as percentages.

    Returns:
        What the page's template draws; ``data`` is what its script needs for the readout. ``lines`` is empty where no
        value is known.
    """
    n_points = N_POINTS_MANY_SITES if len(lines) > MANY_SITES else N_POINTS_FEW_SITES
    known = [i for i, n in enumerate(rows) if n is not None]
    kept = [known[i] for i in _evenly(len(known), n_points)]
    xs = [float(rows[i] or 0.0) for i in kept]
    lines = {site: [_four_digits(values[i]) for i in kept] for site, values in lines.items()}
    lines = {site: values for site, values in lines.items() if numbers(values)}
    x_axis = Axis(low=0.0, high=max([*xs, 0.0]) or 1.0)
    y_axis = Axis.around([v for values in lines.values() for v in numbers(values)], log=log)
    depth = {site: round(place / max(1, len(lines) - 1), 3) for place, site in enumerate(lines)}
    return {
        "name": name,
        "title": title,
        "x_title": "rows seen by each SAE",
        "x_ticks": [(short_count(t), _percent(x_axis.at(t))) for t in x_axis.ticks()],
        "y_ticks": [(_tick(t, percent=percent), _percent(1 - y_axis.at(t))) for t in y_axis.ticks()],
        "lines": [
            {"site": site, "depth": depth[site], "path": _path(x_axis, y_axis, xs, values)}
            for site, values in lines.items()
        ],
        "thinned": len(known) > len(kept),
        "data": {
            "x": [round(x) for x in xs],
            "x_high": x_axis.high,
            "y": [y_axis.low, y_axis.high],
            "log": y_axis.log,
            "percent": percent,
            "lines": [{"site": site, "depth": depth[site], "values": values} for site, values in lines.items()],
        },
    }


def bars(name: str, *, title: str, values: dict[str, float | None]) -> dict[str, Any]:
    """One bar per site, in the order of their depth, from 0.

    Returns:
        What the page's template draws: ``bars`` with ``site``, ``label``, ``text`` and their place in units; the ticks.
    """
    axis = Axis.around(numbers(values.values()))
    width = SIDE / max(1, len(values))
    labels = _short_names(list(values))
    stride = math.ceil(len(values) / 20)
    drawn: list[dict[str, Any]] = []
    for place, (site, value) in enumerate(values.items()):
        height = 0.0 if value is None else SIDE * (axis.at(max(value, 0.0)) - axis.at(0.0))
        drawn.append(
            {
                "site": site,
                "label": labels[place] if place % stride == 0 else "",
                "minor": len(values) > 10 and (place // stride) % 2 == 1,
                "text": show(value, "ratio"),
                "left": round((place + 0.14) * width, 2),
                "width": round(0.72 * width, 2),
                "top": round(SIDE * (1 - axis.at(0.0)) - height, 2),
                "height": round(height, 2),
                "center_percent": _percent((place + 0.5) / len(values)),
            }
        )
    return {
        "name": name,
        "title": title,
        "x_title": "layer" if all(label.isdecimal() for label in labels) else "site",
        "y_ticks": [(_tick(t), _percent(1 - axis.at(t))) for t in axis.ticks()],
        "bars": drawn,
        "numbered": len(values) <= 12,
    }


def _round_step(length: float, *, n_most: int) -> float:
    """The smallest of 1, 2, 5 · 10^n of which at most n_most fill the length."""
    rough = length / n_most
    decade = 10.0 ** math.floor(math.log10(rough))
    return next(d * decade for d in (1, 2, 5, 10) if d * decade >= rough * (1 - 1e-9))


def _path(x_axis: Axis, y_axis: Axis, xs: list[float], values: list[float | None]) -> str:
    parts: list[str] = []
    pen_down = False
    for x, value in zip(xs, values, strict=True):
        if value is None or not y_axis.holds(value):
            pen_down = False
            continue
        place = f"{SIDE * x_axis.at(x):.1f} {SIDE * (1 - y_axis.at(value)):.1f}"
        parts.append(f"L{place}" if pen_down else f"M{place}h0")  # h0: a lone point shows as a dot
        pen_down = True
    return "".join(parts)


def _evenly(n: int, n_most: int) -> list[int]:
    if n <= n_most:
        return list(range(n))
    return sorted({round(i * (n - 1) / (n_most - 1)) for i in range(n_most)})


def _four_digits(value: float | None) -> float | None:
    known = number(value)
    return None if known is None else float(f"{known:.4g}")


def _tick(value: float, *, percent: bool = False) -> str:
    return f"{100 * value:.3g}{NBSP}%" if percent else show(value, "quantity")


def _percent(part: float) -> float:
    return round(100 * part, 2)


def _short_names(sites: list[str]) -> list[str]:
    """The names without the dotted beginning and end that all of them share."""
    parts = [site.split(".") for site in sites]
    shortest = min(map(len, parts), default=1)
    start = 0
    while start < shortest - 1 and len({p[start] for p in parts}) == 1:
        start += 1
    end = 0
    while end < shortest - 1 - start and len({p[-1 - end] for p in parts}) == 1:
        end += 1
    return [".".join(p[start : len(p) - end]) for p in parts]
