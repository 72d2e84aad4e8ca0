"""How long explaining and scoring every live feature of one SAE takes with token patterns, and how well they hold.

    strata train demo
    python benchmarks/explain.py runs/demo-stdlib --site layers.3 --json benchmarks/results/explain.json

The index is made first, if it is not there, and not counted. Ends with an error if it takes longer than a minute, or if
the interval of the mean correlation is not above that of shuffled explanations.
"""

import argparse
import json
import time
from pathlib import Path

from machine import describe

from strata.config.explain import ExplainConfig
from strata.interpret.explain.command import explain_index
from strata.interpret.explain.record import OWN, file_name
from strata.interpret.explain.summary import table
from strata.interpret.run_index import index_run

_MOST_SECONDS = 60.0
_SHOWN = "simulation.all.correlation"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--site", default="layers.3")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config = ExplainConfig(run=args.run, sites=(args.site,))
    index = index_run(config)
    kept = index[args.site].folder / file_name(OWN)
    kept.unlink(missing_ok=True)  # what is there already would not be explained again
    started, worked = time.perf_counter(), time.process_time()
    found = explain_index(index, config)
    seconds, processor = time.perf_counter() - started, time.process_time() - worked
    [(key, numbers)] = found.summary["saes"].items()
    n = numbers["n_features"]
    print(f"{n:,} features in {seconds:.1f} s ({1000 * seconds / n:.1f} ms each), of the processor {processor:.1f} s")
    print("\n".join(table(key, numbers)))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        times = {"seconds": seconds, "processor_seconds": processor, "n_tokens": index.n_tokens}
        content = {"machine": describe(), "times": times, "site": key, "results": numbers}
        args.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    own, shuffled = numbers["scores"][_SHOWN], numbers["shuffled"][_SHOWN]
    if seconds > _MOST_SECONDS or own["low"] <= shuffled["high"]:
        raise SystemExit("not what was wanted")


if __name__ == "__main__":
    main()
