"""Are the features of a layer group's SAE as easy to explain as those of one SAE per layer?

The same text, explainer and scorers for both. `benchmarks/groups.py --out build/groups` trains the SAEs; then

python benchmarks/group_features.py --saes build/groups --json benchmarks/results/group-features.json
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import parser_with_json, setting, write

from strata.bench.machine import describe
from strata.config.explain import ExplainConfig
from strata.interpret.explain.command import explain_index
from strata.interpret.explain.record import read_explanations
from strata.interpret.index_building import build_index
from strata.lm.model import LanguageModel
from strata.memory import settle_memory
from strata.sae.model import SAE

MEASURES = {
    "simulation": "simulation.all.correlation",
    "simulation, top": "simulation.top.correlation",
    "simulation, random": "simulation.random.correlation",
    "detection": "detection.balanced_accuracy",
    "fuzzing": "fuzzing.balanced_accuracy",
}


def saes_of(folder: Path, groups: list[str]) -> dict[str, SAE]:
    """The SAEs of each group, ``"0-2"``, at each of its layers, and the layer-wise ones of these layers."""
    found = {}
    for group in groups:
        first, last = (int(end) for end in group.split("-"))
        for layer in range(first, last + 1):
            for key in (f"layers.{layer}", f"layers.{group}/layers.{layer}"):
                found[key] = SAE.load(folder / "sae" / key)
                found[key].metadata["site"] = f"layers.{layer}"
    return found


def measured(index: Any, key: str, interpreter: str) -> dict[str, Any]:
    """Means over the scored features of one SAE, of their own explanations and of shuffled ones."""
    features = read_explanations(index[key].folder, interpreter=interpreter).values()
    means = {name: mean(feature.score(path) for feature in features) for name, path in MEASURES.items()}
    shuffled = {name: mean(f.score(path, shuffled=True) for f in features) for name, path in MEASURES.items()}
    n_scored = sum(feature.score(MEASURES["simulation"]) is not None for feature in features)
    return {"n_features": len(features), "n_scored": n_scored, "means": means, "shuffled": shuffled,
            "live_share": float((index[key].n_fired >= 10).mean())}  # fmt: skip


def mean(values: Any) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def interval(differences: list[float]) -> tuple[float, float]:
    """Mean over seeds and half of its 95 % interval (Student's t)."""
    from scipy.stats import t as student

    n = len(differences)
    half = student.ppf(0.975, n - 1) * np.std(differences, ddof=1) / np.sqrt(n) if n > 1 else float("nan")
    return float(np.mean(differences)), float(half)


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--saes", type=Path, required=True, help="what benchmarks/groups.py trained")
    parser.add_argument("--groups", nargs="+", default=["0-2", "3-6"])
    parser.add_argument("--n-tokens", type=int, default=131_072)
    parser.add_argument("--n-features", type=int, default=500)
    return parser


def main() -> None:
    given = arguments().parse_args()
    settle_memory()
    machine = describe()
    lm, seeds = LanguageModel("demo"), []
    for folder in sorted(given.saes.glob("seed-*")):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            saes = saes_of(folder, given.groups)
            index = build_index(lm, saes, "stdlib", folder=Path(scratch) / "index", n_tokens=given.n_tokens,
                                context_tokens=256)  # fmt: skip
            config = ExplainConfig(run=folder, n_features=given.n_features)
            interpreter = explain_index(index, config).interpreter
            seeds.append({"seed": folder.name, "saes": {key: measured(index, key, interpreter) for key in saes}})
        print(f"{folder.name}: {time.perf_counter() - start:.0f} s", flush=True)
    found = compared(seeds)
    print(f"{'measure':<20}{'layer-wise':>12}{'group':>10}{'difference, 95 %':>24}{'shuffled':>12}")
    for name, row in found.items():
        difference = f"{row['difference'][0]:+.4f} ± {row['difference'][1]:.4f}"
        print(f"{name:<20}{row['layer_wise']:>12.4f}{row['group']:>10.4f}{difference:>24}{row['shuffled']:>12.4f}")
    for side, in_groups in (("layer-wise", False), ("group", True)):
        print(f"{side}: {scored_share(seeds, in_groups=in_groups):.1%} of the drawn live features have a score")
    write(given.json, {"machine": machine, "setting": setting(given), "compared": found, "seeds": seeds})


def compared(seeds: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per measure: means over layers and seeds, and group less layer-wise at the same layer and seed."""
    found = {}
    for name in MEASURES:
        by_seed = []
        for seed in seeds:
            saes = seed["saes"]
            in_groups = [key for key in saes if "/" in key]
            group = [saes[key]["means"][name] for key in in_groups]
            alone = [saes[key.split("/")[1]]["means"][name] for key in in_groups]
            shuffled = [saes[key]["shuffled"][name] for key in saes]
            by_seed.append((np.mean(alone), np.mean(group), np.mean(shuffled)))
        alone, group, shuffled = (float(column) for column in np.mean(by_seed, axis=0))
        differences = [float(g - a) for a, g, _ in by_seed]
        found[name] = {"layer_wise": alone, "group": group, "shuffled": shuffled, "by_seed": differences,
                       "difference": interval(differences)}  # fmt: skip
    return found


def scored_share(seeds: list[dict[str, Any]], *, in_groups: bool) -> float:
    """Of the features that were drawn; the others' scores are undefined or their firings too few."""
    found = [sae for seed in seeds for key, sae in seed["saes"].items() if ("/" in key) == in_groups]
    return sum(sae["n_scored"] for sae in found) / sum(sae["n_features"] for sae in found)


if __name__ == "__main__":
    main()
