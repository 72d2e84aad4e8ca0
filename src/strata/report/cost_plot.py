"""Quality against cost, as an SVG that stands by itself: one point per suite, named."""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import escape

from strata.report.charts import Axis
from strata.report.numbers import number, show

_WIDTH, _HEIGHT = 1000.0, 440.0
_TOP, _BOTTOM, _LEFT, _GAP, _RIGHT = 56.0, 70.0, 74.0, 34.0, 24.0
Kind = Literal["layer-wise", "groups", "random weights", "PCA"]
_COLOURS: dict[Kind, str] = {
    "layer-wise": "#a8481a",
    "groups": "#1f6f8b",
    "random weights": "#7a7167",
    "PCA": "#6a6058",
}
_LABEL_HEIGHT, _LETTER_WIDTH = 14.0, 6.4


@dataclass(frozen=True)
class Point:
    """A suite in the picture; a baseline without cost is a line across it.

    Attributes:
        name: of the suite.
        label: what is written beside it: its name, or one for all suites that differ in their seeds alone, beside the
            first of them; the others have none.
        kind: decides its colour.
        y: its quality.
        seconds: measured, that its SAEs took; None without cost, or where others were measured on other hardware.
        flops: counted, of its SAEs and of the language model; None without cost.
    """

    name: str
    label: str
    kind: Kind
    y: float
    seconds: float | None
    flops: float | None


def points(found: Mapping[str, Any], quality: Callable[[Mapping[str, Any]], Any]) -> list[Point]:
    """The suites whose quality and cost are of the same sites, those that all have; see `left_out` for the others.

    Args:
        found: as `strata.evaluate.compare.compare_runs` returns it: its ``suites`` and ``mean_sites``.
        quality: a suite → what y is; a suite of which it is unknown has no point.
    """
    shown = {name: suite for name, suite in found["suites"].items() if _is_comparable(suite, found)}
    known = {name: suite for name, suite in shown.items() if number(quality(suite)) is not None}
    labels, same_hardware = _labels(known), len(_hardware(shown)) < 2
    placed: list[Point] = []
    for name, suite in known.items():
        y = number(quality(suite))
        cost: Mapping[str, Any] = suite["cost"] or {}
        flops = [number(cost.get(key)) for key in ("sae_flops", "lm_flops")]
        both = None if None in flops else sum(value for value in flops if value is not None)
        seconds = number(cost.get("sae_seconds")) if same_hardware else None
        placed.append(Point(name, labels.get(name, ""), _kind(suite), y or 0.0, seconds, both))
    return placed


def left_out(found: Mapping[str, Any]) -> list[str]:
    """What the plots do not show, and why, in sentences."""
    suites = found["suites"]
    said: list[str] = []
    others = [name for name, suite in suites.items() if not _is_comparable(suite, found)]
    if others:
        said.append(
            f"Not in the plots: {', '.join(others)}. They have other sites than those that all suites have, over which"
            " quality is the mean, and their cost is that of all their sites."
        )
    places = _hardware({name: suite for name, suite in suites.items() if name not in others})
    if len(places) > 1:
        said.append(
            "No plot over measured seconds, which are of different hardware: "
            + "; ".join(f"{', '.join(names)}: {place}" for place, names in places.items())
            + "."
        )
    return said


def _is_comparable(suite: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """A baseline without cost is, whatever its sites."""
    return suite["kind"] == "pca" or set(suite["sites"]) == set(found["mean_sites"])


def _hardware(suites: Mapping[str, Any]) -> dict[str, list[str]]:
    """Where the suites' seconds were measured → the suites' names; without those that have no seconds."""
    places: dict[str, list[str]] = {}
    for name, suite in suites.items():
        cost: Mapping[str, Any] = suite["cost"] or {}
        if number(cost.get("sae_seconds")) is not None:
            places.setdefault(cost.get("hardware") or "unknown", []).append(name)
    return places


def _labels(suites: Mapping[str, Any]) -> dict[str, str]:
    """Suite → what is written beside it; of suites that differ in their seeds alone only the first has a label."""
    families: dict[str, list[str]] = {}
    for name, suite in suites.items():
        settings = {key: value for key, value in suite["settings"].items() if key != "seed"}
        alike = [settings, suite["groups"], suite["model"], sorted(suite["sites"]), suite["run"] is None]
        families.setdefault(json.dumps(alike, sort_keys=True, default=str), []).append(name)
    labels: dict[str, str] = {}
    for names in families.values():
        alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
        shared = re.sub(r"[\W_]*(seed|s)?[\W_]*$", "", "".join(letters[0] for letters in alike))
        labels[names[0]] = names[0] if len(names) == 1 else f"{shared or names[0]} ({len(names)} runs)"
    return labels


def cost_plot(given: Sequence[Point], *, title: str, y_title: str) -> str:
    """Panels that share their y axis: over the seconds that SAE training took, and over FLOPs of SAEs and model.

    One of which nothing is known is left out.

    Args:
        given: the suites.
        title: of the picture.
        y_title: what y is; it starts at 0, or below where a value is.

    Returns:
        The SVG, with colours and fonts of its own; empty where no suite has both a quality and a cost.
    """
    if not any(point.seconds is not None or point.flops is not None for point in given):
        return ""
    y_axis = Axis.around([point.y for point in given])
    panels = (
        ("SAE training, measured seconds", [(p, p.seconds) for p in given]),
        ("SAE training and language model, counted FLOPs", [(p, p.flops) for p in given]),
    )
    panels = [(x_title, pairs) for x_title, pairs in panels if any(x is not None for _, x in pairs)]
    width = (_WIDTH - _LEFT - _RIGHT + _GAP) / len(panels) - _GAP
    drawn = [
        _panel(_LEFT + place * (width + _GAP), width, x_title, pairs, y_axis, ticks=place == 0)
        for place, (x_title, pairs) in enumerate(panels)
    ]
    kinds: list[Kind] = [kind for kind in _COLOURS if any(point.kind == kind for point in given)]
    said = f"{title}: " + "; ".join(f"{point.name} {show(point.y, 'quantity')}" for point in given)
    size = f'viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" font-family="system-ui, sans-serif" font-size="12.5"'
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(said)}" {size}>',
            f'<rect width="{_WIDTH:g}" height="{_HEIGHT:g}" fill="#fdfcfa"/>',
            _text(_LEFT, 24.0, title, weight=600, size=15.0),
            _legend(kinds),
            _text(18.0, _TOP + (_HEIGHT - _TOP - _BOTTOM) / 2, y_title, anchor="middle", turned=True, colour="#6a6058"),
            *drawn,
            "</svg>",
        ]
    )


def _panel(
    left: float, width: float, x_title: str, pairs: Sequence[tuple[Point, float | None]], y_axis: Axis, *, ticks: bool
) -> str:
    known = [(point, x) for point, x in pairs if x is not None]
    x_axis = Axis.around([x for _, x in known])
    right, bottom = left + width, _HEIGHT - _BOTTOM

    def x_of(x: float) -> float:
        return left + width * x_axis.at(x)

    def y_of(y: float) -> float:
        return bottom - (bottom - _TOP) * y_axis.at(y)

    drawn: list[str] = []
    for tick in y_axis.ticks():
        drawn.append(_line(left, y_of(tick), right, y_of(tick), colour="#e5dfd8"))
        if ticks:
            drawn.append(_text(left - 8, y_of(tick) + 4, show(tick, "quantity"), anchor="end", colour="#6a6058"))
    for tick in x_axis.ticks(n_most=5):
        drawn.append(_line(x_of(tick), bottom, x_of(tick), bottom + 5, colour="#6a6058"))
        drawn.append(_text(x_of(tick), bottom + 19, _amount(tick), anchor="middle", colour="#6a6058"))
    drawn.append(_line(left, bottom, right, bottom, colour="#6a6058"))
    drawn.append(_text(left + width / 2, bottom + 44, x_title, anchor="middle", colour="#6a6058"))
    taken: list[tuple[float, float, float, float]] = [
        (x_of(x) - 6, y_of(point.y) - 6, x_of(x) + 6, y_of(point.y) + 6) for point, x in known
    ]
    lines = [point for point, _ in pairs if point.kind == "PCA"]
    taken += [(left, y_of(point.y) - 2, right, y_of(point.y) + 2) for point in lines]
    for point, x in sorted(pairs, key=lambda pair: pair[0].kind != "PCA"):  # lines first, whose names have less room
        colour = _COLOURS[point.kind]
        if point.kind == "PCA":
            drawn.append(_line(left, y_of(point.y), right, y_of(point.y), colour=colour, dashed=True))
            drawn.append(_label(point.label, right - 6, y_of(point.y), taken, bounds=(left, right)))
        elif x is not None:
            fill = "#fdfcfa" if point.kind == "random weights" else colour
            tip = escape(f"{point.name}: {show(point.y, 'quantity')} at {_amount(x)}")
            drawn.append(
                f'<circle cx="{x_of(x):.1f}" cy="{y_of(point.y):.1f}" r="5" fill="{fill}" stroke="{colour}"'
                f' stroke-width="2"><title>{tip}</title></circle>'
            )
            drawn.append(_label(point.label, x_of(x), y_of(point.y), taken, bounds=(left, right)))
    return "".join(drawn)


def _label(
    name: str, x: float, y: float, taken: list[tuple[float, float, float, float]], *, bounds: tuple[float, float]
) -> str:
    """The name beside its point, at the first of several places where nothing is that is `taken`; a line leads to those
    farther off. A point whose name finds no room goes without; its tip tells it.
    """
    if not name:
        return ""
    shown = name if len(name) <= 34 else name[:33] + "…"
    width = _LETTER_WIDTH * len(shown)
    for offset in (-10, 20, -26, 36, -42, 52, -58, 68):
        for anchor, start in (("middle", x - width / 2), ("start", x + 10), ("end", x - 10 - width)):
            baseline = y + offset
            box = (start, baseline - _LABEL_HEIGHT + 3, start + width, baseline + 3)
            inside = bounds[0] <= box[0] and box[2] <= bounds[1] and box[1] >= _TOP - 16 and box[3] <= _HEIGHT - _BOTTOM
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                place = {"middle": x, "start": x + 10, "end": x - 10}[anchor]
                edge = baseline - 10 if offset > 0 else baseline + 3
                leader = _line(place, edge, x, y, colour="#c9c1b8") if abs(offset) > 20 else ""
                return leader + _text(place, baseline, shown, anchor=anchor)
    return ""


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _legend(kinds: Sequence[Kind]) -> str:
    drawn: list[str] = []
    x = _WIDTH - _RIGHT
    for kind in reversed(kinds):
        x -= _LETTER_WIDTH * len(kind)
        drawn.append(_text(x, 24.0, kind, colour="#6a6058"))
        x -= 14
        fill = "none" if kind == "random weights" else _COLOURS[kind]
        mark = f'<circle cx="{x + 5:.1f}" cy="20" r="4" fill="{fill}" stroke="{_COLOURS[kind]}" stroke-width="2"/>'
        drawn.append(_line(x - 4, 20.0, x + 8, 20.0, colour=_COLOURS[kind], dashed=True) if kind == "PCA" else mark)
        x -= 24
    return "".join(drawn)


def _kind(suite: Mapping[str, Any]) -> Kind:
    if suite["kind"] == "pca":
        return "PCA"
    if suite["random_weights"]:
        return "random weights"
    return "layer-wise" if len(suite["groups"]) == len(suite["sites"]) else "groups"


def _amount(value: float) -> str:
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return show(value, "quantity")


def _line(x1: float, y1: float, x2: float, y2: float, *, colour: str, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dash}/>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    colour: str = "#211c18",
    weight: int = 400,
    size: float = 12.5,
    turned: bool = False,
) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-weight="{weight}"'
        f' font-size="{size}"{turn}>{escape(text)}</text>'
    )
