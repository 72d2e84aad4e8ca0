"""How well yes-or-no answers from an explanation hold: detection (does it fire here?) and fuzzing (is it here?)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from strata.interpret.explain.interpreter import Explanation, Failed, Interpreter, JudgeTask
from strata.interpret.explain.trial import Trial


@dataclass(frozen=True)
class JudgedScore:
    """Scores of answers, over the windows with one. None where one of the classes has no answer.

    Attributes:
        balanced_accuracy: (share of the true windows that are told yes + share of the others told no) / 2; 0.5 by
            chance.
        auroc: the share of pairs of a true window and another in which the true one has the larger probability, equal
            ones counted half.
        n: windows asked about.
        n_failed: of those, windows without an answer.
    """

    balanced_accuracy: float | None
    auroc: float | None
    n: int
    n_failed: int


def judged_score(is_true: Bool[np.ndarray, " windows"], probabilities: Float[np.ndarray, " windows"]) -> JudgedScore:
    """Compare answers with the truth.

    Args:
        is_true: whether yes is right.
        probabilities: of yes; above 0.5 counts as yes; NaN where there is no answer.
    """
    answered = ~np.isnan(probabilities)
    yes, no = probabilities[answered & is_true], probabilities[answered & ~is_true]
    defined = bool(len(yes) and len(no))
    return JudgedScore(
        balanced_accuracy=float((yes > 0.5).mean() + (no <= 0.5).mean()) / 2 if defined else None,
        auroc=auroc(yes, no) if defined else None,
        n=len(probabilities),
        n_failed=int((~answered).sum()),
    )


def auroc(yes: Float[np.ndarray, " true"], no: Float[np.ndarray, " others"]) -> float:
    """The area under the ROC curve: the share of pairs in which the true one is larger, ties counted half.

    The statistic of Mann & Whitney 1947 over the number of pairs.
    """
    sorted_no = np.sort(no)
    below, up_to = np.searchsorted(sorted_no, yes, side="left"), np.searchsorted(sorted_no, yes, side="right")
    return float((below + up_to).sum()) / (2 * len(yes) * len(no))


class Judging:
    """A scorer that puts one of a trial's questions to an interpreter.

    Args:
        question: which: its name in the trial, and the scorer's.
    """

    asks: Literal["judge"] = "judge"
    scores = ("balanced_accuracy", "auroc")

    def __init__(self, question: Literal["detection", "fuzzing"]) -> None:
        self._question: Literal["detection", "fuzzing"] = question
        self.titles = {"balanced_accuracy": f"{question}, balanced accuracy", "auroc": f"{question}, AUROC"}

    def score(
        self, interpreter: Interpreter, explanations: Sequence[Explanation], trials: Sequence[Trial]
    ) -> list[tuple[dict[str, Any], tuple[Failed, ...]]]:
        """The fields of a `JudgedScore` for each explanation."""
        questions = [trial.detection if self._question == "detection" else trial.fuzzing for trial in trials]
        tasks = [JudgeTask(e, q.windows, q.marks) for e, q in zip(explanations, questions, strict=True)]
        answers = zip(questions, interpreter.judge(tasks), strict=True)
        return [(vars(judged_score(q.is_true, found.probabilities)), found.failures) for q, found in answers]
