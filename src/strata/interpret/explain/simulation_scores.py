"""How well predicted levels follow a feature's activations, after Bills et al. 2023."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from strata.interpret.explain.interpreter import HIGHEST_LEVEL, Explanation, Failed, Interpreter, SimulationTask
from strata.interpret.explain.trial import Trial


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


class Simulation:
    """The scorer that has the trial's windows simulated, and scores parts of them.

    "top" are the windows where the feature is strongest; "random" those spread over all strengths and those in which it
    is silent; "all" both together.

    Differs: Bills et al. 2023 call random what is any text. Nearly all of that is silent for a feature of an SAE, so
    here half of the random windows fire. In "all", the strongest windows are over-represented, as in theirs.
    """

    asks: Literal["simulate"] = "simulate"

    def __init__(self) -> None:
        of_part = ("correlation", "absolute", "squared")
        self.scores = tuple(f"{part}.{name}" for part in ("all", "top", "random") for name in of_part)
        self.titles = {
            "all.correlation": "simulation, correlation",
            "top.correlation": "simulation, strongest texts",
            "random.correlation": "simulation, random texts",
        }

    def score(
        self, interpreter: Interpreter, explanations: Sequence[Explanation], trials: Sequence[Trial]
    ) -> list[tuple[dict[str, Any], tuple[Failed, ...]]]:
        """For each explanation the fields of a `SimulationScore`, by part."""
        tasks = [SimulationTask(e, trial.windows) for e, trial in zip(explanations, trials, strict=True)]
        answers = zip(trials, interpreter.simulate(tasks), strict=True)
        return [(_by_part(trial, found.levels), found.failures) for trial, found in answers]


def _by_part(trial: Trial, levels: Float[np.ndarray, "windows tokens"]) -> dict[str, dict[str, Any]]:
    material, n_top = trial.material, len(trial.material.top)
    parts = {"top": slice(n_top), "random": slice(n_top, None), "all": slice(None)}
    return {
        name: vars(
            simulation_score(
                trial.windows.activations[part],
                levels[part],
                measured=material.measured[part],
                max_activation=material.explaining.max_activation,
            )
        )
        for name, part in parts.items()
    }
