"""A run folder with plausible numbers and real code as text, for looking at the report and for testing it.

``python tests/fake_run.py FOLDER [n_sites]`` makes one and writes its report.
"""

import json
import math
import random
import re
import sys
from pathlib import Path
from typing import Any

CODE = Path(json.__file__).with_name("decoder.py").read_text(encoding="utf-8")
KINDS = ("strongest", "random")


def site_names(n_sites: int) -> list[str]:
    return [f"layers.{i}" for i in range(n_sites)]


def run_json(n_sites: int) -> dict[str, Any]:
    return {
        "strata_version": "0.1.0",
        "date": "2025-03-14T15:09:26+00:00",
        "config": {
            "model": "demo",
            "data": "stdlib",
            "sites": ["all"],
            "n_tokens": "all",
            "context_tokens": 256,
            "sae": {
                "architecture": "topk",
                "expansion_factor": 16,
                "k": 32,
                "batch_size": 4096,
                "dead_feature_window": "auto",
            },
        },
        "model": {
            "name": "demo",
            "model_class": "GPTNeoXForCausalLM",
            "n_parameters": 5_147_136,
            "config_sha256": "ab" * 32,
        },
        "text": {"tokenizer": {"n_tokens": 4096}, "texts": {"source": "stdlib", "split": "train"}},
        "hardware": {"cpu": "AMD EPYC 9B45", "n_cores": 2, "device": "cpu", "torch": "2.13.0+cpu"},
        "n_steps": 250,
        "n_rows": 1_024_000,
        "seconds": {"total": 71.4, "language_model": 19.2, "sae": 47.5},
        "status": "trained",
    }


def metrics_lines(sites: list[str], dice: random.Random, n_lines: int = 25) -> list[dict[str, Any]]:
    lines = []
    for n in range(1, n_lines + 1):
        at = {}
        for depth, site in enumerate(sites):
            final = 0.07 + 0.12 * depth / max(1, len(sites) - 1)
            value = final + 0.9 * math.exp(-n / 2.2) * dice.uniform(0.9, 1.1) + dice.uniform(0, 0.01)
            dead = 0.0 if n < 7 else 0.09 * math.exp(-((n - 11 - depth / 4) ** 2) / 30) + 0.01 * depth / len(sites)
            at[site] = {"loss": value * 1.1, "fvu": value, "l0": 32.0, "dead_share": dead}
        head = {
            "step": 10 * n,
            "rows": 40_960 * n,
            "tokens": 41_200 * n,
            "seconds": 2.7 * n,
            "rows_per_second": 14_900.0,
        }
        lines.append({**head, "learning_rate": 3e-3, "sites": at})
    return lines


def evaluation(sites: list[str], dice: random.Random) -> dict[str, Any]:
    measured = {}
    for depth, site in enumerate(sites):
        fvu = 0.075 + 0.12 * depth / max(1, len(sites) - 1) + dice.uniform(0, 0.01)
        clean, zero = 2.131, 6.4 + 0.1 * depth
        spliced = clean + 0.08 + 0.3 * fvu
        measured[site] = {
            "explained_variance": 1 - fvu,
            "fvu": fvu,
            "mse": 14.2 * fvu * (depth + 1),
            "cosine": 1 - fvu / 2,
            "l0": 31.9 - 0.01 * depth,
            "l2_ratio": 0.97,
            "relative_reconstruction_bias": 0.995,
            "silent_share": 0.06 + 0.015 * depth,
            "dead_share": 0.004 * depth,
            "dead_window_rows": 253_952,
            "n_sink_rows": 128 if depth > 1 else 0,
            "fvu_with_sinks": fvu / 2,
            "ce_clean": clean,
            "ce_sae": spliced,
            "ce_zero": zero,
            "ce_loss_score": (zero - spliced) / (zero - clean),
            "kl_div_score": 0.96,
            "delta_ce_percent": 100 * (spliced - clean) / clean,
        }
    together = {"ce_clean": 2.7, "ce_sae": 4.9, "ce_zero": 8.3, "ce_loss_score": 0.607, "delta_ce_percent": 81.5}
    counts = {"n_rows": 32_640, "n_tokens": 32_768, "context_tokens": 256}
    return {**counts, "sites": measured, "all_sites": together}


def tokens_of(text: str) -> list[str]:
    return re.findall(r"\n[ ]*| ?[A-Za-z_]{1,7}| ?\d| +|[^\sA-Za-z\d]{1,3}|\s", text)


def features(sites: list[str], dice: random.Random, n_features: int = 8, n_examples: int = 5) -> dict[str, Any]:
    tokens = tokens_of(CODE)
    return {site: [_feature(tokens, dice, n_examples) for _ in range(n_features)] for site in sites}


def _feature(tokens: list[str], dice: random.Random, n_examples: int) -> dict[str, Any]:
    wanted = dice.choice(tokens)
    places = [i for i, token in enumerate(tokens) if token == wanted and 40 <= i < len(tokens) - 40] or [100]
    strongest = dice.uniform(3, 14)
    examples = []
    for rank in range(n_examples):
        start = dice.choice(places) - 30
        excerpt = tokens[start : start + 60]
        peak_value = strongest * 0.93**rank
        values = [peak_value * dice.uniform(0.1, 0.8) if dice.random() < 0.08 or t == wanted else 0.0 for t in excerpt]
        values[30] = peak_value
        examples.append({"tokens": excerpt, "activations": values, "peak": 30})
    density = 10 ** dice.uniform(-4, -1)
    return {
        "latent": dice.randrange(3072),
        "density": density,
        "max_activation": strongest,
        "kind": dice.choice(KINDS),
        "examples": examples,
    }


def write_run(folder: Path, n_sites: int = 8, *, n_features: int = 8, n_examples: int = 5) -> Path:
    """Writes all files of a finished run on that many sites."""
    dice = random.Random(1)
    sites = site_names(n_sites)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", run_json(n_sites))
    lines = metrics_lines(sites, dice)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_json(folder / "evaluation.json", evaluation(sites, dice))
    write_json(folder / "features.json", features(sites, dice, n_features, n_examples))
    for site in sites:
        (folder / "sae" / site).mkdir(parents=True, exist_ok=True)
        write_json(folder / "sae" / site / "cfg.json", {"d_in": 192, "d_sae": 3072})
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


if __name__ == "__main__":
    from strata.report.page import write_report

    print(write_report(write_run(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 8)))
