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

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.errors import UserError
from strata.interpret.index_layout import CodeShard
from strata.machine.free_memory import free_memory
from strata.shapes import SparseCode

Shards = Callable[[], Iterable[CodeShard]]

STACK_ENTRIES = 2**23  # entries that are held in the order of tokens at once
LEAST_BLOCK_BYTES = 2**28  # counts and sums of some latents with all others, where the shards are more than one stack
_SHARE = 0.5  # of the free memory, for the same
_CELL_BYTES = 12  # a count in four bytes, a sum in double precision
_AT_ONCE = 2**20  # increments, or cells of an array of counts, of a few latents that are counted together
_FEW = 4  # where there are fewer than a quarter as many increments as cells, they are counted by sorting
_PADDING = 1.5  # rows are padded to the longest where that makes at most so many times as many entries


def shard_of(code: SparseCode, *, first_token: int = 0) -> CodeShard:
    """The code of consecutive tokens, all of them rows, listed by latent; its places with value 0 are no entries.

    Args:
        code: of any leading shape, which is flattened.
        first_token: the number of the first.
    """
    k = code.values.shape[-1]
    values, latents = code.values.reshape(-1, k).cpu().float(), code.indices.reshape(-1, k).cpu()
    rows, places = (values > 0).nonzero(as_tuple=True)
    fired = latents[rows, places]
    order = fired.argsort(stable=True)
    ends = torch.bincount(fired, minlength=code.d_sae).cumsum(0)
    tokens = (rows + first_token)[order].numpy()
    return CodeShard(np.append(0, ends.numpy()), tokens, values[rows, places][order].numpy(), len(values))


@dataclass(frozen=True)
class Marginals:
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
    def of(shards: Iterable[CodeShard]) -> "tuple[Marginals, int]":
        """Also the number of rows.

        Raises:
            UserError: no shard.
        """
        totals, n_rows = None, 0
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
        return Marginals(counts, sums, squares), n_rows


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
    order = _TokenOrder.of(other)
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
                    order = _TokenOrder.of(other)
                    n_increments += order.n_increments(stack)
                    if block < d_sae:
                        torch.save(vars(order), kept)
                else:
                    order = _TokenOrder(**torch.load(kept, weights_only=True))
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


@dataclass(frozen=True)
class _TokenOrder:
    """The entries of a stack of shards, row by row.

    A table [rows, longest], whose unused places name latent d_sae with value 0; or, where rows are too unlike, a list.
    """

    latents: Tensor
    values: Tensor
    starts: Tensor
    lengths: Tensor
    first: int
    d_sae: int

    @staticmethod
    def of(stack: Sequence[CodeShard]) -> "_TokenOrder":
        tokens = np.concatenate([shard.tokens for shard in stack])
        first = int(tokens.min(initial=np.iinfo(np.int64).max)) if len(tokens) else 0
        rows = (tokens - first).astype(np.int32)
        orders = [_by_token(shard) for shard in stack]
        latents = np.concatenate([s.latents.astype(np.int32)[o] for s, o in zip(stack, orders, strict=True)])
        values = np.concatenate([s.values[o] for s, o in zip(stack, orders, strict=True)]).astype(np.float32)
        lengths = np.bincount(rows)
        starts = lengths.cumsum() - lengths
        longest, d_sae = int(lengths.max(initial=0)), len(stack[0].offsets) - 1
        if len(tokens) and longest * len(lengths) <= _PADDING * len(tokens):
            where = np.arange(len(tokens)) + np.repeat(np.arange(len(lengths)) * longest - starts, lengths)
            table = np.full((len(lengths), longest), d_sae, np.int32), np.zeros((len(lengths), longest), np.float32)
            table[0].reshape(-1)[where], table[1].reshape(-1)[where] = latents, values
            latents, values = table
        parts = [torch.from_numpy(part) for part in (latents, values, starts, lengths)]
        return _TokenOrder(parts[0], parts[1], parts[2], parts[3], first, d_sae)

    def n_increments(self, stack: Sequence[CodeShard]) -> int:
        """Σ over the entries of a stack of how many entries their tokens have here."""
        rows = torch.from_numpy(np.concatenate([shard.tokens for shard in stack])) - self.first
        return int(self.lengths[rows[(rows >= 0) & (rows < len(self.lengths))]].sum())

    def gather(self, tokens: Tensor, values: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
        """All that fired on some tokens: owner · (d_sae + 1) + latent, and the value times that of the token."""
        rows = tokens - self.first
        here = (rows >= 0) & (rows < len(self.lengths))
        if not bool(here.all()):  # on the others nothing fires at this site
            rows, values, owners = rows[here], values[here], owners[here]
        values, owners = values.double(), owners * (self.d_sae + 1)
        if self.latents.ndim == 2:
            products = self.values.index_select(0, rows).double().mul_(values[:, None])
            return (self.latents.index_select(0, rows) + owners[:, None]).view(-1), products.view(-1)
        lengths = self.lengths[rows]
        before = lengths.cumsum(0) - lengths
        places = (self.starts[rows] - before).repeat_interleave(lengths) + torch.arange(int(lengths.sum()))
        keys = self.latents[places] + owners.repeat_interleave(lengths)
        return keys, self.values[places].double().mul_(values.repeat_interleave(lengths))


def _by_token(shard: CodeShard) -> np.ndarray:
    """The order of a shard's entries by token, then by latent."""
    places = shard.tokens - shard.tokens.min(initial=np.iinfo(np.int64).max)
    fits = int(places.max(initial=0)) < 2**16  # two bytes are sorted by radix, in linear time
    return np.argsort(places.astype(np.uint16) if fits else places, kind="stable")


def _groups(stack: Sequence[CodeShard], order: _TokenOrder, first: int, end: int) -> Iterator[tuple[int, int]]:
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


def _pairs(stack: Sequence[CodeShard], first: int, end: int, order: _TokenOrder) -> Pairs:
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
        keys, places, counts = keys.unique(return_inverse=True, return_counts=True)
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
