"""The scores of many explanations in a few numbers, beside those of shuffled ones."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from strata.interpret.explain.record import ExplainedFeature

SIMULATION_PARTS = ("all", "top", "random")
PATHS = (
    *(f"simulation.{part}.{name}" for part in SIMULATION_PARTS for name in ("correlation", "absolute", "squared")),
    *(f"{task}.{name}" for task in ("detection", "fuzzing") for name in ("balanced_accuracy", "auroc")),
)
_SHOWN = {
    "simulation.all.correlation": "simulation, correlation",
    "simulation.top.correlation": "   strongest windows",
    "simulation.random.correlation": "   random and silent",
    "detection.balanced_accuracy": "detection, balanced accuracy",
    "detection.auroc": "detection, AUROC",
    "fuzzing.balanced_accuracy": "fuzzing, balanced accuracy",
    "fuzzing.auroc": "fuzzing, AUROC",
}
_N_RESAMPLES = 1000
_RESAMPLED_AT_ONCE = 1 << 20  # values
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def summarize(features: Sequence[ExplainedFeature], *, seed: int) -> dict[str, Any]:
    """Counts, and of every score the mean with its interval over features, quantiles, and how often it is undefined.

    Args:
        features: of one SAE by one interpreter.
        seed: of the bootstrap.

    Returns:
        ``n_features``, ``n_explained``, ``n_failed``, ``n_scored``, ``n_not_scored``, ``share_scored``, ``reasons``
        (why features failed or were not scored, with counts), ``failures`` (of windows), and for each score's path in
        ``scores``, ``shuffled`` and ``differences`` (own − shuffled, of the features that have both) the numbers of
        `distribution`, ``n_undefined`` among them.
    """
    scored = [feature for feature in features if feature.scores]
    failed = [feature.failed for feature in features if feature.failed]
    not_scored = [feature.not_scored for feature in features if feature.not_scored]
    failures: Counter[str] = Counter()
    for feature in scored:
        failures.update(feature.scores["failures"])
    own = {path: _column(scored, path, shuffled=False) for path in PATHS}
    other = {path: _column(scored, path, shuffled=True) for path in PATHS}
    both = {path: own[path] - other[path] for path in PATHS}
    return {
        "n_features": len(features),
        "n_explained": len(features) - len(failed),
        "n_failed": len(failed),
        "n_scored": len(scored),
        "n_not_scored": len(not_scored),
        "share_scored": len(scored) / len(features) if features else None,
        "reasons": dict(Counter(failed + not_scored)),
        "failures": dict(failures),
        "scores": _distributions(own, seed=seed),
        "shuffled": _distributions(other, seed=seed),
        "differences": _distributions(both, seed=seed),
    }


def _column(features: Sequence[ExplainedFeature], path: str, *, shuffled: bool) -> Float[np.ndarray, " features"]:
    found = (feature.score(path, shuffled=shuffled) for feature in features)
    return np.array([np.nan if value is None else value for value in found], dtype=np.float64)


def _distributions(columns: Mapping[str, Float[np.ndarray, " features"]], *, seed: int) -> dict[str, Any]:
    found = {path: distribution(column, seed=seed) for path, column in columns.items()}
    return {path: numbers for path, numbers in found.items() if numbers is not None}


def distribution(values: Float[np.ndarray, " features"], *, seed: int) -> dict[str, Any] | None:
    """One score over features: ``n``, ``n_undefined``, ``mean``, its bootstrap interval of 95 % over features (``low``,
    ``high``), and ``quantiles``.

    Args:
        values: NaN where undefined.
        seed: of the bootstrap.

    Returns:
        None where no feature has it.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    random = np.random.default_rng(seed)
    at_once = max(1, min(_N_RESAMPLES, _RESAMPLED_AT_ONCE // len(known)))
    sizes = [len(part) for part in np.array_split(np.arange(_N_RESAMPLES), -(-_N_RESAMPLES // at_once))]
    means = np.concatenate([known[random.integers(len(known), size=(n, len(known)))].mean(1) for n in sizes])
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return {
        "n": len(known),
        "n_undefined": len(values) - len(known),
        "mean": float(known.mean()),
        "low": low,
        "high": high,
        "quantiles": dict(zip(map(str, _QUANTILES), np.quantile(known, _QUANTILES).tolist(), strict=True)),
    }


def table(key: str, summary: Mapping[str, Any]) -> list[str]:
    """A summary in lines for a terminal: means with their intervals, shuffled ones beside them."""
    n_features, n_explained, n_scored = (summary[f"n_{name}"] for name in ("features", "explained", "scored"))
    lines = [f"{key}: {n_explained:,} of {n_features:,} features explained, {n_scored:,} scored"]
    lines += [f"  {n:,} × {reason}" for reason, n in _most(summary["reasons"])]
    lines += [f"  {n:,} windows: {reason}" for reason, n in _most(summary["failures"])]
    for path, name in _SHOWN.items():
        if path in summary["scores"]:
            line = f"  {name:<30}{_interval(summary['scores'][path])}"
            if path in summary["shuffled"]:
                line += f"   shuffled {_interval(summary['shuffled'][path])}"
            lines.append(line)
    return lines


def _most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return Counter(counts).most_common(3)


def _interval(numbers: Mapping[str, Any]) -> str:
    text = f"{numbers['mean']:6.3f} ({numbers['low']:.3f} to {numbers['high']:.3f})"
    return text + (f", {numbers['n_undefined']:,} undefined" if numbers["n_undefined"] else "")
