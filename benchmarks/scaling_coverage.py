"""How often the 90 % intervals of `strata scaling` hold the truth: sweeps whose losses are drawn from a known law, each
point with its own error, are fitted as the command fits them.

    python benchmarks/scaling_coverage.py --json benchmarks/results/scaling-coverage.json

For each law (one additive, one coupled, both with a tokens' term that depends on k) it prints, for every parameter and
the irreducible loss, the share of sweeps whose interval holds the truth, and the intervals' median width over the width
that holds 90 % of the repeated estimates: below 1 they are too narrow.
"""

import argparse
import math
import time
from typing import Any

import numpy as np
from measuring import parser_with_json, setting, write

from strata.bench.machine import describe
from strata.costs.scaling_fit import INTERVAL, Form, bootstrap, fit_law, interval
from strata.costs.scaling_law import Law, Points

LAWS: dict[Form, Law] = {
    "additive": Law(
        e=math.log(0.12), epsilon=0.3, a=math.log(2), alpha=0.5, gamma=0.1, b=math.log(60), beta=0.6, kappa=0.15
    ),
    "coupled": Law(e=-2.1, epsilon=0.3, a=0.7, alpha=0.5, gamma=0.1, b=2.0, beta=0.6, kappa=0.2, delta=0.25),
}
WIDTHS, TOKENS, KS = (768, 1536, 3072, 6144), (62_500, 125_000, 250_000, 500_000), (16, 32, 64)
NOISE = 0.003  # of ln L
EXPONENTS = ("epsilon", "alpha", "gamma", "beta", "kappa", "delta")  # e, a and b are read at k = 32 only: "irreducible"


def sweep(law: Law, *, seed: int) -> Points:
    """Losses of a grid of 48 points by a law, each with its own error."""
    n, t, k = np.array([(n, t, k) for n in WIDTHS for t in TOKENS for k in KS], dtype=float).T.copy()
    error = np.exp(NOISE * np.random.default_rng(seed).standard_normal(len(n)))
    return Points(n_latents=n, n_tokens=t, k=k, loss=law.loss(n, t, k) * error)


def read(law: Law, name: str) -> float:
    """A parameter, or the irreducible loss at k = 32."""
    return float(law.irreducible(32.0)) if name == "irreducible" else float(getattr(law, name))


def covered(form: Form, *, n_sweeps: int, n_samples: int) -> dict[str, dict[str, float]]:
    """For each name the share of sweeps whose interval holds the truth, and how wide the intervals are."""
    true, found = LAWS[form], []
    for seed in range(n_sweeps):
        points = sweep(true, seed=seed)
        fit = fit_law(points, form=form)
        found.append((fit, bootstrap(points, fit, n_samples=n_samples, seed=seed)))
    told = {}
    for name in ("irreducible", *(name for name in EXPONENTS if name in found[0][0].free)):
        edges = [interval([read(one.law, name) for one in draws]) for _, draws in found]
        low, high = interval([read(fit.law, name) for fit, _ in found])
        told[name] = {
            "true": read(true, name),
            "covered": sum(low <= read(true, name) <= high for low, high in edges) / n_sweeps,
            "relative_width": float(np.median([high - low for low, high in edges])) / (high - low),
        }
    return told


def main() -> None:
    args = arguments().parse_args()
    given = setting(args) | {"noise": NOISE, "interval": INTERVAL}
    record: dict[str, Any] = {"setting": given, "machine": describe()}
    start = time.perf_counter()
    record["results"] = {form: covered(form, n_sweeps=args.sweeps, n_samples=args.samples) for form in LAWS}
    record["seconds"] = time.perf_counter() - start
    for form, told in record["results"].items():
        for name, one in told.items():
            print(f"{form:9} {name:12} held in {100 * one['covered']:3.0f} %, width {one['relative_width']:.2f}")
        mean = sum(one["covered"] for one in told.values()) / len(told)
        print(f"{form:9} {'mean':12} held in {100 * mean:3.0f} %")
    print(f"{args.sweeps} sweeps of {len(WIDTHS) * len(TOKENS) * len(KS)} points each, {record['seconds']:.0f} s")
    write(args.json, record)


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--sweeps", type=int, default=60, help="of each law")
    parser.add_argument("--samples", type=int, default=100, help="how often the points of a sweep are drawn anew")
    return parser


if __name__ == "__main__":
    main()
