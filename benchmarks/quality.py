"""Held-out quality at equal rows seen: Strata beside the peers, each at several learning rates.

Prints held-out FVU (Σ‖x − x̂‖² / Σ‖x − mean‖² over all held-out rows), the share of latents that fire on none of them
(which counts rare latents too: it is no share of dead ones) and the seconds of training. A run that the JSON file
already holds is not run again, so that the program can be stopped at any time:
`quality.py --json FILE --runs strata saelens:1e-3,3e-3 sparsify:3e-3`.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from machine import describe
from peers import Contender, contender, version
from rows import BenchRows, demo_rows, synthetic
from torch import Tensor

_RUNS = (
    "strata",
    "strata-none",
    "saelens:1e-3,3e-3",
    "saelens-scaled:1e-3,3e-3",
    "saelens-revival:3e-3",
    "sparsify:default,3e-3,1e-3",
    "sparsify-adam:default,1e-3,3e-3",
    "sparsify-auxk:3e-3",
    "dictionary_learning:1e-3,3e-3",
)
_SAMPLE_ROWS = 2**16  # from which normalisations are estimated


def main() -> None:
    args = parse_arguments()
    n_rows = args.steps * args.rows
    rows = synthetic(n_rows, args.held_out) if args.synthetic else demo_rows(n_rows, args.held_out)
    shape = {name: getattr(args, name) for name in ("d_sae", "k", "steps", "rows", "held_out", "seed")}
    record = open_record(args.json, shape | {"source": rows.source, "d_in": rows.train.shape[1]})
    for run in expand(args.runs):
        if run in record["results"]:
            print(f"{run}: done before")
            continue
        name, _, rate = run.partition(":")
        if name.partition("-")[0] != "strata" and version(name) is None:
            print(f"{run}: not installed, left out")
            continue
        record["results"][run] = train_and_evaluate(name, None if rate == "default" else float(rate), rows, args)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(record, indent=2) + "\n")
    print(table(record["results"]))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=_RUNS, help="contender[:lr,lr,...]; an lr may be 'default'")
    parser.add_argument("--d-sae", type=int, default=6144)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=4096, help="per step")
    parser.add_argument("--held-out", type=int, default=8192, help="held-out rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--synthetic", action="store_true", help="rows that mean nothing, to try the program")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def expand(runs: list[str]) -> list[str]:
    """One "contender:lr" per run."""
    pairs = [run.partition(":") for run in runs]
    return [f"{name}:{rate}" for name, _, rates in pairs for rate in (rates or "default").split(",")]


def open_record(path: Path | None, setting: dict[str, object]) -> dict[str, dict]:
    """What the file holds already, or an empty record; another setting's file is not added to."""
    if path is None or not path.exists():
        return {"machine": describe(), "setting": setting, "results": {}}
    record = json.loads(path.read_text())
    if record["setting"] != setting:
        raise SystemExit(f"{path} was made with {record['setting']}, this run has {setting}. Give another --json.")
    return record


def train_and_evaluate(name: str, lr: float | None, rows: BenchRows, args: argparse.Namespace) -> dict[str, float]:
    torch.manual_seed(args.seed)
    setting = {"d_in": rows.train.shape[1], "d_sae": args.d_sae, "k": args.k, "n_rows": args.rows}
    made = contender(name)(lr=lr, n_steps=args.steps, seed=args.seed, **setting)
    made.prepare(rows.train[:_SAMPLE_ROWS].float())
    seconds = 0.0
    for n, batch in enumerate(rows.train.split(args.rows)):
        x = batch.float()
        start = time.perf_counter()
        made.step(x)
        seconds += time.perf_counter() - start
        if n % 50 == 0:
            print(f"{name} {lr or 'default'}: step {n}, {seconds:.0f} s", flush=True)
    return evaluate(made, rows.held_out) | {"seconds": round(seconds, 2)}


@torch.no_grad()
def evaluate(made: Contender, held_out: Tensor) -> dict[str, float]:
    """Held-out FVU, share of silent latents and mean L0, with one mean over all rows."""
    x = held_out.float()
    error, n_active, fired = 0.0, 0, torch.zeros(0, dtype=torch.bool)
    for chunk in x.split(1024):
        error += (chunk - made.reconstruct(chunk)).double().square().sum().item()
        active = made.codes(chunk) > 0
        n_active += int(active.sum())
        fired = active.any(0) if len(fired) == 0 else fired | active.any(0)
    variance = (x - x.mean(0)).double().square().sum().item()
    return {"fvu": error / variance, "silent_share": 1 - fired.float().mean().item(), "l0": n_active / len(x)}


def table(results: dict[str, dict[str, float]]) -> str:
    lines = ["| contender and learning rate | held-out FVU | silent % | L0 | seconds |", "|---|---:|---:|---:|---:|"]
    for run, found in sorted(results.items(), key=lambda item: item[1]["fvu"]):
        silent = f"{100 * found['silent_share']:.1f}"
        lines.append(f"| {run} | {found['fvu']:.4f} | {silent} | {found['l0']:.1f} | {found['seconds']:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
