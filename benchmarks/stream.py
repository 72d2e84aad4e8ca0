"""Streaming against its parts: tokenising, language model and SAE step alone, and all together, in turn within one
process.

    python benchmarks/stream.py --json build/bench-stream.json

Prints seconds per 4,096 rows: tokenising, the truncated forward alone, the SAE step alone on rows in memory, and the
stream. Where forwards overlap with the training (CUDA), the stream should take hardly longer than the slowest of its
parts; where they do not (CPU), at most 10 % more than the sum of forward and step, tokenising having its own thread.
"thread" is the stream with forwards in a thread of their own (CPU only). Beside it the whole forward with logits: what
stopping at the last site saves.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path

import torch
from machine import describe

from strata import LanguageModel, SAEConfig
from strata.activations.harvest import collect, forward_dtype, token_stream
from strata.activations.stream import Stream
from strata.lm.precision import fast_dtype
from strata.memory import settle_memory
from strata.sae.learner import Learner


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--sites", nargs="+", default=["layers.3"], help='sites, or "all"')
    parser.add_argument("--steps", type=int, default=8, help="steps of 4096 rows per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lm-compile", default="off", choices=("on", "off"), help="compile the model's blocks")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settle_memory()
    lm = LanguageModel(args.model)
    sites = lm.sites if args.sites == ["all"] else args.sites
    config = SAEConfig(text_batch_size=32)
    n_rows = args.steps * config.batch_size
    tokens = list(token_stream(lm, "stdlib", split="train", context_tokens=256))[: 2 * args.steps]
    n_batches = -(-n_rows // int(tokens[0].is_row.sum()))
    rows = collect(lm, tokens[:n_batches], sites=sites, n_tokens=n_rows)
    batches = [
        {site: rows[site][i : i + config.batch_size] for site in sites} for i in range(0, n_rows, config.batch_size)
    ]
    dtype = fast_dtype(lm.device)
    learners = {s: Learner(config, n_steps=10_000, sample=rows[s], site=s, score_dtype=dtype) for s in sites}
    autocast = forward_dtype(lm, "auto")

    def language_model() -> None:
        for batch in tokens[:n_batches]:
            lm.activations(batch.input_ids, sites, autocast_dtype=autocast)

    @torch.no_grad()
    def whole_language_model() -> None:
        for batch in tokens[:n_batches]:
            lm.logits(batch.input_ids)

    def train_on(found) -> None:
        for site, learner in learners.items():
            learner.step(found[site])

    def sae_steps() -> None:
        for batch in batches:
            train_on(batch)

    def tokenising() -> None:
        with closing(iter(token_stream(lm, "stdlib", split="train", context_tokens=256))) as batches:
            for _ in islice(batches, n_batches):
                pass

    def streaming(overlap: str) -> Callable[[], None]:
        text = token_stream(lm, "stdlib", split="train", context_tokens=256)
        rows = Stream(lm, text, sites=sites, n_tokens=10**9, overlap=overlap, lm_compile=args.lm_compile).shuffled(
            batch_size=config.batch_size, n_epochs=1, seed=0
        )
        rows.sample(2, site=sites[0])

        def run() -> None:
            with closing(rows.batches()) as endless:  # no forward runs on beside the next contender
                for batch in islice(endless, args.steps):
                    train_on(batch)

        return run

    contenders = {"tokens": tokenising, "forward": language_model, "sae": sae_steps, "stream": streaming("auto")}
    if lm.device.type == "cpu":
        contenders["thread"] = streaming("thread")
    contenders["whole forward"] = whole_language_model
    for run in contenders.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, run in contenders.items():
            taken[name].append(seconds(run) / args.steps)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    share = n_rows / sum(int(b.is_row.sum()) for b in tokens[:n_batches])
    for name in ("tokens", "forward", "whole forward"):
        medians[name] *= share
    overhead = medians["stream"] / (medians["forward"] + medians["sae"]) - 1
    slowest = max(("tokens", "forward", "sae"), key=medians.__getitem__)
    for name, value in medians.items():
        print(f"{name:>14}: {1000 * value:7.1f} ms per 4096 rows ({config.batch_size / value:,.0f} rows/s)")
    print(f"stream over forward and step: {100 * overhead:+.1f} % ({len(sites)} site(s), medians of {args.rounds})")
    print(f"its rate: {100 * medians[slowest] / medians['stream']:.1f} % of that of its slowest part, {slowest}")
    if args.json:
        result = {
            "machine": describe(),
            "sites": sites,
            "seconds_per_step": medians,
            "overhead": overhead,
            "slowest": slowest,
            "rounds": taken,
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
