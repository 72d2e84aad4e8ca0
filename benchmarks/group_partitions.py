"""What every partition of the layers came to: read from the record that `groups.py` leaves."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from strata.grouping import amad, partition, worst_diameter

METHODS = ("minmax", "complete", "published")
_T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # Student's t of two sides, by the number of seeds


class Measured:
    """What a partition's SAEs came to, by seed.

    Args:
        record: as `groups.gather` gives it.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.names: list[str] = list(record["partitions"])
        self.layers = len(record["sites"])
        self.layer_wise = next(name for name in self.names if self.n_groups(name) == self.layers - 1)
        self.distances = [row[:-1] for row in record["distances"][:-1]]
        self._picked: dict[tuple[int, str], str] = {}

    def n_groups(self, name: str) -> int:
        """Groups of the partition, without the last layer's own."""
        return len(self.record["partitions"][name]) - 1

    def of(self, k: int) -> list[str]:
        """All partitions into k groups."""
        return [name for name in self.names if self.n_groups(name) == k]

    def picked(self, k: int, method: str) -> str:
        """The partition that a method picks."""
        if (k, method) not in self._picked:
            self._picked[k, method] = name_of([*partition(self.distances, k, method), [self.layers - 1]])
        return self._picked[k, method]

    def shape(self, name: str) -> tuple[float, float]:
        """AMAD and worst diameter."""
        cut = self.record["partitions"][name][:-1]
        return amad(self.distances, cut), worst_diameter(self.distances, cut)

    def per_seed(self, name: str, number: Callable[[dict[str, Any], str], float]) -> list[float]:
        """A number of the partition for each seed."""
        return [number(one, name) for one in self.record["seeds"].values()]

    def site_mean(self, key: str) -> Callable[[dict[str, Any], str], float]:
        """The mean over all layers of what was measured with one layer's SAE at a time."""

        def number(one: dict[str, Any], name: str) -> float:
            groups = self.record["partitions"][name]
            found = [one["sites"][f"{name_of([group])}/layers.{layer}"][key] for group in groups for layer in group]
            return statistics.mean(found)

        return number

    def share(self, name: str) -> float:
        """The FLOPs of the whole training, the language model's pass included, of those of one SAE per layer."""
        flops = self.record["flops"]
        n_saes = self.n_groups(name) + 1
        cost = [flops["forward_token"] + n * flops["sae_row"] for n in (n_saes, self.layers)]
        return cost[0] / cost[1]


def name_of(groups: Sequence[Sequence[int]]) -> str:
    """`0-2 3-6 7`."""
    return " ".join(f"{group[0]}-{group[-1]}" if len(group) > 1 else f"{group[0]}" for group in groups)


def together(one: dict[str, Any], name: str) -> float:
    """ΔCE in percent with all SAEs in the model."""
    return one["partitions"][name]["all_sites"]["delta_ce_percent"]


def accuracy(one: dict[str, Any], name: str) -> float:
    """Mean over the tasks, with all SAEs in the model."""
    return statistics.mean(task["accuracy"] for task in one["partitions"][name]["tasks"].values())


def dead(one: dict[str, Any], name: str) -> float:
    """Mean over a partition's SAEs of the share of latents that were dead when training ended."""
    return statistics.mean(one["dead"][group] for group in name.split())


def interval(values: Sequence[float]) -> float:
    """Half the width of the mean's 95 % interval over seeds."""
    if len(values) < 2:
        return math.nan
    return _T_95.get(len(values), 2.0) * statistics.stdev(values) / math.sqrt(len(values))
