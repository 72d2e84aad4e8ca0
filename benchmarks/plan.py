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
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import describe

from strata import LanguageModel
from strata.config import SAEConfig, TrainConfig
from strata.memory import keep_freed_memory
from strata.plan.calibration import calibrate
from strata.plan.command import quote_of
from strata.plan.machine import read_calibration
from strata.recipes import RECIPES
from strata.run import train_run


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
    lm = LanguageModel(config.model if config.model != "auto" else "demo")
    calibrated = read_calibration(lm.device)
    assert calibrated is not None
    quote = quote_of(config)
    start = time.perf_counter()
    rows, _ = train_run(replace(config, out=out), progress=False)
    wall = time.perf_counter() - start
    record = json.loads((out / "run.json").read_text())
    return {"predicted": dict(quote.seconds), "measured": record["seconds"], "wall_seconds": wall,
            "n_sites": len(rows.sites), "n_steps": record["n_steps"]}  # fmt: skip


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
        for model in dict.fromkeys(config.model for config in chosen.values()):
            calibrate(LanguageModel("demo" if model == "auto" else model), config=next(iter(chosen.values())))
        for number, (name, config) in enumerate(chosen.items()):
            found[name] = measure(config, Path(folder) / f"run-{number}")
            print(line(name, found[name]), flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"machine": describe(), "results": found}, indent=1) + "\n")


def line(name: str, found: Mapping[str, Any]) -> str:
    """A case in a line: predicted, measured, their ratio."""
    predicted, measured = found["predicted"], found["measured"]
    print(predicted, measured, found["wall_seconds"])
    total = sum(predicted.values())
    return f"{name:>26}: predicted {total:6.1f} s, took {found['wall_seconds']:6.1f} s, {total / found['wall_seconds']:.2f}"


if __name__ == "__main__":
    main()
