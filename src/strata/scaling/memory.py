"""How many SAEs of a sweep can be trained at once."""

import bisect

import torch

from strata.costs.memory import RowsInMemory, training_memory
from strata.costs.step import SAEShape
from strata.machine.free_memory import free_memory

_SHARE = 0.75  # of the free memory: a prediction may be off by 15 %, and others may take more meanwhile
_WINDOW_ROWS = 65_536  # rows on their way from the disk, and the sample for the normalisation


def most_side_by_side(sae: SAEShape, *, batch_size: int, device: str) -> int:
    """SAEs of a shape that fit into three quarters of what is free of the device's memory; 0 where not even one does.

    Args:
        sae: the widest of them.
        batch_size: rows per step.
        device: where they are trained.
    """
    memory = free_memory(torch.device(device)) * _SHARE

    def fits(n_saes: int) -> bool:
        parts = training_memory(
            [sae] * n_saes,
            batch_size=batch_size,
            rows=RowsInMemory(row_bytes=4.0 * sae.d_in, buffer_rows=_WINDOW_ROWS),
        )
        return sum(parts.values()) <= memory

    too_many = 1  # the phase of the peak changes with their number: no straight line tells it
    while fits(too_many):
        too_many *= 2
    return bisect.bisect_left(range(1, too_many), True, key=lambda n_saes: not fits(n_saes))
