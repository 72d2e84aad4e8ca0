"""Activations made while training: nothing is kept but a shuffle buffer."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from strata.activations.ahead import way_of
from strata.activations.draws import Draws
from strata.activations.harvest import forward_dtype, harvest
from strata.activations.source import SiteRows
from strata.activations.streamed_rows import StreamedRows
from strata.config.layer_groups import Group
from strata.errors import UserError
from strata.lm.compiled import COMPILES, CompiledBlocks, pays
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
        buffer_tokens: rows per site in the shuffle buffer; None is 65,536, or 4 batches or 4 forward passes where that
            is more.
        lm_dtype: precision of the forward: "auto", "fp32" or "bf16".
        overlap: of forwards with the training: "auto" (on CUDA beside it, on another stream; on the CPU not), "thread"
            or "off". The batches are the same bitwise. See `strata.activations.ahead`.
        lm_compile: compile the model's blocks: "on", "off", or "auto", which does it on CUDA for long runs.
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
        overlap: str = "auto",
        lm_compile: str = "auto",
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
        way_of(overlap, lm.device)  # that it is one
        if lm_compile not in COMPILES:
            raise UserError(f"`lm_compile` must be one of {', '.join(COMPILES)}. Got {lm_compile!r}.")
        self._overlap, self._lm_compile = overlap, lm_compile
        self._compiled = CompiledBlocks(lm, sites) if lm_compile == "on" else None

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
    ) -> StreamedRows:
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
        self._compile_if_it_pays(n_rows)
        draws = Draws(self.sites if reads is None else reads, seed=seed)
        way = way_of(self._overlap, self.lm.device)
        return StreamedRows(self, draws, way, batch_size=batch_size, n_rows=n_rows, seed=seed, keep_rest=keep_rest)

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
        dtype, lm = self._autocast_dtype, self.lm
        whole = len(batch.input_ids) == self.tokens.text_batch_size and bool(batch.attention_mask.all())
        if self._compiled is None or not whole:
            return harvest(lm, batch, self.sites, autocast_dtype=dtype, draws=draws, number=number)
        with self._compiled.used_for(len(batch.input_ids)):
            return harvest(lm, batch, self.sites, autocast_dtype=dtype, draws=draws, number=number)

    def _compile_if_it_pays(self, n_rows: int) -> None:
        known = self._repeat  # else the text may end long before
        length = self.tokens.context_tokens
        auto = self._compiled is None and self._lm_compile == "auto"
        if auto and known and pays(self.lm, self.sites, n_tokens=n_rows, context_tokens=length):
            self._compiled = CompiledBlocks(self.lm, self.sites)

    def describe(self) -> dict[str, Any]:
        """Model and text with their fingerprints."""
        return {"mode": "stream", "model": self.lm.fingerprint(), "text": self.tokens.describe()}


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
