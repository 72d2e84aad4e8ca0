"""What every latent of an SAE does on a text, in numbers: density, moments, histogram."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from strata.interpret.index_layout import CodeShard, load_arrays, save_arrays

N_BINS = 40


@dataclass(frozen=True)
class FeatureStatistics:
    """Numbers of all latents of one SAE.

    Attributes:
        n_rows: rows that were read, [1].
        n_fired: rows on which the latent fires.
        max_activation: its largest value; 0 where it never fires.
        mean: E[a] over the rows on which it fires; 0 where it never does.
        mean_square: E[a²] over the same rows.
        skew: E[a³]/E[a²]^1.5 over all rows, silent ones too, about zero; 0 where it never fires.
        kurtosis: E[a⁴]/E[a²]² over all rows, about zero.
        histogram: firings by strength, in 40 equal bins from 0 to the latent's largest value.
    """

    n_rows: Int[np.ndarray, " 1"]
    n_fired: Int[np.ndarray, " d_sae"]
    max_activation: Float[np.ndarray, " d_sae"]
    mean: Float[np.ndarray, " d_sae"]
    mean_square: Float[np.ndarray, " d_sae"]
    skew: Float[np.ndarray, " d_sae"]
    kurtosis: Float[np.ndarray, " d_sae"]
    histogram: Int[np.ndarray, "d_sae bins"]

    @property
    def density(self) -> Float[np.ndarray, " d_sae"]:
        """The share of rows on which each latent fires."""
        return self.n_fired / max(int(self.n_rows[0]), 1)

    @classmethod
    def of(cls, shards: Callable[[], Iterable[CodeShard]], *, d_sae: int) -> "FeatureStatistics":
        """From all codes, read twice: the bins need the largest values.

        Args:
            shards: gives the shards anew at each call.
            d_sae: latents.
        """
        n_rows, powers, most = 0, np.zeros((5, d_sae)), np.zeros(d_sae, np.float32)
        for shard in shards():
            latents, values = shard.latents, shard.values.astype(np.float64)
            n_rows += shard.n_rows
            powers[0] += np.diff(shard.offsets)
            for power in range(1, 5):
                powers[power] += np.bincount(latents, values**power, minlength=d_sae)
            fired = np.diff(shard.offsets) > 0
            most[fired] = np.maximum(most[fired], np.maximum.reduceat(shard.values, shard.offsets[:-1][fired])
                                     if fired.any() else most[fired])  # fmt: skip
        bins = np.zeros(d_sae * N_BINS, np.int64)
        for shard in shards():
            latents = shard.latents
            place = np.minimum(shard.values / most[latents] * N_BINS, N_BINS - 1).astype(np.int64)
            bins += np.bincount(latents * N_BINS + place, minlength=d_sae * N_BINS)
        over_rows = powers / max(n_rows, 1)
        square = over_rows[2]
        with np.errstate(divide="ignore", invalid="ignore"):
            means = {name: powers[p] / powers[0] for name, p in (("mean", 1), ("mean_square", 2))}
            shape = {"skew": over_rows[3] / square**1.5, "kurtosis": over_rows[4] / square**2}
        real = {name: np.where(powers[0] > 0, found, 0.0) for name, found in (means | shape).items()}
        return cls(
            n_rows=np.array([n_rows]),
            n_fired=powers[0].astype(np.int64),
            max_activation=most,
            histogram=bins.reshape(d_sae, N_BINS),
            **real,
        )

    @classmethod
    def kept(cls, path: Path, shards: Callable[[], Iterable[CodeShard]], *, d_sae: int) -> "FeatureStatistics":
        """From a file, or, where there is none yet, from the codes and then into the file."""
        if not path.exists():
            found = cls.of(shards, d_sae=d_sae)
            save_arrays(path, {field.name: getattr(found, field.name) for field in fields(cls)})
        return cls(**load_arrays(path))
