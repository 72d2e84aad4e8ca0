"""Rows of a store in random order, read sequentially a block at a time, ahead of the training.

An epoch takes the blocks of all shards in a random order; the rows of each 16 of them form a window and come in
a random order too. Rows are in random order within a shard already, so that every batch holds rows from all over the
text. Order and position follow from the seed alone: going on in the middle reads nothing of what came before.
"""

import sys
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strata.activations.draws import Draws, join, keys_of, places
from strata.activations.quantization import Encoding, Int8, Parts, tensor_name
from strata.activations.source import SiteRows
from strata.activations.store_blocks import Blocks, as_tensor

_WINDOW_BLOCKS = 16
_WINDOWS_AHEAD = 2
_BATCHES_AHEAD = 2
_THREADS = 4  # most of their time is waiting for the disk
_DECODERS = 2


@dataclass(frozen=True)
class _Window:
    """Blocks whose rows are mixed, and where each row goes.

    Attributes:
        blocks: their numbers.
        places: for the rows of the blocks one after the other, their places in the window.
        skip: rows at the window's beginning that are not wanted.
    """

    blocks: np.ndarray
    places: np.ndarray
    skip: int


class _Loading:
    """A window that threads are reading: its bytes by site and part, in their final order."""

    def __init__(
        self, window: _Window, blocks: Blocks, encodings: Mapping[str, Encoding], pool: ThreadPoolExecutor
    ) -> None:
        self.skip, self.n_rows = window.skip, len(window.places)
        self._blocks = blocks
        self._content: dict[tuple[str, str], Tensor] = {}
        self.jobs: list[Future[None]] = []
        names = {(site, part): tensor_name(site, part) for site, one in encodings.items() for part in one.parts}
        numbers = [int(block) for block in window.blocks]
        starts = np.cumsum([0, *blocks.rows[window.blocks]])
        for key, name in names.items():
            shard = blocks.shard(numbers[0])
            target = np.empty((self.n_rows, shard.row_bytes(name)), dtype=np.uint8)
            self._content[key] = as_tensor(target, shard.dtype(name))
            for block, start, end in zip(numbers, starts[:-1], starts[1:], strict=True):
                self.jobs.append(pool.submit(self._load, target, window.places[start:end], block, name))

    def _load(self, target: np.ndarray, places: np.ndarray, block: int, name: str) -> None:
        target[places] = self._blocks.read(block, name)

    def wait(self) -> None:
        for job in self.jobs:
            job.result()

    def parts(self, site: str, encoding: Encoding, rows: slice) -> Parts:
        return {part: self._content[site, part][rows] for part in encoding.parts}


_Pieces = list[tuple[_Loading, slice]]


class StoredRows:
    """Rows of one run in their shuffled order (`strata.activations.source.ShuffledRows`).

    Args:
        blocks: of the store.
        encodings: of the sites that are wanted.
        draws: what a batch holds of them.
        batch_size: rows per batch.
        n_epochs: passes over the store; they follow each other without a gap, so that every batch is full.
        seed: of the order.
    """

    def __init__(
        self,
        blocks: Blocks,
        encodings: Mapping[str, Encoding],
        draws: Draws,
        *,
        batch_size: int,
        n_epochs: int,
        seed: int,
    ) -> None:
        self._blocks, self._encodings, self._draws = blocks, encodings, draws
        self._batch_size, self._n_epochs, self._seed = batch_size, n_epochs, seed

    def sample(self, n_rows: int, *, site: str) -> Tensor:
        """The first n_rows rows of the order, or all where there are fewer."""
        n_rows = min(n_rows, self._blocks.n_rows)
        draws = Draws([read for read in self._draws.reads if site in keys_of(read)] or [site], seed=self._seed)
        encodings = {name: self._encodings[name] for name in draws.sites}
        first = StoredRows(self._blocks, encodings, draws, batch_size=n_rows, n_epochs=1, seed=self._seed)
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="strata-store")
        try:
            return first._decode(next(first._pieces(0, pool)), first._space(), step=0)[site]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def batches(self, start_step: int = 0) -> Generator[SiteRows, None, None]:
        """One batch per step, from `start_step` on; read and decoded a few batches ahead.

        Raises:
            UserError: a shard is damaged.
        """
        too_late = sys.is_finalizing  # the interpreter may collect this generator when modules' names are gone
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="strata-store")
        decoder = ThreadPoolExecutor(_DECODERS, thread_name_prefix="strata-decode")
        ready: deque[Future[SiteRows]] = deque()
        try:
            for step, pieces in enumerate(self._pieces(start_step * self._batch_size, pool), start_step):
                ready.append(decoder.submit(self._decode, pieces, self._space(), step=step))
                if len(ready) > _BATCHES_AHEAD:
                    yield ready.popleft().result()
            while ready:
                yield ready.popleft().result()
        finally:
            if not too_late():  # else the threads have ended already
                for executor in (pool, decoder):
                    executor.shutdown(wait=False, cancel_futures=True)

    def state(self, step: int) -> dict[str, Any]:
        """Nothing: a store finds its place at once."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to do."""
        return

    def _windows(self, first_row: int) -> Iterator[_Window]:
        """The order, from a row on."""
        first_epoch, skip = divmod(first_row, self._blocks.n_rows)
        for epoch in range(first_epoch, self._n_epochs):
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._blocks))
            for number, first in enumerate(range(0, len(order), _WINDOW_BLOCKS)):
                blocks = order[first : first + _WINDOW_BLOCKS]
                n_rows = int(self._blocks.rows[blocks].sum())
                if skip >= n_rows:
                    skip -= n_rows
                    continue
                places = np.random.default_rng([self._seed, epoch, number]).permutation(n_rows)
                yield _Window(blocks, places, skip)
                skip = 0

    def _loaded(self, first_row: int, pool: ThreadPoolExecutor) -> Iterator[_Loading]:
        windows = self._windows(first_row)
        loading: deque[_Loading] = deque()
        while True:
            while len(loading) <= _WINDOWS_AHEAD and (window := next(windows, None)) is not None:
                loading.append(_Loading(window, self._blocks, self._encodings, pool))
            if not loading:
                return
            loading[0].wait()
            yield loading.popleft()

    def _pieces(self, first_row: int, pool: ThreadPoolExecutor) -> Iterator[_Pieces]:
        """Where the rows of each batch lie: in one window or several."""
        pieces: _Pieces = []
        n_missing = self._batch_size
        for window in self._loaded(first_row, pool):
            start = window.skip
            while start < window.n_rows:
                end = min(start + n_missing, window.n_rows)
                pieces.append((window, slice(start, end)))
                n_missing -= end - start
                start = end
                if n_missing == 0:
                    yield pieces
                    pieces, n_missing = [], self._batch_size

    def _space(self) -> dict[str, Tensor]:
        """Memory for what is decoded, from the thread that trains: it is there that freed memory is used again."""
        encodings = {site: self._encodings[site] for site in self._draws.single_sites}
        widths = {site: len(one.centre) for site, one in encodings.items() if isinstance(one, Int8)}
        return {site: torch.empty(self._batch_size, width) for site, width in widths.items()}

    def _decode(self, pieces: _Pieces, space: Mapping[str, Tensor], *, step: int) -> SiteRows:
        found = {
            site: self._encodings[site].decode(self._parts(pieces, site), out=space.get(site))
            for site in self._draws.single_sites
        }
        n_rows = sum(rows.stop - rows.start for _, rows in pieces)
        for group in self._draws.groups:
            layer = self._draws.layers(group, n_rows, part=[step])
            drawn: dict[str, Tensor] = {}
            lengths = [rows.stop - rows.start for _, rows in pieces]
            of_pieces = [places(part, group) for part in torch.split(layer, lengths)]
            for site in group.sites:
                parts = self._parts(pieces, site, [drawn_here[site] for drawn_here in of_pieces])
                drawn[site] = self._encodings[site].decode(parts)
            found |= join(group, layer, drawn)
        return found

    def _parts(self, pieces: _Pieces, site: str, places_of: Sequence[Tensor] | None = None) -> Parts:
        """The bytes of a site's rows, or of those at some places of each piece: no others are copied."""
        parts = [window.parts(site, self._encodings[site], rows) for window, rows in pieces]
        if places_of is not None:
            parts = [
                {key: part[where] for key, part in one.items()} for one, where in zip(parts, places_of, strict=True)
            ]
        return parts[0] if len(parts) == 1 else {key: torch.cat([p[key] for p in parts]) for key in parts[0]}
