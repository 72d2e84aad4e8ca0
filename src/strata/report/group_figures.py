"""Figures of layer groups as SVG: they stand by themselves or in a page, and follow its light or dark colours."""

import itertools
from collections.abc import Sequence
from html import escape
from typing import Any

from strata.report.charts import Axis
from strata.report.numbers import number, numbers, show

_FONT = "font-family='system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif'"
_STYLE = (
    "<style>.sg-soft{fill:#6a6058}.sg-ink{fill:#211c18}.sg-line{stroke:#e5dfd8}.sg-accent{stroke:#a8481a}"
    ".sg-grey{stroke:#8a8078}.sg-box{stroke:#211c18}.sg-dot{fill:#a8481a}"
    "@media (prefers-color-scheme:dark){.sg-soft{fill:#a89d92}.sg-ink{fill:#ebe5de}.sg-line{stroke:#37312c}"
    ".sg-accent{stroke:#eb9a63}.sg-grey{stroke:#8f857b}.sg-box{stroke:#ffffff}.sg-dot{fill:#eb9a63}}</style>"
)
_PALE, _DEEP = (253, 246, 238), (122, 43, 10)
_MOST_NUMBERED = 26  # layers; more of them get smaller cells without numbers, which a pointer still shows
_LEFT, _TOP = 44, 8
_LINES = (("worst_diameter", "sg-grey", "worst diameter"), ("amad", "sg-accent", "AMAD"))  # key, style, in words
_LEGEND = (22, 42)  # where its lines lie, from the top
_Length = int | float  # in units of the picture
_Point = tuple[_Length, _Length]
_Box = tuple[_Length, _Length, _Length, _Length]  # left, top, right, bottom


def heatmap(
    values: Sequence[Sequence[float | None]], *, sites: Sequence[str], groups: Sequence[Sequence[str]], title: str
) -> str:
    """A symmetric matrix of layers as coloured cells with their numbers; groups are outlined on the diagonal.

    Args:
        values: [L L], in [0, 1]; None is left blank.
        sites: their names.
        groups: of sites, neighbours in `sites`.
        title: what the numbers are, for those who do not see them.
    """
    n = len(sites)
    cell = max(14, min(40, 900 // n))
    side, numbered = n * cell, n <= _MOST_NUMBERED
    known = [v for row, line in enumerate(values) for v in numbers(line[:row])]
    high, low = max(known, default=1) or 1, 0 if min(known, default=0) < 0.5 else min(known)
    labels = _short(sites)
    parts: list[str] = []
    for row in range(n):
        for column in range(n):
            value = number(values[row][column])
            if value is None:
                continue
            share = 0.0 if high == low else max(0.0, min(1.0, (value - low) / (high - low)))
            x, y = _LEFT + column * cell, _TOP + row * cell
            tip = escape(f"{sites[row]}, {sites[column]}: {value:.3f}")
            box = f"x='{x}' y='{y}' width='{cell}' height='{cell}'"
            parts.append(f"<rect {box} fill='{_colour(share)}'><title>{tip}</title></rect>")
            if numbered:
                ink = "#ffffff" if share > 0.5 else "#3a2a1e"
                text = "0" if value == 0 else f"{value:.2f}".removeprefix("0")
                parts.append(_text(x + cell / 2, y + cell / 2 + 4, text, size=max(9, cell * 0.3), fill=ink))
    stride = -(-n // 26)
    for place in range(0, n, stride):
        middle = place * cell + cell / 2
        parts.append(_text(_LEFT - 7, _TOP + middle + 4, labels[place], size=12, anchor="end"))
        parts.append(_text(_LEFT + middle, _TOP + side + 16, labels[place], size=12))
    parts.append(_text(_LEFT + side / 2, _TOP + side + 36, "layer", size=13))
    parts.append(_text(0, 0, "layer", size=13, place=f"translate(12 {_TOP + side / 2}) rotate(-90)"))
    for group in groups:
        first, length = sites.index(group[0]), len(group)
        x, y, edge = _LEFT + first * cell, _TOP + first * cell, length * cell
        parts.append(
            f"<rect x='{x}' y='{y}' width='{edge}' height='{edge}' fill='none' class='sg-box' stroke-width='2.5'>"
            f"<title>{escape(', '.join(group))}</title></rect>"
        )
    return _svg("".join(parts), width=_LEFT + side + 10, height=_TOP + side + 46, title=title)


def curve(rows: Sequence[dict[str, Any]], *, chosen: int, threshold: float | None) -> str:
    """AMAD and worst diameter over the number of groups.

    Args:
        rows: with `k`, `amad` and `worst_diameter`; those without numbers (None) are not drawn.
        chosen: the number that was chosen.
        threshold: of the AMAD, drawn if it is one by which was chosen.
    """
    width, height, left, top, right, bottom = 640, 320, 52, 12, 132, 44
    rows = [row for row in rows if row["amad"] is not None]
    ks = [row["k"] for row in rows]
    given = [row[key] for row in rows for key in ("amad", "worst_diameter")]
    y_axis = Axis.around(given + ([] if threshold is None or threshold > 2 * max(given) else [threshold]))
    across, down = width - left - right, height - top - bottom

    def x(k: int) -> float:
        return left + across * (0.5 if len(ks) == 1 else (k - ks[0]) / (ks[-1] - ks[0]))

    def y(value: float) -> float:
        return top + down * (1 - y_axis.at(value))

    parts = [
        f"<line x1='{left}' x2='{left + across}' y1='{y(t):.1f}' y2='{y(t):.1f}' class='sg-line'/>"
        + _text(left - 8, y(t) + 4, show(t, "quantity"), size=12, anchor="end")
        for t in y_axis.ticks()
    ]
    stride = -(-len(ks) // 20)
    parts += [_text(x(k), top + down + 18, str(k), size=12) for k in ks[::stride]]
    parts.append(_text(left + across / 2, height - 6, "number of groups K", size=13))
    if threshold is not None and y_axis.low <= threshold <= y_axis.high:
        parts.append(
            f"<line x1='{left}' x2='{left + across}' y1='{y(threshold):.1f}' y2='{y(threshold):.1f}' class='sg-accent'"
            " stroke-dasharray='5 4'/>"
            + _text(left + across + 8, y(threshold) + 4, f"threshold {threshold:g}", size=12, anchor="start")
        )
    paths: list[list[_Point]] = [[(x(row["k"]), y(row[key])) for row in rows] for key, _, _ in _LINES]
    for path, (_, line, kind) in zip(paths, _LINES, strict=True):
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in path)
        parts.append(
            f"<polyline points='{points}' fill='none' class='{line}' stroke-width='2'><title>{kind}</title></polyline>"
        )
    parts += [
        f"<circle cx='{x(row['k']):.1f}' cy='{y(row['amad']):.1f}' r='{6 if row['k'] == chosen else 3}' class='sg-dot'>"
        f"<title>K = {row['k']}: AMAD {row['amad']:.3f}, worst diameter {row['worst_diameter']:.3f}</title></circle>"
        for row in rows
    ]
    mark = next(row for row in rows if row["k"] == chosen)
    paths.extend([(left, y(level)), (width, y(level))] for level in ([] if threshold is None else [threshold]))
    paths.extend([(width - 122, place), (width, place)] for place in _LEGEND)
    frame = (left, 0, width, top + down)
    parts.append(_label(f"K = {chosen}", (x(chosen), y(mark["amad"])), paths=paths, frame=frame))
    parts += [
        f"<line x1='{width - 122}' x2='{width - 104}' y1='{place}' y2='{place}' class='{line}' stroke-width='2'/>"
        + _text(width - 98, place + 4, kind, size=12, anchor="start")
        for place, (_, line, kind) in zip(_LEGEND, _LINES, strict=True)
    ]
    return _svg("".join(parts), width=width, height=height, title="AMAD and worst diameter over the number of groups")


def _label(text: str, point: _Point, *, paths: Sequence[Sequence[_Point]], frame: _Box) -> str:
    """The words beside a point, at the first of several places within the frame where no line runs through them; where
    there is none, at the last.
    """
    (x, y), width = point, 7.0 * len(text)
    sides = (("end", x - 10, x - 10 - width), ("start", x + 10, x + 10))  # anchor, its place, left edge

    def is_free(box: _Box) -> bool:
        inside = frame[0] < box[0] and frame[1] < box[1] and box[2] < frame[2] and box[3] < frame[3]
        return inside and not any(_crosses(pair, box) for path in paths for pair in itertools.pairwise(path))

    places = [(anchor, at, y + down, edge) for down in (18, 4, -9, -26, -43) for anchor, at, edge in sides]
    free = [place for place in places if is_free((place[3], place[2] - 12, place[3] + width, place[2] + 4))]
    anchor, at, baseline, _ = (free or places[-1:])[0]
    return _text(at, baseline, text, size=13, anchor=anchor, of="sg-ink")


def _crosses(pair: tuple[_Point, _Point], box: _Box) -> bool:
    """Whether the straight line between two points, the first not right of the second, runs through a box."""
    (x1, y1), (x2, y2) = pair
    if x2 < box[0] or x1 > box[2]:
        return False
    slope = (y2 - y1) / (x2 - x1) if x2 > x1 else 0.0
    ends = [y1 + slope * (max(x1, min(x2, edge)) - x1) for edge in (box[0], box[2])]
    return min(ends) <= box[3] and max(ends) >= box[1]


def _svg(content: str, *, width: _Length, height: _Length, title: str) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height:g}' width='{width:g}'"
        f" height='{height:g}' role='img' {_FONT}><title>{escape(title)}</title>{_STYLE}{content}</svg>"
    )


def _text(
    x: _Length, y: _Length, text: str, *, size: _Length, anchor: str = "middle", fill: str = "", of: str = "sg-soft",
    place: str = "",
) -> str:  # fmt: skip
    colour = f"fill='{fill}'" if fill else f"class='{of}'"
    turned = f" transform='{place}'" if place else ""
    return (
        f"<text x='{x:g}' y='{y:g}' font-size='{size:g}' text-anchor='{anchor}' {colour}{turned}"
        f" pointer-events='none'>{escape(text)}</text>"
    )


def _colour(share: float) -> str:
    mixed = (round(pale + share * (deep - pale)) for pale, deep in zip(_PALE, _DEEP, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _short(sites: Sequence[str]) -> list[str]:
    return [site.removeprefix("layers.") for site in sites]
