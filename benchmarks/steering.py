"""Steering methods on the embedded model: concept against fluency, and the compute that each needs.

    python benchmarks/steering.py --run runs/demo-stdlib --json benchmarks/results/steering.json

The same as `strata steer RUN --benchmark`, with the machine's description beside the results. --quick is a small one.
"""

import argparse
import time
from pathlib import Path

from measuring import parser_with_json, write

from strata.bench.machine import describe
from strata.config.steer import SteerConfig
from strata.memory import settle_memory
from strata.steer.command import compare
from strata.steer.opened import opened_run
from strata.steer.tables import table


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo-stdlib"))
    parser.add_argument("--site", default="auto")
    parser.add_argument("--n-prompts", type=int, default=SteerConfig.n_prompts)
    parser.add_argument("--quick", action="store_true")
    return parser


def main() -> None:
    given = arguments().parse_args()
    settle_memory()
    machine = describe()
    started, cpu = time.monotonic(), time.process_time()
    config = SteerConfig(run=given.run, site=given.site, benchmark=True, quick=given.quick, n_prompts=given.n_prompts)
    results = compare(opened_run(config), config)
    results["total_seconds"] = {"wall": time.monotonic() - started, "processor": time.process_time() - cpu}
    print("\n".join(table(results)))
    print(f"\n{results['total_seconds']}")
    write(given.json, {"machine": machine, **results})


if __name__ == "__main__":
    main()
