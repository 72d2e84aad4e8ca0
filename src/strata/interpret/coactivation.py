"""Which latents fire together: the strongest partners of each latent, exact over a whole index."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from strata.errors import UserError, did_you_mean
from strata.interpret.coactivation_counts import Cost, Pairs, Shards, count
from strata.interpret.index_layout import CodeShard, load_arrays, save_arrays

if TYPE_CHECKING:
    from strata.interpret.site_index import SiteIndex

Measure = Literal["jaccard", "phi", "pearson", "lift", "count"]

_FILE, _RANKED = "partners.safetensors", "ranked"
_ROUNDING = 1e-12  # of a variance, relative to the square of the mean


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Which partners are kept.

    Attributes:
        n_partners: at most so many of each latent.
        by: the measure by which they are ranked; ties by the latent's number.
        n_least: fire together on at least so many tokens; of fewer a share says nothing.
    """

    n_partners: int = 10
    by: Measure = "jaccard"
    n_least: int = 10

    def __post_init__(self) -> None:
        for name in ("n_partners", "n_least"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be at least 1. Got {getattr(self, name)}. Leave it out.")
        if self.by not in get_args(Measure):
            raise UserError(
                f"`by` must be a measure that there is. Got {self.by!r}.{did_you_mean(self.by, get_args(Measure))}"
            )


@dataclass(frozen=True)
class Partners:
    """The latents with which each latent fires most; a latent with few partners has a short list.

    Over T rows, with c_i the rows on which latent i fires, C_ij those on which i and j do, a_i the value of i on a row
    (0 where it is silent), and sums over all T rows:

    - jaccard = C_ij / (c_i + c_j − C_ij), in (0, 1]
    - phi = (T·C_ij − c_i·c_j) / √(c_i (T − c_i) c_j (T − c_j)): Pearson's correlation of "fires", in [−1, 1]
    - pearson = (T·Σ a_i a_j − Σ a_i · Σ a_j) / √((T·Σ a_i² − (Σ a_i)²)(T·Σ a_j² − (Σ a_j)²)): of the values
    - lift = T·C_ij / (c_i·c_j): how many times as often as if they fired independently

    phi and pearson are NaN where a latent does not vary. Pairs of one token are counted; latents that fire near each
    other, on different tokens, are no pair.

    Attributes:
        offsets: the entries of latent i, best first, are ``offsets[i]:offsets[i + 1]``.
        latents: the partners; of the other site where the pairs are across sites.
        counts: C_ij, in tokens.
        jaccard: see above.
        phi: see above.
        pearson: see above.
        lift: see above.
        n_rows: T.
        n_increments: of the count, Σ over rows of (latents that fire) · (latents that fire, at the other site).
        n_passes: how often the entries were read: 1 up to 8 million entries, above that as `partners` says.
    """

    offsets: Int[np.ndarray, " ends"]
    latents: Int[np.ndarray, " entries"]
    counts: Int[np.ndarray, " entries"]
    jaccard: Float[np.ndarray, " entries"]
    phi: Float[np.ndarray, " entries"]
    pearson: Float[np.ndarray, " entries"]
    lift: Float[np.ndarray, " entries"]
    n_rows: int
    n_increments: int
    n_passes: int

    def measure(self, name: Measure) -> Float[np.ndarray, " entries"]:
        """One of the measures of every entry."""
        return self.counts.astype(np.float64) if name == "count" else getattr(self, name)

    def of(self, latent: int) -> "Partners":
        """The partners of one latent: the same with arrays of its own entries alone, best first."""
        part = slice(int(self.offsets[latent]), int(self.offsets[latent + 1]))
        own: dict[str, Any] = {
            name: array[part]
            for name, array in vars(self).items()
            if isinstance(array, np.ndarray) and name != "offsets"
        }
        return replace(self, **own, offsets=np.array([0, len(own["latents"])]))


def partners_of(site: "SiteIndex") -> Partners:
    """The partners of every latent of a site by the default `Ranking`, counted once and then kept in its folder."""
    kept = kept_partners(site)
    if kept is not None:
        return kept
    found = partners(site.shards)
    arrays = {name: np.atleast_1d(value) for name, value in vars(found).items()}
    save_arrays(site.folder / _FILE, {**arrays, _RANKED: _ranked()})
    return found


def kept_partners(site: "SiteIndex") -> Partners | None:
    """Those that `partners_of` kept; None if it has not counted yet, or by another default."""
    path = site.folder / _FILE
    kept: dict[str, Any] = dict(load_arrays(path)) if path.exists() else {}
    if not np.array_equal(kept.pop(_RANKED, ()), _ranked()):
        return None
    kept |= {name: int(kept[name][0]) for name in ("n_rows", "n_increments", "n_passes")}
    return Partners(**kept)


def _ranked() -> Int[np.ndarray, " settings"]:
    """What of the default ranking is kept beside the partners that it chose."""
    return np.array([Ranking().n_partners, Ranking().n_least])


def partners(shards: Shards, *, ranking: Ranking | None = None) -> Partners:
    """The partners of every latent of a site, in T·k² increments, whatever d_sae.

    Counts are exact; sums of values are taken in double precision.

    Memory: 8 million entries (T·k) at a time, about 350 MB while they are put into the order of tokens, and no array of
    d_sae². Where there are more entries, one term grows with d_sae²: counts and sums of some latents with all others,
    12 bytes a pair, as many latents at a time as half of the free memory holds (256 MB at least). Each such block is a
    pass over all entries (8 bytes each, in a temporary file): with 16 GB free 2 passes for 32,768 latents, 26 for
    131,072.

    Args:
        shards: called for each pass; gives the shards in reading order, e.g. the method ``site.shards`` of an index.
        ranking: which are kept; None is the default.
    """
    return _partners(shards, shards, ranking or Ranking(), within=True)


def partners_across(shards: Shards, others: Shards, *, ranking: Ranking | None = None) -> Partners:
    """The partners that every latent of one site has among the latents of another; cost and memory as of `partners`.

    Args:
        shards: of the site whose latents have partners.
        others: of the site whose latents are partners, over the same tokens cut in the same places.
        ranking: which are kept; None is the default.

    Raises:
        UserError: the shards do not cover the same tokens.
    """
    return _partners(shards, others, ranking or Ranking(), within=False)


def _partners(shards: Shards, others: Shards, ranking: Ranking, *, within: bool) -> Partners:
    left, n_rows = _Marginals.of(shards())
    right = left if within else _Marginals.of(others())[0]
    chosen = _Chosen(left, right, n_rows, ranking, within=within)
    widths = {"d_sae": len(left.counts), "d_other": len(right.counts)}
    cost = count(shards, others, take=chosen.take, **widths, n_least=ranking.n_least)
    return chosen.partners(cost)


@dataclass(frozen=True)
class _Marginals:
    """Of every latent: rows on which it fires, sum of its values, of their squares.

    Attributes:
        counts: [d_sae].
        sums: in the units of the values.
        squares: in their square.
    """

    counts: Int[np.ndarray, " d_sae"]
    sums: Float[np.ndarray, " d_sae"]
    squares: Float[np.ndarray, " d_sae"]

    @staticmethod
    def of(shards: Iterable[CodeShard]) -> "tuple[_Marginals, int]":
        """Also the number of rows.

        Raises:
            UserError: no shard.
        """
        totals: tuple[np.ndarray, ...] | None = None
        n_rows = 0
        for shard in shards:
            fired, latents = np.diff(shard.offsets), shard.latents
            values = np.asarray(shard.values, dtype=np.float64)
            sums = (np.bincount(latents, weights=v, minlength=len(fired)).astype(float) for v in (values, values**2))
            own = (fired, *sums)
            totals = own if totals is None else tuple(a + b for a, b in zip(totals, own, strict=True))
            n_rows += shard.n_rows
        if totals is None:
            raise UserError("Co-activation needs at least one shard of codes. Got none. Index the run again.")
        counts, sums, squares = totals
        return _Marginals(counts, sums, squares), n_rows


class _Chosen:
    """Each latent's best partners, some latents after the other."""

    def __init__(self, left: _Marginals, right: _Marginals, n_rows: int, ranking: Ranking, *, within: bool) -> None:
        self.left, self.right, self.n_rows, self.ranking, self.within = left, right, n_rows, ranking, within
        self.parts: list[Pairs] = []

    def take(self, pairs: Pairs) -> None:
        """Choose among all pairs of some latents."""
        if self.within:
            pairs = pairs[pairs.firsts != pairs.seconds]
        score = self._measure(pairs, self.ranking.by)
        score = np.where(np.isnan(score), -np.inf, score)
        order = np.lexsort((-score, pairs.firsts))  # stable: of equal scores the lower latent stays in front
        firsts = pairs.firsts[order]
        place = np.arange(len(order)) - np.searchsorted(firsts, firsts)  # in its latent's list
        self.parts.append(pairs[order[place < self.ranking.n_partners]])

    def _measure(self, pairs: Pairs, measure: Measure) -> np.ndarray:
        """A measure of pairs, see `Partners`."""
        left, right, n, both = self.left, self.right, float(self.n_rows), pairs.counts.astype(np.float64)
        i, j = pairs.firsts, pairs.seconds
        a, b = left.counts[i].astype(np.float64), right.counts[j].astype(np.float64)
        if measure == "count":
            return both
        if measure == "jaccard":
            return both / (a + b - both)
        if measure == "lift":
            return n * both / (a * b)
        if measure == "phi":
            return _correlation(n * both - a * b, (n * a - a * a) * (n * b - b * b), a * b)
        a, b = left.sums[i], right.sums[j]
        spread = (n * left.squares[i] - a * a) * (n * right.squares[j] - b * b)
        return _correlation(n * pairs.sums - a * b, spread, a * b)

    def partners(self, cost: Cost) -> Partners:
        """What was chosen, with all measures."""
        pairs = Pairs.joined(self.parts)
        names: tuple[Measure, ...] = ("jaccard", "phi", "pearson", "lift")
        found: dict[str, Any] = {name: self._measure(pairs, name) for name in names}
        offsets = np.searchsorted(pairs.firsts, np.arange(len(self.left.counts) + 1))
        entries: dict[str, Any] = {"latents": pairs.seconds, "counts": pairs.counts, **found}
        return Partners(offsets=offsets, **entries, n_rows=self.n_rows, **vars(cost))


def _correlation(joint: np.ndarray, spread: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """joint / √spread; NaN where the spread, a product of two variances, is nothing but rounding."""
    flat = spread <= (_ROUNDING * scale) * scale
    return np.where(flat, np.nan, joint / np.sqrt(np.where(flat, 1.0, spread)))
