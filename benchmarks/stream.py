"""Streaming against its parts: tokenising, language model and SAE step alone, and all together, in turn within one
process.

    python benchmarks/stream.py --json benchmarks/results/stream-1-site.json

Prints seconds per 4,096 rows: tokenising, the truncated forward alone, the SAE step alone on rows in memory, and the
stream. Where forwards overlap with the training (CUDA), the stream should take hardly longer than the slowest of its
parts; where they do not (CPU), at most 10 % more than the sum of forward and step, tokenising having its own thread.
"thread" is the stream with forwards in a thread of their own (CPU only). Beside it the whole forward with logits: what
stopping at the last site saves.
"""

import argparse
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import islice
from typing import Any

import torch
from measuring import in_turn, medians, parser_with_json, setting, write
from torch import Tensor

from strata import LanguageModel, SAEConfig
from strata.activations.harvest import collect, forward_dtype, token_stream
from strata.activations.stream import Stream
from strata.bench.machine import describe
from strata.kernels.backend import score_dtype
from strata.lm.tokens import TokenBatch, TokenStream
from strata.memory import settle_memory
from strata.sae.learner import Learner

CONFIG = SAEConfig(text_batch_size=32)


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--sites", nargs="+", default=["layers.3"], help='sites, or "all"')
    parser.add_argument("--steps", type=int, default=8, help="steps of 4096 rows per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lm-compile", default="off", choices=("on", "off"), help="compile the model's blocks")
    return parser


def main() -> None:
    args = arguments().parse_args()
    settle_memory()
    machine = describe()
    lm = LanguageModel(args.model)
    sites = lm.sites if args.sites == ["all"] else args.sites
    n_rows = args.steps * CONFIG.batch_size
    tokens = list(islice(text(lm), 2 * args.steps))
    tokens = tokens[: -(-n_rows // int(tokens[0].is_row.sum()))]
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(0))  # as mixed as a stream's
    rows = {site: found[order] for site, found in collect(lm, tokens, sites=sites, n_tokens=n_rows).items()}
    whole = in_turn(contenders(lm, tokens, rows, args), n_rounds=args.rounds)
    taken = {name: [seconds / args.steps for seconds in times] for name, times in whole.items()}
    middle = medians(taken)
    share = n_rows / sum(int(batch.is_row.sum()) for batch in tokens)
    for name in ("tokens", "forward", "whole forward"):
        middle[name] *= share
    overhead = middle["stream"] / (middle["forward"] + middle["sae"]) - 1
    slowest = max(("tokens", "forward", "sae"), key=middle.__getitem__)
    for name, value in middle.items():
        print(f"{name:>14}: {1000 * value:7.1f} ms per 4096 rows ({CONFIG.batch_size / value:,.0f} rows/s)")
    print(f"stream over forward and step: {100 * overhead:+.1f} % ({len(sites)} site(s), medians of {args.rounds})")
    print(f"its rate: {100 * middle[slowest] / middle['stream']:.1f} % of that of its slowest part, {slowest}")
    found = {"seconds_per_step": middle, "overhead": overhead, "slowest": slowest, "rounds": taken}
    write(args.json, {"machine": machine, "setting": setting(args), "sites": sites, **found})


def text(lm: LanguageModel) -> TokenStream:
    return token_stream(lm, "stdlib", split="train", context_tokens=256)


def contenders(
    lm: LanguageModel, tokens: list[TokenBatch], rows: Mapping[str, Tensor], args: argparse.Namespace
) -> dict[str, Callable[[], None]]:
    """The stream and its parts, by name; each call is `args.steps` steps' worth."""
    sites, dtype, autocast = list(rows), score_dtype(lm.device), forward_dtype(lm, "auto")
    learners = {s: Learner(CONFIG, n_steps=10_000, sample=rows[s], site=s, score_dtype=dtype) for s in sites}
    starts = range(0, args.steps * CONFIG.batch_size, CONFIG.batch_size)
    batches = [{site: rows[site][i : i + CONFIG.batch_size] for site in sites} for i in starts]

    def tokenising() -> None:
        with closing(iter(text(lm))) as batches:  # nothing is tokenised on beside the next contender
            for _ in islice(batches, len(tokens)):
                pass

    def forward() -> None:
        for batch in tokens:
            lm.activations(batch.input_ids, sites, autocast_dtype=autocast)

    @torch.no_grad()
    def whole_forward() -> None:
        for batch in tokens:
            lm.logits(batch.input_ids)

    def sae_steps() -> None:
        for batch in batches:
            train_on(learners, batch)

    every = {
        "tokens": tokenising,
        "forward": forward,
        "sae": sae_steps,
        "stream": streaming(lm, learners, "auto", args),
    }
    if lm.device.type == "cpu":
        every["thread"] = streaming(lm, learners, "thread", args)
    return every | {"whole forward": whole_forward}


def streaming(
    lm: LanguageModel, learners: Mapping[str, Learner], overlap: str, args: argparse.Namespace
) -> Callable[[], None]:
    """Training on a stream whose buffer is full."""
    sites: Any = list(learners)
    stream = Stream(lm, text(lm), sites=sites, n_tokens=10**9, overlap=overlap, lm_compile=args.lm_compile)
    rows = stream.shuffled(batch_size=CONFIG.batch_size, n_epochs=1, seed=0)
    rows.sample(2, site=sites[0])

    def run() -> None:
        with closing(rows.batches()) as endless:  # no forward runs on beside the next contender
            for batch in islice(endless, args.steps):
                train_on(learners, batch)

    return run


def train_on(learners: Mapping[str, Learner], batch: Mapping[Any, Tensor]) -> None:
    for site, learner in learners.items():
        learner.step(batch[site])


if __name__ == "__main__":
    main()
