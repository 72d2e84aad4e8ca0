"""How many SAEs of a sweep can be trained at once."""

import torch

from strata.costs.memory import training_memory
from strata.costs.step import SAEShape
from strata.machine.hardware import device_bytes, memory_bytes

_SHARE = 0.6  # of the memory: others use it too, and a prediction may be off by 15 %
_ASSUMED_BYTES = 8e9  # where the system does not say
_WINDOW_ROWS = 65_536  # rows on their way from the disk, and the sample for the normalisation


def most_side_by_side(sae: SAEShape, *, batch_size: int, device: str) -> int:
    """SAEs of a shape that fit into the memory of the device; 0 where not even one does.

    Args:
        sae: the widest of them.
        batch_size: rows per step.
        device: where they are trained.
    """
    memory = (device_bytes(torch.device(device)) or memory_bytes() or _ASSUMED_BYTES) * _SHARE

    def taken(n_saes: int) -> float:
        parts = training_memory(
            [sae] * n_saes,
            batch_size=batch_size,
            weight_bytes=0.0,
            forward_bytes=0.0,
            row_bytes=4.0 * sae.d_in,
            buffer_rows=_WINDOW_ROWS,
        )
        return sum(parts.values())

    one, two = taken(1), taken(2)
    return 0 if one > memory else 1 + int((memory - one) // max(two - one, 1.0))
