"""The laws of `strata scaling` on the embedded model: 60 SAEs of one layer, from rows that are collected once.

    python benchmarks/scaling.py --folder build/scaling --json benchmarks/results/scaling.json

`strata collect`, then `strata scaling`, in the folder; interrupted, both go on where they were.
"""

import argparse
import json
from pathlib import Path

from measuring import parser_with_json, strata, write

from strata.bench.machine import describe

SITE = "layers.3"
WIDTHS, KS, TOKENS = ("4", "8", "16", "32"), ("16", "32", "64"), ("80k", "160k", "320k", "640k", "1.28M")
STORED_TOKENS = 1_310_720


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the store and the sweep")
    parser.add_argument("--quick", action="store_true", help="a trial: 8 SAEs of some thousand rows")
    return parser


def main() -> None:
    args = arguments().parse_args()
    machine = describe()
    store, sweep = args.folder / "store", args.folder / "sweep"
    stored, held_out = (16_384, ["--held-out-tokens", "2048"]) if args.quick else (STORED_TOKENS, [])
    widths, ks, tokens = (("4", "8"), ("16",), ("2k", "3k", "4k", "5k")) if args.quick else (WIDTHS, KS, TOKENS)
    strata("collect", "--sites", SITE, "--n-tokens", str(stored), *held_out, "--out", str(store))
    words = ["--widths", *widths, "--k", *ks, "--n-tokens", *tokens, "--batch-size", "512" if args.quick else "2048"]
    going_on = ["--resume"] if sweep.exists() else []
    strata("scaling", str(store), *words, "--out", str(sweep), *going_on)
    found = json.loads((sweep / "scaling.json").read_text("utf-8"))
    print(f"{len(found['points'])} SAEs, the law misses them by {found['fit']['rms']:.1%}")
    write(args.json, {"machine": machine, **found})


if __name__ == "__main__":
    main()
