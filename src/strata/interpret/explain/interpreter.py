"""Who explains features, and who predicts from an explanation: one protocol, with or without a language model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from strata.interpret.windows import Windows

HIGHEST_LEVEL = 10  # of activations as explanations speak of them: whole numbers from 0


def levels(activations: Float[np.ndarray, "*any"], *, max_activation: float) -> Int[np.ndarray, "*any"]:
    """min(10, floor(10 · relu(a) / max)): 0 at rest and below a tenth of the largest, 10 at the largest and above.

    Source: Bills et al. 2023, *Language models can explain neurons in language models*, section "Methods".
    Differs: delphi shows its explainer the ceiling, in which the weakest activation is a 1.

    Args:
        activations: in the units of the model's activations; finite.
        max_activation: what level 10 stands for; of 0 or less, all levels are 0.
    """
    if max_activation <= 0:
        return np.zeros(activations.shape, dtype=np.int64)
    shares = np.maximum(activations.astype(np.float64), 0.0) / max_activation
    return np.minimum(HIGHEST_LEVEL, np.floor(HIGHEST_LEVEL * shares)).astype(np.int64)


@dataclass(frozen=True)
class Failed:
    """What an interpreter did not answer.

    Attributes:
        reason: one line, e.g. ``"timeout"``, ``"no number for 3 of 64 tokens"``.
    """

    reason: str


@dataclass(frozen=True)
class Pattern:
    """A token that predicts firing, alone or behind others.

    Attributes:
        token_ids: the token, last, behind the tokens that have to stand to the left of it; at least one.
        level: the mean level, 0 to 10, at tokens that match and match no longer pattern of the same explanation.
    """

    token_ids: tuple[int, ...]
    level: float


@dataclass(frozen=True)
class Explanation:
    """What a feature means, in words.

    Attributes:
        key: of its SAE in the index.
        latent: its number.
        text: the explanation.
        patterns: what the text says, for an interpreter that needs no language model; empty else.
    """

    key: str
    latent: int
    text: str
    patterns: tuple[Pattern, ...] = ()


@dataclass(frozen=True)
class Material:
    """From what a feature is to be explained.

    Attributes:
        key: of its SAE in the index.
        latent: its number.
        windows: where it fires, strongest first, of documents that no scorer sees.
        max_activation: the largest in all documents that no scorer sees: level 10.
    """

    key: str
    latent: int
    windows: Windows
    max_activation: float


@dataclass(frozen=True)
class SimulationTask:
    """Predict the feature's level at each token of each window. `windows.activations` are for the scorer alone."""

    explanation: Explanation
    windows: Windows


@dataclass(frozen=True)
class JudgeTask:
    """Say of each window whether the feature fires in it (detection) or, with marks, whether they are where it fires
    (fuzzing). `windows.activations` are for the scorer alone.

    Attributes:
        explanation: of the feature.
        windows: firing ones and others, mixed.
        marks: the marked tokens; None for detection.
    """

    explanation: Explanation
    windows: Windows
    marks: Bool[np.ndarray, "windows tokens"] | None = None


@dataclass(frozen=True)
class Simulated:
    """Predicted levels.

    Attributes:
        levels: 0 to 10; NaN where nothing was predicted, which is not the same as 0.
        failures: what went wrong, one for each window that has a NaN at a token.
    """

    levels: Float[np.ndarray, "windows tokens"]
    failures: tuple[Failed, ...] = ()


@dataclass(frozen=True)
class Judged:
    """Answers on windows.

    Attributes:
        probabilities: that the answer is yes, 0 to 1 (0 or 1 where only the answer is known); NaN where there is none.
        failures: what went wrong, one for each window without an answer.
    """

    probabilities: Float[np.ndarray, " windows"]
    failures: tuple[Failed, ...] = ()


@runtime_checkable
class Interpreter(Protocol):
    """Explains features, and predicts from explanations. Results come in the order of what was asked."""

    @property
    def name(self) -> str:
        """What records call it, e.g. ``"token patterns"``, ``"gpt-4o-mini"``."""
        ...

    def explain(self, materials: Sequence[Material]) -> list[Explanation | Failed]:
        """An explanation of each feature."""
        ...

    def simulate(self, tasks: Sequence[SimulationTask]) -> list[Simulated]:
        """Levels for each task's windows."""
        ...

    def judge(self, tasks: Sequence[JudgeTask]) -> list[Judged]:
        """Answers for each task's windows."""
        ...
