"""Interactions on disk: JSON of a stated shape, GraphML, pictures.

``interactions.json`` (``version`` 1): ``about`` (what was asked for), ``keys`` (SAEs in the order of the model),
``counts`` (what it cost), and the graphs ``coactivation`` and ``attribution``, each with ``nodes`` (``id`` and what
`strata.interactions.graph.Names` says) and ``edges`` (``source``, ``target`` and the measures that
`strata.interactions.graph` states). ``targets`` has for each target what its sources add up to.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strata.atomic import write_json, write_whole
from strata.interactions.command import Interactions
from strata.interactions.edges import Target
from strata.interactions.picture import draw
from strata.visible_text import visible

if TYPE_CHECKING:
    import networkx as nx

VERSION = 1
RECORD = "interactions.json"
GRAPHS = {"coactivation": "Features that fire together", "attribution": "Features that contribute to later features"}


def write_interactions(found: Interactions, folder: Path, *, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the JSON, and for each graph that has edges a GraphML file and a picture.

    Args:
        found: what was found.
        folder: that is there.
        about: what was asked for; JSON-able.

    Returns:
        What the JSON holds.

    Raises:
        OSError: a file cannot be written.
    """
    import networkx as nx

    record = as_record(found, about=about)
    write_json(folder / RECORD, record)
    for name, title in GRAPHS.items():
        graph = getattr(found, name)
        if graph.number_of_edges():
            write_whole(folder / f"{name}.graphml", "\n".join(nx.generate_graphml(_for_xml(graph))))
            write_whole(folder / f"{name}.svg", draw(graph, title=title, sites=found.keys))
    return record


def as_record(found: Interactions, *, about: Mapping[str, Any]) -> dict[str, Any]:
    """What interactions.json holds."""
    targets = [_target(target) for target in found.edges.targets]
    graphs = {name: _graph(getattr(found, name)) for name in GRAPHS}
    return {
        "version": VERSION,
        "about": dict(about),
        "keys": found.keys,
        "counts": found.counts,
        **graphs,
        "targets": targets,
    }


def _graph(graph: "nx.Graph[str]") -> dict[str, Any]:
    """The strongest edges first."""
    edges: list[dict[str, Any]] = [{"source": a, "target": b, **edge} for a, b, edge in graph.edges(data=True)]
    edges.sort(key=lambda edge: (-abs(edge["weight"]), edge["source"], edge["target"]))
    nodes = [{"id": name, **node} for name, node in graph.nodes(data=True)]
    return {"directed": graph.is_directed(), "nodes": nodes, "edges": edges}


def _target(target: Target) -> dict[str, Any]:
    sources = {
        site: {
            "features": float(own.effects.double().sum()),
            "error": own.error,
            "bias": own.bias,
            "rest": target.rest(site),
        }
        for site, own in target.sources.items()
    }
    return {
        "site": target.site,
        "latent": target.latent,
        "activation": target.activation,
        "n_positions": target.n_positions,
        "sources": sources,
    }


def _for_xml(graph: "nx.Graph[str]") -> "nx.Graph[str]":
    """Without what XML cannot hold: control characters, lone surrogates."""
    copy = graph.copy()
    for _, node in copy.nodes(data=True):
        for name, value in node.items():
            if isinstance(value, str):
                node[name] = visible(value)
    return copy
