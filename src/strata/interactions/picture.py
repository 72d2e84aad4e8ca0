"""A graph of features as an SVG that stands by itself: layers from bottom to top, or springs."""

import math
from typing import TYPE_CHECKING, Any

from markupsafe import escape

from strata.visible_text import visible

if TYPE_CHECKING:
    import networkx as nx

MOST_NODES = 60

_WIDTH, _MARGIN, _ROW_HEIGHT, _MOST_IN_ROW = 1100.0, 64.0, 92.0, 10
_COLOURS = ("#a8481a", "#1f6f8b", "#6a7a1f", "#7b4a9e", "#b08a1a", "#2f6f4f", "#8b1f4d", "#4d5d73")
_POSITIVE, _NEGATIVE, _ERROR, _INK = "#8a7a6c", "#2a6fb0", "#9a938c", "#211c18"
_LABEL_LETTERS, _TITLE_LETTERS = 22, 400


def draw(graph: "nx.Graph[str]", *, title: str, sites: list[str]) -> str:
    """The strongest part of a graph, at most 60 features with the edges among them.

    A directed graph is drawn in layers, the first site at the bottom; an undirected one as if its edges were springs.
    Edges are as thick as their weight is large, blue where it is negative. The same graph gives the same picture.

    Args:
        graph: from `strata.interactions.graph`.
        title: for those who cannot see it.
        sites: keys of the SAEs in the order of the model.
    """
    shown = strongest(graph, MOST_NODES)
    layered = shown.is_directed()
    places = _layers(shown, sites) if layered else _springs(shown)
    height = max((y for _, y in places.values()), default=0.0) + _MARGIN
    largest = max((abs(edge["weight"]) for *_, edge in shown.edges(data=True)), default=1.0)
    lines = [_line(places[a], places[b], edge, largest=largest) for a, b, edge in _by_weight(shown)]
    colours = {key: _COLOURS[number % len(_COLOURS)] for number, key in enumerate(sites)}
    nodes = [_node(places[name], node, colours) for name, node in shown.nodes(data=True)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img"'
        f' font-family="system-ui, sans-serif" font-size="11">\n<title>{_text(title, _TITLE_LETTERS)}</title>\n'
        f'<rect width="100%" height="100%" fill="#fdfcfa"/>\n{"".join(lines)}{"".join(nodes)}</svg>\n'
    )


def strongest(graph: "nx.Graph[str]", n: int) -> "nx.Graph[str]":
    """The nodes of the strongest edges, as many as there is room for, with all edges among them."""
    kept: dict[str, None] = {}
    for a, b, _ in reversed(_by_weight(graph)):
        if len(kept.keys() | {a, b}) <= n:
            kept |= {a: None, b: None}
    return graph.subgraph(kept)


def _by_weight(graph: "nx.Graph[str]") -> list[tuple[str, str, dict[str, Any]]]:
    """Edges, the strongest last; equal ones by their names, so that no picture depends on a set's order."""
    in_order = graph.is_directed()
    edges = [(a, b, edge) if in_order or a <= b else (b, a, edge) for a, b, edge in graph.edges(data=True)]
    return sorted(edges, key=lambda edge: (abs(edge[2]["weight"]), edge[0], edge[1]))


def _springs(graph: "nx.Graph[str]") -> dict[str, tuple[float, float]]:
    """Every connected part by springs of its own, parts side by side, largest first."""
    import networkx as nx

    parts = sorted((sorted(part) for part in nx.connected_components(graph)), key=lambda part: (-len(part), part))
    places: dict[str, tuple[float, float]] = {}
    left, top, row = _MARGIN, _MARGIN, 0.0
    for part in parts:
        ordered: nx.Graph[str] = nx.Graph()
        ordered.add_nodes_from(part)
        ordered.add_edges_from((a, b) for a, b, _ in _by_weight(graph) if a in ordered)
        size = 110.0 * math.sqrt(len(part))
        found = nx.spring_layout(ordered, seed=0, k=1.6 / math.sqrt(len(part)), iterations=120)
        if left > _MARGIN and left + size > _WIDTH - _MARGIN:
            left, top, row = _MARGIN, top + row + 50, 0.0
        for name, (x, y) in found.items():
            places[name] = (left + size * (float(x) + 1) / 2, top + size * (float(y) + 1) / 2)
        left, row = left + size + 90, max(row, size)
    return places


def _layers(graph: "nx.Graph[str]", sites: list[str]) -> dict[str, tuple[float, float]]:
    """Sites from bottom to top, in as many rows as they need; features above those that contribute to them."""
    rows: list[list[str]] = []
    across: dict[str, float] = {}
    for key in sites:
        names = sorted(name for name, node in graph.nodes(data=True) if node["key"] == key)
        centre = {name: _centre(graph, name, across) for name in names}
        names.sort(key=lambda name: centre[name])
        n_rows = math.ceil(len(names) / _MOST_IN_ROW)
        for number in range(n_rows):
            row = names[number::n_rows]
            shift = 0.5 if n_rows == 1 else 0.35 + 0.3 * number / (n_rows - 1)  # edges miss the row in front
            across |= {name: (place + shift) / len(row) for place, name in enumerate(row)}
            rows.append(row)
    top = len(rows) - 1
    return {
        name: (_MARGIN + across[name] * (_WIDTH - 2 * _MARGIN), _MARGIN + (top - number) * _ROW_HEIGHT)
        for number, row in enumerate(rows)
        for name in row
    }


def _centre(graph: "nx.Graph[str]", name: str, across: dict[str, float]) -> float:
    """Where the sources of a node stand, on average, as far as they are placed."""
    into = [(start, edge["weight"]) for start, end, edge in graph.edges(data=True) if end == name]
    found = [(abs(weight), across[start]) for start, weight in into if start in across]
    total = sum(weight for weight, _ in found)
    return sum(weight * place for weight, place in found) / total if total > 0 else 0.5


def _line(start: tuple[float, float], end: tuple[float, float], edge: dict[str, Any], *, largest: float) -> str:
    strength = abs(edge["weight"]) / largest if largest > 0 else 0.0
    colour = _NEGATIVE if edge["weight"] < 0 else _POSITIVE
    said = ", ".join(f"{name} {value:.3g}" for name, value in edge.items())
    return (
        f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" stroke="{colour}"'
        f' stroke-width="{0.5 + 4.5 * strength:.2f}" stroke-opacity="{0.25 + 0.5 * strength:.2f}">'
        f"<title>{escape(said)}</title></line>\n"
    )


def _node(place: tuple[float, float], node: dict[str, Any], colours: dict[str, str]) -> str:
    x, y = place
    is_error = node["kind"] == "error"
    name = f"{node['key']} · {'error' if is_error else node['latent']}"
    explanation = node["explanation"]
    colour = _ERROR if is_error else colours.get(node["key"], _INK)
    shape = (
        f'<rect x="{x - 6:.1f}" y="{y - 6:.1f}" width="12" height="12" fill="{colour}"/>'
        if is_error
        else f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{9 if node.get("target") else 7}" fill="{colour}"/>'
    )
    shown = "" if is_error else _text(explanation, _LABEL_LETTERS)
    below = f'<tspan x="{x:.1f}" dy="13">{shown}</tspan>' if shown else ""
    halo = 'paint-order="stroke" stroke="#fdfcfa" stroke-width="3"'
    return (
        f"<g>{shape}<title>{_text(f'{name}: {explanation}' if explanation else name, _TITLE_LETTERS)}</title>"
        f'<text x="{x:.1f}" y="{y + 22:.1f}" text-anchor="middle" fill="{_INK}" {halo}>'
        f"{_text(name, 2 * _LABEL_LETTERS)}{below}</text></g>\n"
    )


def _text(words: str, most: int) -> str:
    """Text that cannot become markup, and that XML may hold."""
    shown = visible(words)
    return str(escape(shown if len(shown) <= most else shown[: most - 1] + "…"))
