"""Tokens that are marked for fuzzing: where a feature fires, or where the marks of another window would fall."""

import numpy as np
from jaxtyping import Bool

from strata.interpret.explain.interpreter import levels
from strata.interpret.windows import Windows

LEAST_MARKED_LEVEL = 1  # a firing window's strongest token is marked at any level


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
    left = np.flatnonzero(free)
    found: list[int] = []
    for column in np.flatnonzero(columns)[: len(left)]:
        nearest = int(np.abs(left - column).argmin())
        found.append(int(left[nearest]))
        left = np.delete(left, nearest)
    return found
