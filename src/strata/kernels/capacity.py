"""How long the lists of entries are where nobody waits for the device to count them."""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

_LAG_STEPS = 16  # between asking the device for a count and reading it: long over by then, whatever the step takes
_ROOM = 1.5  # a list that was too short becomes so many times what was needed


class Capacity:
    """The length of a list of entries, which grows some steps after one did not fit.

    The device keeps the largest count; every 16 steps a copy of it is started towards pinned memory, and it is read 16
    steps later, when it has long arrived. Always at the same steps, so that two runs are equal.

    Attributes:
        size: length now; 0 before `fit`, for exact lists.
        largest: the largest count that was read last; 0 before the first.
        lines: what happened, for the log; the reader empties it.
    """

    def __init__(self) -> None:
        self.size, self.largest, self.n_rows = 0, 0, 1
        self.lines: list[str] = []
        self._most, self._n_looks = 0, 0
        self._needed: Int[Tensor, ""] = torch.zeros((), dtype=torch.int64)
        self._read: Int[Tensor, ""] = torch.zeros((), dtype=torch.int64)
        self._arrived: torch.cuda.Event | None = None

    def fit(self, n_rows: int, *, k: int, d_sae: int, device: torch.device) -> "Capacity":
        """Hold 4k + 64 entries per row at first, for what lies near a floor too; once, before the first list."""
        self.n_rows, self._most = n_rows, n_rows * d_sae
        self.size = self.size or min(self._most, (4 * k + 64) * n_rows)
        if self._needed.device != device:
            self._needed = self._needed.to(device)
            self._read = self._read.pin_memory()
        return self

    def note(self, count: Int[Tensor, ""]) -> None:
        """A list's count, on the device."""
        torch.maximum(self._needed, count, out=self._needed)

    def look(self) -> bool:
        """Once after every step, on the host: True where the list became longer."""
        if self.size == 0:
            return False
        self._n_looks += 1
        if self._n_looks % _LAG_STEPS:
            return False
        grew = self._n_looks > _LAG_STEPS and self._heed()
        self._ask()
        return grew

    def _ask(self) -> None:
        self._read.copy_(self._needed, non_blocking=True)
        self._needed.zero_()
        if self._needed.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def _heed(self) -> bool:
        if self._arrived is not None:
            self._arrived.synchronize()
        self.largest = int(self._read)
        if self.largest <= self.size:
            return False
        before, self.size = self.size, min(self._most, int(_ROOM * self.largest))
        self.lines.append(
            f"{self.largest:,} entries did not fit a list of {before:,}: the last rows of up to {2 * _LAG_STEPS} "
            f"batches lost some. The list holds {self.size:,} now."
        )
        return True

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "size": self.size,
            "largest": self.largest,
            "n_looks": self._n_looks,
            "needed": self._needed.item(),
            "read": self._read.item(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.size, self.largest, self._n_looks = state["size"], state["largest"], state["n_looks"]
        self._needed.fill_(state["needed"])
        self._read.fill_(state["read"])
        self._arrived = None


@runtime_checkable
class KeepsCapacity(Protocol):
    """What selects into lists of a fixed length."""

    capacity: Capacity

    def look_at_capacity(self) -> bool:
        """After every step with such lists, on the host: True where the next one's have another length."""
        ...
