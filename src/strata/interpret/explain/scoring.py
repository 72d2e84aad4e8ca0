"""Explanations put to the test: the scorers that there are, and what they find."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from strata.interpret.explain.interpreter import Explanation, Failed, Interpreter
from strata.interpret.explain.judged_scores import Judging
from strata.interpret.explain.simulation_scores import Simulation
from strata.interpret.explain.trial import Trial


class Scorer(Protocol):
    """A way to score explanations; a new one is a class, a row in SCORERS, and its name in `ExplainConfig.scorers`."""

    @property
    def asks(self) -> Literal["simulate", "judge"]:
        """Which of an interpreter's work it needs."""
        ...

    @property
    def scores(self) -> Sequence[str]:
        """The scores that are summed up: where each stands in what `score` finds, e.g. ``"all.correlation"``."""
        ...

    @property
    def titles(self) -> Mapping[str, str]:
        """Those that people are shown, with their titles; by the first, features are ranked."""
        ...

    def score(
        self, interpreter: Interpreter, explanations: Sequence[Explanation], trials: Sequence[Trial]
    ) -> list[tuple[dict[str, Any], tuple[Failed, ...]]]:
        """For each explanation what was found, JSON-able, and what was not answered."""
        ...


SCORERS: dict[str, Scorer] = {
    "simulation": Simulation(),
    "detection": Judging("detection"),
    "fuzzing": Judging("fuzzing"),
}
"""By name, in the order of records and tables."""
PATHS = tuple(f"{name}.{path}" for name, scorer in SCORERS.items() for path in scorer.scores)
"""Of all scores, for `strata.interpret.explain.record.ExplainedFeature.score`."""
SCORES = {f"{name}.{path}": title for name, scorer in SCORERS.items() for path, title in scorer.titles.items()}
"""The scores that people are shown: path → title."""
MAIN_SCORES = tuple(f"{name}.{next(iter(scorer.titles))}" for name, scorer in SCORERS.items())
"""By which features are ranked: by the first of these that any of them has."""


def score(
    interpreter: Interpreter, explanations: Sequence[Explanation], trials: Sequence[Trial], *, scorers: Sequence[str]
) -> list[dict[str, Any]]:
    """Score explanations, each on the windows of one feature: its own, or another's for the shuffled baseline.

    Args:
        interpreter: who simulates and judges.
        explanations: what is scored.
        trials: what they are put to, one for each explanation.
        scorers: which; names in `SCORERS`.

    Returns:
        For each explanation, as records keep it: what each scorer found, by its name, None of one that was not asked
        for; and ``failures``: what went wrong, and in how many windows.
    """
    found: list[dict[str, Any]] = [dict.fromkeys(SCORERS) for _ in explanations]
    failures: list[Counter[str]] = [Counter() for _ in explanations]
    for name, scorer in SCORERS.items():
        if name in scorers:
            for place, (scores, failed) in enumerate(scorer.score(interpreter, explanations, trials)):
                found[place][name] = scores
                failures[place].update(failure.reason for failure in failed)
    return [{**scores, "failures": dict(failed)} for scores, failed in zip(found, failures, strict=True)]
