"""Bring what `strata doctor` knows of recorded runs up to date with benchmarks/results/dead.json and gates.json.

    python benchmarks/recorded.py            # after dead or gates was measured anew

Of each curve twelve points are kept. Runs of other sources, which the file names, stay as they are.
"""

import argparse
import json
from typing import Any

from figure_blocks.results import Results
from measuring import ROOT

FILE = ROOT / "src" / "strata" / "doctor" / "recorded.json"
DEAD, GATES = "benchmarks/results/dead.json", "benchmarks/results/gates.json"


def arguments() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)


def main() -> None:
    arguments().parse_args()
    old = FILE.read_text("utf-8")
    new = written(refreshed(json.loads(old), Results(ROOT)))
    FILE.write_text(new, encoding="utf-8")
    print(f"{FILE.relative_to(ROOT)}: {'nothing has changed' if new == old else 'written'}")


def refreshed(record: dict[str, Any], results: Results) -> dict[str, Any]:
    """The record with the curves and shares that were measured last."""
    curves, gates = results["dead"]["results"], results["gates"]
    runs = []
    for run in record["runs"]:
        kept = {rows for rows, _, _ in run["curve"]}
        if run["source"] == DEAD:
            points = [point for point in curves[run["name"]]["curve"] if point["rows"] in kept]
            curve = [[point["rows"], round(point["fvu"], 4), round(point["dead_share"], 4)] for point in points]
            runs.append({**run, "window_rows": curves[run["name"]]["window_rows"], "curve": curve})
        else:
            runs.append(run)
    setting = gates["setting"]
    shares = {name: round(one["silent_percent"] / 100, 4) for name, one in gates["results"].items()}
    silent = {"source": GATES, "rows": setting["steps"] * setting["rows"], "shares": shares}
    return {"runs": runs, "silent_on_held_out_rows": silent}


def written(record: dict[str, Any]) -> str:
    """A run on each line."""
    runs = ",\n".join(f"  {json.dumps(run, ensure_ascii=False)}" for run in record["runs"])
    silent = json.dumps(record["silent_on_held_out_rows"])
    return f'{{\n "runs": [\n{runs}\n ],\n "silent_on_held_out_rows": {silent}\n}}\n'


if __name__ == "__main__":
    main()
