"""How many SAEs of a sweep can be trained at once."""

import bisect
from pathlib import Path

import torch

from strata.costs.memory import training_memory
from strata.costs.step import SAEShape
from strata.machine.hardware import memory_bytes

_SHARE = 0.75  # of the free memory: a prediction may be off by 15 %, and others may take more meanwhile
_ASSUMED_BYTES = 8e9  # where the system does not say
_WINDOW_ROWS = 65_536  # rows on their way from the disk, and the sample for the normalisation
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


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
            weight_bytes=0.0,
            forward_bytes=0.0,
            row_bytes=4.0 * sae.d_in,
            buffer_rows=_WINDOW_ROWS,
        )
        return sum(parts.values()) <= memory

    too_many = 1  # the phase of the peak changes with their number: no straight line tells it
    while fits(too_many):
        too_many *= 2
    return bisect.bisect_left(range(1, too_many), True, key=lambda n_saes: not fits(n_saes))


def free_memory(device: torch.device) -> float:
    """Bytes that a new process may take: of an accelerator what nobody has allocated; of the machine what Linux calls
    available (what it would give up is in it), or less where the container's limit leaves less. Where the system does
    not tell what is free, all of its memory; 8 GB where it tells nothing.

    Args:
        device: the accelerator, or the CPU.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    left = [amount for amount in (_available(), _left_in_container()) if amount is not None]
    return min(left) if left else memory_bytes() or _ASSUMED_BYTES


def _available() -> float | None:
    """MemAvailable of Linux; None elsewhere."""
    return _number(_MEMINFO, "MemAvailable:", 1024.0)


def _left_in_container() -> float | None:
    """What the control group's limit leaves, the cache of files it would give up counted as free; None without one."""
    try:
        limit, taken = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    if not limit.isdecimal():
        return None
    return max(0.0, float(limit) - float(taken) + (_number(_CGROUP / "memory.stat", "inactive_file", 1.0) or 0.0))


def _number(path: Path, name: str, unit: float) -> float | None:
    """What stands behind a name in a file with one pair per line."""
    try:
        pairs = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    return next((float(pair[1]) * unit for pair in pairs if pair[:1] == [name]), None)
