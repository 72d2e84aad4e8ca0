"""From a sweep's points to its laws, their checks on runs that they did not see, and what they foretell."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from strata.config.scaling import ScalingConfig
from strata.costs.scaling_fit import (
    Fit,
    Form,
    bootstrap,
    bootstrap_compute,
    fit_compute,
    fit_law,
    free_parameters,
    interval,
    predicted_interval,
)
from strata.costs.scaling_law import Cost, Points, envelope
from strata.costs.scaling_optimum import Allocation, best_within, flat_from, frontier, has_optimum
from strata.errors import UserError
from strata.scaling.caveats import caveats

_BEYOND = (0.1, 1.0, 10.0, 100.0)  # budgets that are always told, in multiples of the largest run
_SETTINGS = ("form", "at_k", "budget", "streamed", "flat_gain", "training_tokens", "n_bootstrap", "fit_seed")
_BAND_POINTS, _BAND_BEYOND = 48, (1e4, 1e14)  # at least and at most, in multiples of the largest run


def points_of(record: Mapping[str, Any]) -> Points:
    """The table as columns; points without a loss are left out.

    Raises:
        UserError: there is none.
    """
    rows = [row for row in record["points"] if row["fvu"] is not None and row["fvu"] > 0]
    if not rows:
        raise UserError("A fit needs points. The sweep has none yet. Train it first.")
    columns = {"n_latents": "d_sae", "n_tokens": "n_tokens", "k": "k", "loss": "fvu"}
    return Points(**{name: np.array([row[key] for row in rows], dtype=float) for name, key in columns.items()})


def analyse(
    record: Mapping[str, Any], config: ScalingConfig, *, subject: Mapping[str, Any], forward_flops: float = 0.0
) -> dict[str, Any]:
    """Everything that is fitted to a sweep, JSON-able; intervals are `[low, high]`, the middle 90 % of the draws, and
    None where there is no end.

    Args:
        record: of the sweep, with its points.
        config: how to fit.
        subject: the language model and what its own training cost (`strata.scaling.subject.subject_of`).
        forward_flops: of the language model per token, where it counts.

    Raises:
        UserError: too few points, or an `at_k` or `budget` that does not fit them.
    """
    points = points_of(record)
    cost = Cost(d_in=record["d_in"], forward_flops=forward_flops)
    ks = sorted(set(points.k.tolist()))
    k = float(ks[(len(ks) - 1) // 2] if config.at_k == "auto" else config.at_k)
    if k not in ks:
        raise UserError(f"`at_k` must be one of the swept values of k. Got {k:g}. Those are {ks}.")
    _check_budgets(config, speed(record), least=2 * cost.per_token(k, k))
    tried = _forms(points, config)
    fit = min(tried, key=lambda one: one.aicc)
    draws = bootstrap(points, fit, n_samples=config.n_bootstrap, seed=config.fit_seed)
    checks = list(_checks(points, config))
    flat = _flat(fit, draws, points, subject, config, k=k, cost=cost)
    return {
        "settings": {name: getattr(config, name) for name in _SETTINGS},
        "at_k": k,
        "forward_flops": forward_flops,
        "n_points": len(points),
        "n_bootstrap": config.n_bootstrap,
        "form": fit.form,
        "forms": [
            {"form": one.form, "n_free": len(one.free), "rms": one.rms, "aicc": _finite(one.aicc)} for one in tried
        ],
        "law": fit.law.as_json(),
        "rms": fit.rms,
        "n_starts": fit.n_starts,
        "n_agreeing": fit.n_agreeing,
        **_of_the_law(fit, draws, ks),
        "checks": checks,
        "compute": [_compute(points, one, config, cost=cost) for one in ks],
        "budgets": _budgets(fit, draws, points, record, config, k=k, cost=cost),
        "band": _band(fit, draws, points, k=k, cost=cost, to=flat["flops"]["value"] or 0.0),
        "flat": flat,
        "caveats": caveats(points, fit, draws, k=k, checks=checks) + [subject["doubt"]] * bool(subject["doubt"]),
    }


def _of_the_law(fit: Fit, draws: Sequence[Fit], ks: Sequence[float]) -> dict[str, Any]:
    """Its parameters, and the loss that it leaves at each k, with their intervals."""
    return {
        "parameters": [
            {"name": name, **_estimate(getattr(fit.law, name), [getattr(one.law, name) for one in draws])}
            for name in fit.free
        ],
        "irreducible": [
            {"k": one, **_estimate(float(fit.law.irreducible(one)), [float(d.law.irreducible(one)) for d in draws])}
            for one in ks
        ],
    }


def _check_budgets(config: ScalingConfig, flops_per_second: float | None, *, least: float) -> None:
    for name, flops in config.budgets(flops_per_second):
        if flops < least:
            raise UserError(f"`budget` must pay for more than a token. Got {name}. Give more.")


def largest_run(points: Points) -> np.ndarray:
    """Which points are of the widest SAEs on the most tokens."""
    return (points.n_latents == points.n_latents.max()) & (points.n_tokens == points.n_tokens.max())


def _forms(points: Points, config: ScalingConfig) -> list[Fit]:
    """The law in each form that was asked for."""
    forms: tuple[Form, ...] = ("additive", "coupled") if config.form == "auto" else (config.form,)
    found: list[Fit] = []
    axes = (points.n_latents, points.n_tokens, points.k)
    widths, tokens, ks = (len(set(axis.tolist())) > 1 for axis in axes)
    for form in forms:
        if found and len(points) <= len(free_parameters(widths=widths, tokens=tokens, ks=ks, form=form)):
            continue  # too few points for more parameters; the simpler form stands
        fit = fit_law(points, form=form)
        if form == "additive" or "delta" in fit.free or len(forms) == 1:
            found.append(fit)
    return found


def _checks(points: Points, config: ScalingConfig) -> Iterator[dict[str, Any]]:
    """The law fitted to a part, whose form is chosen on that part too, against what was left out of it."""
    wanted = {
        "the largest run": largest_run(points),
        "all runs on the most tokens": points.n_tokens == points.n_tokens.max(),
        "all of the widest SAEs": points.n_latents == points.n_latents.max(),
    }
    for name, left_out in wanted.items():
        part, rest = points.only(~left_out), points.only(left_out)
        enough = all(_n_values(axis) >= 3 for axis in (part.n_latents, part.n_tokens)) and len(part) > 8
        if not enough:
            continue
        fit = min(_forms(part, config), key=lambda one: one.aicc)
        draws = bootstrap(part, fit, n_samples=config.n_bootstrap, seed=config.fit_seed)
        rows = [_predicted(fit, draws, place, seed=config.fit_seed) for place in _rows(rest)]
        errors = [abs(row["relative_error"]) for row in rows]
        yield {
            "left_out": name,
            "form": fit.form,
            "n_fitted": len(part),
            "points": rows,
            "worst_error": max(errors),
            "mean_error": sum(errors) / len(errors),
            "n_inside": sum(row["inside"] for row in rows),
        }


def _predicted(fit: Fit, draws: Sequence[Fit], row: tuple[float, float, float, float], *, seed: int) -> dict[str, Any]:
    *at, loss = row
    low, high = predicted_interval(draws, (at[0], at[1], at[2]), seed=seed)
    predicted = float(fit.law.loss(*at))
    return {
        "n_latents": at[0],
        "n_tokens": at[1],
        "k": at[2],
        "measured": loss,
        "predicted": predicted,
        "low": low,
        "high": high,
        "relative_error": predicted / loss - 1,
        "inside": low <= loss <= high,
    }


def _compute(points: Points, k: float, config: ScalingConfig, *, cost: Cost) -> dict[str, Any]:
    """L(C) = L∞ + a·C^(−b) on the lower envelope of one k's points, and the same without the largest run."""
    own = points.only(points.k == k)
    flops, part = own.flops(cost), own.only(~largest_run(own))
    found: dict[str, Any] = {
        "k": k,
        "envelope": [[float(flops[i]), float(own.loss[i])] for i in envelope(flops, own.loss)],
    }
    fit = fit_compute(flops, own.loss)
    if fit is None:
        return found | {"law": None, "why": "fewer than 4 points on the envelope"}
    draws = bootstrap_compute(own, cost, fit, n_samples=config.n_bootstrap, seed=config.fit_seed)
    laws = [one.law for one in draws]
    found |= {
        "law": fit.law.as_json(),
        "rms": fit.rms,
        "floor": _estimate(math.exp(fit.law.e), [math.exp(law.e) for law in laws]),
        "scale": _estimate(fit.law.b, [law.b for law in laws]),
        "exponent": _estimate(fit.law.beta, [law.beta for law in laws]),
    }
    before = fit_compute(part.flops(cost), part.loss)
    if before is not None:
        measured, largest = float(own.loss[largest_run(own)].min()), float(flops.max())
        predicted = float(before.law.loss(1.0, largest, 1.0))
        found["check"] = {"flops": largest, "measured": measured, "predicted": predicted}
        found["check"]["relative_error"] = predicted / measured - 1
    return found


def _budgets(
    fit: Fit, draws: Sequence[Fit], points: Points, record: Mapping[str, Any], config: ScalingConfig, *, k: float,
    cost: Cost,
) -> list[dict[str, Any]]:  # fmt: skip
    """The best width and tokens for the budgets that were asked for, and for some around the largest run."""
    given = config.budgets(speed(record))
    if not has_optimum(fit.law):
        return []
    largest = float(points.flops(cost).max())
    named = [*given, *((f"{times:g} × the largest run", times * largest) for times in _BEYOND)]
    found: list[dict[str, Any]] = []
    for name, flops in named:
        best = best_within(fit.law, flops, k=k, cost=cost)
        drawn = [frontier(one.law, np.array([flops]), k=k, cost=cost) for one in draws]
        spread = {
            key: interval([float(one[place][0]) for one in drawn if math.isfinite(one[place][0])])
            for place, key in enumerate(("n_latents", "n_tokens", "loss"))
        }
        told = {key: {"value": getattr(best, key), "low": low, "high": high} for key, (low, high) in spread.items()}
        beyond = math.log10(flops / largest)
        found.append({"name": name, "flops": flops, **told, "at_edge": best.at_edge, "orders_beyond": beyond})
    return sorted(found, key=lambda one: one["flops"])


def _band(fit: Fit, draws: Sequence[Fit], points: Points, *, k: float, cost: Cost, to: float) -> dict[str, Any] | None:
    """The optimal frontier over compute with its interval, far beyond the data, to where it is flat: for pictures."""
    if not has_optimum(fit.law):
        return None
    flops = points.only(points.k == k).flops(cost)
    farthest = min(max(_BAND_BEYOND[0] * flops.max(), 3 * to), _BAND_BEYOND[1] * flops.max())
    budgets = np.geomspace(float(flops.min()), float(farthest), _BAND_POINTS)
    found: dict[str, Any] = {"flops": budgets.tolist(), "largest": float(flops.max())}
    central = frontier(fit.law, budgets, k=k, cost=cost)
    drawn = [frontier(one.law, budgets, k=k, cost=cost) for one in draws if has_optimum(one.law)]
    for place, key in enumerate(("n_latents", "n_tokens", "loss")):
        edges = [interval([float(one[place][column]) for one in drawn]) for column in range(len(budgets))]
        found[key] = {"value": central[place].tolist(), "low": [e[0] for e in edges], "high": [e[1] for e in edges]}
    return found


def _flat(
    fit: Fit, draws: Sequence[Fit], points: Points, subject: Mapping[str, Any], config: ScalingConfig, *, k: float,
    cost: Cost,
) -> dict[str, Any]:  # fmt: skip
    """From how many latents on the loss is flat, what that costs, and how far it lies beyond what was measured."""
    gain = config.flat_gain
    here = flat_from(fit.law, k=k, cost=cost, gain=gain)
    drawn = [flat_from(one.law, k=k, cost=cost, gain=gain) for one in draws]
    largest = {"n_latents": points.n_latents, "n_tokens": points.n_tokens, "flops": points.flops(cost)}

    def told(key: str, divisor: float = 1.0) -> dict[str, Any]:
        values = [getattr(one, key) / divisor for one in drawn]
        return _estimate(getattr(here, key) / divisor, values)

    found: dict[str, Any] = {"gain": gain, "k": k, "loss": told("loss"), "endless_share": _endless(drawn)}
    for key, measured in largest.items():
        found[key] = told(key)
        found[f"orders_{key}"] = _estimate(
            *_orders([getattr(here, key), *(getattr(one, key) for one in drawn)], float(measured.max()))
        )
    multiple = told("flops", subject["flops"]) if subject["flops"] else None
    return found | {"subject": dict(subject), "multiple": multiple}


def _orders(values: Sequence[float], measured: float) -> tuple[float, list[float]]:
    """Orders of magnitude of the first and of the others beyond what was measured."""
    first, *others = (math.inf if math.isinf(value) else math.log10(max(value, 1e-300) / measured) for value in values)
    return first, others


def _endless(drawn: Sequence[Allocation]) -> float:
    return sum(math.isinf(one.n_latents) for one in drawn) / len(drawn)


def speed(record: Mapping[str, Any]) -> float | None:
    """FLOPs per second of the SAE steps of the sweep; None where nothing was trained."""
    seconds = sum(one["seconds"]["sae"] for one in record["trainings"])
    return sum(one["flops"] for one in record["trainings"]) / seconds if seconds > 0 else None


def _estimate(value: float, values: Sequence[float]) -> dict[str, float | None]:
    low, high = interval(values)
    return {"value": _finite(value), "low": _finite(low), "high": _finite(high)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _n_values(axis: np.ndarray) -> int:
    return len(np.unique(axis))


def _rows(points: Points) -> list[tuple[float, float, float, float]]:
    columns = (points.n_latents, points.n_tokens, points.k, points.loss)
    return list(zip(*(column.tolist() for column in columns), strict=True))
