"""Dead latents: every revival method and none, with and without centring, on the embedded model's activations and on
synthetic ones whose outlier dimensions have means of 1, 5 and 15 times their spread.

    python benchmarks/dead.py --json benchmarks/results/dead.json --plot docs/dead-latents.svg

Each run prints held-out FVU, the share of latents that are dead after the last step, and the share silent on 8,192
held-out rows. Interrupted, it goes on with the runs that the JSON file lacks.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from measuring import parser_with_json, setting, write
from torch import Tensor

from strata import SAEConfig
from strata.bench.machine import describe
from strata.bench.rows import demo_rows
from strata.evaluate.quality import reconstruction_quality
from strata.kernels.backend import score_dtype
from strata.sae.learner import Learner
from strata.sae.model import SAE

METHODS = ("none", "auxk", "lift", "ghost", "resample")
RATIOS = (1, 5, 15)
_OUTLIERS = 4  # dimensions with a large mean, of all
_D_IN = 192
_N_FEATURES, _N_ACTIVE = 6144, 16  # of the synthetic rows
_N_HELD_OUT = 8192
_LOG_STEPS = 10


def main() -> None:
    args = arguments().parse_args()
    common = {name: value for name, value in setting(args).items() if name not in ("data", "methods")}
    record = open_record(args.json, common)
    for data in args.data:
        rows = None
        for centring in (True, False):
            for method in args.methods:
                name = f"{data}/{'centred' if centring else 'raw'}/{method}"
                if name in record["results"]:
                    continue
                rows = load(data, args) if rows is None else rows
                record["results"][name] = train_and_evaluate(rows, method=method, centring=centring, args=args)
                found = record["results"][name]
                shares = f"dead {found['dead_share']:.3f} silent {found['silent_share']:.3f}"
                print(f"{name}: FVU {found['fvu']:.4f} {shares} ({found['seconds']:.0f} s)", flush=True)
                write(args.json, record)
    if args.plot:
        draw(record, args.plot)


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    sets = ["demo", *(f"outliers-{ratio}" for ratio in RATIOS)]
    parser.add_argument("--data", nargs="+", default=sets, choices=sets)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=4096, help="per step")
    parser.add_argument("--expansion", type=int, default=16)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="a file for the dead share over rows (needs matplotlib)")
    return parser


def open_record(path: Path | None, setting: dict[str, Any]) -> dict[str, Any]:
    if path is None or not path.exists():
        return {"machine": describe(), "setting": setting, "results": {}}
    record = json.loads(path.read_text())
    if record["setting"] != setting:
        raise SystemExit(f"{path} was made with {record['setting']}, this run has {setting}. Give another --json.")
    return record


def load(data: str, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Training and held-out rows, fp16 and fp32."""
    n_rows = args.steps * args.rows
    if data == "demo":
        rows = demo_rows(n_rows, _N_HELD_OUT)
        return rows.train[:, :_D_IN], rows.held_out[:, :_D_IN].float()  # layers.3 alone
    ratio = float(data.removeprefix("outliers-"))
    made = with_outliers(synthetic_rows(n_rows + _N_HELD_OUT), ratio=ratio)
    return made[:n_rows], made[n_rows:]


def synthetic_rows(n_rows: int, *, seed: int = 0) -> Tensor:
    """Rows [n_rows 192]: 16 draws from 6,144 directions, the j-th with a frequency of 1/j, and some noise."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(_N_FEATURES, _D_IN, generator=generator), dim=1)
    up_to = (1.0 / torch.arange(1, _N_FEATURES + 1)).cumsum(0)
    rows = torch.empty(n_rows, _D_IN)
    for chunk in rows.split(2**16):
        drawn = torch.rand(len(chunk), _N_ACTIVE, generator=generator) * up_to[-1]
        chosen = torch.searchsorted(up_to, drawn).clamp_max(_N_FEATURES - 1)
        weights = torch.rand(chosen.shape, generator=generator) + 0.5
        chunk.copy_(torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=weights, mode="sum"))
        chunk.add_(torch.randn(chunk.shape, generator=generator), alpha=0.02)
    return rows


def with_outliers(rows: Tensor, *, ratio: float, seed: int = 0) -> Tensor:
    """The rows with a mean added in a few dimensions, such that the norm of the mean is `ratio` times the root mean
    square of what varies.
    """
    rows -= rows.mean(0)
    spread = rows.square().sum(1).mean().sqrt()
    chosen = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(seed))[:_OUTLIERS]
    rows[:, chosen] += ratio * spread / _OUTLIERS**0.5
    return rows


def train_and_evaluate(
    rows: tuple[Tensor, Tensor], *, method: Any, centring: bool, args: argparse.Namespace
) -> dict[str, Any]:
    train, held_out = rows
    config = SAEConfig(
        expansion_factor=args.expansion, k=args.k, batch_size=args.rows, revival=method, centring=centring,
        seed=args.seed,
    )  # fmt: skip
    sample = train[: 2**16].float()
    learner = Learner(config, n_steps=args.steps, sample=sample, score_dtype=score_dtype(sample.device))
    curve = []
    start = time.perf_counter()
    for step, batch in enumerate(train.split(args.rows)):
        learner.step(batch.float())
        if (step + 1) % _LOG_STEPS == 0:
            found = learner.statistics()
            curve.append({"rows": (step + 1) * args.rows, **{key: found[key] for key in ("fvu", "dead_share")}})
    seconds = time.perf_counter() - start
    sae = learner.finish()
    assert isinstance(sae, SAE)
    quality = reconstruction_quality(sae, held_out)
    return {
        **{key: quality[key] for key in ("fvu", "silent_share", "l0")},
        "dead_share": learner.dead_share(),
        "window_rows": learner.window_steps * args.rows,
        "never_fired_share": (learner.last_fired_step == 0).float().mean().item(),
        "seconds": round(seconds, 1),
        "curve": curve,
    }


def draw(record: dict[str, Any], path: Path) -> None:
    """The dead share over the rows seen: one panel for each kind of rows, a line for each method and centring."""
    from matplotlib.figure import Figure

    results = record["results"]
    sets = list(dict.fromkeys(name.split("/")[0] for name in results))
    figure = Figure(figsize=(3.1 * len(sets), 3.2), layout="constrained")
    axes = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
    for axis, data in zip(axes, sets, strict=True):
        for name, found in results.items():
            if not name.startswith(f"{data}/"):
                continue
            _, centring, method = name.split("/")
            style = {"color": f"C{METHODS.index(method)}", "linestyle": "-" if centring == "centred" else "--"}
            points = found["curve"]
            rows = [point["rows"] / 1e6 for point in points]
            label = f"{method}, {'centred' if centring == 'centred' else 'not centred'}"
            axis.plot(rows, [100 * point["dead_share"] for point in points], label=label, linewidth=1.3, **style)
        axis.set_title(data)
        axis.set_xlabel("rows seen, millions")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("dead latents, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
