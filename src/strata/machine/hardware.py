"""What this machine is: its processor, its memory, its accelerators."""

import os
import platform
from pathlib import Path
from typing import Any, cast

import torch


def cpu_name() -> str:
    """The processor's own name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def memory_bytes() -> float:
    """RAM of the machine, or less where the process may not have all of it (cgroup of a container); 0 if unknown."""
    try:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (ValueError, OSError, AttributeError):
        return 0.0
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        found.append(int(text))
    return float(min(found))


def device_name(device: torch.device) -> str:
    """Of an accelerator its product name, else "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def device_bytes(device: torch.device) -> float:
    """Memory of an accelerator; 0 for the CPU."""
    if device.type != "cuda":
        return 0.0
    return float(cast(int, torch.cuda.get_device_properties(device).total_memory))


def hardware(device: torch.device) -> dict[str, Any]:
    """What run.json says of the machine."""
    return {
        "device": device_name(device),
        "cpu": cpu_name(),
        "n_cores": os.cpu_count(),
        "n_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
