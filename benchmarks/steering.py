"""Steering methods on the embedded model: concept against fluency, and the compute that each needs.

    python benchmarks/steering.py --run runs/demo-stdlib --json benchmarks/results/steering.json

The same as `strata steer RUN --benchmark`, with the machine's description beside the results. --quick is a small one.
"""

import argparse
import time
from pathlib import Path

from machine import describe

from strata.atomic import write_json
from strata.config.steer import SteerConfig
from strata.memory import settle_memory
from strata.steer.command import compare
from strata.steer.opened import opened_run
from strata.steer.tables import table


def main() -> None:
    """Run it, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo-stdlib"))
    parser.add_argument("--site", default="auto")
    parser.add_argument("--n-prompts", type=int, default=SteerConfig.n_prompts)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    settle_memory()
    started, cpu = time.monotonic(), time.process_time()
    config = SteerConfig(run=given.run, site=given.site, benchmark=True, quick=given.quick, n_prompts=given.n_prompts)
    results = compare(opened_run(config), config)
    results["total_seconds"] = {"wall": time.monotonic() - started, "processor": time.process_time() - cpu}
    print("\n".join(table(results)))
    print(f"\n{results['total_seconds']}")
    if given.json is not None:
        write_json(given.json, {"machine": describe(), **results})


if __name__ == "__main__":
    main()
