"""The plot of the experiment on layer groups, from the record that `groups.py` leaves."""

import statistics
from pathlib import Path
from typing import Any

from group_partitions import METHODS, Measured, interval, together


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
