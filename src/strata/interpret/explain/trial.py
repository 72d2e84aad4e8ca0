"""What a feature's explanations are put to: windows to simulate, and questions about windows."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from strata.interpret.explain.marks import fuzzing_marks, markable
from strata.interpret.explain.material import FeatureMaterial, feature_random
from strata.interpret.windows import Windows


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
