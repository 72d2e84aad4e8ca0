"""How well predicted levels follow a feature's activations, after Bills et al. 2023."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from strata.interpret.explain.interpreter import HIGHEST_LEVEL


@dataclass(frozen=True)
class SimulationScore:
    """Scores of a simulation over windows, all their tokens together. None where a score is not defined.

    Attributes:
        correlation: Pearson's, of activations and predicted levels; not defined where either is the same everywhere.
        absolute: 1 − E|a − p| / E|a|; not defined where the feature is silent.
        squared: 1 − E(a − p)² / E a²; likewise.
        n_windows: windows asked for.
        n_failed: of those, windows in which a token has no prediction; their other tokens count.
    """

    correlation: float | None
    absolute: float | None
    squared: float | None
    n_windows: int
    n_failed: int

    def as_json(self) -> dict[str, Any]:
        """As records keep it."""
        return dict(vars(self))


def simulation_score(
    activations: Float[np.ndarray, "windows tokens"],
    levels: Float[np.ndarray, "windows tokens"],
    *,
    measured: Bool[np.ndarray, "windows tokens"],
    max_activation: float,
) -> SimulationScore:
    """Compare activations with predicted levels, over all windows together.

    The correlation is of raw activations, not of their levels. For the other two scores a level l is an activation of
    l · max_activation / 10.

    Differs: Bills et al. 2023 bring predictions to scale by a fit on other sequences ("calibration") before those two;
    here the scale is fixed by what a level is.

    Args:
        activations: the feature's.
        levels: 0 to 10; NaN where there is no prediction.
        measured: the tokens that count: those at which the feature was encoded.
        max_activation: level 10, above 0.
    """
    predicted = ~np.isnan(levels)
    counted = measured & predicted
    a, p = activations[counted].astype(np.float64), levels[counted].astype(np.float64)
    errors = a - p * (max_activation / HIGHEST_LEVEL)
    return SimulationScore(
        correlation=_pearson(a, p),
        absolute=1 - float(np.abs(errors).sum() / np.abs(a).sum()) if a.any() else None,
        squared=1 - float((errors**2).sum() / (a**2).sum()) if a.any() else None,
        n_windows=len(activations),
        n_failed=int((measured & ~predicted).any(1).sum()),
    )


def _pearson(a: Float[np.ndarray, " tokens"], p: Float[np.ndarray, " tokens"]) -> float | None:
    if not a.size or (a == a[0]).all() or (p == p[0]).all():
        return None
    a, p = a - a.mean(), p - p.mean()
    return float(a @ p / np.sqrt((a @ a) * (p @ p)))
