"""What `strata plan` predicts, and what trainings then take, side by side.

    python benchmarks/plan.py --json benchmarks/results/plan.json

Measures the machine first (as `strata plan --calibrate` does), then for each case predicts and trains: the recipe demo
streaming and collected, half and twice its width on three layers, models with random weights of other widths (whose
forward is measured too, as the plan does where weights are there), and groups. Predicted and measured are the whole
training (language model, SAE steps, measuring held-out rows, checkpoints); loading, the last evaluation and the report
are not in either. Wanted: within 20 %. Nothing else should be running.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from machine import describe

from strata import LanguageModel
from strata.config import SAEConfig, TrainConfig
from strata.machine.calibration import calibrate
from strata.machine.rates import known_rates, read_calibration
from strata.memory import keep_freed_memory
from strata.plan.training import plan_training
from strata.plan_config import PlanOptions
from strata.recipes import RECIPES
from strata.run import train_run
from strata.run_rows import open_rows

_LEFT_OUT = ("start", "evaluation")


def cases(folder: Path) -> dict[str, TrainConfig]:
    """Trainings by name; models with random weights are saved in `folder`."""
    demo = replace(RECIPES["demo"](), report=False)
    three = replace(demo, sites=("layers.1", "layers.3", "layers.5"), n_tokens=160_000)
    wide = {width: save_model(folder / f"width-{width}", width=width) for width in (384, 512)}
    small = SAEConfig(expansion_factor=8, k=32, batch_size=2048)
    return {
        "demo, streaming": demo,
        "demo, collected": replace(demo, activations="collected"),
        "3 layers, 1,536 latents": replace(three, sae=SAEConfig(expansion_factor=8)),
        "3 layers, 6,144 latents": replace(three, sae=SAEConfig(expansion_factor=32)),
        "width 384, 1 layer": replace(demo, model=str(wide[384]), sites=("middle",), n_tokens=80_000, sae=small),
        "width 512, 2 layers": replace(
            demo, model=str(wide[512]), sites=("layers.1", "layers.3"), n_tokens=60_000, sae=replace(small, k=64)
        ),
        "demo in 2 groups": replace(demo, sites=("middle",), groups="[[0,1,2,3],[4,5,6,7]]", n_tokens=160_000),
        "batches of 256": replace(RECIPES["fast-testing"](), report=False, n_tokens=60_000),
    }


def save_model(folder: Path, *, width: int) -> Path:
    """Six layers with random weights, the embedded model's tokenizer."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    tokenizer = LanguageModel("demo").tokenizer
    assert tokenizer is not None
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=6, num_attention_heads=8,
        intermediate_size=4 * width, max_position_embeddings=512,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measure(config: TrainConfig, out: Path) -> dict[str, Any]:
    """Predicted seconds and those that the training took, by part."""
    rates = known_rates(device=config.device)
    assert rates.kind == "measured"
    numbers, _ = plan_training(config, PlanOptions(), rates)
    predicted = {part: s for part, s in numbers["ways"]["described"][0]["seconds"].items() if part not in _LEFT_OUT}
    rows = open_rows(config)
    _ = rows.language_model if rows.streams else None  # loaded, and what that imports
    start = time.perf_counter()
    train_run(replace(config, out=out), progress=False)
    wall = time.perf_counter() - start
    record = json.loads((out / "run.json").read_text())
    return {
        "predicted_seconds": sum(predicted.values()),
        "seconds": wall,
        "ratio": sum(predicted.values()) / wall,
        "predicted_parts": predicted,
        "parts": record["seconds"],
        "loop": {"predicted": record["predicted"]["seconds"], "seconds": record["seconds"]["total"]},
        "n_steps": record["n_steps"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names of cases, or their beginnings")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        chosen = {
            name: config
            for name, config in cases(Path(folder)).items()
            if args.only is None or any(name.startswith(start) for start in args.only)
        }
        names = dict.fromkeys("demo" if config.model == "auto" else config.model for config in chosen.values())
        for name in names:
            calibrate(LanguageModel(name), config=next(iter(chosen.values())))
        for number, (name, config) in enumerate(chosen.items()):
            found[name] = measure(config, Path(folder) / f"run-{number}")
            print(line(name, found[name]), flush=True)
    calibration = read_calibration(torch.device("cpu"))
    assert calibration is not None
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps({"machine": describe(), "calibration": asdict(calibration), "results": found}, indent=1) + "\n"
        )


def line(name: str, found: Mapping[str, Any]) -> str:
    """A case in a line: predicted, measured, their ratio; and the two large parts."""
    parts, predicted = found["parts"], found["predicted_parts"]
    total = f"predicted {found['predicted_seconds']:6.1f} s, took {found['seconds']:6.1f} s: {found['ratio']:.2f}"
    model = f"language model {predicted.get('language model') or 0:.1f} / {parts['rows']:.1f}"
    return f"{name:>24}  {total}   ({model}, SAE steps {predicted['SAE steps']:.1f} / {parts['sae']:.1f})"


if __name__ == "__main__":
    main()
