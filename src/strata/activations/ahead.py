"""Forwards that run ahead of the training: begun before their rows are wanted, given back in their order."""

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from strata.activations.source import SiteRows
from strata.errors import UserError
from strata.lm.tokens import TokenBatch

OVERLAPS = ("auto", "thread", "off")
Rows = Callable[[], SiteRows]
"""Gives the rows of a forward, waiting for them where need be; raises what the forward raised."""


@runtime_checkable
class Way(Protocol):
    """How forwards are run."""

    runs_ahead: bool
    """Whether one that is begun goes on by itself."""

    def begin(self, run: Rows) -> Rows:
        """Begin one; forwards end in the order in which they were begun."""
        ...

    def used(self) -> None:
        """The rows given last have been read, or will have been by what is launched already."""
        ...

    def close(self) -> None:
        """Begin no more of those that wait, and wait for the one that runs."""
        ...


class WhenAsked:
    """Each forward when its rows are wanted."""

    runs_ahead = False

    def begin(self, run: Rows) -> Rows:
        """Nothing yet."""
        return run

    def used(self) -> None:
        """Nothing to note."""

    def close(self) -> None:
        """Nothing to end."""


class InThread:
    """Forwards on the CPU in a thread of their own.

    Worth it where the SAE is trained elsewhere, or where cores are idle: both sides take all of torch's threads. The
    rows are those of `WhenAsked` bitwise, since the number of threads is the same. Nobody else may run the model
    meanwhile.
    """

    runs_ahead = True

    def __init__(self) -> None:
        self._worker: ThreadPoolExecutor | None = None
        self._identity: list[int] = []  # of the thread; a list: what the worker holds must not hold the worker

    def begin(self, run: Rows) -> Rows:
        """Put it in the thread's queue."""
        if self._worker is None:
            own = self._identity = []
            self._worker = ThreadPoolExecutor(
                1, thread_name_prefix="strata-forward", initializer=lambda: own.append(threading.get_ident())
            )
        return self._worker.submit(run).result

    def used(self) -> None:
        """Nothing to note."""

    def close(self) -> None:
        """End the thread; another `begin` starts one again."""
        worker, self._worker = self._worker, None
        if worker is not None and not sys.is_finalizing():  # else it has ended already
            own = threading.get_ident() in self._identity  # collected there: a thread cannot wait for itself
            worker.shutdown(wait=not own, cancel_futures=True)


class OnSideStream:
    """Forwards on a CUDA stream beside that of the training. The host waits for neither.

    Two orders are kept, both by events on the device. Rows are read after the forward that makes them. A forward begins
    after the rows of an earlier one have been copied into the buffer, whose memory it may get: so the caching
    allocator may hand it on in the order of the side stream, and what is in flight stays bounded however far the host
    runs ahead.

    Not executed yet on a GPU.

    Args:
        device: of the model.
    """

    runs_ahead = True

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._used: torch.cuda.Event | None = None

    def begin(self, run: Rows) -> Rows:
        """Launch it; what it raises is raised when its rows are wanted."""
        if self._used is None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))  # on which the weights were loaded
        else:
            self._stream.wait_event(self._used)
        made: Future[SiteRows] = Future()
        with torch.cuda.stream(self._stream):
            try:
                made.set_result(run())
            except Exception as error:  # noqa: BLE001 - whatever it is belongs to the batch whose turn comes later
                made.set_exception(error)
            end = torch.cuda.Event()
            end.record(self._stream)

        def rows() -> SiteRows:
            torch.cuda.current_stream(self._device).wait_event(end)
            return made.result()

        return rows

    def used(self) -> None:
        """Note how far the training's stream is."""
        self._used = torch.cuda.Event()
        self._used.record(torch.cuda.current_stream(self._device))

    def close(self) -> None:
        """Nothing to end: what was launched runs out."""


def way_of(overlap: str, device: torch.device) -> Way:
    """How forwards are run.

    Args:
        overlap: "auto" is a side stream on CUDA; on the CPU it is each forward when it is asked for, as "off" is
            everywhere: forward and SAE step each take all cores, and two teams of threads on them are no gain that
            was measured. "thread" runs them in a thread all the same.
        device: of the model.

    Raises:
        UserError: another word, or "thread" for a model that is not on the CPU.
    """
    if overlap not in OVERLAPS:
        raise UserError(f"`overlap` must be one of {', '.join(OVERLAPS)}. Got {overlap!r}.")
    if overlap == "thread" and device.type != "cpu":
        raise UserError(f'`overlap` "thread" is for models on the CPU. This one is on {device}. Use "auto".')
    if overlap == "thread":
        return InThread()
    return OnSideStream(device) if overlap == "auto" and device.type == "cuda" else WhenAsked()


@dataclass
class Forward:
    """A batch of text on its way through the model.

    Attributes:
        batch: the text.
        number: of the batch among all of the training.
        n_rows: that it has.
        rows: gives them; None as long as it is not begun.
    """

    batch: TokenBatch
    number: int
    n_rows: int
    rows: Rows | None = None


class Forwards:
    """The forwards of a stream in the order of its text, a few begun before they are asked for.

    Args:
        batches: the text, from the one numbered `first` on.
        run: the rows of a batch, by its number among all of the training.
        way: how they are run.
        n_ahead: begun beyond the one whose rows are read, where the way runs ahead: so many are in memory at most,
            and one more.
        first: number of the first batch.
    """

    def __init__(
        self,
        batches: Iterator[TokenBatch],
        run: Callable[[TokenBatch, int], SiteRows],
        *,
        way: Way,
        n_ahead: int,
        first: int = 0,
    ) -> None:
        self._batches, self._run, self._way = batches, run, way
        self._n_ahead = n_ahead if way.runs_ahead else 0
        self._next_number = first
        self._coming: deque[Forward] = deque()
        self._failure: Exception | None = None  # of the text, to be raised behind the batches before it

    def next_rows(self) -> int | None:
        """How many rows the next one has; None at the end.

        Raises:
            Exception: what reading the text raised.
        """
        self._read(1)
        if not self._coming and self._failure is not None:
            raise self._failure
        return self._coming[0].n_rows if self._coming else None

    def skip(self) -> Forward:
        """The next one, which is not run."""
        return self._coming.popleft()

    def take(self) -> tuple[Forward, SiteRows]:
        """The next one and its rows. Call `used` when these have been read.

        Raises:
            Exception: what the forward raised.
        """
        self._read(1 + self._n_ahead)
        for forward in self._coming if self._n_ahead else [self._coming[0]]:
            forward.rows = forward.rows or self._begun(forward)
        taken = self._coming.popleft()
        assert taken.rows is not None
        return taken, taken.rows()

    def used(self) -> None:
        """The rows taken last have been read."""
        self._way.used()

    def close(self) -> None:
        """Let go of what was begun, and wait for the one that runs; the next `take` begins again."""
        self._way.close()
        for forward in self._coming:
            forward.rows = None

    def _begun(self, forward: Forward) -> Rows:
        return self._way.begin(lambda: self._run(forward.batch, forward.number))

    def _read(self, n_batches: int) -> None:
        """Read on in the text until so many batches are there, or it ends."""
        while len(self._coming) < n_batches and self._failure is None:
            try:
                batch = next(self._batches, None)
            except Exception as error:  # noqa: BLE001 - kept for its turn
                self._failure = error
                return
            if batch is None:
                return
            self._coming.append(Forward(batch, self._next_number, int(batch.is_row.sum())))
            self._next_number += 1
