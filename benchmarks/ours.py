"""Strata's own SAE in training behind the benchmarks' interface (see peers.Contender)."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from strata.config import SAEConfig
from strata.lm.precision import fast_dtype
from strata.sae.learner import Learner


class OursStep:
    """The step object that strata.Trainer drives, on one batch of rows at a time.

    Args:
        revival: "auto", "auxk", "ghost" or "none".
        score_dtype: precision of the product that selects the winners; None is bf16 where the processor is fast at it.
    """

    name = "Strata"

    def __init__(
        self,
        *,
        d_in: int,
        d_sae: int,
        k: int,
        lr: float | None,
        n_steps: int,
        seed: int,
        n_rows: int = 4096,
        revival: Any = "auto",
        score_dtype: torch.dtype | None = None,
    ) -> None:
        self.config = SAEConfig(
            expansion_factor=d_sae // d_in,
            k=k,
            batch_size=n_rows,
            lr="auto" if lr is None else lr,
            revival=revival,
            seed=seed,
        )
        self.n_steps = n_steps
        self.score_dtype = fast_dtype("cpu") if score_dtype is None else score_dtype

    def prepare(self, sample: Tensor) -> None:
        """Normalisation and initial scale, as the trainer takes them from its first rows."""
        self.learner = Learner(self.config, n_steps=self.n_steps, sample=sample, score_dtype=self.score_dtype)

    def step(self, x: Tensor) -> None:
        self.learner.step(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.learner.finish()(x)

    def codes(self, x: Tensor) -> Tensor:
        return self.learner.finish().encode(x)


def ours(name: str) -> Callable[..., OursStep]:
    """The maker for "strata" (defaults), "strata-fp32" (selection in fp32) or "strata-<revival method>"."""
    variant = name.partition("-")[2]
    if variant == "fp32":
        return functools.partial(OursStep, score_dtype=torch.float32)
    return functools.partial(OursStep, revival=variant) if variant else OursStep
