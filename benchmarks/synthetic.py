"""Do SAEs find features that are known? Strata against SAELens' own trainer on SAELens' synthetic data, at equal rows.

    python benchmarks/synthetic.py --json benchmarks/results/synthetic.json

Needs sae-lens (`sae_lens.synthetic`: 1,024 features in 128 dimensions, firing with Zipfian probabilities). Prints, for
each contender, the mean correlation coefficient between decoder rows and true features under the best one-to-one
matching (arXiv 2505.20254), held-out FVU, L0 and the seconds of its steps. Contenders see the same rows in the same
order; "saelens:1e-3" is SAELens with that learning rate.
"""

import argparse
import time
from typing import Any

import torch
from measuring import parser_with_json, setting, write
from torch import Tensor

from strata import SAEConfig
from strata.bench.contender import Given
from strata.bench.machine import describe
from strata.bench.peers import SAELens
from strata.kernels.backend import score_dtype
from strata.sae import metrics
from strata.sae.learner import Learner

_RUNS = [
    "strata:topk", "strata:batchtopk", "strata:matryoshka", "strata:jumprelu", "strata:gated", "strata:relu",
    "saelens:default", "saelens:1e-3", "saelens:3e-3", "saelens:1e-2",
]  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--runs", nargs="+", default=_RUNS)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--d-in", type=int, default=128)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    return parser


def main() -> None:
    args = arguments().parse_args()
    machine = describe()
    found: dict[str, list[dict[str, float]]] = {}
    for seed in args.seeds:
        features, train, held_out, mean_l0 = make_data(args, seed=seed)
        k = round(mean_l0)
        for run in args.runs:
            result = one_run(run, features, train, held_out, k=k, batch=args.batch, seed=seed)
            found.setdefault(run, []).append(result)
            print(f"seed {seed} {run}: {result}", flush=True)
    write(args.json, {"machine": machine, "setting": setting(args), "results": found})


def make_data(args: argparse.Namespace, *, seed: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """True features [features d_in], training and held-out rows, and how many features a row has on average."""
    from sae_lens.synthetic import ActivationGenerator, FeatureDictionary, zipfian_firing_probabilities

    torch.manual_seed(seed)
    dictionary = FeatureDictionary(args.features, args.d_in, seed=seed)
    chances = zipfian_firing_probabilities(args.features, exponent=0.7, max_prob=0.1, min_prob=0.005)
    generator = ActivationGenerator(args.features, chances, std_firing_magnitudes=0.3, mean_firing_magnitudes=1.0)
    n_parts = -(-(args.rows + 16_384) // 16_384)
    with torch.no_grad():
        rows = torch.cat([dictionary(generator.sample(16_384)).clone() for _ in range(n_parts)])
    directions = dictionary.feature_vectors.detach().clone()
    return directions, rows[: args.rows], rows[args.rows : args.rows + 16_384], float(chances.sum())


def one_run(
    run: str, features: Tensor, train: Tensor, held_out: Tensor, *, k: int, batch: int, seed: int
) -> dict[str, float]:
    from sae_lens.synthetic import mean_correlation_coefficient

    name, _, variant = run.partition(":")
    n_steps, d_in, d_sae = len(train) // batch, features.shape[1], len(features)
    contender: Any
    if name == "strata":
        config = SAEConfig(architecture=variant, expansion_factor=d_sae // d_in, k=k, batch_size=batch, seed=seed)  # pyright: ignore[reportArgumentType]
        sample = train[: 2**16]
        contender = Learner(config, n_steps=n_steps, sample=sample, score_dtype=score_dtype(sample.device))
    else:
        lr = None if variant == "default" else float(variant)
        given = Given(
            d_in=d_in, d_sae=d_sae, k=k, lr=lr, n_steps=n_steps, n_rows=batch, seed=seed, device=torch.device("cpu")
        )
        contender = SAELens(given, decay_share=0.3, window_share=0.25)
    start = time.perf_counter()
    for rows in train.split(batch)[:n_steps]:
        contender.step(rows)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        if name == "strata":
            sae = contender.finish()
            W_dec, x_hat = sae.W_dec, sae(held_out)
            codes = sae.encode(held_out)
        else:
            W_dec, x_hat = contender.trainer.sae.W_dec.detach(), contender.reconstruct(held_out)
            codes = contender.codes(held_out)
    return {
        "mcc": round(mean_correlation_coefficient(W_dec, features), 4),
        "fvu": round(metrics.fvu(held_out, x_hat).item(), 4),
        "l0": round((codes > 0).sum(1).float().mean().item(), 2),
        "k": k,
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
