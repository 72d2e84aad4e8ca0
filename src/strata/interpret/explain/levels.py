"""Activations as whole numbers that a language model can read and write."""

import numpy as np
from jaxtyping import Float, Int

from strata.interpret.explain.interpreter import HIGHEST_LEVEL


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
