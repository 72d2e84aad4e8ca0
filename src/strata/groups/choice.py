"""The numbers of groups that layers can be cut into, and which one is taken."""

import math
from typing import Any

from torch import Tensor

from strata.activations.distances import LayerSimilarity
from strata.amounts import counted
from strata.config.groups import GroupsConfig
from strata.errors import UserError
from strata.grouping import Groups, amad, first_below, partitions, worst_diameter
from strata.groups.cost import GroupingCost


def grouping_table(
    similarity: LayerSimilarity, cost: GroupingCost, *, method: str = "minmax", last_layer: bool = False
) -> list[dict[str, Any]]:
    """For each number of groups: the groups, how alike their layers are, and what they cost.

    Args:
        similarity: of the layers.
        cost: of SAEs and language model.
        method: see `strata.grouping.partition`.
        last_layer: False leaves the last layer out of the grouping and adds it as a group of its own, as Group-SAE
            leaves it out: it differs from the others more than they from each other.

    Returns:
        Rows with `k` (groups, without the last layer's own), `n_saes`, `groups` (sites; every site is in exactly one),
        `amad`, `worst_diameter`, `sae_share` (of the SAEs' cost of one per layer), `cost_share` (with the language
        model's pass), `saving` (1 − that) and `published_cost_share` (in Group-SAE's accounting). Where the method
        finds no groups of neighbours, `groups`, `amad` and `worst_diameter` are None; where the cost of the language
        model is unknown, the last three.
    """
    d = _grouped_part(similarity.angular, last_layer=last_layer)
    n_layers = len(similarity.sites)
    rows: list[dict[str, Any]] = []
    for k, cut in enumerate(partitions(d, method), 1):
        n_saes = k + n_layers - len(d)
        share = cost.share(n_saes, n_layers)
        rows.append(
            {
                "k": k,
                "n_saes": n_saes,
                "groups": None if cut is None else _as_sites(cut, similarity.sites),
                "amad": None if cut is None else amad(d, cut),
                "worst_diameter": None if cut is None else worst_diameter(d, cut),
                "sae_share": n_saes / n_layers,
                "cost_share": share,
                "saving": None if share is None else 1 - share,
                "published_cost_share": cost.published_share(n_saes, n_layers),
            }
        )
    return rows


def check_choice(config: GroupsConfig, *, n_layers: int) -> None:
    """That the groups asked for can be had, before layers are measured.

    Raises:
        UserError: too few layers, a k that there is not, or a budget below what one group costs.
    """
    n_alone = 0 if config.last_layer else 1
    if n_layers <= n_alone:
        left_out = "" if config.last_layer else ", of which the last one is left out"
        raise UserError(
            f"Grouping needs the residual stream of at least {n_alone + 1} layers{left_out}. Got {n_layers}. Take a"
            " model whose blocks are found, or a store with more of them."
        )
    most = n_layers - n_alone
    if config.k != "auto" and config.k > most:
        left_out = "" if config.last_layer else ", the last one left out"
        raise UserError(f"`k` must be in [1, {most}], the number of layers{left_out}. Got {config.k}. Give another.")
    least = (1 + n_alone) / n_layers
    if config.budget != "none" and config.budget < least:
        raise UserError(
            f"`budget` must be at least {math.ceil(1000 * least) / 1000:.3f}, the cost of one group"
            f" ({counted(1 + n_alone, 'SAE')} for {counted(n_layers, 'layer')}). Got {config.budget}. Raise it"
            f"{'.' if config.last_layer else ', or group the last layer too with last_layer.'}"
        )


def choose(table: list[dict[str, Any]], config: GroupsConfig) -> dict[str, Any]:
    """The row that a description asks for that has passed `check_choice`: by `k`, by `budget`, else by `threshold`.

    By `budget` and by `threshold` only rows with groups are taken; the first and the last always have them.

    Raises:
        UserError: it asks for a number of groups for which the method finds none of neighbours.
    """
    if config.k != "auto":
        row = table[config.k - 1]
        if row["groups"] is None:
            others = ", ".join(str(other["k"]) for other in table if other["groups"] is not None)
            raise UserError(
                f'`k` must be a number for which `method` "{config.method}" gives groups of neighbouring layers:'
                f' {others}. Got {config.k}. Give one of these, or take "minmax" or "complete", which always do.'
            )
        return row
    if config.budget != "none":
        return [row for row in table if row["groups"] is not None and row["sae_share"] <= config.budget][-1]
    return table[first_below((row["amad"] for row in table), config.amad_threshold())]


def _grouped_part(distances: Tensor, *, last_layer: bool) -> Tensor:
    return distances if last_layer else distances[:-1, :-1]


def _as_sites(cut: Groups, sites: list[str]) -> list[list[str]]:
    """Groups of numbers as groups of sites; those that the numbers leave out, at the end, each by itself."""
    n_cut = sum(len(group) for group in cut)
    return [[sites[layer] for layer in group] for group in cut] + [[site] for site in sites[n_cut:]]
