"""What `strata doctor` says of real trainings with one thing spoilt in each, beside what it should say.

    python benchmarks/doctor.py --json benchmarks/results/doctor.json

Collects rows of the embedded model's layer 3 once, trains on them with each setting, and looks at what each leaves.
Ends with an error if a finding that is wanted is missing, or a healthy run has a complaint. Findings of speed do not
count: they are of the machine and not of the training.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from measuring import fell_short, parser_with_json, write

from strata.bench.machine import describe
from strata.collect import collect_run
from strata.config.collect import CollectConfig
from strata.config.train import SAEConfig, TrainConfig
from strata.doctor.examine import examine
from strata.memory import settle_memory
from strata.run import train_run

_N_STEPS, _BATCH_SIZE = 80, 2048
_OF_SPEED = ("slower-than-predicted", "slowing-down", "waiting-for-rows", "small-batch")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training.

    Attributes:
        settings: of the SAE, besides the common ones.
        wanted: findings and their severity; nothing is a healthy run.
        advice: what each of these has to say is to be done.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    wanted: Mapping[str, str] = field(default_factory=dict)
    advice: str = ""


CASES = {
    "lr=auto": Case(),
    "JumpReLU": Case(settings={"architecture": "jumprelu"}),
    "lr=0.1": Case(settings={"lr": 0.1}, wanted={"dead-latents": "warning"}, advice="lr=auto"),
    "lr=1": Case(settings={"lr": 1.0}, wanted={"learning-rate-too-high": "error"}, advice="lr=auto"),
    "lr=1e-4": Case(settings={"lr": 1e-4}, wanted={"learning-rate-too-low": "warning"}, advice="lr=auto"),
    "a window of one step, k=2": Case(
        settings={"dead_feature_window": 1, "k": 2}, wanted={"short-window": "warning"}, advice="dead_feature_window"
    ),
}


def look(store: Path, case: Case, out: Path) -> dict[str, Any]:
    """Train, examine; gives the doctor's answer, and whether it is the one that was wanted."""
    sae = replace(SAEConfig(expansion_factor=8, k=32, batch_size=_BATCH_SIZE), **case.settings)
    config = TrainConfig(activations=store, sites=("layers.3",), sae=sae, log_every_steps=5, report=False, out=out)
    train_run(config, progress=False)
    found = examine(out)
    counted = [one for one in found.findings if one.name not in _OF_SPEED]
    severities = {one.name: one.severity for one in counted}
    told = {one.name for one in counted if one.severity == case.wanted.get(one.name) and case.advice in one.todo}
    missed = set(case.wanted) - told
    complaints = [name for name, severity in severities.items() if severity != "note"]
    last = json.loads((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    [site] = last["sites"].values()
    return {
        "right": not missed and (bool(case.wanted) or not complaints),
        "wanted": dict(case.wanted),
        "found": severities,
        "numbers": {name: site[name] for name in ("fvu", "l0", "dead_share")},
        "lines": [text.removeprefix(f"{out}: ") for text in found.lines()],
    }


def arguments() -> argparse.ArgumentParser:
    return parser_with_json(__doc__)


def main() -> None:
    args = arguments().parse_args()
    settle_memory()
    machine = describe()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = CollectConfig(
            sites=("layers.3",), n_tokens=_N_STEPS * _BATCH_SIZE, held_out_tokens=8192, out=Path(folder) / "store"
        )
        store = collect_run(rows, progress=False)
        for number, (name, case) in enumerate(CASES.items()):
            found[name] = look(store, case, Path(folder) / f"run-{number}")
            print(line(name, found[name]), flush=True)
    write(args.json, {"machine": machine, "results": found})
    wrong = [name for name, one in found.items() if not one["right"]]
    if wrong:
        fell_short(", ".join(wrong))


def line(name: str, found: Mapping[str, Any]) -> str:
    """A case in a line."""
    numbers = found["numbers"]
    said = ", ".join(f"{severity} {what}" for what, severity in found["found"].items()) or "healthy"
    wanted = ", ".join(f"{severity} {what}" for what, severity in found["wanted"].items()) or "healthy"
    quality = f"FVU {numbers['fvu']:.3g}, L0 {numbers['l0']:.3g}, dead {numbers['dead_share']:.1%}"
    return f"{name}: {quality}\n    said {said}; wanted {wanted}"


if __name__ == "__main__":
    main()
