"""The scores of many explanations in a few numbers, beside those of shuffled ones."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from strata.amounts import counted
from strata.atomic import write_json
from strata.errors import UserError
from strata.interpret.explain.record import ExplainedFeature
from strata.interpret.explain.scoring import PATHS, SCORES
from strata.visible_text import visible

SUMMARY = "explanations-summary.json"
_N_RESAMPLES = 1000
_RESAMPLED_AT_ONCE = 1 << 20  # values
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def summarize(features: Sequence[ExplainedFeature], *, seed: int) -> dict[str, Any]:
    """Counts, and of every score the mean with its interval over features, quantiles, and how often it is undefined.

    Features that the limit on cost left half scored count as left open and not as scored: a mean over the windows that
    were paid for is not one over all.

    Args:
        features: of one SAE by one interpreter.
        seed: of the bootstrap.

    Returns:
        ``n_features``, ``n_explained``, ``n_failed``, ``n_scored``, ``n_left_open``, ``n_not_scored``,
        ``share_scored``, ``reasons`` (why features failed or were not scored, with counts), ``failures`` (of windows of
        the scored features), ``windows`` (path of a score → ``n``, ``n_failed``: windows of the scored features, and
        those without an answer), and for each score's path in ``scores``, ``shuffled`` and ``differences``
        (own − shuffled, of the features that have both) the numbers of `distribution`, ``n_undefined`` among them.
    """
    scored = [feature for feature in features if feature.scores and feature.is_done]
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
        "n_left_open": sum(bool(feature.scores) and not feature.is_done for feature in features),
        "n_not_scored": len(not_scored),
        "share_scored": len(scored) / len(features) if features else None,
        "reasons": dict(Counter(failed + not_scored)),
        "failures": dict(failures),
        "windows": {path: found for path in SCORES if (found := _windows(scored, path))["n"]},
        "scores": _distributions(own, seed=seed),
        "shuffled": _distributions(other, seed=seed),
        "differences": _distributions(both, seed=seed),
    }


def _windows(features: Sequence[ExplainedFeature], path: str) -> dict[str, int]:
    answered, n = (sum(column) for column in zip((0, 0), *(f.answered(path) for f in features), strict=True))
    return {"n": n, "n_failed": n - answered}


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
    if summary["n_left_open"]:
        lines.append(f"  {summary['n_left_open']:,} half scored when the limit on cost was reached: not counted")
    lines += [f"  {n:,} × {visible(reason)}" for reason, n in _most(summary["reasons"])]
    lines += [f"  {counted(n, 'window')}: {visible(reason)}" for reason, n in _most(summary["failures"])]
    for path, name in SCORES.items():
        if path in summary["scores"]:
            line = f"  {name:<30}{_interval(summary['scores'][path])}"
            if path in summary["shuffled"]:
                line += f"   shuffled {_interval(summary['shuffled'][path])}"
            windows = summary["windows"][path]
            if windows["n_failed"]:
                line += f"   {windows['n'] - windows['n_failed']:,} of {windows['n']:,} windows answered"
            lines.append(line)
    return lines


def _most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return Counter(counts).most_common(3)


def _interval(numbers: Mapping[str, Any]) -> str:
    text = f"{numbers['mean']:6.3f} ({numbers['low']:.3f} to {numbers['high']:.3f})"
    return text + (f", {numbers['n_undefined']:,} undefined" if numbers["n_undefined"] else "")


def keep_summary(folder: Path, label: str, summary: Mapping[str, Any], *, keys: Sequence[str]) -> None:
    """Put a summary into the index's explanations-summary.json, beside those of other interpreters and other SAEs.

    Args:
        folder: of the index.
        label: whose it is, see `strata.interpret.explain.explained.Explained`.
        summary: ``seconds``, ``stopped`` and ``account`` of the last command, and ``saes`` by key.
        keys: of the SAEs in the index; what is kept of others goes.

    Raises:
        UserError: the file cannot be written.
    """
    path = folder / SUMMARY
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["interpreters"]
        saes = before.get(label, {}).get("saes", {})
        kept = {key: saes[key] for key in keys if key in saes}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        before, kept = {}, {}
    try:
        write_json(path, {"interpreters": {**before, label: {**summary, "saes": {**kept, **summary["saes"]}}}})
    except OSError as error:
        raise UserError(f"The index must be one that can be written. {path}: {error.strerror}. Make room.") from error
