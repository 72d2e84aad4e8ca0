"""Rows of a training over ranks: each runs the language model on its share of the text, and the rows of a step go to
those that train on them.

A stream over R ranks: rank r takes the forward batches r, r+R, r+2R, … of the text into a shuffle buffer of its own and
draws batch_size/R rows a step from it; the step's batch is these pieces, one after the other. A store is read by every
rank for itself, so that the batches are those of one process.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from strata.activations.source import RowSource, ShuffledRows, SiteRows
from strata.activations.stream import Stream
from strata.assignments import Assignment, reads
from strata.config.layer_groups import Group
from strata.distributed.ranks import Ranks
from strata.distributed.spread import Spread
from strata.errors import UserError
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenBatch, TokenStream

_SEED_STEP = 7_919  # between the ranks' seeds


class ShareOfTokens(TokenStream):
    """Every size-th batch of a text, from the rank-th on. Every rank tokenises the whole of it.

    Args:
        tokens: the text, packed.
        ranks: between which it is shared.
        kept: the share's batches, where they are in memory already.
    """

    def __init__(self, tokens: TokenStream, ranks: Ranks, kept: list[TokenBatch] | None = None) -> None:
        self._tokens, self._ranks, self._kept = tokens, ranks, kept
        self.context_tokens, self.text_batch_size = tokens.context_tokens, tokens.text_batch_size

    @property
    def one_shot(self) -> bool:
        """Whether it can be read only once."""
        return self._kept is None and self._tokens.one_shot

    def __iter__(self) -> Iterator[TokenBatch]:
        """The share, in the text's order."""
        return (
            iter(self._kept)
            if self._kept is not None
            else islice(self._tokens, self._ranks.rank, None, self._ranks.size)
        )

    def describe(self) -> dict[str, Any]:
        """The whole text's description: how many share it changes nothing of what it is."""
        return self._tokens.describe()


class SharedStream:
    """A stream over ranks. A `strata.activations.source.RowSource`, whose rows are got by `shared_rows`.

    Args:
        lm: the language model, on every rank.
        tokens: its text, packed.
        ranks: that share it.
        sites: where to read.
        n_tokens: rows of one epoch, of all ranks together; None is the whole text, counted first.
        buffer_tokens: rows per site in the shuffle buffers of all ranks together; None is the default for each.
        lm_dtype: precision of the forward.

    Attributes:
        own: this rank's share. One that has a few rows less than its part of them is read again from its start.

    Raises:
        UserError: a text with fewer forward batches than ranks, and whatever `Stream` refuses.
    """

    def __init__(
        self,
        lm: LanguageModel,
        tokens: TokenStream,
        *,
        ranks: Ranks,
        sites: list[str],
        n_tokens: int | None = None,
        buffer_tokens: int | None = None,
        lm_dtype: str = "auto",
    ) -> None:
        self.ranks, self.sites = ranks, sites
        counted = _counted(tokens, ranks) if n_tokens is None else (ShareOfTokens(tokens, ranks), n_tokens)
        share, self._n_rows = counted
        n_own = -(-self._n_rows // ranks.size)
        n_buffer = None if buffer_tokens is None else buffer_tokens // ranks.size
        self.own = Stream(lm, share, sites=sites, n_tokens=n_own, buffer_tokens=n_buffer, lm_dtype=lm_dtype)

    def d_in(self, site: str) -> int:
        """Width of a site's rows."""
        return self.own.d_in(site)

    def n_rows(self) -> int:
        """Rows of one epoch, of all ranks together."""
        return self._n_rows

    def shuffled(
        self, *, batch_size: int, n_epochs: int, seed: int, reads: Sequence[str | Group] | None = None
    ) -> ShuffledRows:
        """This rank's pieces of the batches."""
        own_seed = seed + _SEED_STEP * self.ranks.rank
        n_own = batch_size // self.ranks.size
        return self.own.shuffled(batch_size=n_own, n_epochs=n_epochs, seed=own_seed, reads=reads)

    def describe(self) -> dict[str, Any]:
        """Model and text with their fingerprints."""
        return self.own.describe()


class ExchangedRows:
    """Batches made of what every rank has a piece of. A `strata.activations.source.ShuffledRows`.

    Args:
        own: this rank's pieces; all have the same number of rows.
        ranks: all.
        needs: by rank the keys of a batch that it trains on.
    """

    def __init__(self, own: ShuffledRows, ranks: Ranks, *, needs: Sequence[Sequence[str]]) -> None:
        self._own, self._ranks, self._needs = own, ranks, needs

    def sample(self, n_rows: int, *, site: str) -> Tensor:
        """The same on every rank: of each rank's rows as many."""
        return torch.cat(self._ranks.gathered(self._own.sample(-(-n_rows // self._ranks.size), site=site)))

    def batches(self, start_step: int = 0) -> Generator[SiteRows, None, None]:
        """What this rank needs of each batch: the ranks' rows, in the ranks' order."""
        with closing(self._own.batches(start_step)) as own:
            for piece in own:
                yield self._exchanged(piece)

    def _exchanged(self, piece: SiteRows) -> SiteRows:
        """One all-to-all of bytes: R − 1 of R rows travel, to each rank that trains on them."""
        letters = [torch.cat([_bytes_of(piece[key]) for key in keys] or [_no_bytes(piece)]) for keys in self._needs]
        mine = self._needs[self._ranks.rank]
        found = self._ranks.exchanged(letters, sizes=[len(letters[self._ranks.rank])] * self._ranks.size)
        rows: SiteRows = {}
        first = 0
        for key in mine:
            like = piece[key]
            n_bytes = like.numel() * like.element_size()
            parts = [letter[first : first + n_bytes].clone().view(like.dtype).view(like.shape) for letter in found]
            rows[key] = torch.cat(parts)
            first += n_bytes
        return rows

    def state(self, step: int) -> dict[str, Any]:
        """This rank's own."""
        return self._own.state(step)

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from this rank's own."""
        self._own.load_state(state)


def shared_rows(
    source: RowSource,
    spread: Spread,
    assignments: Mapping[str, Assignment],
    *,
    batch_size: int,
    n_epochs: int,
    seed: int,
) -> ShuffledRows:
    """The batches of a training, with the rows in them that a rank trains on.

    Args:
        source: a `SharedStream`, or one that every rank reads for itself.
        spread: of the training.
        assignments: by key, what is trained.
        batch_size: rows of a step, of all ranks together.
        n_epochs: passes.
        seed: of the order.
    """
    order = {"batch_size": batch_size, "n_epochs": n_epochs, "seed": seed}
    everything = reads(assignments)
    if isinstance(source, SharedStream):
        own = source.shuffled(**order, reads=everything)
        return ExchangedRows(own, spread.ranks, needs=spread.keys(assignments))
    mine = spread.reads(assignments, rank=spread.ranks.rank)
    return source.shuffled(**order, reads=mine or everything[:1])


def _counted(tokens: TokenStream, ranks: Ranks) -> tuple[ShareOfTokens, int]:
    """A rank's share with its token ids (4 bytes each), and the rows of all shares."""
    kept: list[TokenBatch] = []
    n_rows, number = 0, -1
    for number, batch in enumerate(tokens):
        n_rows += int(batch.is_row.sum())
        if number % ranks.size == ranks.rank:
            kept.append(replace(batch, input_ids=batch.input_ids.to(torch.int32)))
    n_batches = number + 1
    if n_batches < ranks.size:
        raise UserError(
            f"The text must give every process a batch of its own. It gives {n_batches} of `text_batch_size`"
            f"={tokens.text_batch_size} sequences to {ranks.size}. Lower text_batch_size, or start fewer processes."
        )
    return ShareOfTokens(tokens, ranks, kept), n_rows


def _bytes_of(rows: Tensor) -> Tensor:
    return rows.contiguous().view(-1).view(torch.uint8)


def _no_bytes(piece: SiteRows) -> Tensor:
    return _bytes_of(next(iter(piece.values()))[:0])
