"""What the pages of all features of a run cost: index, explanations and pages, from nothing.

    strata train demo
    python benchmarks/dashboard.py --run runs/demo-stdlib --json benchmarks/results/dashboard.json

`strata dashboard RUN --reindex` in a process of its own, into a folder that is thrown away. The run's index
is made anew.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from measuring import parser_with_json, strata, write

from strata.bench.machine import describe
from strata.interpret.explain.record import OWN
from strata.interpret.index import FeatureIndex


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo-stdlib"))
    parser.add_argument("--n-tokens", type=int, default=262_144, help="of the index")
    return parser


def main() -> None:
    args = arguments().parse_args()
    machine = describe()
    with tempfile.TemporaryDirectory() as folder:
        pages = Path(folder) / "pages"
        words = ["--reindex", "--n-tokens", str(args.n_tokens), "--out", str(pages)]
        seconds = strata("dashboard", str(args.run), *words)
        record = {"machine": machine, "seconds": seconds, "pages_bytes": size(pages), **contents(args.run)}
    print(f"{seconds:.0f} s, pages {record['pages_bytes'] / 1e6:.0f} MB, index {record['index_bytes'] / 1e6:.0f} MB")
    write(args.json, record)


def contents(run: Path) -> dict[str, Any]:
    """What the index holds: tokens, SAEs, features, those that are explained."""
    index = FeatureIndex.open(run / "index")
    summary = json.loads((run / "index" / "explanations-summary.json").read_text("utf-8"))
    return {
        "n_tokens": index.n_tokens,
        "n_saes": len(index.keys),
        "n_features": sum(index[key].d_sae for key in index.keys),
        "n_explained": sum(one["n_explained"] for one in summary["interpreters"][OWN]["saes"].values()),
        "index_bytes": size(run / "index"),
    }


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
