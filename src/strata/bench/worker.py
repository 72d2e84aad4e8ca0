"""A contender in a process of its own, which takes its turns when it is told to.

Each runs as its users have it: Strata with the memory settings of its command (`strata.memory.settle_memory`), the
peers with those of a plain Python process. In one process all of them would have one or the other.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.bench.contender import Given
from strata.bench.registry import OURS, family, make
from strata.bench.rows import open_rows
from strata.bench.turns import step_timer
from strata.errors import UserError

_READY = "ready"


def program(module: str, setting: dict[str, Any]) -> dict[str, Any]:
    """What `subprocess` needs to run a module of Strata with this interpreter: keywords `args` and `env`."""
    source = str(Path(__file__).parents[2])
    path = os.pathsep.join(part for part in (source, os.environ.get("PYTHONPATH")) if part)
    return {"args": [sys.executable, "-m", module, json.dumps(setting)], "env": {**os.environ, "PYTHONPATH": path}}


class Worker:
    """A timer (`turns.Timer`) whose turns are taken in another process.

    Args:
        setting: `name`, `d_in`, `d_sae`, `k`, `lr`, `rows`, `n_batches`, `n_steps`, `n_timed` (steps of a turn),
            `seed`, `device`, `threads` and `rows_from`.

    Raises:
        UserError: the contender cannot be made; stderr says why.
    """

    def __init__(self, setting: dict[str, Any]) -> None:
        self.name = setting["name"]
        self._process = subprocess.Popen(
            **program("strata.bench.worker", setting), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self._said() != _READY:
            self.close()
            raise UserError(
                f"`contenders` must name what can be made here. {self.name} could not; see above. Leave it out."
            )

    def __call__(self) -> list[float]:
        """Take a turn; gives the seconds of its steps."""
        assert self._process.stdin is not None
        self._process.stdin.write("turn\n")
        self._process.stdin.flush()
        said = self._said()
        if not said:
            raise UserError(f"`contenders` must name what can train here. {self.name} failed; see above. Leave it out.")
        return json.loads(said)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def rows_of(setting: dict[str, Any]) -> Float[Tensor, "n d_in"]:
    """The rows that a setting names, on its device; its number of threads is set before."""
    if setting["threads"] != "auto":
        torch.set_num_threads(setting["threads"])
    n_rows = setting["n_batches"] * setting["rows"]
    rows = open_rows(setting["rows_from"], d_in=setting["d_in"], n_rows=n_rows, n_held_out=0).train
    return rows.float().to(torch.device(setting["device"]))


def given_of(setting: dict[str, Any]) -> Given:
    """What the contender of a setting is told."""
    own = {name: setting[name] for name in ("d_in", "d_sae", "k", "lr", "n_steps", "seed")}
    return Given(**own, n_rows=setting["rows"], device=torch.device(setting["device"]))


def main() -> None:
    """Make the contender that the first argument describes, and take a turn for every line on stdin."""
    setting = json.loads(sys.argv[1])
    if family(setting["name"]) == OURS:
        from strata.memory import settle_memory

        settle_memory()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what contenders print is no answer
    rows, given = rows_of(setting), given_of(setting)
    made = make(setting["name"], given)
    batches = torch.split(rows, given.n_rows)
    timer = step_timer(made, batches, sample=rows, n=setting["n_timed"], device=given.device)
    answers.write(f"{_READY}\n")
    answers.flush()
    for _ in sys.stdin:
        answers.write(json.dumps(timer()) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
