"""Time and peak memory of one SAE training step on rows held in RAM: Strata beside the peers that are installed.

All contenders live in one process and take turns (A B C A B C ...), so that what the machine does meanwhile hits them
alike; the figures to read are the ratios. The score product alone is the floor of any exact TopK step. Memory is
measured in a process each.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe
from peers import Contender, contender, version
from rows import CACHE, synthetic_rows
from safetensors import safe_open
from torch import Tensor

from strata.lm.precision import fast_dtype

_N_BATCHES = 8  # different batches that the steps go through
_N_STEPS = 300  # of the run that the schedules believe in
_MEMORY_STEPS = 3


def main() -> None:
    args = parse_arguments()
    if args.memory_of:
        print(json.dumps(memory_of(args.memory_of, args)))
        return
    machine = describe()
    if machine["load_average"] > 0.5:
        print(f"The machine is busy (load {machine['load_average']}): these times are not worth keeping.")
    rows = load_rows(args)
    timers = {name: step_timer(make(name, args), rows, args) for name in args.contenders}
    timers |= product_timers(rows, args)
    seconds = take_turns(timers, n_rounds=args.rounds)
    memory = {} if args.no_memory else {name: memory_in_process(name) for name in args.contenders}
    results = {name: summary(found) | memory.get(name, {}) for name, found in seconds.items()}
    print(table(results))
    if args.json:
        shape = {name: getattr(args, name) for name in ("d_in", "d_sae", "k", "rows", "rounds", "steps_per_round")}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"machine": machine, "shape": shape, "results": results}, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-in", type=int, default=384)
    parser.add_argument("--d-sae", type=int, default=6144)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--rows", type=int, default=4096, help="per step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps-per-round", type=int, default=2, help="timed ones; one more goes before them untimed")
    parser.add_argument("--threads", type=int, help="default: torch's choice")
    parser.add_argument("--contenders", nargs="+", help="default: strata and every installed peer; see peers.py")
    parser.add_argument("--ours", action=argparse.BooleanOptionalAction, default=True, help="include Strata")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory measurement out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.contenders:
        peers = [name for name in ("saelens", "dictionary_learning", "sparsify") if version(name)]
        args.contenders = (["strata"] if args.ours else []) + peers
    return args


def load_rows(args: argparse.Namespace) -> Tensor:
    """Rows fp32 [n d_in]: the embedded model's where quality.py has collected them, else synthetic ones."""
    n_rows = _N_BATCHES * args.rows
    if CACHE.exists():
        with safe_open(CACHE, framework="pt") as file:
            part = file.get_slice("train")
            n_found, d_in = part.get_shape()
            if d_in == args.d_in and n_found >= n_rows:
                return part[:n_rows].float()
    return synthetic_rows(n_rows, args.d_in)


def make(name: str, args: argparse.Namespace) -> Contender:
    return contender(name)(
        d_in=args.d_in, d_sae=args.d_sae, k=args.k, lr=1e-3, n_steps=_N_STEPS, seed=0, n_rows=args.rows
    )


def step_timer(made: Contender, rows: Tensor, args: argparse.Namespace) -> Callable[[], list[float]]:
    """A function that takes one untimed step and some timed ones, and gives the seconds of these."""
    made.prepare(rows)
    batches = rows.split(args.rows)
    turn = 0

    def timer() -> list[float]:
        nonlocal turn
        seconds = []
        for _ in range(1 + args.steps_per_round):
            start = time.perf_counter()
            made.step(batches[turn % len(batches)])
            seconds.append(time.perf_counter() - start)
            turn += 1
        return seconds[1:]

    return timer


def product_timers(rows: Tensor, args: argparse.Namespace) -> dict[str, Callable[[], list[float]]]:
    """The product [rows d_in] x [d_in d_sae] alone, in fp32 and, where the processor is fast at it, in bf16."""
    dtypes = {torch.float32, fast_dtype("cpu")}
    timers = {}
    for dtype in sorted(dtypes, key=str, reverse=True):
        for n_chunk in (args.rows, 256):
            name = f"product {str(dtype).removeprefix('torch.')}, {n_chunk} rows a piece"
            timers[name] = product_timer(rows[: args.rows].to(dtype), args, n_chunk=n_chunk)
    return timers


def product_timer(x: Tensor, args: argparse.Namespace, *, n_chunk: int) -> Callable[[], list[float]]:
    weight = torch.randn(args.d_in, args.d_sae).to(x.dtype)
    scores = torch.empty(n_chunk, args.d_sae, dtype=x.dtype)
    chunks = [chunk for chunk in x.split(n_chunk) if len(chunk) == n_chunk]

    def timer() -> list[float]:
        seconds = []
        for _ in range(1 + args.steps_per_round):
            start = time.perf_counter()
            for chunk in chunks:
                torch.mm(chunk, weight, out=scores)
            seconds.append(time.perf_counter() - start)
        return seconds[1:]

    return timer


def take_turns(timers: dict[str, Callable[[], list[float]]], *, n_rounds: int) -> dict[str, list[float]]:
    """Seconds of every timer over the rounds; a first round is thrown away."""
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for n in range(n_rounds + 1):
        for name, timer in timers.items():
            found = timer()
            if n > 0:
                seconds[name] += found
        print(f"round {n} of {n_rounds}", file=sys.stderr, flush=True)
    return seconds


def memory_of(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Peak resident memory of making a contender and training it some steps, above that with the rows loaded."""
    rows = load_rows(args)
    small = argparse.Namespace(**vars(args) | {"d_sae": 2 * args.d_in, "k": 4, "rows": 64})
    step_timer(make(name, small), rows[:128], small)()  # imports what it imports
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at what is resident now
    made = make(name, args)
    made.prepare(rows)
    for batch in rows.split(args.rows)[:_MEMORY_STEPS]:
        made.step(batch)
    return {"peak_bytes": resident_bytes(peak=True) - before}


def resident_bytes(*, peak: bool = False) -> int:
    """Resident memory of this process now, or its peak, in bytes (Linux)."""
    field = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def memory_in_process(name: str) -> dict[str, float]:
    """`memory_of` in a fresh process with the same arguments."""
    command = [sys.executable, *sys.argv, "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def summary(seconds: list[float]) -> dict[str, float]:
    return {"median_seconds": statistics.median(seconds), "min_seconds": min(seconds), "max_seconds": max(seconds)}


def table(results: dict[str, dict[str, float]]) -> str:
    """Medians, ranges, and how many times slower than Strata, as a Markdown table."""
    ours = results.get("strata", {}).get("median_seconds")
    lines = [
        "| | median s | min to max s | against Strata | peak memory MB |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in results.items():
        ratio = f"{found['median_seconds'] / ours:.2f}" if ours else ""
        memory = f"{found['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in found else ""
        span = f"{found['min_seconds']:.4f} to {found['max_seconds']:.4f}"
        lines.append(f"| {name} | {found['median_seconds']:.4f} | {span} | {ratio} | {memory} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
