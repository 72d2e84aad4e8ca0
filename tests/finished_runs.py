"""Folders of runs as training leaves them, with SAEs that were not trained, and their evaluation."""

import json
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from strata.config.evaluate import EvaluateConfig
from strata.lm.model import LanguageModel
from strata.report.comparison import evaluate_and_report
from strata.sae.gates import TopK
from strata.sae.model import SAE
from tiny_models import WIDTH

SITES = ["layers.0", "layers.1", "layers.2"]
D_SAE, CONTEXT, N_ROWS = 48, 32, 3072
SECONDS = {"total": 9.0, "sae": 6.0, "rows": 2.0, "language_model": 2.0}
SETTINGS = {"architecture": "topk", "k": 4, "expansion_factor": 2, "seed": 0, "text_batch_size": 16}


def write_text(folder: Path, *, word: str = "def") -> Path:
    """Documents like Python's, all alike."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"{word} name_{n}(x, y={n * 7919 % 1000}):\n    return x * {n} + y\n" for n in range(80)]
    (folder / "parts.jsonl").write_text("\n".join(json.dumps({"text": part}) for part in parts), encoding="utf-8")
    return folder


def sae(site: str, *, seed: int = 0, like: SAE | None = None) -> SAE:
    """Random features; those of a seed, or those of another SAE."""
    generator = torch.Generator().manual_seed(seed)
    W_dec = normalize(torch.randn(D_SAE, WIDTH, generator=generator), dim=1)
    W_dec = W_dec if like is None else like.W_dec.clone()
    return SAE(
        W_enc=W_dec.t().contiguous(), b_enc=torch.zeros(D_SAE), W_dec=W_dec, b_dec=torch.zeros(WIDTH),
        gate=TopK(4), metadata={"site": site},
    )  # fmt: skip


def layer_wise(seed: int = 0) -> dict[str, SAE]:
    """An SAE for each site."""
    return {site: sae(site, seed=seed) for site in SITES}


def grouped(seed: int = 0) -> dict[str, SAE]:
    """An SAE for the first two sites, and one for the last."""
    shared = sae("layers.0", seed=seed)
    return {
        "layers.0-1/layers.0": shared,
        "layers.0-1/layers.1": sae("layers.1", like=shared),
        "layers.2": sae("layers.2", seed=seed),
    }


def write_run(
    folder: Path, lm: LanguageModel, data: Path, saes: dict[str, SAE], *, random: bool = False, **settings: Any
) -> Path:
    """A run's folder, with these SAEs under their paths."""
    keys = [path.removesuffix(f"/{one.metadata.get('site')}") for path, one in saes.items()]
    name = lm.name.partition(":random")[0]
    record = {
        "status": "trained",
        "config": {
            "model": name, "data": str(data), "context_tokens": CONTEXT, "sae": SETTINGS | settings,
            "random_weights": random,
        },
        "model": lm.fingerprint(),
        "text": {"texts": {"fingerprint": f"of {data.name}"}},
        "n_steps": 48,
        "n_rows": N_ROWS,
        "dead": {key: {"dead_share": 0.25, "dead_window_rows": 640} for key in keys},
        "seconds": SECONDS,
    }  # fmt: skip
    for path, one in saes.items():
        one.save(folder / "sae" / path)
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def change_record(run: Path, **changes: Any) -> Path:
    """Other values in its run.json."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(record | changes), encoding="utf-8")
    return run


def config(*runs: Path, **options: Any) -> EvaluateConfig:
    """The quickest evaluation, but for what is asked."""
    given = {"n_tokens": 256, "tasks": ("none",), "lm_dtype": "fp32", "device": "cpu", "pca": False} | options
    return EvaluateConfig(runs=runs, **given)


def evaluated(folder: Path, *runs: Path, **options: Any) -> dict[str, Any]:
    """What evaluation.json holds."""
    page = evaluate_and_report(config(*runs, out=folder, **options), progress=False)
    return json.loads((page.parent / "evaluation.json").read_text(encoding="utf-8"))
