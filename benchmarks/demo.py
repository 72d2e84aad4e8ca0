"""The recipe demo as one runs it: `strata train demo` into a folder, its held-out quality and its seconds.

    python benchmarks/demo.py --run build/demo --json benchmarks/results/demo.json

The folder is overwritten. Seconds of the command are those of the process, from its start to the report; of the
training those that its run.json has.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from measuring import parser_with_json, strata, write

from strata.bench.machine import describe


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the folder that is written, and overwritten")
    parser.add_argument("--n-tokens", type=int, help="fewer rows than the recipe's, for a trial")
    return parser


def main() -> None:
    args = arguments().parse_args()
    machine = describe()
    fewer = [] if args.n_tokens is None else ["--n-tokens", str(args.n_tokens)]
    seconds = strata("train", "demo", "--out", str(args.run), "--overwrite", *fewer)
    record = {"machine": machine, "command_seconds": seconds, **run_record(args.run)}
    for site, found in record["sites"].items():
        print(f"{site}: FVU {found['fvu']:.3f}, L0 {found['l0']:.1f}, dead {found['dead_share']:.1%}")
    print(f"the command took {seconds:.0f} s, {record['training_seconds']['total']:.0f} s of them training")
    write(args.json, record)


def run_record(folder: Path) -> dict[str, Any]:
    """What a run's folder says of its quality and its training."""
    run, evaluation = (json.loads((folder / name).read_text("utf-8")) for name in ("run.json", "evaluation.json"))
    return {
        "training_seconds": run["seconds"],
        "n_rows": run["n_rows"],
        "n_steps": run["n_steps"],
        "saes": run["saes"],
        "n_held_out_rows": evaluation["n_rows"],
        "sites": evaluation["sites"],
        "all_sites": evaluation.get("all_sites"),
    }


if __name__ == "__main__":
    main()
