"""How long explaining and scoring every live feature of one SAE takes with token patterns, and how well they hold.

    strata train demo
    python benchmarks/explain.py --run runs/demo-stdlib --json benchmarks/results/explain.json

The index is made first, if it is not there, and not counted. Ends with an error if it takes longer than a minute, or if
the interval of the mean correlation is not above that of shuffled explanations.
"""

import argparse
import time
from pathlib import Path

from measuring import fell_short, parser_with_json, write

from strata.bench.machine import describe
from strata.config.explain import ExplainConfig
from strata.interpret.explain.command import explain_index
from strata.interpret.explain.record import OWN, file_name
from strata.interpret.explain.summary import table
from strata.interpret.run_index import index_run

_MOST_SECONDS = 60.0
_SHOWN = "simulation.all.correlation"


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo-stdlib"))
    parser.add_argument("--site", default="layers.3")
    return parser


def main() -> None:
    args = arguments().parse_args()
    machine = describe()
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
    times = {"seconds": seconds, "processor_seconds": processor, "n_tokens": index.n_tokens}
    write(args.json, {"machine": machine, "times": times, "site": key, "results": numbers})
    own, shuffled = numbers["scores"][_SHOWN], numbers["shuffled"][_SHOWN]
    if seconds > _MOST_SECONDS or own["low"] <= shuffled["high"]:
        fell_short(f"{seconds:.0f} s, or explanations no better than shuffled ones")


if __name__ == "__main__":
    main()
