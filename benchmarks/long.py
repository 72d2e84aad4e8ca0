"""Dead latents after ten million rows: `strata train default` on the embedded model's middle layer, by revival method.

    python benchmarks/long.py --folder build/long --json benchmarks/results/long.json

Each method is a run of its own in the folder; one that is finished there is read and not trained again, one that was
interrupted goes on.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from demo import run_record
from measuring import parser_with_json, setting, strata, write

from strata.bench.machine import describe


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the runs")
    parser.add_argument("--methods", nargs="+", default=["auto", "auxk"], help="of revival; auto is the default one")
    parser.add_argument("--n-tokens", type=int, default=10_000_000)
    return parser


def main() -> None:
    args = arguments().parse_args()
    record: dict[str, Any] = {"machine": describe(), "setting": setting(args), "methods": {}}
    for method in args.methods:
        run = args.folder / method
        if not (run / "evaluation.json").exists():
            words = ["--n-tokens", str(args.n_tokens), "--sae.revival", method, "--out", str(run)]
            strata("train", "default", *words, *(["--resume"] if (run / "run.json").exists() else []))
        found = run_record(run)
        record["methods"][method] = found | {"last_line": last_line(run)}
        [site] = found["sites"].values()
        print(f"{method}: FVU {site['fvu']:.4f}, dead {site['dead_share']:.2%}", flush=True)
    write(args.json, record)


def last_line(run: Path) -> dict[str, Any]:
    """Of metrics.jsonl, the numbers of the one SAE: with the share that was silent for the last million rows."""
    last = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    [numbers] = last["sites"].values()
    return numbers


if __name__ == "__main__":
    main()
