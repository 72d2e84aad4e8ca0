"""Groups of layers: cutting them by distance, and what training one SAE per group would cost."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from strata.activations.distances import LayerSimilarity
from strata.costs.flops import forward_flops, sae_step_flops
from strata.errors import UserError
from strata.grouping import amad, fewest_groups, partition, worst_diameter
from strata.groups_config import GroupsConfig
from strata.lm.model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class GroupingCost:
    """What is needed per token to train SAEs on all layers, in FLOPs.

    Attributes:
        forward: of the language model, as far as the last layer; 0 where the activations are on disk.
        sae_step: of one SAE.
        published_sae_step: of one SAE in Group-SAE's accounting: 10·d·h, dense.
    """

    forward: float
    sae_step: float
    published_sae_step: float

    def share(self, n_saes: int, n_layers: int) -> float:
        """Of the cost of one SAE per layer, in (0, 1]; rows per SAE and the language model's pass are the same."""
        return (self.forward + n_saes * self.sae_step) / (self.forward + n_layers * self.sae_step)

    def published_share(self, n_saes: int, n_layers: int) -> float:
        """The same in Group-SAE's accounting, C(G) = A + T·G (arXiv 2410.21508, section 4)."""
        step = self.published_sae_step
        return (self.forward + n_saes * step) / (self.forward + n_layers * step)


def find_groups(
    similarity: LayerSimilarity,
    *,
    method: str = "minmax",
    n_groups: int | None = None,
    threshold: float = 0.2,
    last_layer: bool = False,
) -> list[list[str]]:
    """Groups of sites by their angular distances; every site is in exactly one.

    Args:
        similarity: of the layers.
        method: see `strata.grouping.partition`.
        n_groups: how many, without the last layer's own; None is the smallest number whose AMAD is below the threshold.
        threshold: of the AMAD.
        last_layer: False leaves the last layer out of the grouping and adds it as a group of its own, as Group-SAE
            leaves it out: it differs from the others more than they from each other.

    Raises:
        UserError: what `partition` and `fewest_groups` raise, or a single layer that is left out of its grouping.
    """
    d = _grouped_part(similarity.angular, last_layer=last_layer)
    if n_groups is None:
        cut = fewest_groups(d, threshold=threshold, method=method)
    else:
        _check_count(n_groups, len(d), last_layer=last_layer)
        cut = partition(d, n_groups, method)
    return _as_sites(cut, similarity.sites)


def grouping_table(
    similarity: LayerSimilarity, cost: GroupingCost, *, method: str = "minmax", last_layer: bool = False
) -> list[dict[str, Any]]:
    """For each number of groups: the groups, how alike their layers are, and what they cost.

    Returns:
        Rows with `k` (groups, without the last layer's own), `n_saes`, `groups` (sites), `amad`, `worst_diameter`,
        `sae_share` (of the SAEs' cost of one per layer), `cost_share` (with the language model's pass), `saving`
        (1 − that) and `published_cost_share` (in Group-SAE's accounting).
    """
    d = _grouped_part(similarity.angular, last_layer=last_layer)
    n_layers, rows = len(similarity.sites), []
    for k in range(1, len(d) + 1):
        cut = partition(d, k, method)
        groups = _as_sites(cut, similarity.sites)
        share = cost.share(len(groups), n_layers)
        rows.append(
            {
                "k": k,
                "n_saes": len(groups),
                "groups": groups,
                "amad": amad(d, cut),
                "worst_diameter": worst_diameter(d, cut),
                "sae_share": len(groups) / n_layers,
                "cost_share": share,
                "saving": 1 - share,
                "published_cost_share": cost.published_share(len(groups), n_layers),
            }
        )
    return rows


def check_choice(config: GroupsConfig, cost: GroupingCost, *, n_layers: int) -> None:
    """That the groups asked for can be had, before layers are measured.

    Raises:
        UserError: too few layers, a k that there is not, or a budget below what one group costs.
    """
    n_alone = 0 if config.last_layer else 1
    if n_layers <= n_alone:
        raise UserError(
            f"`strata groups` needs at least {n_alone + 1} layers to group. Got {n_layers}. Take a model whose blocks"
            " are found, or a store with more of them."
        )
    if config.k != "auto":
        _check_count(config.k, n_layers - n_alone, last_layer=config.last_layer)
    least = cost.share(1 + n_alone, n_layers)
    if config.budget != "none" and config.budget < least:
        raise UserError(
            f"`budget` must be at least {math.ceil(1000 * least) / 1000:.3f}, the cost of one group"
            f" ({1 + n_alone} SAEs{', and the language model' if cost.forward else ''}). Got {config.budget}. Raise it"
            f"{'.' if config.last_layer else ', or group the last layer too with last_layer.'}"
        )


def choose(table: list[dict[str, Any]], config: GroupsConfig) -> dict[str, Any]:
    """The row that a description asks for that has passed `check_choice`: by `k`, by `budget`, else by `threshold`."""
    if config.k != "auto":
        return table[config.k - 1]
    if config.budget != "none":
        return [row for row in table if row["cost_share"] <= config.budget][-1]
    return next(row for row in table if row["amad"] < config.threshold)


def grouping_cost(lm: LanguageModel | None, sites: list[str], config: GroupsConfig, *, d_in: int) -> GroupingCost:
    """Predicted cost per token.

    Args:
        lm: the language model, whose blocks are counted as far as the last site; None where activations are on disk.
        sites: residual sites.
        config: expansion_factor, sae_k and context_tokens.
        d_in: the width of the sites.
    """
    d_sae = config.expansion_factor * d_in
    if config.sae_k > d_sae:
        raise UserError(f"`sae_k` must be in [1, {d_sae}], the number of latents. Got {config.sae_k}. Lower it.")
    return GroupingCost(
        forward=0.0 if lm is None else language_model_flops(lm, sites, context_tokens=config.context_tokens),
        sae_step=sae_step_flops(d_in, d_sae, config.sae_k),
        published_sae_step=10.0 * d_in * d_sae,
    )


def language_model_flops(lm: LanguageModel, sites: list[str], *, context_tokens: int) -> float:
    """FLOPs per token of a forward that ends at the last of some residual sites: see `forward_flops`."""
    n_blocks = 1 + max(lm.sites.index(site) for site in sites)
    blocks = [lm.model.get_submodule(lm.site(site).path) for site in lm.sites[:n_blocks]]
    return forward_flops(blocks, lm.model.config, context_tokens=context_tokens)


def _grouped_part(distances: Tensor, *, last_layer: bool) -> Tensor:
    return distances if last_layer else distances[:-1, :-1]


def _as_sites(cut: list[list[int]], sites: list[str]) -> list[list[str]]:
    """Groups of numbers as groups of sites; those that the numbers leave out, at the end, each by itself."""
    n_cut = sum(len(group) for group in cut)
    return [[sites[layer] for layer in group] for group in cut] + [[site] for site in sites[n_cut:]]


def _check_count(k: int, most: int, *, last_layer: bool) -> None:
    if not 1 <= k <= most:
        left_out = "" if last_layer else ", the last one left out"
        raise UserError(f"`k` must be in [1, {most}], the number of layers{left_out}. Got {k}. Give another.")
