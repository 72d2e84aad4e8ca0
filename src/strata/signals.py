"""Stopping in good order: a signal asks the training to leave after the step that it is in."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A training that was asked to stop, wrote a checkpoint, and left. The text is one sentence for the user.

    Args:
        sentence: what was done and how to go on.
        number: the signal's.

    Attributes:
        exit_code: what a command ends with: 128 + the signal's number, 130 for Ctrl-C and 143 for SIGTERM.
    """

    def __init__(self, sentence: str, *, number: int) -> None:
        super().__init__(sentence)
        self.exit_code = 128 + number


class StopSignals:
    """While it is entered, the first SIGINT or SIGTERM is only noted; a second one does what it did before.

    Signals that the process ignores (as under ``nohup``) stay ignored. Outside of the main thread, where Python takes
    no handlers, nothing changes.

    Args:
        wanted: False changes nothing.

    Attributes:
        received: the number of the signal that came, or None.
    """

    def __init__(self, *, wanted: bool = True) -> None:
        self.received: int | None = None
        self._wanted = wanted and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in _SIGNALS if self._wanted else ():
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):  # None: set by something that is not Python
                self._before[number] = handler
                signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
