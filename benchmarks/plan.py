"""What `strata plan` predicts, and what the commands then take, side by side.

    python benchmarks/plan.py --json benchmarks/results/plan.json

Measures the machine first (as `strata plan --calibrate` does), then plans and runs `strata train` for each case: the
recipe demo streaming and collected, half and twice its width on three layers, models with random weights of other
widths (whose forwards are measured too, as the plan does where weights are there), groups, small batches. Predicted and
measured are whole commands, from the start of the process to its report. Wanted: within 20 %. Nothing else should be
running.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from measuring import parser_with_json, strata, write

from strata import LanguageModel
from strata.bench.machine import describe
from strata.cli import parse_train
from strata.config.plan import PlanOptions
from strata.memory import settle_memory
from strata.plan.calibration import calibrate
from strata.plan.rates import known_rates, read_calibration
from strata.plan.training import plan_training

_WIDE = (384, 512)


def cases(folder: Path) -> dict[str, list[str]]:
    """Words after `strata train` by name; models with random weights are saved in `folder`."""
    wide = {width: ["default", "--model", str(save_model(folder / f"width-{width}", width=width))] for width in _WIDE}
    three = ["demo", "--sites", "layers.1", "layers.3", "layers.5", "--n-tokens", "160000", "--no-report"]
    small = ["--sae.expansion-factor", "8", "--sae.batch-size", "2048", "--no-report"]
    return {
        "demo, streaming": ["demo"],
        "demo, collected": ["demo", "--activations", "collected"],
        "3 layers, 1,536 latents": [*three, "--sae.expansion-factor", "8"],
        "3 layers, 6,144 latents": [*three, "--sae.expansion-factor", "32"],
        "width 384, 1 layer": [*wide[384], "--n-tokens", "80000", *small],
        "width 512, 2 layers": [
            *wide[512], "--sites", "layers.1", "layers.3", "--n-tokens", "60000", "--sae.k", "64", *small
        ],
        "demo in 2 groups": [
            "demo", "--sites", "middle", "--groups", "[[0,1,2,3],[4,5,6,7]]", "--n-tokens", "160000", "--no-report"
        ],
        "batches of 256": ["fast-testing", "--n-tokens", "60000", "--no-report"],
    }  # fmt: skip


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


def measure(words: list[str], out: Path) -> dict[str, Any]:
    """Predicted seconds of a command and those that it took, by part."""
    config = parse_train([*words, "--out", str(out)])
    rates = known_rates(device=config.device)
    assert rates.kind == "measured"
    numbers, _ = plan_training(config, PlanOptions(), rates)
    described = numbers["ways"]["described"][0]
    seconds = strata("train", *words, "--out", str(out))
    record = json.loads((out / "run.json").read_text())
    return {
        "words": [word if "/" not in word else Path(word).name for word in words],
        "predicted_seconds": described["total_seconds"],
        "seconds": seconds,
        "ratio": described["total_seconds"] / seconds,
        "predicted_parts": described["seconds"],
        "parts": record["seconds"],
        "n_steps": record["n_steps"],
    }


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--only", nargs="+", help="names of cases, or their beginnings")
    return parser


def main() -> None:
    args = arguments().parse_args()
    settle_memory()
    machine = describe()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        chosen = {
            name: words
            for name, words in cases(Path(folder)).items()
            if args.only is None or any(name.startswith(start) for start in args.only)
        }
        for name, words in [
            ("demo", ["demo"]),
            *((words[2], words) for words in chosen.values() if "--model" in words),
        ]:
            config = parse_train(words)
            calibrate(
                LanguageModel(name), context_tokens=config.context_tokens, text_batch_size=config.sae.text_batch_size
            )
        for number, (name, words) in enumerate(chosen.items()):
            found[name] = measure(words, Path(folder) / f"run-{number}")
            print(line(name, found[name]), flush=True)
    calibration = read_calibration(torch.device("cpu"))
    assert calibration is not None
    write(args.json, {"machine": machine, "calibration": asdict(calibration), "results": found})


def line(name: str, found: Mapping[str, Any]) -> str:
    """A case in a line: predicted, measured, their ratio; and the two large parts."""
    parts, predicted = found["parts"], found["predicted_parts"]
    total = f"predicted {found['predicted_seconds']:6.1f} s, took {found['seconds']:6.1f} s: {found['ratio']:.2f}"
    model = f"language model {predicted.get('language model') or 0:.1f} / {parts['rows']:.1f} waited"
    return f"{name:>24}  {total}   ({model}, SAE steps {predicted['SAE steps']:.1f} / {parts['sae']:.1f})"


if __name__ == "__main__":
    main()
