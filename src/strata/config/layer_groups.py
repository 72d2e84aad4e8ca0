"""Groups of layers that share one SAE: their names, and what a list of them may hold."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from strata.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Group:
    """Sites that share one SAE, which sees for every token the activation of one of them, drawn uniformly.

    Attributes:
        sites: two or more residual sites, in the model's order.
    """

    sites: tuple[str, ...]

    @property
    def name(self) -> str:
        """`layers.0-2`."""
        return group_name(self.sites)


def group_name(sites: Sequence[str]) -> str:
    """What a group is called: `layers.0-2`, `layers.5` of one layer, `layers.0+4+8` with gaps."""
    numbers = [_number(site) for site in sites]
    if len(numbers) == 1:
        return sites[0]
    contiguous = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return "layers." + (f"{numbers[0]}-{numbers[-1]}" if contiguous else "+".join(map(str, numbers)))


def checked_groups(groups: Iterable[Any], sites: Sequence[str]) -> list[tuple[str, ...]]:
    """The groups as sites.

    Args:
        groups: of layers' numbers or residual sites' names. A layer may be in several groups, or in none.
        sites: all residual sites of the model (or store), in order.

    Raises:
        UserError: an unknown layer, an empty group, one named twice, or one whose layers are not in order and side by
            side among `sites`.
    """
    found: list[tuple[str, ...]] = []
    for given in groups:
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise UserError(f"`groups` must be a list of lists of layers. Got {given!r} in it. Write [[0, 1, 2], [3]].")
        layers = cast("Sequence[Any]", given)
        group = tuple(_site(layer, sites) for layer in layers)
        places = [sites.index(site) for site in group]
        if not group:
            raise UserError("`groups` must hold at least one layer each. Got an empty one. Leave it out.")
        if places != list(range(places[0], places[0] + len(places))):
            raise UserError(
                f"`groups` must be of layers side by side, in order. Got {list(layers)}. Name all"
                f" layers from {sites[min(places)]} to {sites[max(places)]}, or make several groups of them."
            )
        if group in found:
            raise UserError(f"`groups` must name each group once. Got {group_name(group)} twice. Leave one out.")
        found.append(group)
    if not found:
        raise UserError("`groups` must hold at least one group. Got none. Write for example [[0, 1, 2], [3, 4]].")
    return found


def _site(layer: int | str, sites: Sequence[str]) -> str:
    name = layer if isinstance(layer, str) else f"layers.{layer}"
    if name not in sites:
        raise UserError(f"`groups` must hold layers that are read. Got {layer!r}.{did_you_mean(name, sites)}")
    return name


def _number(site: str) -> int:
    match = re.fullmatch(r"layers\.(\d+)", site)
    if match is None:
        raise UserError(f"A group is of residual sites, such as layers.3. Got {site!r}. Train it by itself.")
    return int(match[1])
