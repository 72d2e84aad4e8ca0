"""What a measurement was made on, without anything that names the machine."""

import datetime as dt
import os
import platform
from typing import Any

import torch

from strata.bench.registry import installed_versions, versions
from strata.lm.precision import fast_dtype
from strata.machine.hardware import cpu_name, device_name

_BUSY_LOAD = 0.5


def describe(device: torch.device | None = None) -> dict[str, Any]:
    """Hardware, versions, date, and how busy the machine was when the measurement began.

    Args:
        device: that computes; None is the processor.
    """
    where = torch.device("cpu") if device is None else device
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device_name(where),
        "processor": cpu_name() or platform.machine(),
        "n_cores": os.cpu_count(),
        "n_threads": torch.get_num_threads(),
        "fast_dtype": str(fast_dtype(where)).removeprefix("torch."),
        "python": platform.python_version(),
        "packages": installed_versions(("strata-sae", "torch", "transformers")) | versions(),
        "load_average": load_average(),
    }


def load_average() -> float:
    """Processes that wanted to run in the last minute, on average; 0 where the system does not say."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return 0.0


def is_busy(machine: dict[str, Any]) -> bool:
    """Whether times measured on it are not worth keeping."""
    return machine["load_average"] > _BUSY_LOAD
