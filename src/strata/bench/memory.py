"""Peak memory of a contender above the loaded rows, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.bench.registry import make
from strata.bench.worker import given_of, program, rows_of
from strata.log import say

_STEPS = 3
_STATUS = Path("/proc/self/status")


def peak_bytes(name: str, setting: dict[str, Any], *, progress: bool = True) -> int | None:
    """Peak memory of making a contender and training it some steps, above that of its process with the rows loaded.

    On the CPU it is resident memory, read from Linux's /proc; on CUDA what torch allocated there (not executed yet).

    Args:
        name: of the contender.
        setting: `d_in`, `d_sae`, `k`, `rows`, `n_batches`, `seed`, `device`, `threads` and `rows_from`.
        progress: a line on stderr.

    Returns:
        Bytes; None where the system does not tell, or where the contender fails, e.g. for want of memory: stderr says
        so then.
    """
    if setting["device"] == "cpu" and not _STATUS.exists():
        return None
    say(f"memory of {name} ...", shown=progress)
    found = program("strata.bench.memory", setting | {"name": name})
    done = subprocess.run(**found, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        say(f"memory of {name} could not be measured: {last}", shown=progress)
        return None
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"]


def measure(setting: dict[str, Any]) -> int:
    """`peak_bytes` within the process that is measured; the keywords and `name` in one."""
    rows, device = rows_of(setting), torch.device(setting["device"])
    small = setting | {"d_sae": 2 * setting["d_in"], "k": 4, "rows": 64}
    _train(small, rows[:128])  # imports what it imports
    before = _start(device)
    _train(setting, rows)
    return _peak(device) - before


def _train(setting: dict[str, Any], rows: Float[Tensor, "n d_in"]) -> None:
    made = make(setting["name"], given_of(setting | {"lr": 1e-3, "n_steps": 300}))
    made.prepare(rows)
    for batch in torch.split(rows, setting["rows"])[:_STEPS]:
        made.step(batch)


def _start(device: torch.device) -> int:
    """Memory in use, from which on the peak counts."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    resident = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at what is resident now
    return resident


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _resident(field: str) -> int:
    """Of this process, in bytes (Linux)."""
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"peak_bytes": measure(json.loads(sys.argv[1]))}) + "\n")
