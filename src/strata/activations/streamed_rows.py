"""The rows of a stream in their shuffled order: a buffer that forwards fill and steps empty."""

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from strata.activations.ahead import Forwards, Way
from strata.activations.buffer import ShuffleBuffer
from strata.activations.draws import Draws
from strata.activations.source import SiteRows
from strata.errors import UserError, is_out_of_memory
from strata.lm.tokens import TokenBatch
from strata.lm.transfer import moved

if TYPE_CHECKING:
    from strata.activations.stream import Stream


class StreamedRows:
    """Forward batches in, shuffled training batches out.

    Bookkeeping, writing and reading go step by step with the training; only forwards run ahead. So `state` is always
    that of the last batch given, and what was begun beyond it is simply begun again by whoever goes on from there.
    A `strata.activations.source.ShuffledRows`.

    Args:
        stream: whose rows.
        draws: what of them is read.
        way: how forwards are run.
        batch_size: rows per batch.
        n_rows: of all passes over the text.
        seed: of the order.
        keep_rest: give the rows that do not fill a batch as a last, shorter one.
    """

    def __init__(
        self, stream: "Stream", draws: Draws, way: Way, *, batch_size: int, n_rows: int, seed: int, keep_rest: bool
    ) -> None:
        self._draws, self._way = draws, way
        self._stream, self._batch_size, self._keep_rest = stream, batch_size, keep_rest
        self._buffer = ShuffleBuffer(min(stream.buffer_rows(batch_size), n_rows), seed=seed)
        self._n_rows, self._n_steps_before = n_rows, 0
        self._n_batches = 0
        self._forwards = self._forwards_from(0)
        self._storage: dict[str, Tensor] = {}

    def sample(self, n_rows: int, *, site: str) -> Tensor:
        """See `ShuffledRows`: rows of the full buffer."""
        self._fill()
        slots = self._buffer.occupied()
        if len(slots) > n_rows:  # the buffer is filled in reading order: rows at equal distances stand for all
            slots = slots[np.linspace(0, len(slots) - 1, n_rows).astype(np.int64)]
        return self._storage[site][torch.from_numpy(slots).to(self._storage[site].device)]

    def batches(self, start_step: int = 0) -> Generator[SiteRows, None, None]:
        """See `ShuffledRows`. Closing it ends what runs ahead."""
        try:
            self._skip(start_step - self._n_steps_before)
            while True:
                self._fill()
                slots = self._take()
                if slots is None:
                    return
                yield self._read(slots)
        finally:
            self._forwards.close()

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
        self._forwards.close()
        self._buffer.load_state(state["buffer"])
        self._n_steps_before, self._n_batches = state["step"], state["n_batches"]
        device = self._stream.lm.device
        self._storage = {site: rows.to(device) for site, rows in state["activations"].items()}
        self._forwards = self._forwards_from(self._n_batches)

    def _forwards_from(self, first: int) -> Forwards:
        stream, draws = self._stream, self._draws  # and not `self`: a circle would keep the thread for the collector
        tokens, batches = stream.tokens, stream.token_batches(self._n_rows)
        for _ in range(first):
            next(batches)
        return Forwards(
            batches,
            lambda batch, number: stream.harvest(batch, draws, number=number),
            way=self._way,
            n_ahead=-(-self._batch_size // (tokens.text_batch_size * tokens.context_tokens)),  # those of a step
            first=first,
        )

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
        if passed:
            self._forwards.close()  # begun by `sample`: the model must not run twice at once
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
        while (n_rows := self._forwards.next_rows()) is not None and n_rows <= self._buffer.n_free:
            if passed is None:
                forward, rows = self._forwards.take()
                self._write(self._buffer.put(forward.number, n_rows), rows)
                self._forwards.used()
            else:
                forward = self._forwards.skip()
                self._buffer.put(forward.number, n_rows)
                passed[forward.number] = forward.batch
            self._n_batches += 1

    def _write(self, slots: np.ndarray, rows: SiteRows) -> None:
        places = _Places(slots)
        for site, tensor in rows.items():
            if site not in self._storage:
                self._storage[site] = self._new_storage(tensor)
            self._storage[site].index_copy_(0, places.on(tensor.device), tensor)

    def _new_storage(self, like: Tensor) -> Tensor:
        try:
            return like.new_empty((self._buffer.capacity, *like.shape[1:]))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"`buffer_tokens` must be so few rows that the shuffle buffer of every site fits the memory of"
                f" {like.device}. Got {self._buffer.capacity}. Lower it, or read fewer sites."
            ) from error

    def _read(self, slots: np.ndarray) -> SiteRows:
        places = _Places(slots)
        return {site: storage[places.on(storage.device)] for site, storage in self._storage.items()}


class _Places:
    """Slots on each device where they are wanted, moved there once."""

    def __init__(self, slots: np.ndarray) -> None:
        self._slots = torch.from_numpy(slots)
        self._moved: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        if device not in self._moved:
            self._moved[device] = moved(self._slots, device)
        return self._moved[device]
