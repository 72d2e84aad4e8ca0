"""The entries of an index's shards in the order of tokens: what fires on a token stands together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from strata.interpret.index_layout import CodeShard

_PADDING = 1.5  # rows are padded to the longest where that makes at most so many times as many entries


@dataclass(frozen=True)
class TokenOrder:
    """The entries of a stack of shards, row by row.

    A table [rows, longest], whose unused places name latent d_sae with value 0; or, where rows are too unlike, a list.

    Attributes:
        latents: of the entries.
        values: of the entries.
        starts: where each row's entries begin in a list.
        lengths: how many entries each row has.
        first: the token of row 0.
        d_sae: latents.
    """

    latents: Tensor
    values: Tensor
    starts: Tensor
    lengths: Tensor
    first: int
    d_sae: int

    @staticmethod
    def of(stack: Sequence[CodeShard]) -> "TokenOrder":
        """Bring a stack of shards, each listed by latent, into the order of tokens."""
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
        return TokenOrder(parts[0], parts[1], parts[2], parts[3], first, d_sae)

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
