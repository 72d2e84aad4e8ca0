"""Which layer of a group each token's row is from: drawn uniformly, a function of the seed and the token's place."""

from collections.abc import Iterable, Mapping, Sequence
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from strata.activations.source import SiteRows, layers_of
from strata.config.layer_groups import Group
from strata.lm.transfer import moved


class Draws:
    """The draws of one training.

    Args:
        reads: what it reads, of sites and groups.
        seed: of the draws.
    """

    def __init__(self, reads: Iterable[str | Group], *, seed: int) -> None:
        self._seed = seed
        self.reads = list(reads)
        self.groups = [read for read in self.reads if isinstance(read, Group)]
        self.sites = list(dict.fromkeys(site for read in self.reads for site in _sites(read)))
        self.single_sites = [read for read in self.reads if isinstance(read, str)]

    def layers(self, group: Group, n_rows: int, *, part: Sequence[int]) -> UInt8[Tensor, " rows"]:
        """For each row the number, within the group, of the site that it is taken from.

        Args:
            group: whose.
            n_rows: how many.
            part: which rows these are, among all of the training (an epoch, a forward batch).
        """
        rng = np.random.default_rng([self._seed, crc32(group.name.encode()), *part])
        return torch.from_numpy(rng.integers(len(group.sites), size=n_rows, dtype=np.uint8))


def places(layer: UInt8[Tensor, " rows"], group: Group) -> dict[str, Int[Tensor, " drawn"]]:
    """By site the numbers of the rows that are taken from it."""
    return {site: (layer == number).nonzero().squeeze(1) for number, site in enumerate(group.sites)}


def join(group: Group, layer: UInt8[Tensor, " rows"], parts: Mapping[str, Tensor]) -> SiteRows:
    """A group's rows and their layers, from those that were taken from each site.

    Args:
        group: whose.
        layer: as drawn.
        parts: by site the rows at `places`, in their order.
    """
    first = parts[group.sites[0]]
    rows = first.new_empty((len(layer), first.shape[1]))
    for site, where in places(layer, group).items():
        rows.index_copy_(0, moved(where, rows.device), parts[site].to(rows.device))
    return {group.name: rows, layers_of(group.name): moved(layer, rows.device)}


def _sites(read: str | Group) -> tuple[str, ...]:
    return read.sites if isinstance(read, Group) else (read,)


def keys_of(read: str | Group) -> tuple[str, ...]:
    """The keys under which a batch holds what is read."""
    return (read.name, layers_of(read.name)) if isinstance(read, Group) else (read,)
