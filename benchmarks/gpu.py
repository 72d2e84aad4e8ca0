"""All GPU figures in one run: two SAE steps beside the installed peers, and a stream from an 8B-shaped model.

    python benchmarks/gpu.py --json benchmarks/results/gpu.json

1. d 768, h 24,576, k 32, 8,192 rows a step: rows per second, the fastest peer, and the score product alone.
2. d 4,096, h 65,536, k 64, 256 rows a step, pre-collected: steps per second.
3. Streaming from a language model of Llama-3-8B's shape with random weights, middle layer, d_sae 65,536, k 64: rows per
   second of the stream over those of the truncated forward alone, on the same tokens.

Needs a CUDA device with some 60 GB and is refused without one; `--rehearse` runs the same code on tiny shapes wherever
it is, to see that it works: its numbers mean nothing. Not run on a CUDA device yet.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from typing import Any

import torch
from measuring import parser_with_json, seconds, write

from strata import LanguageModel, SAEConfig
from strata.activations.harvest import collect, forward_dtype, token_stream
from strata.activations.stream import Stream
from strata.bench.command import measured
from strata.bench.machine import describe
from strata.bench.registry import chosen
from strata.config.bench import BenchOptions
from strata.kernels.backend import kernels, score_dtype
from strata.sae.learner import Learner

STEPS = {
    "768 -> 24576": BenchOptions(d_in=768, d_sae=24_576, k=32, rows=8192, steps_per_round=40),
    "4096 -> 65536": BenchOptions(d_in=4096, d_sae=65_536, k=64, rows=256, steps_per_round=200),
}
TINY_STEPS = {"16 -> 64": BenchOptions(d_in=16, d_sae=64, k=4, rows=32, rounds=1, memory=False, language_model=False)}
LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "max_position_embeddings": 8192,
}
TINY_LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "max_position_embeddings": 256,
}


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--contenders", nargs="+", default=["installed"], help="see strata bench")
    parser.add_argument("--steps", type=int, default=64, help="of each of the stream's rounds")
    parser.add_argument("--rounds", type=int, default=5, help="of the stream")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes, any device, no JSON")
    return parser


def main() -> None:
    args = arguments().parse_args()
    if not torch.cuda.is_available() and not args.rehearse:
        sys.exit("These are a GPU's figures, and here is no CUDA device. --rehearse shows that the program works.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record: dict[str, Any] = {"machine": describe(device), "kernels": kernel_module(device), "steps": {}}
    for name, options in (TINY_STEPS if args.rehearse else STEPS).items():
        contenders = ["strata"] if args.rehearse else chosen(args.contenders, device)
        record["steps"][name] = figures(measured(options, contenders, device=device), options)
        print(name, json.dumps(record["steps"][name]["summary"]), flush=True)
    shape = TINY_LLAMA if args.rehearse else LLAMA_8B
    seq, batch_size, steps = (32, 64, 2) if args.rehearse else (1024, 4096, args.steps)
    record["stream"] = stream(shape, device=device, seq=seq, rows=batch_size, steps=steps, rounds=args.rounds)
    print("stream", json.dumps(record["stream"]), flush=True)
    if not args.rehearse:
        write(args.json, record)


def kernel_module(device: torch.device) -> str:
    """Which kernels Strata took."""
    return str(getattr(kernels(device), "__name__", "unknown"))


def figures(found: dict[str, Any], options: BenchOptions) -> dict[str, Any]:
    """What was measured, and the numbers that the targets are about."""
    steps = found["steps"]
    seconds = {name: options.rows / one["rows_per_second"] for name, one in steps.items()}
    peers = {name: time for name, time in seconds.items() if not name.startswith("strata")}
    summary = {
        "rows_per_second": options.rows / seconds["strata"],
        "steps_per_second": 1 / seconds["strata"],
        "over_score_product": seconds["strata"] / found["floor"]["seconds"],
        "times_fastest_peer": min(peers.values()) / seconds["strata"] if peers else None,
        "fastest_peer": min(peers, key=peers.__getitem__) if peers else None,
    }
    return {"summary": summary, **found}


def random_model(shape: dict[str, Any], device: torch.device) -> LanguageModel:
    """A language model of Llama's architecture with random weights, in bf16 on a GPU."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**shape), dtype=dtype)
    return LanguageModel(model.to(device))


def stream(
    shape: dict[str, Any], *, device: torch.device, seq: int, rows: int, steps: int, rounds: int
) -> dict[str, Any]:
    """Rows per second of the forward to the middle layer alone, of the SAE step alone, and of the stream."""
    lm = random_model(shape, device)
    site, d_in = lm.sites[len(lm.sites) // 2], shape["hidden_size"]
    n_sequences = -(-4 * steps * rows // seq)
    ids = torch.randint(10, shape["vocab_size"], (n_sequences, seq))
    config = SAEConfig(expansion_factor=16, k=min(64, d_in), batch_size=rows, text_batch_size=max(1, 16_384 // seq))
    text = token_stream(lm, ids, split="train", context_tokens=seq, text_batch_size=config.text_batch_size)
    tokens = list(islice(text, -(-steps * rows // (config.text_batch_size * seq))))
    n_forward = sum(int(batch.is_row.sum()) for batch in tokens)
    sample = collect(lm, tokens, sites=[site], n_tokens=min(n_forward, 8 * rows))[site]
    learner = Learner(config, n_steps=10**6, sample=sample.float(), site=site, score_dtype=score_dtype(device))
    batches = [batch for batch in sample.float().split(rows) if len(batch) == rows]
    shuffled = Stream(lm, text, sites=[site], n_tokens=10**12).shuffled(batch_size=rows, n_epochs=1, seed=0)
    shuffled.sample(2, site=site)

    def forward() -> None:
        for batch in tokens:
            lm.activations(batch.input_ids.to(device), [site], autocast_dtype=forward_dtype(lm, "auto"))

    def sae_steps() -> None:
        for step in range(steps):
            learner.step(batches[step % len(batches)])

    def streamed() -> None:
        with closing(shuffled.batches()) as endless:
            for batch in islice(endless, steps):
                learner.step(batch[site])

    parts: dict[str, tuple[Callable[[], None], int]] = {
        "forward": (forward, n_forward),
        "sae": (sae_steps, steps * rows),
        "stream": (streamed, steps * rows),
    }
    found: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(rounds + 1):
        for name, (run, n_rows) in parts.items():
            rate = n_rows / seconds(run)
            if number:  # the first round compiles and fills the buffer
                found[name].append(rate)
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    return {
        "shape": shape,
        "site": site,
        "rows_per_second": medians,
        "share_of_forward": medians["stream"] / medians["forward"],
        "rounds": found,
    }


if __name__ == "__main__":
    main()
