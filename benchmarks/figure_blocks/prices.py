"""Blocks about what things cost beforehand, laws of scaling, and what the doctor finds."""

import statistics
from typing import Any

from figure_blocks.results import Results, percent, power, table

_SYMBOLS = {
    "epsilon": "ε, irreducible loss with k", "alpha": "α, with width", "gamma": "γ, the width's term with k",
    "beta": "β, with tokens", "kappa": "κ, the tokens' term with k", "delta": "δ, the tokens' term with width",
}  # fmt: skip


def plan(results: Results) -> str:
    rows = []
    for name, one in results["plan"]["results"].items():
        rows.append([name, f"{one['predicted_seconds']:.1f} s", f"{one['seconds']:.1f} s", f"{one['ratio']:.2f}"])
    told = "Whole commands, process start and report included, after `--calibrate`; one run each."
    return f"{told}\n\n{table(['', 'predicted', 'took', 'ratio'], rows)}"


def _large(number: float) -> str:
    """`1,440`, `5.2 M`, `184 M`, or a power of ten."""
    if number < 1e5:
        return f"{float(f'{number:.3g}'):,.0f}"
    if number < 1e9:
        return f"{float(f'{number / 1e6:.2g}' if number < 1e8 else f'{number / 1e6:.3g}'):g} M"
    return power(number)


def _with_range(found: dict[str, float], digits: int | None = None) -> str:
    def shown(number: float) -> str:
        return _large(number) if digits is None else f"{number:.{digits}f}"

    return f"{shown(found['value'])} ({shown(found['low'])} to {shown(found['high'])})"


def scaling(results: Results) -> str:
    record = results["scaling"]
    fit = record["fit"]
    free = [one for one in fit["parameters"] if one["name"] in _SYMBOLS and one["value"] != 0]
    rows = [[_SYMBOLS[one["name"]], f"{one['value']:.2f}", f"{one['low']:.2f} to {one['high']:.2f}"] for one in free]
    for one in fit["irreducible"]:
        if one["k"] == fit["at_k"]:
            label = f"irreducible loss at k {one['k']:.0f}"
            rows.append([label, f"{one['value']:.4f}", f"{one['low']:.4f} to {one['high']:.4f}"])
    parameters = table(["parameter", "value", "90 % interval"], rows)
    rows = []
    for one in fit["budgets"]:
        label = f"{one['name']}, {power(one['flops'])} FLOPs"
        rows.append([label, *(_with_range(one[key]) for key in ("n_latents", "n_tokens")), _with_range(one["loss"], 3)])
    budgets = table([f"budget, k {fit['at_k']:.0f}", "latents", "tokens", "FVU"], rows)
    n_tokens = sorted({point["n_tokens"] for point in record["points"]})
    told = (
        f"{len(record['points'])} {record['architecture']} SAEs on `{record['site']}` (width {record['d_in']}), steps"
        f" of {record['batch_size']:,} rows, {_large(n_tokens[0])} to {_large(n_tokens[-1])} tokens. The form taken:"
        f" {fit['form']}; it misses single points by {percent(fit['rms'])} (rms)."
    )
    return f"{told}\n\n{parameters}\n\n{budgets}"


def scaling_checks(results: Results) -> str:
    fit = results["scaling"]["fit"]
    rows = [
        [
            one["left_out"], percent(one["mean_error"]), percent(one["worst_error"]),
            f"{one['n_inside']} of {len(one['points'])}",
        ]
        for one in fit["checks"]
    ]  # fmt: skip
    found = [table(["left out, then predicted", "mean error", "worst", "within the interval"], rows)]
    flat = fit["flat"]
    if flat and flat.get("n_latents"):
        multiple = flat.get("multiple")
        told = (
            f"Doubling the width gains less than {percent(flat['gain'], 0)} from {_with_range(flat['n_latents'])}"
            f" latents and {_powers(flat['n_tokens'])} tokens on: {_powers(flat['flops'])} FLOPs"
        )
        training = f", {_with_range(multiple)} times the model's own training" if multiple else ""
        orders = f"{flat['orders_flops']['value']:.1f} orders of magnitude in compute beyond the largest run"
        found.append(f"{told}{training}. That lies {orders}.")
    return "\n\n".join(found)


def _powers(found: dict[str, float]) -> str:
    return f"{power(found['value'])} ({power(found['low'])} to {power(found['high'])})"


def scaling_coverage(results: Results) -> str:
    record = results["scaling-coverage"]
    rows = []
    for form, told in record["results"].items():
        shares = [one["covered"] for one in told.values()]
        widths = [one["relative_width"] for one in told.values()]
        rows.append([
            form, percent(statistics.mean(shares), 0), f"{percent(min(shares), 0)} to {percent(max(shares), 0)}",
            f"{min(widths):.2f} to {max(widths):.2f}",
        ])  # fmt: skip
    setting = record["setting"]
    told = f"{setting['sweeps']} simulated sweeps of each law, noise {percent(setting['noise'])} of the loss."
    head = ["form", "90 % intervals that hold the truth, mean", "by parameter", "width over the right one"]
    return f"{told}\n\n{table(head, rows)}"


def doctor(results: Results) -> str:
    rows = []
    for name, one in results["doctor"]["results"].items():
        numbers = one["numbers"]
        quality = [f"{numbers['fvu']:.3g}", f"{numbers['l0']:.3g}", percent(numbers["dead_share"])]
        rows.append([name, _said(one["found"]), _said(one["wanted"]), "yes" if one["right"] else "**no**", *quality])
    return table(["training", "found", "wanted", "right", "FVU", "L0", "dead"], rows, left=4)


def _said(found: dict[str, Any]) -> str:
    return ", ".join(f"{severity} `{name}`" for name, severity in found.items()) or "healthy"
