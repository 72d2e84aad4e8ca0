"""The page of the experiment on layer groups: tables and plot from what `groups.py` measured."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
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
        grouped = [row[:-1] for row in record["distances"][:-1]]
        self.distances = grouped

    def n_groups(self, name: str) -> int:
        """Groups of the partition, without the last layer's own."""
        return len(self.record["partitions"][name]) - 1

    def of(self, k: int) -> list[str]:
        """All partitions into k groups."""
        return [name for name in self.names if self.n_groups(name) == k]

    def picked(self, k: int, method: str) -> str:
        """The partition that a method picks."""
        last = self.layers - 1
        return name_of([*partition(self.distances, k, method), [last]])

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
    """`0-2 3-6 7`, as `groups.name_of` writes it."""
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


def tables(record: dict[str, Any]) -> str:
    """The tables of docs/layer-groups.md."""
    found = Measured(record)
    return "\n\n".join([_by_method(found), _against_all(found), _price(found)])


def _by_method(found: Measured) -> str:
    lines = [
        "| K | method | groups | AMAD | diameter | explained | lost | ΔCE, one layer | all layers | tasks | dead |",
        "|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    variance = found.site_mean("explained_variance")
    base = found.per_seed(found.layer_wise, variance)
    for k in range(found.layers - 1, 0, -1):
        methods: dict[str, list[str]] = {}
        for method in METHODS if k < found.layers - 1 else ("layer-wise",):
            name = found.layer_wise if method == "layer-wise" else found.picked(k, method)
            methods.setdefault(name, []).append(method)
        for name, labels in methods.items():
            values = found.per_seed(name, variance)
            lost = [b - v for b, v in zip(base, values, strict=True)]
            shown = [
                f"{statistics.mean(values):.4f}",
                f"{statistics.mean(lost):.4f} ± {interval(lost):.4f}" if labels != ["layer-wise"] else "",
                f"{statistics.mean(found.per_seed(name, found.site_mean('delta_ce_percent'))):.2f} %",
                f"{statistics.mean(found.per_seed(name, together)):.1f} %",
                f"{statistics.mean(found.per_seed(name, accuracy)):.3f}",
                f"{100 * statistics.mean(found.per_seed(name, dead)):.2f} %",
            ]
            shape = [f"{number:.3f}" for number in found.shape(name)]
            lines.append(f"| {k} | {', '.join(labels)} | {name} | {' | '.join([*shape, *shown])} |")
    return "\n".join(lines)


def _against_all(found: Measured) -> str:
    """Where the methods' picks stand among all partitions of as many groups."""
    lines = [
        "| K | partitions | best | mean | worst | minmax | rank | complete | rank | published | rank |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    variance = found.site_mean("explained_variance")
    for k in range(found.layers - 2, 1, -1):
        every = {name: statistics.mean(found.per_seed(name, variance)) for name in found.of(k)}
        ranked = sorted(every, key=lambda name: -every[name])
        cells = [f"{k}", f"{len(every)}", f"{every[ranked[0]]:.4f}", f"{statistics.mean(every.values()):.4f}",
                 f"{every[ranked[-1]]:.4f}"]  # fmt: skip
        for method in METHODS:
            name = found.picked(k, method)
            cells += [f"{every[name]:.4f}", f"{ranked.index(name) + 1}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _price(found: Measured) -> str:
    record, setting = found.record, found.record["setting"]
    flops, layers = record["flops"], found.layers
    n_steps = setting["n_tokens"] // setting["batch_size"]
    rows = n_steps * setting["batch_size"]
    lines = [
        "| K | SAEs | SAE steps | language-model passes | SAE TFLOP | language model TFLOP | of layer-wise |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for k in range(layers - 1, 0, -1):
        n_saes = k + 1
        sae, forward = n_saes * rows * flops["sae_row"] / 1e12, rows * flops["forward_token"] / 1e12
        share = found.share(found.of(k)[0])
        lines.append(f"| {k} | {n_saes} | {n_saes * n_steps} | 1 | {sae:.2f} | {forward:.2f} | {100 * share:.0f} % |")
    if record["seconds"]:
        median = record["seconds"]["median"]
        lines += ["", "| suite, last layer included | seconds in SAE steps | of layer-wise |", "|---|---:|---:|"]
        lines += [f"| {name} | {value:.1f} | {value / median['layer-wise']:.3f} |" for name, value in median.items()]
    return "\n".join(lines)


def draw(record: dict[str, Any], path: Path) -> None:
    """Explained variance, and ΔCE with all SAEs in the model, against the number of SAEs: every partition a dot."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "strata"
    from matplotlib import pyplot as plt

    found = Measured(record)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    measures = (("explained variance, mean over layers", found.site_mean("explained_variance")),
                ("ΔCE with all SAEs in the model, %", together))  # fmt: skip
    for axis, (title, number) in zip(axes, measures, strict=True):
        every = [(found.n_groups(name) + 1, statistics.mean(found.per_seed(name, number))) for name in found.names]
        axis.scatter(*zip(*every, strict=True), s=14, color="0.75", label="every partition", zorder=1)
        for method, style in zip(METHODS, ("o-", "s--", "^:"), strict=True):
            ks = range(1, found.layers)
            values = [found.per_seed(found.picked(k, method), number) for k in ks]
            means = [statistics.mean(one) for one in values]
            bars = [interval(one) if method == "minmax" else 0.0 for one in values]
            axis.errorbar(
                [k + 1 for k in ks], means, yerr=bars, fmt=style, ms=4, lw=1, capsize=2, label=method, zorder=2
            )
        axis.set_xlabel(f"SAEs for {found.layers} layers (the last one has its own)")
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
