"""Which row goes where in the shuffle buffer: bookkeeping alone, without a single activation.

Slots hold rows. A step takes a few slots of a random order; freed slots are filled with new rows at once, a forward
batch at a time; when half of the buffer has been taken, all rows in it are put into a new random order. So every step's
work is O(batch), the language model runs evenly, and the whole schedule follows from the seed and the number of rows in
each forward batch: a run that is resumed repeats it without the language model.
"""

import json
from typing import Any

import numpy as np
import torch


class ShuffleBuffer:
    """Slots, their random order and the origin of the row in each.

    Args:
        capacity: rows that the buffer holds.
        seed: of the order.
    """

    def __init__(self, capacity: int, *, seed: int) -> None:
        self.capacity = capacity
        self.source_batch = np.full(capacity, -1, dtype=np.int64)  # forward batch whose row lies in the slot; −1: free
        self.source_row = np.zeros(capacity, dtype=np.int64)
        self._rng = np.random.default_rng(seed)
        self._free = np.arange(capacity)
        self._order = np.zeros(0, dtype=np.int64)

    @property
    def n_free(self) -> int:
        """Slots without a row."""
        return len(self._free)

    def put(self, batch_number: int, n_rows: int) -> np.ndarray:
        """Assign free slots to the rows 0 … n_rows−1 of a forward batch; gives the slots."""
        slots, self._free = self._free[:n_rows], self._free[n_rows:]
        assert len(slots) == n_rows, "the buffer is full"
        self.source_batch[slots] = batch_number
        self.source_row[slots] = np.arange(n_rows)
        return slots

    def take(self, n_rows: int) -> np.ndarray | None:
        """Random slots whose rows are used now; None when the buffer holds fewer rows than asked for."""
        if len(self._order) < n_rows or len(self._order) < self.capacity // 2:
            occupied = self.occupied()
            if len(occupied) < n_rows:
                return None
            self._order = self._rng.permutation(occupied)
        slots, self._order = self._order[:n_rows], self._order[n_rows:]
        self.source_batch[slots] = -1
        self._free = np.concatenate([self._free, slots])
        return slots

    def occupied(self) -> np.ndarray:
        """All slots that hold a row."""
        return np.flatnonzero(self.source_batch >= 0)

    def state(self) -> dict[str, Any]:
        """What lies where, what comes next, and the state of the order's random numbers, for a checkpoint."""
        arrays = {
            "source_batch": self.source_batch,
            "source_row": self.source_row,
            "free": self._free,
            "order": self._order,
        }
        return {
            **{name: torch.from_numpy(array.copy()) for name, array in arrays.items()},
            "rng": json.dumps(self._rng.bit_generator.state),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        found = {name: value.cpu().numpy().copy() for name, value in state.items() if name != "rng"}
        self.source_batch, self.source_row = found["source_batch"], found["source_row"]
        self._free, self._order = found["free"], found["order"]
        self._rng.bit_generator.state = json.loads(state["rng"])
