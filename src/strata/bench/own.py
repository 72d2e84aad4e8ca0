"""Strata's own SAE in training as a contender."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.bench.contender import Given
from strata.config.train import SAEConfig
from strata.kernels.backend import score_dtype as fastest_dtype
from strata.sae.learner import Learner


@dataclass(frozen=True, kw_only=True)
class _OfWidth(SAEConfig):
    """An SAE whose latents are no multiple of its width, as comparisons may ask for."""

    n_latents: int

    def d_sae(self, d_in: int) -> int:
        return self.n_latents


class Strata:
    """The learner that `strata train` drives, on one batch of rows at a time.

    Args:
        given: what every contender is told; a learning rate of None is "auto".
        revival: "auto", "lift", "auxk", "ghost", "resample" or "none".
        score_dtype: precision of the product that selects the winners; None is what a training takes on the device.
    """

    def __init__(self, given: Given, *, revival: Any = "auto", score_dtype: torch.dtype | None = None) -> None:
        self.config = _OfWidth(
            n_latents=given.d_sae,
            k=given.k,
            batch_size=given.n_rows,
            lr="auto" if given.lr is None else given.lr,
            revival=revival,
            seed=given.seed,
        )
        self.n_steps = given.n_steps
        self.score_dtype = fastest_dtype(given.device) if score_dtype is None else score_dtype
        self._learner: Learner | None = None
        self._finished: Any = None

    def prepare(self, sample: Float[Tensor, "sample d_in"]) -> None:
        """Normalisation and initial scale, as the trainer takes them from its first rows."""
        self._learner = Learner(self.config, n_steps=self.n_steps, sample=sample, score_dtype=self.score_dtype)

    def step(self, x: Float[Tensor, "rows d_in"]) -> None:
        """One step of the learner."""
        assert self._learner is not None, "prepare comes first"
        self._finished = None
        self._learner.step(x)

    def reconstruct(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """By the SAE that the run would save now."""
        return self._sae()(x)

    def codes(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_sae"]:
        """Of the SAE that the run would save now."""
        return self._sae().encode(x)

    def _sae(self) -> Any:
        """A copy, made anew after every step only."""
        assert self._learner is not None, "prepare comes first"
        if self._finished is None:
            self._finished = self._learner.finish()
        return self._finished
