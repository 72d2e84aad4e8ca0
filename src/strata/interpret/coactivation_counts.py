"""How often latents fire on the same tokens, counted from an index's shards, some latents with all others at a time.

A shard lists its firings by latent. To count what fires beside a latent, it is brought into the order of tokens once;
then the rows of the latent's tokens are gathered and counted, for as many latents at once as keeps arrays small. That
is Σ over tokens of (latents that fire) · (latents that fire, at the other site) increments, whatever the number of
latents.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.errors import UserError
from strata.interpret.coactivation_order import TokenOrder
from strata.interpret.index_layout import CodeShard
from strata.machine.free_memory import free_memory

Shards = Callable[[], Iterable[CodeShard]]

STACK_ENTRIES = 2**23  # entries that are held in the order of tokens at once
LEAST_BLOCK_BYTES = 2**28  # counts and sums of some latents with all others, where the shards are more than one stack
_SHARE = 0.5  # of the free memory, for the same
_CELL_BYTES = 12  # a count in four bytes, a sum in double precision
_AT_ONCE = 2**20  # increments, or cells of an array of counts, of a few latents that are counted together
_FEW = 4  # where there are fewer than a quarter as many increments as cells, they are counted by sorting


@dataclass(frozen=True)
class Pairs:
    """Pairs of latents that fire together, in the order of the first, then of the second.

    Attributes:
        firsts: number of the first, of one site.
        seconds: number of the second, of the same site or another.
        counts: on how many tokens both fire.
        sums: over these tokens, of the product of both values.
    """

    firsts: Int[np.ndarray, " pairs"]
    seconds: Int[np.ndarray, " pairs"]
    counts: Int[np.ndarray, " pairs"]
    sums: Float[np.ndarray, " pairs"]

    def __getitem__(self, chosen: np.ndarray) -> "Pairs":
        """Some of the pairs: places or a mask."""
        return Pairs(self.firsts[chosen], self.seconds[chosen], self.counts[chosen], self.sums[chosen])

    @staticmethod
    def joined(parts: "Sequence[Pairs]") -> "Pairs":
        """One after the other."""
        columns = zip(*((p.firsts, p.seconds, p.counts, p.sums) for p in parts), strict=True)
        return Pairs(*(np.concatenate(column) for column in columns))


@dataclass(frozen=True)
class Cost:
    """What a count took.

    Attributes:
        n_increments: Σ over tokens of (latents that fire) · (latents that fire, at the other site).
        n_passes: how often the entries were read.
    """

    n_increments: int
    n_passes: int


def count(
    shards: Shards, others: Shards, *, take: Callable[[Pairs], None], d_sae: int, d_other: int, n_least: int = 1
) -> Cost:
    """Counts, for every latent of a site, with which latents of a site it fires.

    Args:
        shards: called for each pass; the shards of the first site in reading order.
        others: of the second site (or the same again), over the same tokens cut in the same places.
        take: given all pairs of some latents at a time, in the order of latents.
        d_sae: latents of the first site.
        d_other: latents of the second.
        n_least: pairs that fire together on fewer tokens are left out.

    Raises:
        UserError: the two sites' shards do not cover the same tokens.
    """
    stacks = _stacks(shards, others)
    (stack, other), second = next(stacks), next(stacks, None)
    if second is not None:
        return _count_in_blocks(shards, others, take=take, d_sae=d_sae, d_other=d_other, n_least=n_least)
    order = TokenOrder.of(other)
    for first, last in _groups(stack, order, 0, d_sae):
        pairs = _pairs(stack, first, last, order)
        take(pairs[pairs.counts >= n_least])
    return Cost(order.n_increments(stack), n_passes=1)


def _count_in_blocks(
    shards: Shards, others: Shards, *, take: Callable[[Pairs], None], d_sae: int, d_other: int, n_least: int
) -> Cost:
    """Some latents with all others at a time, over all stacks, which are put in the order of tokens only once."""
    block = block_latents(d_other)
    n_increments = 0
    with tempfile.TemporaryDirectory(prefix="strata-coactivation-") as folder:
        for first in range(0, d_sae, block):
            n_own = min(block, d_sae - first)
            counts, sums = np.zeros((n_own, d_other), np.int32), np.zeros((n_own, d_other))
            for number, (stack, other) in enumerate(_stacks(shards, others)):
                kept = Path(folder) / f"{number}.pt"
                if first == 0:
                    order = TokenOrder.of(other)
                    n_increments += order.n_increments(stack)
                    if block < d_sae:
                        torch.save(vars(order), kept)
                else:
                    order = TokenOrder(**torch.load(kept, weights_only=True))
                for start, last in _groups(stack, order, first, first + n_own):
                    pairs = _pairs(stack, start, last, order)
                    counts[pairs.firsts - first, pairs.seconds] += pairs.counts.astype(np.int32)
                    sums[pairs.firsts - first, pairs.seconds] += pairs.sums
            for place in range(n_own):
                seconds = (counts[place] >= n_least).nonzero()[0]
                firsts = np.full(len(seconds), first + place)
                take(Pairs(firsts, seconds, counts[place, seconds].astype(np.int64), sums[place, seconds]))
    return Cost(n_increments, n_passes=-(-d_sae // block))


def block_latents(d_other: int) -> int:
    """How many latents are counted in one pass over several stacks: as many as half of the free memory holds counts of,
    and at least as many as 256 MB do.

    Args:
        d_other: latents of the other site.
    """
    room = max(LEAST_BLOCK_BYTES, int(_SHARE * free_memory(torch.device("cpu"))))
    return max(1, room // (_CELL_BYTES * d_other))


def _groups(stack: Sequence[CodeShard], order: TokenOrder, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Latents that are counted at once: as many as make neither too many increments nor too large an array."""
    fired = np.sum([np.diff(shard.offsets[first : end + 1]) for shard in stack], axis=0)
    n_longest = int(order.lengths.max()) if len(order.lengths) else 0
    n_increments = (fired * n_longest).tolist()
    begin, n_own = first, 0
    for latent, n_more in zip(range(first, end), n_increments, strict=True):
        n_own += n_more
        n_cells = (latent + 1 - begin) * (order.d_sae + 1)
        if latent > begin and (n_own > _AT_ONCE or (_as_array(n_own, n_cells) and n_cells > _AT_ONCE)):
            yield begin, latent
            begin, n_own = latent, n_more
    yield begin, end


def _as_array(n_increments: int, n_cells: int) -> bool:
    """Whether counting in an array of all pairs is faster than sorting."""
    return n_increments * _FEW >= n_cells


def _pairs(stack: Sequence[CodeShard], first: int, end: int, order: TokenOrder) -> Pairs:
    """Of some latents of a stack of shards, with the other site's entries in the order of tokens."""
    parts = [slice(int(shard.offsets[first]), int(shard.offsets[end])) for shard in stack]
    tokens = np.concatenate([shard.tokens[part] for shard, part in zip(stack, parts, strict=True)])
    values = np.concatenate([shard.values[part] for shard, part in zip(stack, parts, strict=True)])
    owners = np.concatenate([np.repeat(np.arange(end - first), np.diff(s.offsets[first : end + 1])) for s in stack])
    keys, products = order.gather(*(torch.from_numpy(part) for part in (tokens, values, owners)))
    width = order.d_sae + 1
    if _as_array(len(keys), width * (end - first)):
        counts = torch.bincount(keys, minlength=width * (end - first))
        sums = torch.bincount(keys, weights=products, minlength=len(counts)).double()
        keys = counts.nonzero()[:, 0]
        counts, sums = counts[keys], sums[keys]
    else:
        keys, places, counts = cast(  # torch gives it no type
            "tuple[Tensor, Tensor, Tensor]", keys.unique(return_inverse=True, return_counts=True)
        )
        sums = torch.bincount(places, weights=products, minlength=len(keys)).double()  # of none it is whole numbers
    real = keys % width < order.d_sae
    keys, counts, sums = keys[real], counts[real], sums[real]
    return Pairs((keys // width + first).numpy(), (keys % width).numpy(), counts.numpy(), sums.numpy())


def _stacks(shards: Shards, others: Shards) -> Iterator[tuple[list[CodeShard], list[CodeShard]]]:
    """Shards of both sites over the same tokens, as many as `STACK_ENTRIES` allows (one at least) at a time."""
    left: list[CodeShard] = []
    right: list[CodeShard] = []
    n_entries, end, pairs = 0, -1, _paired(shards, others)
    for one, other in pairs:
        tokens = np.concatenate([one.tokens, other.tokens])
        if one.n_rows != other.n_rows or int(tokens.min(initial=end + 1)) <= end:
            raise UserError("Shards of two sites must cover the same tokens. These do not; index both sites together.")
        end = int(tokens.max(initial=end))
        n_own = max(len(one.tokens), len(other.tokens))
        if left and n_entries + n_own > STACK_ENTRIES:
            yield left, right
            left, right, n_entries = [], [], 0
        left.append(one)
        right.append(other)
        n_entries += n_own
    yield left, right


def _paired(shards: Shards, others: Shards) -> Iterable[tuple[CodeShard, CodeShard]]:
    """Shard by shard; a site with itself is read once."""
    return ((shard, shard) for shard in shards()) if shards == others else zip(shards(), others(), strict=True)
