"""How much memory nobody has taken yet."""

from pathlib import Path

import torch

from strata.machine.hardware import memory_bytes

_ASSUMED_BYTES = 8e9  # where the system does not say
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


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
