"""What the index of a run's features costs: to build, to ask, and to keep.

    python benchmarks/index.py --run runs/demo-stdlib --json benchmarks/results/index.json
    python benchmarks/index.py --run runs/demo-stdlib --quick      # a trial

Building: in turn, in one process, on the same text: the plain forward to the last site that is read with the encoding
of the same batches, and the building of the index, which also tokenises, sorts, writes and spells the vocabulary. First
with the SAE of one site, then with those of all. Building should cost at most 1.3 times as much as forward and
encoding. Where it does not, the parts tell why: tokenising, and what comes behind the last batch (vocabulary, logit
effects), which does not grow with the text. Beside seconds stand those of the processor, which a busy machine disturbs
less; of a machine with several cores they count each core's.

Asking: for random features that fire, `FeatureIndex.open` and `top_texts`, each with a new index object, the way a
notebook that was just started would ask; the files are in the system's cache. 50 ms at most. Once more with an index
that stays open.

Keeping: bytes of tokens and codes for each token, and from them what 10 million tokens at 32 active latents take.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import medians, parser_with_json, ratios, setting, write

from strata import LanguageModel
from strata.activations.harvest import forward_dtype, harvest, token_stream
from strata.bench.machine import describe
from strata.interpret.index import FeatureIndex
from strata.interpret.index_building import build_index
from strata.interpret.index_layout import SHARD_TOKENS
from strata.interpret.logit_effects import LogitEffects
from strata.lm.tokens import TokenBatch
from strata.lm.unembedding import unembedding
from strata.lm.vocabulary import token_texts
from strata.memory import settle_memory
from strata.sae.model import SAE

TARGETS = {"building / forward and encoding": 1.3, "query, 99th percentile ms": 50.0, "10 M tokens at k 32, GB": 2.0}


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo-stdlib"), help="of the embedded model")
    parser.add_argument("--site", default="layers.3", help="whose SAE is taken where one is")
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--text-batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="32,768 tokens, 1 round, 20 queries, 1 SAE")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="on the disk that is written")
    return parser


def main() -> None:
    args = arguments().parse_args()
    if args.quick:
        args.tokens, args.rounds, args.queries = 32_768, 1, 20
    settle_memory()
    args.folder.mkdir(parents=True, exist_ok=True)
    lm = LanguageModel(json.loads((args.run / "run.json").read_text(encoding="utf-8"))["config"]["model"])
    every = {site: SAE.load(args.run / "sae" / site) for site in lm.sites if (args.run / "sae" / site).is_dir()}
    result: dict[str, Any] = {"machine": describe(), "setting": setting(args)}
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="bench-index-") as name:
        folder = Path(name) / "index"
        result["building"] = {"1 SAE": measure_building(lm, {args.site: every[args.site]}, folder, args)}
        # The index of one SAE, as the issue counts.
        result["asking"] = measure_asking(folder, args.site, n_queries=args.queries)
        result["keeping"] = measure_keeping(folder, args.site)
        if not args.quick:
            result["building"][f"{len(every)} SAEs"] = measure_building(lm, every, folder, args)
    show(result)
    write(args.json, result)


def measure_building(
    lm: LanguageModel, saes: Mapping[str, SAE], folder: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of each contender, and their ratios to forward and encoding, medians of rounds taken in turn."""
    reading: dict[str, Any] = {"context_tokens": args.context, "text_batch_size": args.text_batch_size}
    batches = first_batches(lm, n_sequences=-(-args.tokens // args.context), reading=reading)
    n_tokens = sum(len(batch.input_ids) for batch in batches) * args.context
    contenders = {
        **plain_passes(lm, saes, batches),
        "building": lambda: build_index(
            lm, saes, "stdlib", folder=folder, n_tokens=n_tokens, progress=False, **reading
        ),
        "tokenising": lambda: first_batches(lm, n_sequences=n_tokens // args.context, reading=reading),
        "behind the last batch": lambda: behind_the_last_batch(lm, saes),
    }
    clocks = both_clocks(contenders, n_rounds=args.rounds)
    for taken in clocks.values():
        ends = zip(taken["building"], taken["behind the last batch"], strict=True)
        taken["building, but for that"] = [whole - end for whole, end in ends]
    return {
        "n_tokens": n_tokens,
        "medians": {clock: medians(taken) for clock, taken in clocks.items()},
        "ratios": {clock: ratios(taken, to="forward and encoding") for clock, taken in clocks.items()},
        "rounds": clocks,
    }


def first_batches(lm: LanguageModel, *, n_sequences: int, reading: Mapping[str, Any]) -> list[TokenBatch]:
    """The text's beginning: batches with at least so many sequences."""
    found, n_read = [], 0
    for batch in token_stream(lm, "stdlib", **reading):
        found.append(batch)
        n_read += len(batch.input_ids)
        if n_read >= n_sequences:
            break
    return found


def plain_passes(
    lm: LanguageModel, saes: Mapping[str, SAE], batches: list[TokenBatch]
) -> dict[str, Callable[[], object]]:
    """The forward alone, and with the encoding of what it gives."""
    dtype, sites = forward_dtype(lm, "auto"), list(saes)

    @torch.inference_mode()
    def forward() -> None:
        for batch in batches:
            harvest(lm, batch, sites, autocast_dtype=dtype)

    @torch.inference_mode()
    def forward_and_encoding() -> None:
        for batch in batches:
            rows = harvest(lm, batch, sites, autocast_dtype=dtype)
            for site, sae in saes.items():
                sae.encode_sparse(rows[site])

    return {"forward": forward, "forward and encoding": forward_and_encoding}


def behind_the_last_batch(lm: LanguageModel, saes: Mapping[str, SAE]) -> None:
    """What building does once, however long the text: the vocabulary's spelling and the effects on the logits."""
    token_texts(lm.tokenizer, lm.vocabulary_size)
    matrix = unembedding(lm)
    assert matrix is not None
    for sae in saes.values():
        LogitEffects.of(sae.W_dec, matrix)


def both_clocks(contenders: Mapping[str, Callable[[], object]], *, n_rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each contender in each round, by the wall's clock and the processor's; a first round warms up."""
    clocks: dict[str, dict[str, list[float]]] = {clock: {n: [] for n in contenders} for clock in ("wall", "processor")}
    for turn in range(n_rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter(), time.process_time()
            run()
            took = time.perf_counter() - start[0], time.process_time() - start[1]
            if turn:
                for clock, seconds in zip(clocks, took, strict=True):
                    clocks[clock][name].append(seconds)
    return clocks


def measure_asking(folder: Path, site: str, *, n_queries: int) -> dict[str, Any]:
    """Milliseconds from a path to the texts of a random live feature, and from an index that is open."""
    live = np.flatnonzero(FeatureIndex.open(folder)[site].n_fired)
    chosen = np.random.default_rng(0).choice(live, min(n_queries, len(live)), replace=False).tolist()
    opened = FeatureIndex.open(folder)
    ways: dict[str, Callable[[int], object]] = {
        "open and ask": lambda latent: FeatureIndex.open(folder).top_texts(latent, site),
        "ask": lambda latent: opened.top_texts(latent, site),
        "open, ask and show": lambda latent: FeatureIndex.open(folder).top_texts(latent, site)._repr_html_(),
    }
    found: dict[str, Any] = {"n_queries": len(chosen), "n_live": len(live)}
    for name, ask in ways.items():
        ask(chosen[0])
        took = []
        for latent in chosen:
            start = time.perf_counter()
            ask(latent)
            took.append(1000 * (time.perf_counter() - start))
        found[name] = {"median_ms": statistics.median(took), "p99_ms": float(np.percentile(took, 99)), "ms": took}
    return found


def measure_keeping(folder: Path, site: str) -> dict[str, float]:
    """Bytes for each token; for 10 million, entries and tokens grow with the text and offsets with the shards."""
    index = FeatureIndex.open(folder)
    n_codes = sum(path.stat().st_size for path in folder.glob(f"{site}/codes-*"))
    n_tokens_bytes = sum(path.stat().st_size for path in folder.glob("tokens-*"))
    n_entries = int(index[site].n_fired.sum())
    n_shards = index.record["n_shards"]
    per_shard = 4 * (index[site].d_sae + 1)
    tokens, k = 10_000_000, 32
    extrapolated = tokens * (k * (n_codes - n_shards * per_shard) / n_entries + n_tokens_bytes / index.n_tokens)
    extrapolated += -(-tokens // SHARD_TOKENS) * per_shard
    return {
        "n_tokens": index.n_tokens,
        "entries_per_row": n_entries / index[site].n_rows,
        "codes_bytes_per_token": n_codes / index.n_tokens,
        "codes_bytes_per_entry": n_codes / n_entries,
        "tokens_bytes_per_token": n_tokens_bytes / index.n_tokens,
        "10_million_tokens_at_k_32_gigabytes": extrapolated / 1e9,
    }


def show(result: Mapping[str, Any]) -> None:
    """A table."""
    for name, found in result["building"].items():
        print(f"{name}, {found['n_tokens']:,} tokens: seconds, times forward and encoding; the same of the processor")
        for part in found["ratios"]["wall"]:
            cells = (f"{found['medians'][c][part]:8.2f} s {found['ratios'][c][part]:8.3f}" for c in found["ratios"])
            print(f"{part:>24}: {'  '.join(cells)}")
    asking = result["asking"]
    print(f"{asking['n_queries']} of {asking['n_live']} live features: median and 99th percentile")
    for name in ("open and ask", "ask", "open, ask and show"):
        print(f"{name:>24}: {asking[name]['median_ms']:8.2f} ms {asking[name]['p99_ms']:8.2f} ms")
    for name, value in result["keeping"].items():
        print(f"{name:>40}: {value:,.3f}")
    print("targets: " + ", ".join(f"{name} at most {value:g}" for name, value in TARGETS.items()))


if __name__ == "__main__":
    main()
