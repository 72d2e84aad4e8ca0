"""What a measurement was made on, without anything that names the machine."""

import datetime as dt
import importlib.metadata
import os
import platform
from pathlib import Path

import torch
from peers import PEERS, distribution, version

from strata.lm.precision import fast_dtype


def processor() -> str:
    """The processor's own name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe() -> dict[str, object]:
    """Hardware, versions, date, and how busy the machine was when the measurement began."""
    packages = {"torch": torch.__version__, "transformers": importlib.metadata.version("transformers")}
    packages |= {distribution(name): found for name in PEERS if (found := version(name))}
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor(),
        "n_cores": os.cpu_count(),
        "n_threads": torch.get_num_threads(),
        "fast_dtype": str(fast_dtype("cpu")).removeprefix("torch."),
        "python": platform.python_version(),
        "packages": packages,
        "load_average": round(os.getloadavg()[0], 2),
    }
