"""Blocks about layer groups, from the record of every partition."""

import statistics
from collections.abc import Sequence
from functools import cache

from group_partitions import METHODS, Measured, accuracy, dead, interval, name_of, together

from figure_blocks.results import Results, percent, plain, plus_minus, signed, table


@cache
def measured(results: Results) -> Measured:
    """The record of all partitions."""
    return Measured(results["groups"])


def k_star(found: Measured, threshold: float = 0.2) -> int:
    """The smallest number of groups whose AMAD is below the threshold, by `minmax`."""
    return next(k for k in range(1, found.layers) if found.shape(found.picked(k, "minmax"))[0] < threshold)


def findings_at_k_star(results: Results) -> tuple[Measured, int, str]:
    """What was measured, K*, and the partition that `minmax` picks there."""
    found = measured(results)
    k = k_star(found)
    return found, k, found.picked(k, "minmax")


def seconds_share(results: Results, suite: str) -> float:
    """Seconds in the SAE steps of a suite, of those of one SAE per layer."""
    middle = results["groups"]["seconds"]["median"]
    return middle[suite] / middle["layer-wise"]


def difference(found: Measured, first: str, second: str) -> tuple[float, float]:
    """Explained variance of a partition less that of another, seed by seed: mean and half of its interval."""
    values = [found.per_seed(name, found.site_mean("explained_variance")) for name in (first, second)]
    differences = [a - b for a, b in zip(*values, strict=True)]
    return statistics.mean(differences), interval(differences)


def methods(results: Results) -> str:
    found = measured(results)
    rows = []
    for k in range(found.layers - 1, 0, -1):
        by_name: dict[str, list[str]] = {}
        for method in METHODS if k < found.layers - 1 else ("layer-wise",):
            name = found.layer_wise if method == "layer-wise" else found.picked(k, method)
            by_name.setdefault(name, []).append(method)
        rows += [[str(k), ", ".join(labels), name, *_numbers(found, name)] for name, labels in by_name.items()]
    head = [
        "K",
        "method",
        "groups",
        "AMAD",
        "diameter",
        "explained",
        "lost",
        "ΔCE, one layer",
        "all layers",
        "tasks",
        "dead",
    ]
    return table(head, rows, left=3)


def _numbers(found: Measured, name: str) -> list[str]:
    lost, half = difference(found, found.layer_wise, name)
    amad, diameter = found.shape(name)
    return [
        f"{amad:.3f}", f"{diameter:.3f}",
        f"{statistics.mean(found.per_seed(name, found.site_mean('explained_variance'))):.4f}",
        "" if name == found.layer_wise else plus_minus(lost, half, 4),
        f"{statistics.mean(found.per_seed(name, found.site_mean('delta_ce_percent'))):.2f} %",
        f"{statistics.mean(found.per_seed(name, together)):.1f} %",
        f"{statistics.mean(found.per_seed(name, accuracy)):.3f}",
        percent(statistics.mean(found.per_seed(name, dead)), 2),
    ]  # fmt: skip


@cache
def _every(found: Measured, k: int) -> dict[str, float]:
    """Mean explained variance of all partitions into k groups, the best first."""
    variance = found.site_mean("explained_variance")
    every = {name: statistics.mean(found.per_seed(name, variance)) for name in found.of(k)}
    return dict(sorted(every.items(), key=lambda item: -item[1]))


def ranks(results: Results) -> str:
    found = measured(results)
    rows = []
    for k in range(found.layers - 2, 1, -1):
        every = _every(found, k)
        values = list(every.values())
        cells = [str(k), str(len(every)), *(f"{one:.4f}" for one in (values[0], statistics.mean(values), values[-1]))]
        for method in METHODS:
            name = found.picked(k, method)
            cells += [f"{every[name]:.4f}", str(list(every).index(name) + 1)]
        rows.append(cells)
    picks = [cell for method in METHODS for cell in (method, "rank")]
    return table(["K", "partitions", "best", "mean", "worst", *picks], rows)


def flops(results: Results) -> str:
    record = results["groups"]
    found, setting = measured(results), record["setting"]
    n_steps = setting["n_tokens"] // setting["batch_size"]
    n_rows = n_steps * setting["batch_size"]
    rows = []
    for k in range(found.layers - 1, 0, -1):
        n_saes = k + 1
        sae, forward = (
            n_rows * one / 1e12 for one in (n_saes * record["flops"]["sae_row"], record["flops"]["forward_token"])
        )
        share = percent(found.share(found.of(k)[0]), 0)
        rows.append([str(k), str(n_saes), str(n_saes * n_steps), "1", f"{sae:.2f}", f"{forward:.2f}", share])
    head = ["K", "SAEs", "SAE steps", "language-model passes", "SAE TFLOP", "language model TFLOP", "of layer-wise"]
    return table(head, rows)


def seconds(results: Results) -> str:
    middle = results["groups"]["seconds"]["median"]
    rows = [[name, f"{value:.1f}", f"{value / middle['layer-wise']:.3f}"] for name, value in middle.items()]
    return table(["suite, last layer included", "seconds in SAE steps", "of layer-wise"], rows)


def findings(results: Results) -> str:
    record = results["groups"]
    found, k, star = findings_at_k_star(results)
    lost, half = difference(found, found.layer_wise, star)
    base = statistics.mean(found.per_seed(found.layer_wise, found.site_mean("explained_variance")))
    one_layer = [
        statistics.mean(found.per_seed(name, found.site_mean("delta_ce_percent"))) for name in (found.layer_wise, star)
    ]
    all_layers = [found.per_seed(name, together) for name in (found.layer_wise, star)]
    in_all = [f"{statistics.mean(one):.0f} %" for one in all_layers]
    gained = [a - b for a, b in zip(*all_layers, strict=True)]
    layers = _lost_by_layer(found, star)
    most = sorted(layers, key=lambda layer: -layers[layer])[:3]
    clean = statistics.mean(one["accuracy"] for one in record["clean_tasks"].values())
    rows = [
        [f"K\\*, the smallest K with AMAD below 0.2 (`minmax`): {star}", str(k)],
        [f"explained variance lost at K\\*, of {base:.3f}", plus_minus(lost, half, 4)],
        ["most of it in", ", ".join(f"layer {layer} ({layers[layer]:.3f})" for layer in most)],
        ["ΔCE of one layer's SAE, layer-wise and at K\\*", " and ".join(f"{one:.1f} %" for one in one_layer)],
        ["ΔCE of all SAEs, layer-wise and at K\\*", " and ".join(in_all)],
        ["fewer points with groups", plus_minus(statistics.mean(gained), interval(gained), 1)],
        ["accuracy of the model itself in the tasks", f"{clean:.3f}"],
        *_methods_differ(found),
        ["picks of `minmax` over the mean of all partitions", _over_mean(found)],
        ["the best partition over the worst", _best_over_worst(found)],
    ]
    return table(["finding", "figure"], rows)


def _lost_by_layer(found: Measured, name: str) -> dict[int, float]:
    """Explained variance lost in each layer, mean over seeds."""
    lost = {}
    sites = [one["sites"] for one in found.record["seeds"].values()]
    for group in found.record["partitions"][name]:
        for layer in group:
            both = (f"{layer}/layers.{layer}", f"{name_of([group])}/layers.{layer}")
            alone, shared = (statistics.mean(one[key]["explained_variance"] for one in sites) for key in both)
            lost[layer] = alone - shared
    return lost


def _methods_differ(found: Measured) -> list[list[str]]:
    rows = []
    for k in range(found.layers - 2, 1, -1):
        ours, published = found.picked(k, "minmax"), found.picked(k, "published")
        if ours != published:
            mean, half = difference(found, ours, published)
            rows.append([f"`minmax` less `published`, K = {k}", f"{signed(mean, 4)} ± {half:.4f}"])
    return rows


def _over_mean(found: Measured) -> str:
    ks = range(2, found.layers - 1)
    return _range(
        [_every(found, k)[found.picked(k, "minmax")] - statistics.mean(_every(found, k).values()) for k in ks]
    )


def _best_over_worst(found: Measured) -> str:
    every = [list(_every(found, k).values()) for k in range(2, found.layers - 1)]
    return _range([values[0] - values[-1] for values in every])


def _range(values: Sequence[float]) -> str:
    return f"{plain(min(values), 4)} to {plain(max(values), 4)}"


def distances(results: Results) -> str:
    record = results["distances"]
    rows = []
    for dtype, shown in (("float32", "fp32"), ("bfloat16", "bf16")):
        one = record[dtype]
        forward = statistics.median(one["rounds"]["forward"])
        parts = [percent(one["shares"][name], 1) for name in ("distances", "cka", "pair by pair")]
        rows.append([f"{shown}, forward {forward:.2f} s", *parts])
    head = [
        "12 layers of width 768, share of the forward",
        "distances of all layers",
        "linear CKA",
        "all pairs one by one",
    ]
    return table(head, rows)
