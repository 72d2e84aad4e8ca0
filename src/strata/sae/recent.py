"""The last rows of a training, in the model's scale: thresholds are set on them, and resampling draws from them."""

import torch
from jaxtyping import Shaped
from torch import Tensor

MOST_RECENT_ROWS = 65_536  # of groups, which keep as many for each layer

_Rows = tuple[Tensor, Tensor | None, Tensor | None]


class RecentRows:
    """Rows, their targets (transcoders) and the numbers of their layers (groups).

    Args:
        n_rows: how many are kept; 0 keeps none.
    """

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self._batches: list[_Rows] = []

    def add(self, x: Tensor, target: Tensor | None, layer: Tensor | None) -> None:
        """Keep a batch, and of the batches before as few as give enough."""
        if self.n_rows == 0:
            return
        self._batches.append((x, target, layer))
        while sum(len(rows[0]) for rows in self._batches[1:]) >= self.n_rows:
            self._batches.pop(0)

    def last(self, number: int | None = None) -> _Rows | None:
        """The last rows; None where there are none yet.

        Args:
            number: only those of this layer of a group; all where it has none.
        """
        if not self._batches:
            return None
        x, target, layer = (_joined(part, self.n_rows) for part in zip(*self._batches, strict=True))
        assert x is not None, "rows are tensors"
        if number is not None and layer is not None and bool((layer == number).any()):
            mine = layer == number
            return x[mine], None if target is None else target[mine], layer[mine]
        return x, target, layer

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        found = self.last()
        named = {} if found is None else dict(zip(("x", "target", "layer"), found, strict=True))
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def load_state(self, state: dict[str, Tensor], *, device: torch.device) -> None:
        """Continue from `state()`."""
        moved = {name: tensor.to(device) for name, tensor in state.items()}
        self._batches = [(moved["x"], moved.get("target"), moved.get("layer"))] if moved else []


def _joined(parts: tuple[Tensor | None, ...], n_rows: int) -> Shaped[Tensor, "rows ..."] | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known)[-n_rows:] if known else None
