"""The rows that contenders train on: the embedded model's activations, synthetic ones, or a file's."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.cache import cache_folder
from strata.errors import UserError
from strata.log import say

_DEMO_WIDTH, _DEMO_LAYERS = 192, 8
_LEAST_HELD_OUT = 8192  # rows that are kept though nobody asks for as many


@dataclass(frozen=True)
class BenchRows:
    """Shuffled rows.

    Attributes:
        train: [n d_in].
        held_out: [n_held_out d_in], from other documents.
        source: what they are, for the record.
    """

    train: Float[Tensor, "n d_in"]
    held_out: Float[Tensor, "n_held_out d_in"]
    source: str


def open_rows(source: str | Path, *, d_in: int, n_rows: int, n_held_out: int) -> BenchRows:
    """Rows to train on, and some of other documents.

    Args:
        source: "synthetic", "demo", or a safetensors file with `train`, `held_out` and, in its metadata, `source`.
        d_in: their width.
        n_rows: how many to train on.
        n_held_out: how many of the others.

    Raises:
        UserError: the file is not there or holds others; a width that the embedded model's layers do not make.
    """
    if source == "synthetic":
        rows = synthetic_rows(n_rows + n_held_out, d_in)
        return BenchRows(rows[:n_rows], rows[n_rows:], "synthetic")
    if source == "demo":
        return demo_rows(n_rows, n_held_out, d_in=d_in)
    return _of_file(Path(source), d_in=d_in, n_rows=n_rows, n_held_out=n_held_out)


def synthetic_rows(n_rows: int, d_in: int, *, seed: int = 0) -> Float[Tensor, "n_rows d_in"]:
    """fp32 rows that are sums of 16 of 2·d_in directions of falling frequencies, a mean and some noise. They cost a
    step what real ones cost; no quality on them means anything.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(2 * d_in, d_in, generator=generator), dim=1)
    frequencies = 1.0 / torch.arange(1, 2 * d_in + 1)
    rows = torch.empty(n_rows, d_in)
    for chunk in torch.split(rows, 8192):
        chosen = torch.multinomial(frequencies.expand(len(chunk), -1), min(16, 2 * d_in), generator=generator)
        weights = torch.rand(chosen.shape, generator=generator) + 0.5
        chunk.copy_(torch.nn.functional.embedding_bag(chosen, directions, per_sample_weights=weights, mode="sum"))
        chunk.add_(torch.randn(chunk.shape, generator=generator), alpha=0.02).add_(directions[0])
    return rows


def demo_sites(d_in: int) -> list[str]:
    """Neighbouring layers of the embedded model, around its middle, that are d_in wide side by side.

    Raises:
        UserError: no number of layers is.
    """
    n, rest = divmod(d_in, _DEMO_WIDTH)
    if rest or not 1 <= n <= _DEMO_LAYERS:
        raise UserError(
            f"`d_in` must be a multiple of {_DEMO_WIDTH} up to {_DEMO_WIDTH * _DEMO_LAYERS} with rows of the embedded"
            f" model. Got {d_in}. Give another, or --rows-from synthetic."
        )
    first = (_DEMO_LAYERS - n) // 2
    return [f"layers.{first + i}" for i in range(n)]


def demo_rows(n_rows: int, n_held_out: int, *, d_in: int = 384, cache: Path | None = None) -> BenchRows:
    """Neighbouring layers of the embedded model side by side, on the standard library's text; fp16.

    They are collected once and kept. Attention sinks (strata.sae.normalization) are left out of both parts, for every
    contender alike.

    Args:
        n_rows: to train on, from documents on which the model was trained.
        n_held_out: from other documents.
        d_in: width, see `demo_sites`.
        cache: the file that keeps them; None is one in $STRATA_CACHE or the user's cache folder, which is made anew
            where it holds too few.

    Raises:
        UserError: a width that layers do not make, or too little text.
    """
    sites = demo_sites(d_in)
    path = cache_folder() / f"bench-rows-{d_in}.safetensors" if cache is None else cache
    if not path.exists() or (cache is None and not _has(path, n_rows, n_held_out)):
        import safetensors.torch

        train, n_sinks = _collect(sites, n_rows, held_out=False)
        held_out, n_held_out_sinks = _collect(sites, max(n_held_out, _LEAST_HELD_OUT), held_out=True)
        source = f"embedded model, {' and '.join(sites)} side by side; sinks left out: {n_sinks} and {n_held_out_sinks}"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        safetensors.torch.save_file({"train": train, "held_out": held_out}, partial, metadata={"source": source})
        partial.replace(path)
    return _of_file(path, d_in=d_in, n_rows=n_rows, n_held_out=n_held_out)


def _of_file(path: Path, *, d_in: int, n_rows: int, n_held_out: int) -> BenchRows:
    from safetensors import SafetensorError

    try:
        with _opened(path) as file:
            train, held_out = file.get_slice("train"), file.get_slice("held_out")
            shapes = [*train.get_shape(), *held_out.get_shape()]
            if shapes[1::2] == [d_in, d_in] and shapes[0] >= n_rows and shapes[2] >= n_held_out:
                metadata: dict[str, str] = file.metadata() or {}
                source = metadata.get("source", path.name)
                return BenchRows(train[:n_rows], held_out[:n_held_out], source)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"`rows_from` must be a safetensors file with `train` and `held_out`, or synthetic or demo. Got {path}:"
            f" {error}. Give another."
        ) from error
    raise UserError(
        f"`rows_from` must hold {n_rows} rows and {n_held_out} held-out ones of width {d_in}. {path} holds {shapes[0]}"
        f" of width {shapes[1]} and {shapes[2]} of width {shapes[3]}. Give another, or change --steps, --rows or"
        f" --d-in."
    )


def _opened(path: Path) -> Any:
    """A safetensors file, whose reader has no types."""
    import safetensors

    return safetensors.safe_open(path, framework="pt")


def _has(path: Path, n_rows: int, n_held_out: int) -> bool:
    with _opened(path) as file:
        found: list[int] = [file.get_slice(name).get_shape()[0] for name in ("train", "held_out")]
    return found[0] >= n_rows and found[1] >= n_held_out


def _collect(sites: list[str], n_rows: int, *, held_out: bool) -> tuple[Tensor, int]:
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
    say(f"collecting {n_wanted:,} rows ({'held-out' if held_out else 'training'} files) ...")
    texts = open_texts(documents, split="all")
    acts = collect_activations(lm, texts, sites, n_tokens=n_wanted, dtype="fp16", context_tokens=256)
    rows = torch.cat([acts[site] for site in sites], dim=1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    normalization = Normalization.estimate(rows[: 2**16])
    is_sink = torch.cat([normalization.is_sink(chunk) for chunk in torch.split(rows, 2**16)])
    kept = rows[~is_sink]
    if len(kept) < n_rows:
        raise UserError(
            f"`steps` times `rows` must not exceed what the text gives. Got {n_rows} of {len(kept)} rows. Lower --steps"
            f" or --rows."
        )
    return kept[:n_rows].clone(), int(is_sink.sum())
