"""Points, lines and intervals on logarithmic axes as SVG: they stand in a page and follow its light or dark colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from strata.report.charts import Axis
from strata.report.numbers import show

_FONT = "font-family='system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif'"
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640.0, 360.0, 66.0, 16.0, 34.0, 48.0
_COLOURS = ("#b85a24", "#2f86a6", "#8a7a1f", "#8a5fb0", "#4a8f5a", "#b04a6a")
_SOFT = "#8a8078"
Pair = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Series:
    """Values of one kind.

    Attributes:
        name: in the legend; empty is not in it.
        colour: a number; -1 is grey.
        dots: measured points.
        line: of a law.
        dashed: whether the line is.
    """

    name: str
    colour: int = 0
    dots: Sequence[Pair] = ()
    line: Sequence[Pair] = ()
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Band:
    """An interval over x.

    Attributes:
        low: its lower edge, as (x, y).
        high: its upper edge, at the same x.
    """

    low: Sequence[Pair]
    high: Sequence[Pair]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture.

    Attributes:
        title: what it shows, for those who do not see it.
        x_title: of the axis below.
        y_title: of the axis at the left.
        series: drawn one over the other.
        bands: behind them.
        measured_to: x beyond which nothing was measured: grey there.
        marks: vertical lines with their words.
    """

    title: str
    x_title: str
    y_title: str
    series: Sequence[Series]
    bands: Sequence[Band] = ()
    measured_to: float | None = None
    marks: Sequence[tuple[float, str]] = field(default_factory=tuple)


def draw(plot: Plot) -> str:
    """The picture as SVG; empty where there is nothing to draw."""
    pairs = [pair for one in plot.series for pair in (*one.dots, *one.line)]
    pairs += [pair for band in plot.bands for pair in (*band.low, *band.high)]
    pairs = [pair for pair in pairs if _is_drawn(pair)]
    if not pairs:
        return ""
    x_axis = Axis.around([x for x, _ in pairs] + [x for x, _ in plot.marks if _is_drawn((x, 1.0))], log=True)
    y_axis = Axis.around([y for _, y in pairs], log=True)
    place = _Place(x_axis, y_axis)
    parts = [_grid(place, plot)]
    if plot.measured_to is not None and plot.measured_to < x_axis.high:
        x = place.x(max(plot.measured_to, x_axis.low))
        box = f"x='{x:.1f}' y='{_TOP}' width='{_WIDTH - _RIGHT - x:.1f}' height='{_HEIGHT - _TOP - _BOTTOM}'"
        parts.append(f"<rect {box} fill='{_SOFT}' opacity='.13'><title>beyond what was measured</title></rect>")
    parts += [_band(place, band) for band in plot.bands]
    parts += [_series(place, one) for one in plot.series]
    parts += [_mark(place, x, words) for x, words in plot.marks if _is_drawn((x, 1.0))]
    parts.append(_legend(plot.series))
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH:g} {_HEIGHT:g}' role='img'"
        f" aria-label='{escape(plot.title, quote=True)}' {_FONT}>{''.join(parts)}</svg>"
    )


def amount(value: Any) -> str:
    """A number of any size in a few letters: 1,536, 250 k, 3.2 M, 4.1e17."""
    if value >= 1e12:
        return f"{value:.2g}".replace("e+", "e")
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if prefix == 'k' else size):.3g} {prefix}"
    return show(value, "quantity")


@dataclass(frozen=True)
class _Place:
    """Where values lie in the picture."""

    x_axis: Axis
    y_axis: Axis

    def x(self, value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * self.x_axis.at(value)

    def y(self, value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - self.y_axis.at(value))

    def path(self, pairs: Sequence[Pair]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in pairs if _is_drawn((x, y)))


def _is_drawn(pair: Pair) -> bool:
    return all(math.isfinite(value) and value > 0 for value in pair)


def _grid(place: _Place, plot: Plot) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts: list[str] = []
    for tick in place.y_axis.ticks():
        y = place.y(tick)
        parts.append(f"<line x1='{_LEFT}' x2='{right}' y1='{y:.1f}' y2='{y:.1f}' stroke='{_SOFT}' opacity='.25'/>")
        parts.append(_text(_LEFT - 8, y + 4, amount(tick), anchor="end"))
    for tick in place.x_axis.ticks(n_most=7):
        x = place.x(tick)
        parts.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{bottom}' y2='{bottom + 5}' stroke='{_SOFT}'/>")
        parts.append(_text(x, bottom + 19, amount(tick)))
    parts.append(f"<line x1='{_LEFT}' x2='{right}' y1='{bottom}' y2='{bottom}' stroke='{_SOFT}'/>")
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 8, plot.x_title, size=13))
    turned = f"translate(14 {(_TOP + bottom) / 2:.0f}) rotate(-90)"
    return "".join(parts) + _text(0.0, 0.0, plot.y_title, size=13, place=turned)


def _band(place: _Place, band: Band) -> str:
    both = [(low, high) for low, high in zip(band.low, band.high, strict=True) if _is_drawn(low) and _is_drawn(high)]
    there, back = [low for low, _ in both], [high for _, high in reversed(both)]
    points = place.path([*there, *back])
    return f"<polygon points='{points}' fill='{_SOFT}' opacity='.3'><title>90 % interval</title></polygon>"


def _series(place: _Place, one: Series) -> str:
    colour = _colour(one.colour)
    parts: list[str] = []
    if one.line:
        dash = " stroke-dasharray='5 4'" if one.dashed else ""
        tip = f"<title>{escape(one.name)}</title>" if one.name else ""
        line = f"points='{place.path(one.line)}' fill='none' stroke='{colour}' stroke-width='2'{dash}"
        parts.append(f"<polyline {line}>{tip}</polyline>")
    for x, y in one.dots:
        if _is_drawn((x, y)):
            tip = escape(f"{one.name}: {show(y, 'quantity')} at {amount(x)}")
            dot = f"cx='{place.x(x):.1f}' cy='{place.y(y):.1f}' r='4' fill='{colour}'"
            parts.append(f"<circle {dot}><title>{tip}</title></circle>")
    return "".join(parts)


def _mark(place: _Place, x: float, words: str) -> str:
    at, bottom = place.x(x), _HEIGHT - _BOTTOM
    line = f"<line x1='{at:.1f}' x2='{at:.1f}' y1='{_TOP}' y2='{bottom}' stroke='currentColor' stroke-dasharray='2 4'/>"
    right = at > _WIDTH / 2
    return line + _text(at + (-6 if right else 6), _TOP + 14, words, anchor="end" if right else "start")


def _legend(series: Sequence[Series]) -> str:
    parts: list[str] = []
    x = _LEFT
    for one in series:
        if one.name:
            parts.append(f"<rect x='{x:.1f}' y='9' width='14' height='4' rx='2' fill='{_colour(one.colour)}'/>")
            parts.append(_text(x + 19, 15.0, one.name, anchor="start"))
            x += 34 + 6.6 * len(one.name)
    return "".join(parts)


def _colour(number: int) -> str:
    return _SOFT if number < 0 else _COLOURS[number % len(_COLOURS)]


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 12, place: str = "") -> str:
    turn = f" transform='{place}'" if place else ""
    where = f"x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' font-size='{size}' fill='currentColor'{turn}"
    return f"<text {where}>{escape(text)}</text>"
