"""The rows that the benchmarks train on: the embedded model's activations, or synthetic ones for a trial."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

CACHE = Path("build/bench-rows.safetensors")
SITES = ("layers.3", "layers.4")


@dataclass(frozen=True)
class BenchRows:
    """Shuffled rows, fp16, without attention sinks.

    Attributes:
        train: [n d_in], from files on which the embedded model was trained.
        held_out: [n_held_out d_in], from other files.
        source: what they are, for the record.
    """

    train: Tensor
    held_out: Tensor
    source: str


def synthetic_rows(n_rows: int, d_in: int, *, seed: int = 0) -> Tensor:
    """Rows fp32 [n_rows d_in]: sums of 16 of 2·d_in directions of falling frequencies, a mean and some noise."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(2 * d_in, d_in, generator=generator), dim=1)
    frequencies = 1.0 / torch.arange(1, 2 * d_in + 1)
    rows = torch.empty(n_rows, d_in)
    for chunk in rows.split(8192):
        chosen = torch.multinomial(frequencies.expand(len(chunk), -1), 16, generator=generator)
        weights = torch.rand(chosen.shape, generator=generator) + 0.5
        chunk.copy_(torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=weights, mode="sum"))
        chunk.add_(torch.randn(chunk.shape, generator=generator), alpha=0.02).add_(directions[0])
    return rows


def synthetic(n_rows: int, n_held_out: int, *, d_in: int = 384) -> BenchRows:
    """Stand-ins for a trial of the program; no result on them means anything."""
    rows = synthetic_rows(n_rows + n_held_out, d_in).half()
    return BenchRows(rows[:n_rows], rows[n_rows:], "synthetic")


def demo_rows(n_rows: int, n_held_out: int, *, cache: Path = CACHE) -> BenchRows:
    """Two neighbouring layers of the embedded model side by side, on the standard library's text; collected once.

    Attention sinks (strata.sae.normalization) are left out of both parts, for every contender alike.
    """
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        train, n_sinks = _collect(n_rows, held_out=False)
        held_out, n_held_out_sinks = _collect(n_held_out, held_out=True)
        source = f"embedded model, {' and '.join(SITES)} side by side; sinks left out: {n_sinks} and {n_held_out_sinks}"
        partial = cache.with_suffix(".partial")
        save_file({"train": train, "held_out": held_out}, partial, metadata={"source": source})
        partial.rename(cache)
    found = load_file(cache)
    if len(found["train"]) < n_rows or len(found["held_out"]) < n_held_out:
        raise SystemExit(f"{cache} holds {len(found['train'])} and {len(found['held_out'])} rows. Delete it for more.")
    return BenchRows(found["train"][:n_rows], found["held_out"][:n_held_out], _source(cache))


def _source(cache: Path) -> str:
    from safetensors import safe_open

    with safe_open(cache, framework="pt") as file:
        return file.metadata()["source"]


def _collect(n_rows: int, *, held_out: bool) -> tuple[Tensor, int]:
    """n_rows rows drawn from the files in random order, and how many sinks were passed over."""
    from strata.activations.harvest import collect_activations
    from strata.lm.corpus import standard_library_texts
    from strata.lm.model import LanguageModel
    from strata.lm.text import open_texts
    from strata.sae.normalization import Normalization

    documents = list(standard_library_texts(held_out=held_out))
    random.Random(0).shuffle(documents)
    n_wanted = n_rows + n_rows // 20 if not held_out else 8 * n_rows
    lm = LanguageModel("demo")
    texts = open_texts(documents, split="all")
    print(f"collecting {n_wanted} rows ({'held-out' if held_out else 'training'} files) ...", flush=True)
    acts = collect_activations(lm, texts, list(SITES), n_tokens=n_wanted, dtype="fp16", context_tokens=256)
    rows = torch.cat([acts[site] for site in SITES], dim=1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    normalization = Normalization.estimate(rows[: 2**16])
    is_sink = torch.cat([normalization.is_sink(chunk) for chunk in rows.split(2**16)])
    kept = rows[~is_sink]
    if len(kept) < n_rows:
        raise SystemExit(f"The text gave {len(kept)} rows, {n_rows} are wanted. Lower --steps or --rows.")
    return kept[:n_rows].clone(), int(is_sink.sum())
