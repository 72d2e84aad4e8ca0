"""Activations made while training: nothing is kept but a shuffle buffer."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strata.activations.buffer import ShuffleBuffer
from strata.activations.draws import Draws
from strata.activations.harvest import forward_dtype, harvest
from strata.activations.source import SiteRows
from strata.errors import UserError
from strata.layer_groups import Group
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenBatch, TokenStream

_BUFFER_ROWS = 65_536  # shuffle buffer when no size is given, unless the batches are larger


class Stream:
    """A source of rows that runs the language model just ahead of the training.

    Args:
        lm: the language model.
        tokens: its text, packed.
        sites: where to read; all sites from one pass.
        n_tokens: rows of one epoch; None takes the whole text, which is then tokenised and counted first (its token ids
            are kept: 4 bytes a token).
        repeat: read a text with fewer rows again from its start; else it ends there.
        buffer_tokens: rows per site in the shuffle buffer; None is 65,536, or 4 batches where that is more.
        lm_dtype: precision of the forward: "auto", "fp32" or "bf16".
    """

    def __init__(
        self,
        lm: LanguageModel,
        tokens: TokenStream,
        *,
        sites: list[str],
        n_tokens: int | None = None,
        repeat: bool = True,
        buffer_tokens: int | None = None,
        lm_dtype: str = "auto",
    ) -> None:
        self.lm, self.tokens, self.sites, self._repeat = lm, tokens, sites, repeat
        self._buffer_tokens = buffer_tokens
        self._autocast_dtype = forward_dtype(lm, lm_dtype)
        self._counted: list[TokenBatch] | None = None
        self._n_tokens = n_tokens
        if n_tokens is not None and n_tokens < 1:
            raise UserError(f"`n_tokens` must be at least 1. Got {n_tokens}. Leave it out for the whole text.")
        for site in sites:
            lm.site(site)

    def d_in(self, site: str) -> int:
        """Width of a site's rows."""
        return self.lm.d_in(site)

    def n_rows(self) -> int:
        """Rows of one epoch; counts the text when no number was given."""
        if self._n_tokens is None:
            self._counted = [_compact(batch) for batch in self.tokens]
            self._n_tokens = sum(int(batch.is_row.sum()) for batch in self._counted)
        return self._n_tokens

    def buffer_rows(self, batch_size: int) -> int:
        """Rows per site in the shuffle buffer.

        Raises:
            UserError: a given size that does not hold one training batch and one forward batch.
        """
        forward_rows = self.tokens.text_batch_size * self.tokens.context_tokens
        if self._buffer_tokens is None:
            return max(_BUFFER_ROWS, 4 * max(batch_size, forward_rows))
        if self._buffer_tokens < batch_size + forward_rows:
            raise UserError(
                f"`buffer_tokens` must hold one training batch ({batch_size} rows) and one forward batch"
                f" ({forward_rows} tokens)."
                f" Got {self._buffer_tokens}. Give at least {batch_size + forward_rows}, or lower text_batch_size."
            )
        return self._buffer_tokens

    def shuffled(
        self,
        *,
        batch_size: int,
        n_epochs: int,
        seed: int,
        reads: Sequence[str | Group] | None = None,
        keep_rest: bool = False,
    ) -> "_StreamedRows":
        """The rows in the order of a shuffle buffer.

        Args:
            batch_size: rows per batch.
            n_epochs: passes over the text.
            seed: of the order.
            reads: what a batch holds, of sites and groups of them; None is every site.
            keep_rest: give the rows that do not fill a batch as a last, shorter one.

        Raises:
            UserError: a buffer too small, or several epochs of a text that can be read only once.
        """
        if n_epochs > 1 and self._counted is None and self.tokens.one_shot:
            raise UserError(
                f"`num_epochs` must be 1 for an iterator of texts, which can be read only once. Got {n_epochs}. Give"
                f" a list, or"
                " leave n_tokens out: the text is then kept as token ids."
            )
        n_rows = self.n_rows() * n_epochs
        draws = Draws(self.sites if reads is None else reads, seed=seed)
        return _StreamedRows(self, draws, batch_size=batch_size, n_rows=n_rows, seed=seed, keep_rest=keep_rest)

    def token_batches(self, n_rows: int) -> Iterator[TokenBatch]:
        """Batches of the text that hold exactly n_rows rows together, each epoch from the text's start; fewer, where
        the text ends and is not to be repeated.

        Raises:
            UserError: the text holds no row.
        """
        per_epoch = self.n_rows()
        while n_rows > 0:
            before, left = n_rows, min(per_epoch, n_rows)
            for batch in self._counted if self._counted is not None else self.tokens:
                cut = _first_rows(batch, left)
                n_cut = int(cut.is_row.sum())
                left, n_rows = left - n_cut, n_rows - n_cut
                if n_cut:
                    yield cut
                if left == 0:
                    break
            if not self._repeat:
                return
            if n_rows == before:
                raise UserError("The text must hold at least one token that is neither pad nor special. It holds none.")

    def harvest(self, batch: TokenBatch, draws: Draws, *, number: int) -> SiteRows:
        """Rows of what is read for a batch, the `number`-th of the training."""
        dtype = self._autocast_dtype
        return harvest(self.lm, batch, self.sites, autocast_dtype=dtype, draws=draws, number=number)

    def describe(self) -> dict[str, Any]:
        """Model and text with their fingerprints."""
        return {"mode": "stream", "model": self.lm.fingerprint(), "text": self.tokens.describe()}


class _StreamedRows:
    """Forward batches in, shuffled training batches out."""

    def __init__(
        self, stream: Stream, draws: Draws, *, batch_size: int, n_rows: int, seed: int, keep_rest: bool
    ) -> None:
        self._draws = draws
        self._stream, self._batch_size, self._keep_rest = stream, batch_size, keep_rest
        self._buffer = ShuffleBuffer(min(stream.buffer_rows(batch_size), n_rows), seed=seed)
        self._n_rows, self._n_steps_before = n_rows, 0
        self._incoming = stream.token_batches(n_rows)
        self._waiting: TokenBatch | None = None  # read, but the buffer has no room for it yet
        self._n_batches = 0
        self._storage: dict[str, Tensor] = {}

    def sample(self, n_rows: int, *, site: str) -> Tensor:
        self._fill()
        slots = self._buffer.occupied()
        if len(slots) > n_rows:  # the buffer is filled in reading order: rows at equal distances stand for all
            slots = slots[np.linspace(0, len(slots) - 1, n_rows).astype(np.int64)]
        return self._storage[site][torch.from_numpy(slots).to(self._storage[site].device)]

    def batches(self, start_step: int = 0) -> Iterator[SiteRows]:
        self._skip(start_step - self._n_steps_before)
        while True:
            self._fill()
            slots = self._take()
            if slots is None:
                return
            yield self._read(slots)

    def state(self, step: int) -> dict[str, Any]:
        """The buffer with its activations, after `step` steps of `batches`."""
        return {
            "step": step,
            "n_batches": self._n_batches,
            "buffer": self._buffer.state(),
            "activations": self._storage,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Be where `state` was taken: the text is tokenised up to there, the language model does not run."""
        self._buffer.load_state(state["buffer"])
        self._n_steps_before, self._n_batches, self._waiting = state["step"], state["n_batches"], None
        device = self._stream.lm.device
        self._storage = {site: rows.to(device) for site, rows in state["activations"].items()}
        self._incoming = self._stream.token_batches(self._n_rows)
        for _ in range(self._n_batches):
            next(self._incoming)

    def _take(self) -> np.ndarray | None:
        """Slots of the next batch; of the rest, at the end and where it is kept."""
        slots = self._buffer.take(self._batch_size)
        n_left = len(self._buffer.occupied()) if slots is None and self._keep_rest else 0
        return self._buffer.take(n_left) if n_left else slots

    def _skip(self, n_steps: int) -> None:
        """Repeat the bookkeeping of the first steps without the language model, then make the rows that are still in
        the buffer.
        """
        passed: dict[int, TokenBatch] = {}
        for _ in range(n_steps):
            self._fill(passed)
            self._take()
            if len(passed) > 256:
                inside = set(self._buffer.source_batch.tolist())
                passed = {number: batch for number, batch in passed.items() if number in inside}
        for number, batch in passed.items():
            slots = np.flatnonzero(self._buffer.source_batch == number)
            if len(slots):
                rows = torch.from_numpy(self._buffer.source_row[slots])
                harvested = self._stream.harvest(batch, self._draws, number=number)
                self._write(slots, {site: tensor[rows.to(tensor.device)] for site, tensor in harvested.items()})

    def _fill(self, passed: dict[int, TokenBatch] | None = None) -> None:
        """Put forward batches into the buffer while they fit; with `passed`, only note them there instead of running
        the model.
        """
        while True:
            if self._waiting is None:
                self._waiting = next(self._incoming, None)
            if self._waiting is None or int(self._waiting.is_row.sum()) > self._buffer.n_free:
                return
            batch, self._waiting = self._waiting, None
            slots = self._buffer.put(self._n_batches, int(batch.is_row.sum()))
            if passed is None:
                self._write(slots, self._stream.harvest(batch, self._draws, number=self._n_batches))
            else:
                passed[self._n_batches] = batch
            self._n_batches += 1

    def _write(self, slots: np.ndarray, rows: SiteRows) -> None:
        for site, tensor in rows.items():
            if site not in self._storage:
                shape = (self._buffer.capacity, *tensor.shape[1:])
                self._storage[site] = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
            self._storage[site].index_copy_(0, torch.from_numpy(slots).to(tensor.device), tensor)

    def _read(self, slots: np.ndarray) -> SiteRows:
        places = torch.from_numpy(slots)
        return {site: storage[places.to(storage.device)] for site, storage in self._storage.items()}


def _compact(batch: TokenBatch) -> TokenBatch:
    return replace(batch, input_ids=batch.input_ids.to(torch.int32))


def _first_rows(batch: TokenBatch, n_rows: int) -> TokenBatch:
    """The batch with only its first n_rows rows; sequences without a row are left out."""
    if int(batch.is_row.sum()) <= n_rows:
        return batch
    place = batch.is_row.reshape(-1).cumsum(0).view(batch.is_row.shape)
    is_row = batch.is_row & (place <= n_rows)
    used = is_row.any(1)
    return TokenBatch(batch.input_ids[used], batch.attention_mask[used], is_row[used])
