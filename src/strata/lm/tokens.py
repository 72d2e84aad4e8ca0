"""Token rows: texts packed into sequences without waste, made in a thread so that the model never waits."""

import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from strata.errors import UserError
from strata.lm.texts import Texts
from strata.lm.tokenization import Encoder, Frame, check_context, special_token_ids

_BATCHES_AHEAD = 4
_ENCODE_TEXTS = 256
_ENCODE_CHARACTERS = 1 << 19
_SEPARATOR = -1  # in the flat stream, until sequences are cut; no tokenizer has this id


@dataclass(frozen=True)
class TokenBatch:
    """Sequences for one forward pass of the language model.

    Attributes:
        input_ids: token ids, int64.
        attention_mask: False on pads.
        is_row: True where an activation becomes a row: neither a pad nor (unless asked for) a special token.
    """

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Bool[Tensor, "batch seq"]
    is_row: Bool[Tensor, "batch seq"]


class TokenStream:
    """Batches of packed token sequences from texts, in the texts' order; the same texts give the same batches.

    Documents are tokenised without special tokens, each preceded by a separator (what the tokenizer ends a text with,
    if it does that; else BOS, EOS, SEP or CLS, the first that it has; none if it has none), and the whole is cut into
    sequences of ``context_tokens``: long documents go on in the next sequence, nothing is dropped, short documents
    neither. Only the very last sequence is padded, and the last batch may have fewer sequences.

    Where the tokenizer itself puts a BOS before every text (Llama, Gemma), every sequence starts with it, also one that
    goes on in the middle of a document: these models are ill without it. Where it frames texts as ``[CLS]`` …
    ``[SEP]``, every sequence is framed so.

    Differs: SAELens and others take a BOS of id 0 for none, drop the documents that end a buffer, or count a BOS in the
    middle of a sequence as a row.

    Args:
        texts: from :func:`strata.lm.text.open_texts`. Token ids given there pass as they are, with their own length
            (``context_tokens`` is then not used); of them, leading and trailing pads are not attended to.
        tokenizer: a Hugging Face tokenizer, fast or slow; may be None for token ids, where it tells pads and specials.
        context_tokens: length of the sequences, ≥ 2 and at most what the tokenizer's model takes.
        text_batch_size: sequences per batch.
        prefetch: tokenise up to four batches ahead in a thread. The batches are the same.
        include_special: make special tokens rows too; pads never are.

    Raises:
        UserError: a setting out of range, or a missing tokenizer.
    """

    def __init__(
        self,
        texts: Texts,
        tokenizer: Any,
        *,
        context_tokens: int,
        text_batch_size: int,
        prefetch: bool = True,
        include_special: bool = False,
    ) -> None:
        if text_batch_size < 1:
            raise UserError(f"`text_batch_size` must be 1 or more. Got {text_batch_size}.")
        if tokenizer is None and texts.token_ids is None:
            raise UserError("Texts need a tokenizer. Got None; give one, or token ids [n_seqs seq] instead of texts.")
        self._texts = texts
        self._encoder = None if tokenizer is None else Encoder(tokenizer)
        self._frame = None if self._encoder is None or texts.token_ids is not None else self._encoder.frame()
        if self._frame is not None:
            check_context(tokenizer, self._frame, context_tokens)
        self.context_tokens = context_tokens if texts.token_ids is None else texts.token_ids.shape[1]
        self.text_batch_size = text_batch_size
        self._prefetch = prefetch
        self._pad = None if tokenizer is None else tokenizer.pad_token_id
        special: frozenset[int] = frozenset() if tokenizer is None else special_token_ids(tokenizer)
        # Pads that mean something else too: the one next to the text may be the real token.
        self._pad_is_shared = tokenizer is not None and self._pad in (tokenizer.bos_token_id, tokenizer.eos_token_id)
        self._not_rows = np.array([] if include_special else sorted(special), dtype=np.int64)

    @property
    def separator(self) -> int | None:
        """The id that stands before each document; None where the tokenizer has none, and of token ids given."""
        return None if self._frame is None else self._frame.separator

    @property
    def n_prefix_tokens(self) -> int:
        """How many tokens start every sequence, in the middle of a document too."""
        return 0 if self._frame is None else len(self._frame.prefix)

    @property
    def n_suffix_tokens(self) -> int:
        """How many tokens end every sequence, in the middle of a document too."""
        return 0 if self._frame is None else len(self._frame.suffix)

    @property
    def one_shot(self) -> bool:
        """Whether the texts come from an iterator, which can be read only once."""
        return self._texts.kind == "iterator"

    def __iter__(self) -> Iterator[TokenBatch]:
        """The batches from the start; leaving the iteration early ends its thread.

        Raises:
            UserError: what the source of texts raises.
        """
        batches = self._given_batches() if self._texts.token_ids is not None else self._packed_batches()
        return _ahead(batches) if self._prefetch else batches

    def describe(self) -> dict[str, Any]:
        """What the run folder keeps: ``tokenizer`` (with its fingerprint, or None), ``context_tokens``, ``texts``."""
        tokenizer = None if self._encoder is None else self._encoder.describe()
        return {"tokenizer": tokenizer, "context_tokens": self.context_tokens, "texts": self._texts.describe()}

    def _packed_batches(self) -> Generator[TokenBatch, None, None]:
        assert self._encoder is not None and self._frame is not None
        batch: list[np.ndarray] = []
        for sequence in _sequences(_flat(self._texts, self._encoder, self._frame), self._frame, self.context_tokens):
            batch.append(sequence)
            if len(batch) == self.text_batch_size:
                yield self._pack(batch)
                batch = []
        if batch:
            yield self._pack(batch)

    def _pack(self, sequences: list[np.ndarray]) -> TokenBatch:
        assert self._frame is not None
        ids = np.full((len(sequences), self.context_tokens), self._frame.pad, dtype=np.int64)
        attended = np.ones(ids.shape, dtype=bool)
        for number, sequence in enumerate(sequences):
            ids[number, : len(sequence)] = sequence
            attended[number, len(sequence) :] = False
        return self._batch(ids, attended)

    def _given_batches(self) -> Generator[TokenBatch, None, None]:
        assert self._texts.token_ids is not None
        for ids in torch.split(self._texts.token_ids, self.text_batch_size):
            yield self._batch(ids.numpy(), _attended(ids.numpy(), self._pad, shared=self._pad_is_shared))

    def _batch(self, ids: np.ndarray, attended: np.ndarray) -> TokenBatch:
        is_row = attended & ~np.isin(ids, self._not_rows)
        return TokenBatch(torch.from_numpy(ids), torch.from_numpy(attended), torch.from_numpy(is_row))


def _flat(texts: Texts, encoder: Encoder, frame: Frame) -> Iterator[np.ndarray]:
    """The documents' ids, each document preceded by ``_SEPARATOR``, which replaces the same token in its own text."""
    separator = np.array([] if frame.separator is None else [_SEPARATOR], dtype=np.int64)
    for group in _encode_groups(texts):
        pieces: list[np.ndarray] = []
        for ids in encoder.encode(group):
            if len(ids):  # a document without tokens leaves no trace
                pieces += [separator, ids[1:] if ids[0] == frame.separator else ids]
        if pieces:
            yield np.concatenate(pieces)


def _encode_groups(texts: Texts) -> Iterator[list[str]]:
    """Documents in groups that are large enough to be tokenised fast and small enough for memory."""
    group: list[str] = []
    n_characters = 0
    for text in texts:
        group.append(text)
        n_characters += len(text)
        if len(group) == _ENCODE_TEXTS or n_characters >= _ENCODE_CHARACTERS:
            yield group
            group, n_characters = [], 0
    if group:
        yield group


def _sequences(flat: Iterator[np.ndarray], frame: Frame, context_tokens: int) -> Iterator[np.ndarray]:
    """Framed sequences of exactly ``context_tokens`` ids, the last one possibly shorter."""
    prefix, suffix = np.array(frame.prefix, dtype=np.int64), np.array(frame.suffix, dtype=np.int64)
    room = context_tokens - len(prefix) - len(suffix)
    rest = np.array([], dtype=np.int64)

    def framed(content: np.ndarray) -> np.ndarray:
        return np.concatenate([prefix, np.where(content == _SEPARATOR, frame.separator or 0, content), suffix])

    for chunk in flat:
        rest = np.concatenate([rest, chunk])
        start = _behind_separator(rest, 0, frame)
        while len(rest) - start >= room:
            yield framed(rest[start : start + room])
            start = _behind_separator(rest, start + room, frame)
        rest = rest[start:]
    if len(rest):
        yield framed(rest)


def _behind_separator(flat: np.ndarray, start: int, frame: Frame) -> int:
    """Where a sequence that would start at ``start`` does start: the prefix makes a separator there needless."""
    return start + 1 if frame.prefix and start < len(flat) and flat[start] == _SEPARATOR else start


def _attended(ids: np.ndarray, pad: int | None, *, shared: bool) -> np.ndarray:
    """The attention mask [batch seq] of given ids: False on the pads at both ends of a sequence.

    Where the pad id is BOS or EOS too (``shared``), the pad next to the text may be that token and is attended to.
    """
    if pad is None:
        return np.ones(ids.shape, dtype=bool)
    real = ids != pad
    # From the first real token to the last one: pads between are text of the user's making.
    inside = np.logical_or.accumulate(real, axis=1) & np.logical_or.accumulate(real[:, ::-1], axis=1)[:, ::-1]
    if shared:
        real = inside.copy()
        inside[:, 1:] |= real[:, :-1]
        inside[:, :-1] |= real[:, 1:]
    return inside


def _ahead(batches: Generator[TokenBatch, None, None]) -> Iterator[TokenBatch]:
    """The same batches, made in a thread up to ``_BATCHES_AHEAD`` before they are asked for; its errors rise here.

    One small job per batch and no loop in the thread: leaving early (also by collection of this generator, or the end
    of the program) has nothing to wait for but the jobs under way. Collection may come in the middle of another
    executor's `submit`, whose lock all of them share: so nothing is submitted then. The batches' files are closed when
    the last job lets go of them.
    """
    too_late = sys.is_finalizing  # a name of this module may be gone when the interpreter collects the generator
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="strata-tokens")
    jobs = deque(worker.submit(next, batches, None) for _ in range(_BATCHES_AHEAD))
    try:
        while (batch := jobs.popleft().result()) is not None:
            jobs.append(worker.submit(next, batches, None))
            yield batch
    finally:
        if not too_late():  # else the thread has ended already
            for job in jobs:
                job.cancel()
            worker.shutdown(wait=False)
