"""A training step as one CUDA graph: recorded once, then started by a single launch.

Not yet run on a CUDA device: the recording is written after PyTorch's documentation; what is decided on the host is
tested.
"""

import os
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from strata.errors import UserError
from strata.kernels import select

_WARM_UP_STEPS = 3  # before recording: kernels are compiled, workspaces and the optimiser's moments allocated

_SETTING = "STRATA_CUDA_GRAPH"

Rows = tuple[Tensor, Tensor | None, Tensor | None]
"""A batch: rows of the site, of the target site (transcoders), and the numbers of their layers (groups)."""


@runtime_checkable
class Recordable(Protocol):
    """A step in three parts. Only the middle one may launch work on the device that is to be recorded."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def before_device_step(self) -> None:
        """On the host: write the step's number and its learning rates to where the device reads them, and every few
        steps the list of dead latents, of fixed length.
        """
        ...

    def device_step(self, x: Tensor, target: Tensor | None, layer: Tensor | None) -> None:
        """All the work on the device: it reads nothing back, changes tensors in place, and nothing on the host."""
        ...

    def after_device_step(self, x: Tensor, target: Tensor | None, layer: Tensor | None) -> bool:
        """On the host: count the step, keep the rows, read late what the device counted. True where the next step has
        other shapes than this one.
        """
        ...

    def new_lines(self) -> list[str]:
        """What has happened since the last call, for the log."""
        ...


def are_recorded(device: torch.device) -> bool:
    """Whether steps on a device can be recorded and shall be: on CUDA with Triton's kernels, where the host waits for
    nothing. STRATA_CUDA_GRAPH=0 says that they shall not.

    Raises:
        UserError: the variable is something else than 0 or 1.
    """
    wanted = os.environ.get(_SETTING, "1")
    if wanted not in ("0", "1"):
        raise UserError(
            f"`{_SETTING}` must be 0 or 1. Got {wanted!r}. Unset it: steps are recorded wherever they can be."
        )
    return wanted == "1" and device.type == "cuda" and select.lists_are_padded(device)


class GraphedSteps:
    """Steps of a learner, replayed from a CUDA graph wherever one can be recorded, else run as they are.

    The first three steps run on a stream of their own, the fourth is recorded and replayed. A step is recorded again,
    after three more, when its lists have become longer. A batch of another shape (the last of a text) runs as it is.

    A recorded step reads and writes the learner's tensors where they lie: give a learner whose state is loaded already.

    Args:
        learner: whose steps they are.
    """

    def __init__(self, learner: Recordable) -> None:
        self._learner = learner
        self._graph: torch.cuda.CUDAGraph | None = None
        self._held: Rows | None = None  # the batch that the graph reads
        self._n_warm = 0
        self._can_record = are_recorded(learner.device)
        self._side: torch.cuda.Stream | None = None
        self._lines: list[str] = []

    def step(self, x: Tensor, target: Tensor | None = None, layer: Tensor | None = None) -> None:
        """Train on one batch; see `Learner.step`."""
        rows = (x, target, layer)
        self._learner.before_device_step()
        if self._can_record and self._graph is None and self._n_warm >= _WARM_UP_STEPS:
            self._record(rows)
        if self._graph is not None and self._held is not None and _shapes(rows) == _shapes(self._held):
            for held, given in zip(self._held, rows, strict=True):
                if held is not None and given is not None:
                    held.copy_(given)
            self._graph.replay()
        elif self._can_record:
            self._warm_up(rows)
        else:
            self._learner.device_step(*rows)
        if self._learner.after_device_step(*rows):
            self._graph, self._held, self._n_warm = None, None, 0

    def new_lines(self) -> list[str]:
        """What has happened since the last call, for the log; the learner's lines too."""
        lines, self._lines = self._lines, []
        return [*lines, *self._learner.new_lines()]

    def _warm_up(self, rows: Rows) -> None:
        """A step on a stream of its own, as recording asks for."""
        if self._side is None:
            self._side = torch.cuda.Stream(self._learner.device)
        here, side = torch.cuda.current_stream(self._learner.device), self._side
        side.wait_stream(here)
        with torch.cuda.stream(side):
            self._learner.device_step(*rows)
        here.wait_stream(side)
        self._n_warm += 1

    def _record(self, rows: Rows) -> None:
        """Record the step without running it; where that fails, steps run as they are from now on, with a line."""
        x, target, layer = rows
        held = (x.clone(), None if target is None else target.clone(), None if layer is None else layer.clone())
        graph = torch.cuda.CUDAGraph()
        try:
            # Another thread may be running the language model: what it allocates is no business of this recording.
            with torch.cuda.device(x.device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._learner.device_step(*held)
        except RuntimeError as error:  # CUDA's own, also of an operation that cannot be recorded
            self._can_record = False
            self._lines.append(f"The step could not be recorded as a CUDA graph and runs as it is: {error}")
            return
        self._graph, self._held = graph, held


def _shapes(rows: Rows) -> list[tuple[torch.Size, torch.dtype] | None]:
    return [None if part is None else (part.shape, part.dtype) for part in rows]
