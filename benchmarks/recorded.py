"""Bring what `strata doctor` knows of recorded runs up to date with benchmarks/results.

    python benchmarks/recorded.py            # after dead, demo, long or gates was measured anew

Of each curve of `dead` twelve points are kept; of the other runs it is the end.
"""

import argparse
import json
from typing import Any

from figure_blocks.results import Results
from measuring import ROOT

FILE = ROOT / "src" / "strata" / "doctor" / "recorded.json"
DEAD, LONG, GATES = (f"benchmarks/results/{name}.json" for name in ("dead", "long", "gates"))


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
    gates = results["gates"]
    setting = gates["setting"]
    shares = {name: round(one["silent_percent"] / 100, 4) for name, one in gates["results"].items()}
    silent = {"source": GATES, "rows": setting["steps"] * setting["rows"], "shares": shares}
    return {"runs": [run | measured(run, results) for run in record["runs"]], "silent_on_held_out_rows": silent}


def measured(run: dict[str, Any], results: Results) -> dict[str, Any]:
    """Window and curve of a run: `[rows, training FVU, dead share]` at the rows that are in the record."""
    if run["source"] == DEAD:
        found = results["dead"]["results"][run["name"]]
        kept = {rows for rows, _, _ in run["curve"]}
        points = [point for point in found["curve"] if point["rows"] in kept]
        curve = [[point["rows"], round(point["fvu"], 4), round(point["dead_share"], 4)] for point in points]
        return {"window_rows": found["window_rows"], "curve": curve}
    kind, method, site = run["name"].split("/")  # as "long/auto/layers.3"
    found = results[kind]["methods"][method] if run["source"] == LONG else results[kind]
    ended = found["sites"][site]
    curve = [[ended["n_trained_rows"], None, round(ended["dead_share"], 4)]]
    return {"window_rows": ended["dead_window_rows"], "curve": curve}


def written(record: dict[str, Any]) -> str:
    """A run on each line."""
    runs = ",\n".join(f"  {json.dumps(run, ensure_ascii=False)}" for run in record["runs"])
    silent = json.dumps(record["silent_on_held_out_rows"])
    return f'{{\n "runs": [\n{runs}\n ],\n "silent_on_held_out_rows": {silent}\n}}\n'


if __name__ == "__main__":
    main()
