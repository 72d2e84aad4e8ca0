"""Every gate trained on the same rows, reopened in SAELens: held-out L0 against k, FVU, silent latents, seconds a step.

    python benchmarks/gates.py --json benchmarks/results/gates.json

Needs sae-lens. Rows are the embedded model's, layers 3 and 4 side by side (384 wide); 65,536 rows of other files are
held out (L0 differs by some percent between samples of few files). L0 and FVU are what `sae_lens.SAE.load_from_disk`
computes from the saved folder on raw activations.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import torch
from measuring import parser_with_json, setting, write
from torch import Tensor

from strata import SAEConfig
from strata.bench.machine import describe
from strata.bench.rows import BenchRows, demo_rows
from strata.config.train import Architecture
from strata.kernels.backend import score_dtype
from strata.sae import metrics
from strata.sae.learner import Learner

_HELD_OUT_ROWS = 65_536
_CACHE = Path("build/figures/gates-rows.safetensors")


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--architectures", nargs="+", default=list(get_args(Architecture)))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=4096, help="per step")
    parser.add_argument("--expansion", type=int, default=8)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--revival", default="auto")
    return parser


def main() -> None:
    args = arguments().parse_args()
    machine = describe()
    rows = demo_rows(args.steps * args.rows, _HELD_OUT_ROWS, cache=_CACHE)
    found = {}
    for name in args.architectures:
        found[name] = train_and_reopen(name, rows, args)
        print(f"{name}: {found[name]}", flush=True)
    write(args.json, {"machine": machine, "setting": setting(args), "results": found})


def train_and_reopen(architecture: Any, rows: BenchRows, args: argparse.Namespace) -> dict[str, float]:
    config = SAEConfig(
        architecture=architecture, expansion_factor=args.expansion, k=args.k, batch_size=args.rows, revival=args.revival
    )
    sample = rows.train[: 2**16].float()
    learner = Learner(config, n_steps=args.steps, sample=sample, score_dtype=score_dtype(sample.device))
    seconds = []
    for batch in rows.train.split(args.rows)[: args.steps]:
        x = batch.float()
        start = time.perf_counter()
        learner.step(x)
        seconds.append(time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        learner.finish({"model_name": "demo", "hook_name": "blocks.3.hook_resid_post"}).save(folder)
        l0, fvu, silent = in_saelens(folder, rows.held_out.float())
    return {
        "l0": round(l0, 3),
        "off_k_percent": round(100 * (l0 / args.k - 1), 2),
        "fvu": round(fvu, 4),
        "silent_percent": round(100 * silent, 1),
        "median_seconds_per_step": round(statistics.median(seconds), 4),
    }


@torch.no_grad()
def in_saelens(folder: str, x: Tensor) -> tuple[float, float, float]:
    """L0, FVU and share of silent latents as SAELens computes codes and reconstructions."""
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)
    n_active, fired, parts = 0, torch.zeros(sae.cfg.d_sae, dtype=torch.bool), []
    for chunk in x.split(1024):
        codes = sae.encode(chunk)
        codes = codes.to_dense() if codes.is_sparse else codes
        n_active += int((codes > 0).sum())
        fired |= (codes > 0).any(0)
        parts.append(sae.decode(codes))
    return n_active / len(x), metrics.fvu(x, torch.cat(parts)).item(), 1 - fired.float().mean().item()


if __name__ == "__main__":
    main()
