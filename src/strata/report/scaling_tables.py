"""The tables of a scaling page: points, law, checks, budgets."""

from collections.abc import Mapping
from typing import Any

from strata.report.numbers import MISSING, show
from strata.report.scaling_figures import amount

_NOTHING = 1e-6
_PARAMETERS = {
    "e": ("e", "irreducible loss at k = 1, by logarithm"),
    "epsilon": ("ε", "how the irreducible loss falls with k"),
    "a": ("a", "the width's term at n = k = 1, by logarithm"),
    "alpha": ("α", "how it falls with width"),
    "gamma": ("γ", "how it falls with k"),
    "b": ("b", "the tokens' term at t = n = k = 1, by logarithm"),
    "beta": ("β", "how it falls with tokens"),
    "kappa": ("κ", "how it falls with k"),
    "delta": ("δ", "how it rises with width"),
}


def tables(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Title, hint, columns and rows of each; empty ones are left out."""
    fit = record["fit"]
    found = [_budgets(fit), _checks(fit), _laws(fit), _compute(fit), _points(record)]
    return [table for table in found if table["rows"]]


def estimate(found: Mapping[str, Any] | None) -> str:
    """A value with its interval, "3.1 M (1.2 M to 9 M)"."""
    if found is None:
        return MISSING
    low, high = _signed(found["low"]), "no end" if found["high"] is None else _signed(found["high"])
    return f"{_signed(found['value'])} ({low} to {high})"


def _signed(value: float | None) -> str:
    if value is None:
        return MISSING
    if abs(value) < _NOTHING:
        return "0"
    return f"−{amount(-value)}" if value < 0 else amount(value)


def _budgets(fit: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [
            one["name"],
            amount(one["flops"]),
            *(estimate(one[key]) for key in ("n_latents", "n_tokens", "loss")),
            f"{one['orders_beyond']:.1f}" if one["orders_beyond"] > 0.005 else "within",
        ]
        for one in fit["budgets"]
    ]
    hint = (
        f"The width with the least loss for so much compute, at k = {fit['at_k']:g}, with 90 % intervals. Beyond the"
        " largest run it is an extrapolation, by so many orders of magnitude."
    )
    columns = ("Budget", "FLOPs", "Latents", "Tokens", "Loss", "Orders beyond")
    return {"title": "Best width and tokens", "hint": hint, "columns": columns, "rows": rows}


def _checks(fit: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [
            check["left_out"],
            *(amount(point[key]) for key in ("n_latents", "n_tokens", "k")),
            show(point["measured"], "ratio"),
            f"{show(point['predicted'], 'ratio')} ({show(point['low'], 'ratio')} to {show(point['high'], 'ratio')})",
            show(100 * point["relative_error"], "percent"),
            "yes" if point["inside"] else "no",
        ]
        for check in fit["checks"]
        for point in check["points"]
    ]
    columns = ("Left out of the fit", "Latents", "Tokens", "k", "Measured", "Predicted", "Error", "Inside")
    hint = "The law fitted to the other points, against what was measured."
    return {"title": "Checks on runs that the fit did not see", "hint": hint, "columns": columns, "rows": rows}


def _laws(fit: Mapping[str, Any]) -> dict[str, Any]:
    rows = [[*_PARAMETERS[one["name"]], estimate(one)] for one in fit["parameters"]]
    rows += [["L∞", f"irreducible loss at k = {one['k']:g}", estimate(one)] for one in fit["irreducible"]]
    forms = "; ".join(f"{one['form']}: misfit {show(one['rms'], 'share')}, AICc {show(one['aicc'], 'quantity')}"
                      for one in fit["forms"])  # fmt: skip
    hint = f"Of this sweep alone, with 90 % intervals. Forms tried: {forms}. The lower AICc is taken: {fit['form']}."
    return {"title": "The law", "hint": hint, "columns": ("Parameter", "What it is", "Value"), "rows": rows}


def _compute(fit: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for one in fit["compute"]:
        if one["law"] is None:
            rows.append([f"{one['k']:g}", one["why"], MISSING, MISSING, MISSING])
            continue
        check = one.get("check")
        error = show(100 * check["relative_error"], "percent") if check else MISSING
        rows.append(
            [f"{one['k']:g}", estimate(one["floor"]), estimate(one["exponent"]), show(one["rms"], "share"), error]
        )
    columns = ("k", "L∞", "b", "Misfit", "Error at the largest run, left out")
    hint = "L(C) = L∞ + a·C^(−b) on the lower envelope: for each amount of compute the lowest loss."
    return {"title": "Loss against compute", "hint": hint, "columns": columns, "rows": rows}


def _points(record: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [
            amount(point["d_sae"]),
            amount(point["n_tokens"]),
            *(str(point[key]) for key in ("k", "seed")),
            amount(point["flops"]),
            show(point["fvu"], "ratio"),
            show(point["l0"], "mean_count"),
            show(point["dead_share"], "share"),
            show(point["silent_share"], "share"),
        ]
        for point in sorted(record["points"], key=lambda one: (one["n_tokens"], one["d_sae"], one["k"], one["seed"]))
    ]
    columns = ("Latents", "Tokens", "k", "Seed", "FLOPs", "FVU", "L0", "Dead", "Silent on held-out")
    return {"title": "Points", "hint": "Every SAE of the sweep, on held-out rows.", "columns": columns, "rows": rows}
