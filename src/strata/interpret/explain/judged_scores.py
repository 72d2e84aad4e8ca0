"""How well yes-or-no answers from an explanation hold: detection (does it fire here?) and fuzzing (is it here?)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from strata.interpret.explain.levels import levels
from strata.interpret.windows import Windows

LEAST_MARKED_LEVEL = 1  # a firing window's strongest token is marked at any level


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

    def as_json(self) -> dict[str, Any]:
        """As records keep it."""
        return dict(vars(self))


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


def true_marks(windows: Windows, *, max_activation: float) -> Bool[np.ndarray, "windows tokens"]:
    """The tokens of firing windows at which the feature is said to fire: those of level 1 and more, and in any case the
    strongest, so that every window has a mark.

    Args:
        windows: in each the feature fires.
        max_activation: level 10.
    """
    marks = levels(windows.activations, max_activation=max_activation) >= LEAST_MARKED_LEVEL
    marks[np.arange(len(windows)), windows.activations.argmax(1)] = True
    return marks


def markable(windows: Windows, *, measured: Bool[np.ndarray, "windows tokens"]) -> Bool[np.ndarray, " windows"]:
    """The windows that fuzzing can ask about: those with a token at which the feature was encoded and is silent.

    Args:
        windows: of a feature.
        measured: the tokens at which it was encoded.
    """
    return (measured & (windows.activations == 0)).any(1)


def fuzzing_marks(
    windows: Windows,
    *,
    measured: Bool[np.ndarray, "windows tokens"],
    max_activation: float,
    random: np.random.Generator,
) -> tuple[Bool[np.ndarray, "windows tokens"], Bool[np.ndarray, " windows"]]:
    """Marks for fuzzing: right ones in half of the windows, drawn at random, wrong ones in the other half.

    A wrong window gets the true marks of another window, each moved to the nearest free token at which the feature is
    silent. So wrong marks are as many, as near each other and as far from the beginning as right ones, and nothing but
    the text tells them apart. A window with too few silent tokens gets as many as there are; one with none could get no
    wrong mark, so it must be left out, see `markable`.

    Differs: delphi marks the same place in every wrong window, which tells the classes apart without the text.

    Args:
        windows: in each the feature fires, and is silent somewhere.
        measured: the tokens that may be marked: those at which the feature was encoded.
        max_activation: level 10.
        random: draws.

    Returns:
        The marks, and for each window whether they are right.
    """
    right = true_marks(windows, max_activation=max_activation)
    is_right = np.zeros(len(windows), bool)
    is_right[random.permutation(len(windows))[: (len(windows) + 1) // 2]] = True
    circle = random.permutation(len(windows))
    lenders = np.empty_like(circle)
    lenders[circle] = np.roll(circle, 1)
    marks = right.copy()
    for place in np.flatnonzero(~is_right):
        marks[place] = False
        marks[place, _nearest(right[lenders[place]], free=measured[place] & (windows.activations[place] == 0))] = True
    return marks, is_right


def _nearest(columns: Bool[np.ndarray, " tokens"], *, free: Bool[np.ndarray, " tokens"]) -> list[int]:
    """For each column the nearest free one that no earlier one took, as long as there are any."""
    left, found = np.flatnonzero(free), []
    for column in np.flatnonzero(columns)[: len(left)]:
        nearest = int(np.abs(left - column).argmin())
        found.append(int(left[nearest]))
        left = np.delete(left, nearest)
    return found
