"""The program behind `strata interactions`: partners of all features, sources of some, and the graphs of both."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

from strata.amounts import counted
from strata.config.interactions import InteractionsConfig
from strata.errors import UserError, did_you_mean
from strata.evaluate.places import named_places, places_of
from strata.evaluate.run_model import check_weights, language_model_of
from strata.evaluate.runs import open_run
from strata.evaluate.tasks.registry import TASKS, make_task
from strata.interactions.edges import NO_EDGES, Edges, attribution_edges
from strata.interactions.graph import Names, attribution_graph, coactivation_graph
from strata.interactions.targets import heaviest, most_effective, prompts_of, some_sequences, text_of
from strata.interpret.coactivation import Partners, Ranking, kept_partners, partners, partners_across
from strata.interpret.explain.record import ExplainedFeature, read_all_explanations
from strata.interpret.index import FeatureIndex
from strata.interpret.run_index import chosen_keys, index_run
from strata.interpret.site_index import SiteIndex
from strata.log import say

if TYPE_CHECKING:
    import networkx as nx

_N_PAIRS = 64  # of prompts of a task

_Named = tuple[SiteIndex, Names]


@dataclass(frozen=True)
class Interactions:
    """What was found.

    Attributes:
        keys: of the SAEs, in the order of the model.
        coactivation: undirected graph; see `strata.interactions.graph`.
        attribution: directed graph; without nodes where no edges were looked for.
        edges: what the second was made from; without targets where none were looked for.
        counts: what it cost: a dictionary for JSON.
    """

    keys: list[str]
    coactivation: "nx.Graph[str]"
    attribution: "nx.DiGraph[str]"
    edges: Edges
    counts: dict[str, Any]


def interactions(config: InteractionsConfig, *, progress: bool = True) -> Interactions:
    """Which features of a run fire together, and, with two sites or more, which contribute to which.

    The index of the run is made if it is not there yet. Partners come from it; for edges the language model runs on a
    little of its text again.

    Args:
        config: the run, its sites, and how much to look for.
        progress: say on stderr what happens.

    Raises:
        UserError: no finished run, unknown sites or task, two SAEs at one site where edges are wanted: all of these
            before anything is computed.
    """
    check(config)
    index = index_run(config, progress=progress)
    sites = [index[key] for key in chosen_keys(index, config.sites)]
    names = [_names(site) for site in sites]
    say(f"counting which features of {counted(len(sites), 'SAE')} fire together", shown=progress)
    start = time.perf_counter()
    n_kept = sum(kept_partners(site) is not None for site in sites) if _ranking(config) == Ranking() else 0
    pairs = _pairs(sites, names, config)
    seconds = time.perf_counter() - start
    together = coactivation_graph(pairs, by=config.rank_by, n_edges=config.n_edges, least_jaccard=config.least_jaccard)
    counts: dict[str, Any] = {"coactivation": _counted(pairs, n_kept=n_kept, seconds=seconds)}
    edges = NO_EDGES
    if len(sites) > 1 and config.n_targets > 0:
        say(f"the sources of {counted(config.n_targets, 'feature')} of each site but the first", shown=progress)
        start = time.perf_counter()
        edges = _edges(index, sites, config)
        spent = vars(edges.spent) | {"n_targets": len(edges.targets)}
        counts["attribution"] = spent | {"seconds": time.perf_counter() - start}
    for line in told(counts):
        say(line, shown=progress)
    by_site = {name.site: name for name in names}
    given = attribution_graph(edges, by_site, n_sources=config.n_sources)
    return Interactions([site.key for site in sites], together, given, edges, counts)


def check(config: InteractionsConfig) -> None:
    """What can be told of a description before the index is made, the language model loaded or a weight read.

    Raises:
        UserError: no finished run, unknown sites or task, two SAEs at one site where edges are wanted.
    """
    wanted = named_places(places_of(open_run(config.run)), config.sites)
    if config.n_targets == 0:
        return
    if config.targets == "task" and config.task not in TASKS:
        raise UserError(f"`task` must be one that there is. Got {config.task!r}.{did_you_mean(config.task, TASKS)}")
    several = [place.key for place in wanted if sum(other.site == place.site for other in wanted) > 1]
    if several:
        raise UserError(
            f"`sites` must name one SAE for each site where edges are wanted. Got {', '.join(several[:6])}. Name one of"
            " each site with --sites, or leave edges out with --n-targets 0."
        )


def told(counts: Mapping[str, Any]) -> list[str]:
    """Lines on what it took and what that grows with.

    Args:
        counts: of `Interactions`.
    """
    together = counts["coactivation"]
    kept = f", {together['n_kept']} of them from the index" if together["n_kept"] else ""
    took = f"{together['n_increments']:,} increments, {together['seconds']:.3g} s"
    pairs = f"{counted(len(together['pairs_of_saes']), 'pair')} of SAEs{kept}"
    lines = [f"co-activation of {pairs}: {took}; they grow with tokens x k x k, whatever the number of features"]
    if together["n_passes"] > 1:
        lines += [f"up to {together['n_passes']} passes over the codes; they grow with features x features"]
    if "attribution" in counts:
        spent = counts["attribution"]
        passes = f"{spent['n_forwards']:,} forward and {spent['n_backwards']:,} backward passes"
        took = f"{passes}, {spent['seconds']:.3g} s"
        targets = counted(spent["n_targets"], "target")
        lines += [f"edges into {targets}: {took}; they grow with targets x batches of text"]
    return lines


def _names(site: SiteIndex) -> Names:
    (explained, *_) = [*read_all_explanations(site.folder).values(), dict[int, ExplainedFeature]()]
    texts = {latent: feature.text for latent, feature in explained.items() if feature.text}
    return Names(site.key, site.site, site.statistics().density, texts)


def _ranking(config: InteractionsConfig) -> Ranking:
    return Ranking(n_partners=config.n_partners, by=config.rank_by, n_least=config.n_least)


def _pairs(
    sites: Sequence[SiteIndex], names: Sequence[Names], config: InteractionsConfig
) -> list[tuple[Names, Names, Partners]]:
    """Partners within each site, by the default ranking those that the index keeps, then across each two."""
    ranking = _ranking(config)
    kept = ranking == Ranking()
    within = [
        (name, name, site.partners() if kept else partners(site.shards, ranking=ranking))
        for site, name in zip(sites, names, strict=True)
    ]
    named = list(zip(sites, names, strict=True))
    two = {"none": list[tuple[_Named, _Named]](), "nearest": pairwise(named), "all": combinations(named, 2)}
    across = [
        (a, b, partners_across(one.shards, other.shards, ranking=ranking))
        for (one, a), (other, b) in two[config.across]
    ]
    return within + across


def _counted(pairs: Sequence[tuple[Names, Names, Partners]], *, n_kept: int, seconds: float) -> dict[str, Any]:
    found: list[dict[str, Any]] = [
        {"keys": [a.key, b.key], "n_increments": p.n_increments, "n_passes": p.n_passes, "n_rows": p.n_rows}
        for a, b, p in pairs
    ]
    return {
        "pairs_of_saes": found,
        "n_increments": sum(pair["n_increments"] for pair in found),
        "n_passes": max(pair["n_passes"] for pair in found),
        "n_kept": n_kept,
        "seconds": seconds,
    }


def _edges(index: FeatureIndex, sites: Sequence[SiteIndex], config: InteractionsConfig) -> Edges:
    run = open_run(config.run)
    lm = language_model_of(run, device=config.device, trust_remote_code=config.trust_remote_code)
    check_weights(lm, run)
    saes = {site.site: site.sae().to(lm.device) for site in sites}
    ordered = [site for site in lm.sites if site in saes] + [site for site in saes if site not in lm.sites]
    later = ordered[1:]
    if config.targets == "task":
        pairs = make_task(config.task, lm.tokenizer, n_pairs=_N_PAIRS, seed=0)
        targets: Mapping[str, Sequence[int]] = most_effective(lm, saes, pairs, sites=later, n=config.n_targets)
        batches = prompts_of(lm, pairs, batch_sequences=config.batch_sequences)
    else:
        sequences = some_sequences(index, config.n_edge_tokens)
        targets = {site.site: heaviest(site, sequences, config.n_targets) for site in sites if site.site in later}
        batches = text_of(index, sequences, batch_sequences=config.batch_sequences)
    return attribution_edges(lm, saes, targets, batches, upstream=config.upstream)
