"""Both modes side by side: steps per second pre-collected and streaming, and what explains the ratio between them.

    python benchmarks/modes.py --json benchmarks/results/modes.json

At the recipe fast-testing (expansion 16, k 64, 256 rows a step), middle site of the embedded model and of a deeper one
with random weights (24 layers of width 512). Measured in turn in one process, medians: the SAE step alone, training on
collected rows in memory and from a store on disk, the truncated forward alone per step's worth of tokens, and training
while streaming. Pre-collected should cost at most 5 % more than the step, streaming at most 10 % more than forward and
step together. Then the ratio streaming / pre-collected is 1 + forward/step; the last lines compute it for other models
from FLOPs, at equal FLOP rates.
"""

import argparse
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from measuring import in_turn, medians, parser_with_json, setting, write

from strata import LanguageModel, SAEConfig, collect_activations
from strata.activations.harvest import collect, forward_dtype, token_stream
from strata.activations.store import open_store
from strata.activations.stream import Stream
from strata.bench.machine import describe
from strata.kernels.backend import score_dtype
from strata.memory import settle_memory
from strata.recipes import RECIPES
from strata.sae.learner import Learner

_CONTEXT_TOKENS, _DEEP_LAYERS, _DEEP_WIDTH = 256, 24, 512
# name, parameters of a block, width, blocks below the middle site; for the ratio computed from FLOPs
_OTHERS = (
    ("Pythia-160M", 7.1e6, 768, 7),
    ("Gemma-2-2B", 78e6, 2304, 14),
    ("Llama-3.1-8B", 218e6, 4096, 17),
)


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--models", nargs="+", default=["demo", "deep"], choices=["demo", "deep"])
    parser.add_argument(
        "--steps", type=int, default=96, help="steps per round; a multiple of a forward batch's is fair"
    )
    parser.add_argument("--rounds", type=int, default=5)
    return parser


def main() -> None:
    args = arguments().parse_args()
    settle_memory()
    machine = describe()
    found = {}
    for name in args.models:
        lm = LanguageModel("demo") if name == "demo" else deep_model()
        found[name] = measure(lm, RECIPES["fast-testing"]().sae, steps=args.steps, rounds=args.rounds)
        print(report(name, found[name]), flush=True)
    write(args.json, {"machine": machine, "setting": setting(args), "results": found, "computed": computed()})


def deep_model() -> LanguageModel:
    """24 layers of width 512, random weights, the embedded model's tokenizer."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    tokenizer = LanguageModel("demo").tokenizer
    assert tokenizer is not None
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer), hidden_size=_DEEP_WIDTH, num_hidden_layers=_DEEP_LAYERS, num_attention_heads=8,
        intermediate_size=4 * _DEEP_WIDTH, max_position_embeddings=1024,
    )  # fmt: skip
    return LanguageModel(GPTNeoXForCausalLM(config).eval(), tokenizer=tokenizer)


def measure(lm: LanguageModel, config: SAEConfig, *, steps: int, rounds: int) -> dict[str, Any]:
    """Seconds per step of each contender, in turn."""
    site, n_rows = lm.middle_site, steps * config.batch_size
    tokens = token_stream(lm, "stdlib", split="train", context_tokens=_CONTEXT_TOKENS)
    batches = [batch for batch, _ in zip(tokens, range(-(-2 * n_rows // 8000)), strict=False)]
    rows = collect(lm, batches, sites=[site], n_tokens=n_rows)[site]
    autocast = forward_dtype(lm, "auto")
    learner = Learner(config, n_steps=10**6, sample=rows, site=site, score_dtype=score_dtype(lm.device))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    parts = rows[order].split(config.batch_size)  # batches as mixed as the others': how many latents fire is work

    def step_alone(n: int) -> None:
        for i in range(n):
            learner.step(parts[i % len(parts)])

    n_here = list(accumulate(int(batch.is_row.sum()) for batch in batches))
    forwards = bisect_left(n_here, n_rows) + 1  # whole batches: a little more than is asked for, taken off below

    def forward_alone(_: int) -> None:
        for batch in batches[:forwards]:
            lm.activations(batch.input_ids, [site], autocast_dtype=autocast)

    def train_on(endless: Iterator[dict[str, Any]]) -> Callable[[int], None]:
        def run(n: int) -> None:
            for _ in range(n):
                learner.step(next(endless)[site])

        return run

    settings: dict[str, Any] = {"batch_size": config.batch_size, "n_epochs": 10**4, "seed": 0}
    in_memory = collect_activations(lm, "stdlib", [site], n_tokens=4 * n_rows, context_tokens=_CONTEXT_TOKENS)
    streamed = Stream(lm, tokens, sites=[site], n_tokens=10**9).shuffled(**{**settings, "n_epochs": 1})
    streamed.sample(2, site=site)
    with tempfile.TemporaryDirectory() as folder:
        collect_activations(
            lm, "stdlib", [site], n_tokens=4 * n_rows, context_tokens=_CONTEXT_TOKENS, store=Path(folder) / "store"
        )
        stored = open_store(Path(folder) / "store")
        contenders = {
            "step": step_alone,
            "collected": train_on(in_memory.shuffled(**settings).batches()),
            "store": train_on(stored.shuffled(**settings).batches()),
            "forward": forward_alone,
            "streaming": train_on(streamed.batches()),
        }
        taken = in_turn({name: partial(run, steps) for name, run in contenders.items()}, n_rounds=rounds)
        taken["forward"] = [seconds * n_rows / n_here[forwards - 1] for seconds in taken["forward"]]
        each = {name: [seconds / steps for seconds in times] for name, times in taken.items()}
        return {"seconds_per_step": medians(each), "rounds": each} | {
            "site": site, "n_layers": len(lm.sites), "d_in": rows.shape[1], "d_sae": learner.d_sae, "k": config.k,
            "batch_size": config.batch_size,
        }  # fmt: skip


def report(name: str, found: dict[str, Any]) -> str:
    seconds = found["seconds_per_step"]
    parts = seconds["forward"] + seconds["step"]
    over = {what: 100 * (seconds[what] / seconds["step"] - 1) for what in ("collected", "store")}
    ratio = seconds["streaming"] / seconds["collected"]
    widths = f"d_in {found['d_in']}, d_sae {found['d_sae']}, {found['batch_size']} rows a step"
    lines = [f"{name}: {found['site']}, {widths}"]
    lines += [f"  {what:>10}: {1 / value:8.1f} steps/s ({1000 * value:.2f} ms)" for what, value in seconds.items()]
    lines += [
        f"  over the step alone: collected {over['collected']:+.1f} %, store {over['store']:+.1f} % (wanted: ≤ 5 %)",
        f"  streaming over forward and step: {100 * (seconds['streaming'] / parts - 1):+.1f} % (wanted: at most +10 %)",
        f"  collected is {ratio:.1f} times as fast as streaming; 1 + forward/step = {parts / seconds['step']:.1f}",
    ]
    return "\n".join(lines)


def computed() -> dict[str, dict[str, float]]:
    """For other models: FLOPs per row of the forward to the middle site and of the step, attention left out, and how
    many times as long streaming takes at equal rates.
    """
    config, found = RECIPES["fast-testing"]().sae, {}
    for name, block, width, n_blocks in _OTHERS:
        forward = 2 * block * n_blocks
        step = 2 * width * config.expansion_factor * width + 10 * config.k * width
        found[name] = {"forward_flops": forward, "step_flops": step, "ratio": 1 + forward / step}
        print(f"{name}, from FLOPs: streaming takes {found[name]['ratio']:.0f} times as long")
    return found


if __name__ == "__main__":
    main()
