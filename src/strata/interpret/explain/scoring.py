"""Explanations put to the test: tasks for the interpreter, and scores from its answers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from strata.interpret.explain.interpreter import Explanation, Interpreter, JudgeTask, SimulationTask
from strata.interpret.explain.judged_scores import JudgedScore, fuzzing_marks, judged_score, markable
from strata.interpret.explain.material import FeatureMaterial, feature_random
from strata.interpret.explain.simulation_scores import SimulationScore, simulation_score
from strata.interpret.windows import Windows

Scorer = Literal["simulation", "detection", "fuzzing"]


@dataclass(frozen=True)
class FeatureScores:
    """The scores of one explanation; None of a scorer that was not asked for.

    Attributes:
        simulation: "top", the windows where the feature is strongest; "random", those spread over all strengths and
            those in which it is silent; "all" of them together.
        detection: all firing windows against the silent ones.
        fuzzing: the firing windows with a silent token, half of them with right marks.
        failures: what went wrong, and in how many windows.
    """

    simulation: Mapping[str, SimulationScore] | None
    detection: JudgedScore | None
    fuzzing: JudgedScore | None
    failures: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """As records keep it."""
        return {
            "simulation": self.simulation and {part: score.as_json() for part, score in self.simulation.items()},
            "detection": self.detection and self.detection.as_json(),
            "fuzzing": self.fuzzing and self.fuzzing.as_json(),
            "failures": dict(self.failures),
        }


@dataclass(frozen=True)
class Question:
    """Windows to be judged, in a random order.

    Attributes:
        windows: that are judged.
        marks: tokens that are marked; None for detection.
        is_true: of which windows yes is right.
    """

    windows: Windows
    marks: Bool[np.ndarray, "windows tokens"] | None
    is_true: Bool[np.ndarray, " windows"]

    def mixed(self, random: np.random.Generator) -> "Question":
        """The same in another order."""
        order = random.permutation(len(self.windows))
        marks = None if self.marks is None else self.marks[order]
        return Question(self.windows[order], marks, self.is_true[order])


@dataclass(frozen=True)
class Trial:
    """What a feature's explanations are put to, its own or another's.

    Attributes:
        material: of the feature.
        windows: to simulate.
        detection: in which windows it fires.
        fuzzing: in which windows the marks are where it fires.
    """

    material: FeatureMaterial
    windows: Windows
    detection: Question
    fuzzing: Question

    @staticmethod
    def of(material: FeatureMaterial, *, seed: int) -> "Trial":
        """The trial of a feature.

        Args:
            material: of the feature.
            seed: of order and marks; every feature draws for itself.
        """
        latent, windows = material.explaining.latent, material.windows
        n_firing = len(windows) - len(material.silent)
        detection = Question(windows, None, np.arange(len(windows)) < n_firing)
        open_ = np.flatnonzero(markable(windows[:n_firing], measured=material.measured[:n_firing]))
        firing = windows[open_]
        marks, is_right = fuzzing_marks(
            firing,
            measured=material.measured[open_],
            max_activation=material.explaining.max_activation,
            random=feature_random(latent, seed=seed, purpose=1),
        )
        order = feature_random(latent, seed=seed, purpose=2)
        fuzzing = Question(firing, marks, is_right)
        return Trial(material, windows, detection.mixed(order), fuzzing.mixed(order))


def score(
    interpreter: Interpreter,
    explanations: Sequence[Explanation],
    trials: Sequence[Trial],
    *,
    scorers: Sequence[Scorer],
) -> list[FeatureScores]:
    """Score explanations, each on the windows of one feature: its own, or another's for the shuffled baseline.

    Differs: Bills et al. 2023 call random what is any text. Nearly all of that is silent for a feature of an SAE, so
    here half of the random windows fire. In "all", the strongest windows are over-represented, as in theirs.

    Args:
        interpreter: who simulates and judges.
        explanations: what is scored.
        trials: what they are put to, one for each explanation.
        scorers: which.
    """
    failures: list[Counter[str]] = [Counter() for _ in trials]
    nothing = [None] * len(trials)
    simulated = _simulated(interpreter, explanations, trials, failures) if "simulation" in scorers else nothing
    detection, fuzzing = [trial.detection for trial in trials], [trial.fuzzing for trial in trials]
    detected = _judged(interpreter, explanations, detection, failures) if "detection" in scorers else nothing
    fuzzed = _judged(interpreter, explanations, fuzzing, failures) if "fuzzing" in scorers else nothing
    return [FeatureScores(*found) for found in zip(simulated, detected, fuzzed, failures, strict=True)]


def _simulated(
    interpreter: Interpreter,
    explanations: Sequence[Explanation],
    trials: Sequence[Trial],
    failures: Sequence[Counter[str]],
) -> list[dict[str, SimulationScore]]:
    tasks = [SimulationTask(e, trial.windows) for e, trial in zip(explanations, trials, strict=True)]
    found = []
    for trial, answer, failed in zip(trials, interpreter.simulate(tasks), failures, strict=True):
        failed.update(failure.reason for failure in answer.failures)
        material, n_top = trial.material, len(trial.material.top)
        parts = {"top": slice(n_top), "random": slice(n_top, None), "all": slice(None)}
        found.append(
            {
                name: simulation_score(
                    trial.windows.activations[part],
                    answer.levels[part],
                    measured=material.measured[part],
                    max_activation=material.explaining.max_activation,
                )
                for name, part in parts.items()
            }
        )
    return found


def _judged(
    interpreter: Interpreter,
    explanations: Sequence[Explanation],
    questions: Sequence[Question],
    failures: Sequence[Counter[str]],
) -> list[JudgedScore]:
    tasks = [JudgeTask(e, q.windows, q.marks) for e, q in zip(explanations, questions, strict=True)]
    found = []
    for question, answer, failed in zip(questions, interpreter.judge(tasks), failures, strict=True):
        failed.update(failure.reason for failure in answer.failures)
        found.append(judged_score(question.is_true, answer.probabilities))
    return found
