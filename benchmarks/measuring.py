"""What the programs here share: their arguments, their turns, and the record that they leave."""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from strata.atomic import write_json

ROOT = Path(__file__).resolve().parents[1]
FELL_SHORT = 3  # exit code: all was measured and written, and is not what was wanted


def parser_with_json(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--json`, which is shown with the program's docstring."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="a file for the result")
    return parser


def setting(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments, without files and folders."""
    return {name: value for name, value in vars(args).items() if not isinstance(value, Path)}


def write(path: Path | None, record: Mapping[str, Any]) -> None:
    """Put a result on disk, if a file was asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)


def fell_short(what: str) -> NoReturn:
    """End with the exit code that says so; the result was written."""
    print(f"not what was wanted: {what}", file=sys.stderr)
    raise SystemExit(FELL_SHORT)


def strata(*words: str) -> float:
    """Run a command of Strata's in a process of its own, what it says on stderr passed on; gives its seconds."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "strata", *words]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=environment())
    if done.returncode:
        sys.exit(f"`strata {' '.join(words)}` ended with exit code {done.returncode}")
    return time.perf_counter() - start


def environment() -> dict[str, str]:
    """Of a process that finds this checkout's Strata, whichever interpreter it has."""
    paths = [str(ROOT / "src"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def seconds(run: Callable[[], object]) -> float:
    """Of one call, until a GPU is done with it too."""
    import torch

    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(contenders: Mapping[str, Callable[[], object]], *, n_rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after a first round that warms up."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(n_rounds + 1):
        for name, run in contenders.items():
            took = seconds(run)
            if number:
                taken[name].append(took)
    return taken


def medians(taken: Mapping[str, list[float]]) -> dict[str, float]:
    """Of each contender."""
    return {name: statistics.median(times) for name, times in taken.items()}


def ratios(taken: Mapping[str, list[float]], *, to: str) -> dict[str, float]:
    """Each contender's seconds over those of one of them.

    Neighbours in time share the machine's mood: these are medians of ratios, not ratios of medians.
    """
    base = taken[to]
    return {
        name: statistics.median(own / whole for own, whole in zip(times, base, strict=True))
        for name, times in taken.items()
    }
