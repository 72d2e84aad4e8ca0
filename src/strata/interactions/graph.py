"""Features as a graph: who fires with whom, and who contributes to whom."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from strata.interactions.edges import Edges, Sources
from strata.interpret.coactivation import Measure, Partners

if TYPE_CHECKING:
    import networkx as nx

_MEASURES = ("jaccard", "phi", "pearson", "lift")


@dataclass(frozen=True)
class Names:
    """What is known of the features of one SAE.

    Attributes:
        key: the SAE's folder in the run; what its features are called by.
        site: where it stands.
        density: share of rows on which each latent fires, [d_sae].
        explanations: of some latents.
    """

    key: str
    site: str
    density: np.ndarray
    explanations: Mapping[int, str] = field(default_factory=dict[int, str])

    def add_to(self, graph: "nx.Graph[str]", latent: int) -> str:
        """The node of a latent, new or not."""
        name = f"{self.key}/{latent}"
        if name not in graph:
            graph.add_node(
                name,
                kind="feature",
                key=self.key,
                site=self.site,
                latent=latent,
                density=float(self.density[latent]),
                explanation=self.explanations.get(latent, ""),
            )
        return name

    def add_error_to(self, graph: "nx.Graph[str]") -> str:
        """The node of what the SAE misses."""
        name = f"{self.key}/error"
        graph.add_node(name, kind="error", key=self.key, site=self.site, explanation="what the SAE misses")
        return name


def coactivation_graph(
    pairs: Sequence[tuple[Names, Names, Partners]], *, by: Measure = "jaccard", n_edges: int, least_jaccard: float
) -> "nx.Graph[str]":
    """The pairs of features that are largest by a measure; undirected.

    A pair is there if one of the two is among the partners of the other. Edges carry weight (the measure), count,
    jaccard, phi, pearson and lift (those that are defined, see `Partners`).

    Args:
        pairs: features, features whose latents are their partners (the same ones or another site's), and the partners.
        by: the measure, by which partners should have been ranked too; pairs for which it is undefined are left out.
        n_edges: at most so many edges.
        least_jaccard: of an edge.
    """
    import networkx as nx

    graph: nx.Graph[str] = nx.Graph()
    offered: dict[tuple[int, int, int], tuple[float, Names, Names, Partners, int]] = {}
    for number, (left, right, partners) in enumerate(pairs):
        latents = np.repeat(np.arange(len(partners.offsets) - 1), np.diff(partners.offsets))
        weights = partners.measure(by)
        allowed = np.isfinite(weights) & (partners.jaccard >= least_jaccard)
        order = np.argsort(-weights, kind="stable")
        for place in order[allowed[order]][: 2 * n_edges].tolist():  # a pair may stand there from both ends
            i, j = int(latents[place]), int(partners.latents[place])
            pair = (number, *sorted((i, j))) if left.key == right.key else (number, i, j)
            first, second = (pair[1], pair[2])
            offered.setdefault((number, first, second), (float(weights[place]), left, right, partners, place))
    best = sorted(offered.items(), key=lambda item: (-item[1][0], item[0]))[:n_edges]
    for (_, i, j), (weight, left, right, partners, place) in best:
        measures = {name: float(getattr(partners, name)[place]) for name in _MEASURES}
        known = {name: value for name, value in measures.items() if math.isfinite(value)}
        a, b = left.add_to(graph, i), right.add_to(graph, j)
        graph.add_edge(a, b, weight=weight, count=int(partners.counts[place]), **known)
    return graph


def attribution_graph(edges: Edges, names: Mapping[str, Names], *, n_sources: int) -> "nx.DiGraph[str]":
    """Each target with the features of the largest |effect| on it, and with the errors of their SAEs; directed.

    Edges carry weight (the effect, in the units of the target's activation, summed over positions), per_position (its
    mean over the positions at which the target fires) and share (of the sum of the target's activations). Targets that
    never fired are left out.

    Args:
        edges: from `attribution_edges`.
        names: by site.
        n_sources: features for each target and upstream site.
    """
    import networkx as nx

    graph: nx.DiGraph[str] = nx.DiGraph()
    for target in edges.targets:
        if target.n_positions == 0:
            continue
        end = names[target.site].add_to(graph, target.latent)
        graph.nodes[end].update(target=True, activation=target.activation, n_positions=target.n_positions)
        for site, sources in target.sources.items():
            found = [(names[site].add_to(graph, i), effect) for i, effect in _strongest(sources, n_sources)]
            for start, effect in [*found, (names[site].add_error_to(graph), sources.error)]:
                per_position, share = effect / target.n_positions, effect / target.activation
                graph.add_edge(start, end, weight=effect, per_position=per_position, share=share)
    return graph


def _strongest(sources: Sources, n: int) -> list[tuple[int, float]]:
    """The features of largest |effect|, as far as they have any."""
    top = sources.effects.abs().topk(min(n, len(sources.effects))).indices
    effects = [(int(latent), float(sources.effects[latent])) for latent in top]
    return [(latent, effect) for latent, effect in effects if effect != 0]
