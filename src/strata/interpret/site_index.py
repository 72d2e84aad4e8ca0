"""The features of one SAE in an index: their firings, and windows of text around them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from strata.errors import UserError
from strata.interpret.index_layout import LOGIT_EFFECTS, STATISTICS, CodeFile, CodeShard, codes_path, shard_sequences
from strata.interpret.logit_effects import LogitEffects
from strata.interpret.statistics import FeatureStatistics
from strata.interpret.windows import Windows
from strata.sae.model import SAE

if TYPE_CHECKING:
    from strata.interpret.coactivation import Partners
    from strata.interpret.index import FeatureIndex

_DRAWS = 50  # of windows without firing: each time so many more tokens are tried as windows are wanted


@dataclass(frozen=True)
class Firings:
    """All firings of one feature, in reading order.

    Attributes:
        tokens: their token numbers.
        values: how strongly, above 0.
    """

    tokens: Int[np.ndarray, " firings"]
    values: Float[np.ndarray, " firings"]

    def __len__(self) -> int:
        """How many."""
        return len(self.tokens)


class SiteIndex:
    """What one SAE's features do on the text of an index.

    Attributes:
        index: that it is part of.
        key: the SAE's folder below the run's sae/.
        site: where it reads.
        d_sae: its latents.
    """

    def __init__(self, index: "FeatureIndex", key: str) -> None:
        self.index, self.key = index, key
        about = index.record["saes"][key]
        self.site: str = about["site"]
        self.d_sae: int = about["d_sae"]
        self.folder = index.folder / key

    @cached_property
    def _files(self) -> list[CodeFile]:
        step = shard_sequences(self.index.sequence_tokens) * self.index.sequence_tokens
        numbers = range(self.index.record["n_shards"])
        return [CodeFile(codes_path(self.index.folder, self.key, n), first_token=n * step) for n in numbers]

    def shards(self) -> Iterator[CodeShard]:
        """All firings of all features, a shard of at most 65,536 tokens at a time, in reading order."""
        return (file.whole() for file in self._files)

    @property
    def n_rows(self) -> int:
        """Tokens that were encoded: neither special nor pad nor attention sink."""
        return sum(file.n_rows for file in self._files)

    @cached_property
    def n_fired(self) -> Int[np.ndarray, " d_sae"]:
        """On how many rows each latent fires."""
        return sum((np.diff(file.offsets()) for file in self._files), np.zeros(self.d_sae, np.int64))

    @property
    def max_activation(self) -> Float[np.ndarray, " d_sae"]:
        """The largest value of each latent; 0 of one that never fires."""
        return self.statistics().max_activation

    def density(self, latent: int) -> float:
        """The share of rows on which a latent fires."""
        return float(self.n_fired[self._checked(latent)] / max(self.n_rows, 1))

    def statistics(self) -> FeatureStatistics:
        """Density, moments and histogram of every latent; computed from the codes once, then kept on disk."""
        return self._statistics

    @cached_property
    def _statistics(self) -> FeatureStatistics:
        return FeatureStatistics.kept(self.folder / STATISTICS, self.shards, d_sae=self.d_sae)

    def partners(self) -> "Partners":
        """With which latents each latent fires together; computed from the codes once, then kept on disk."""
        return self._partners

    @cached_property
    def _partners(self) -> "Partners":
        from strata.interpret.coactivation import partners_of

        return partners_of(self)

    def logit_effects(self) -> LogitEffects | None:
        """Which tokens each feature makes likelier and unlikelier; None of a model that has no unembedding."""
        return self._logit_effects

    @cached_property
    def _logit_effects(self) -> LogitEffects | None:
        has = self.key in self.index.record["logit_effects"]
        return LogitEffects.load(self.folder / LOGIT_EFFECTS) if has else None

    def sae(self) -> SAE:
        """The SAE itself, from the run's folder."""
        return SAE.load(self.index.folder.parent / "sae" / self.key)

    def firings(self, latent: int) -> Firings:
        """All firings of a feature.

        Raises:
            UserError: there is no such latent.
        """
        latent = self._checked(latent)
        found = [file.of(latent) for file in self._files]
        return Firings(np.concatenate([tokens for tokens, _ in found]), np.concatenate([values for _, values in found]))

    def windows(
        self,
        latent: int,
        tokens: Int[np.ndarray, " windows"],
        *,
        before: int = 24,
        after: int = 8,
        firings: Firings | None = None,
    ) -> Windows:
        """Text around tokens, with what a feature does there; windows end where the sequence does.

        Args:
            latent: the feature.
            tokens: token numbers.
            before: tokens before each.
            after: tokens behind it.
            firings: of the feature, where they are known already.
        """
        firings = self.firings(latent) if firings is None else firings
        seq, tokens = self.index.sequence_tokens, np.asarray(tokens, dtype=np.int64)
        places = tokens[:, None] + np.arange(-before, after + 1)
        inside = places // seq == (tokens // seq)[:, None]
        places = np.where(inside, places, tokens[:, None])
        there = inside & self.index.is_token.reshape(-1)[places]
        at = np.minimum(np.searchsorted(firings.tokens, places), max(len(firings) - 1, 0))
        fires = there & (firings.tokens[at] == places) if len(firings) else np.zeros_like(there)
        return Windows(
            token_ids=np.where(there, self.index.token_ids.reshape(-1)[places], 0).astype(np.int64),
            activations=np.where(fires, firings.values[at], 0).astype(np.float32) if len(firings)
            else np.zeros(places.shape, np.float32),
            is_token=there,
            peaks=np.full(len(tokens), before),
            documents=self.index.documents.reshape(-1)[tokens],
            starts=tokens - before,
        )  # fmt: skip

    def top(
        self, latent: int, *, n: int = 20, before: int = 24, after: int = 8, firings: Firings | None = None
    ) -> Windows:
        """The strongest peaks: firings in whose window there is no stronger one; no two windows share a token.

        The strongest first, of equal ones the earlier.
        """
        firings = self.firings(latent) if firings is None else firings
        taken = _peaks(firings, window=(before, after), n=n, sequence_tokens=self.index.sequence_tokens)
        return self.windows(latent, firings.tokens[taken], before=before, after=after, firings=firings)

    def quantiles(
        self,
        latent: int,
        *,
        n_quantiles: int = 10,
        n_each: int = 2,
        seed: int = 0,
        before: int = 24,
        after: int = 8,
        firings: Firings | None = None,
    ) -> list[Windows]:
        """Firings drawn at random from each quantile of a feature's activations, the strongest quantile first.

        Quantiles hold equally many firings. One with fewer firings than are wanted gives all that it has.
        """
        firings = self.firings(latent) if firings is None else firings
        order = np.argsort(-firings.values, kind="stable")
        random = np.random.default_rng([seed, latent])
        drawn = [
            np.sort(random.choice(part, min(n_each, len(part)), replace=False)) if len(part) else part
            for part in np.array_split(order, n_quantiles)
        ]
        drawn = [part[np.argsort(-firings.values[part], kind="stable")] for part in drawn]
        return [
            self.windows(latent, firings.tokens[part], before=before, after=after, firings=firings) for part in drawn
        ]

    def silent(
        self,
        latent: int,
        n: int,
        *,
        seed: int = 0,
        before: int = 24,
        after: int = 8,
        firings: Firings | None = None,
    ) -> Windows:
        """Windows around random rows in which a feature does not fire; fewer where it fires nearly everywhere."""
        firings = self.firings(latent) if firings is None else firings
        random = np.random.default_rng([seed, latent, 1])
        rows = self._row_tokens
        tried = random.choice(rows, min(len(rows), n * _DRAWS), replace=False)
        near = np.searchsorted(firings.tokens, tried - before) < np.searchsorted(firings.tokens, tried + after + 1)
        return self.windows(latent, tried[~near][:n], before=before, after=after, firings=firings)

    @cached_property
    def _row_tokens(self) -> Int[np.ndarray, " rows"]:
        return self.index.is_row.reshape(-1).nonzero()[0]

    def _checked(self, latent: int) -> int:
        if not 0 <= latent < self.d_sae:
            raise UserError(f"`latent` must be in [0, {self.d_sae}) for {self.key}. Got {latent}. Give another.")
        return latent


def _peaks(firings: Firings, *, window: tuple[int, int], n: int, sequence_tokens: int) -> Int[np.ndarray, " peaks"]:
    """Places of the first `n` firings, by falling value, that are the strongest of their window and lie apart."""
    before, after = window
    taken: list[int] = []
    kept: dict[int, list[int]] = {}
    starts = firings.tokens // sequence_tokens * sequence_tokens
    first = np.searchsorted(firings.tokens, np.maximum(firings.tokens - before, starts))
    end = np.searchsorted(firings.tokens, np.minimum(firings.tokens + after + 1, starts + sequence_tokens))
    for place in np.argsort(-firings.values, kind="stable").tolist():
        if len(taken) >= n:
            break
        token, near = int(firings.tokens[place]), kept.setdefault(int(starts[place]), [])
        apart = all(abs(token - other) > before + after for other in near)
        if apart and firings.values[first[place] : end[place]].max() <= firings.values[place]:
            near.append(token)
            taken.append(place)
    return np.array(taken, dtype=np.int64)
