"""Measuring how alike layers are: one pass over rows of all of them, from a language model, memory or a store."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.activations.harvest import forward_dtype, harvest, token_stream
from strata.activations.source import RowSource, SiteRows
from strata.errors import UserError
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenStream
from strata.sae.normalization import Normalization
from strata.similarity import AngularDistances, LinearCKA

_LEAST_TOKENS = 20
_ROWS_FOR_MEDIANS = 1024  # of the first rows: from these sinks are told, also while means are taken
_ROWS_FOR_CKA = 256  # of each batch
_STORE_BATCH_ROWS = 4096


@dataclass(frozen=True)
class LayerSimilarity:
    """How alike sites are on some text.

    Attributes:
        sites: in order.
        angular: distances in [0, 1], see `strata.similarity.AngularDistances`; symmetric, zero diagonal.
        cka: linear CKA, see `strata.similarity.LinearCKA`; all NaN where it was not measured.
        n_rows: tokens that the distances are of, attention sinks left out.
        n_mean_rows: tokens before them, of which the means are.
    """

    sites: list[str]
    angular: Float[Tensor, "layers layers"]
    cka: Float[Tensor, "layers layers"]
    n_rows: int
    n_mean_rows: int


def layer_similarity(
    batches: Iterable[Mapping[str, Tensor]], sites: Sequence[str], *, n_tokens: int, cka: bool = True
) -> LayerSimilarity:
    """Measure in one iteration: the first tenth of the tokens gives the means, the others the distances.

    Attention sinks (rows ten times as far from the median row as the median one) are left out: a few of them would move
    the means by more than an ordinary row is long, and all layers would look alike. The median row and distance are
    those of the first 1,024 tokens.

    Args:
        batches: rows [rows d_in] by site, the same tokens at all sites; read no further than needed.
        sites: at least one, all of the same width.
        n_tokens: how many tokens to look at, at least 20; where the text ends before, those that there are.
        cka: measure that too, on 256 tokens of each batch.

    Raises:
        UserError: a number below 20, no site, sites of different widths, rows that are not finite, or a text that ends
            before half of the tokens that are to be looked at after the means.
    """
    if n_tokens < _LEAST_TOKENS:
        raise UserError(f"`n_tokens` must be at least {_LEAST_TOKENS}. Got {n_tokens}. 100,000 are usual.")
    if not sites:
        raise UserError("`sites` must name at least one site. Got none. Give the model's layers.")
    n_mean_rows = n_tokens // 10
    rows = _layers(batches, sites, n_tokens)
    means, radius, rest = _means(rows, sites, n_rows=n_mean_rows)
    angular, alignment = AngularDistances(means, sink_radius=radius), LinearCKA(means)
    n_seen = 0
    for layers in itertools.chain([rest], rows):
        n_seen += len(layers[0])
        angular.add(layers)
        if cka and len(layers[0]):
            some = [layer[:: max(1, len(layer) // _ROWS_FOR_CKA)][:_ROWS_FOR_CKA] for layer in layers]
            alignment.add(_without_sinks(some, means, radius))
    if 2 * n_seen < n_tokens - n_mean_rows:
        raise _too_short(n_tokens, n_mean_rows + n_seen)
    distances = angular.matrix()
    if not bool(distances.isfinite().all()):
        raise _not_finite(sites[int(distances.isfinite().logical_not().sum(0).argmax())])
    aligned = alignment.matrix() if cka else torch.full_like(distances, torch.nan)
    return LayerSimilarity(list(sites), distances, aligned, n_rows=angular.n_rows, n_mean_rows=n_mean_rows)


def measured_similarity(
    lm: LanguageModel,
    texts: Any,
    *,
    n_tokens: int = 100_000,
    sites: Sequence[str] | None = None,
    cka: bool = True,
    split: str = "all",
    context_tokens: int | None = None,
    text_batch_size: int = 32,
    lm_dtype: str = "auto",
) -> LayerSimilarity:
    """How alike the layers of a language model are on a text, from one pass that keeps nothing but sums.

    Args:
        lm: the language model.
        texts: anything that `strata.lm.text.open_texts` takes.
        n_tokens: rows to look at, those for the means included.
        sites: which; None is every layer's residual stream.
        cka: measure that too.
        split: "all", or "train" or "held_out" documents only.
        context_tokens: length of the packed sequences; None is the model's own, at most 1024.
        text_batch_size: sequences per forward.
        lm_dtype: precision of the forward: "auto" (bf16 where the hardware is fast at it), "fp32", "bf16".

    Raises:
        UserError: what `layer_similarity` raises, an unknown site, or a text that cannot be read.
    """
    names = lm.sites if sites is None else list(sites)
    tokens = token_stream(lm, texts, context_tokens=context_tokens, text_batch_size=text_batch_size, split=split)
    return layer_similarity(streamed_rows(lm, tokens, names, lm_dtype=lm_dtype), names, n_tokens=n_tokens, cka=cka)


def streamed_rows(
    lm: LanguageModel, tokens: TokenStream, sites: list[str], *, lm_dtype: str = "auto"
) -> Iterator[SiteRows]:
    """Rows of all sites, one forward of the language model at a time."""
    autocast_dtype = forward_dtype(lm, lm_dtype)
    return (harvest(lm, batch, sites, autocast_dtype=autocast_dtype) for batch in tokens)


def shuffled_rows(source: RowSource) -> Iterator[SiteRows]:
    """Rows of all sites of a store or of activations in memory, one epoch in random order."""
    batch_size = min(_STORE_BATCH_ROWS, source.n_rows())
    return source.shuffled(batch_size=batch_size, n_epochs=1, seed=0).batches()


def _layers(batches: Iterable[Mapping[str, Tensor]], sites: Sequence[str], n_tokens: int) -> Iterator[list[Tensor]]:
    """The batches as lists of layers, checked, n_tokens rows together; parts without a row are left out."""
    left = n_tokens
    for batch in batches:
        layers = [batch[site][:left] for site in sites]
        widths = {site: layer.shape[1] for site, layer in zip(sites, layers, strict=True)}
        if len(set(widths.values())) > 1:
            raise UserError(f"`sites` must be of the same width to be compared. Got {widths}. Name residual ones.")
        left -= len(layers[0])
        if len(layers[0]):
            yield layers
        if left == 0:
            return


def _means(
    rows: Iterator[list[Tensor]], sites: Sequence[str], *, n_rows: int
) -> tuple[Float[Tensor, "layers d_in"], Float[Tensor, " layers"], list[Tensor]]:
    """Means of the first n_rows without sinks; the radius of sinks; and what is left of the last batch read."""
    found: list[list[Tensor]] = []
    n_found = 0
    while n_found < min(n_rows, _ROWS_FOR_MEDIANS):
        batch = next(rows, None)
        if batch is None:
            raise _too_short(n_rows, n_found)
        found.append(batch)
        n_found += len(batch[0])
    first = [torch.cat([batch[layer] for batch in found])[:_ROWS_FOR_MEDIANS] for layer in range(len(sites))]
    known = [Normalization.estimate(layer, site=site) for site, layer in zip(sites, first, strict=True)]
    totals = torch.zeros(len(sites), first[0].shape[1], dtype=torch.float64, device=first[0].device)
    counts = torch.zeros(len(sites), 1, dtype=torch.int64, device=first[0].device)
    left = n_rows
    for batch in itertools.chain(found, rows):
        for place, (layer, normalization) in enumerate(zip(batch, known, strict=True)):
            kept = layer[:left][~normalization.is_sink(layer[:left])]
            totals[place] += kept.sum(0, dtype=torch.float64)
            counts[place] += len(kept)
        if len(batch[0]) >= left:
            radius = torch.tensor([one.sink_radius for one in known], device=totals.device)
            return (totals / counts).float(), radius, [layer[left:] for layer in batch]
        left -= len(batch[0])
    raise _too_short(n_rows, n_rows - left)


def _without_sinks(layers: list[Tensor], means: Tensor, radius: Tensor) -> list[Tensor]:
    kept = torch.stack(
        [(layer.float() - mean).norm(dim=1) <= limit for layer, mean, limit in zip(layers, means, radius, strict=True)]
    ).all(0)
    return [layer[kept] for layer in layers]


def _too_short(n_wanted: int, n_found: int) -> UserError:
    return UserError(
        f"`n_tokens` asks for {n_wanted} rows of text for means and distances, of which half after the means must be"
        f" there. The text holds {n_found}. Lower n_tokens, or give more text."
    )


def _not_finite(site: str) -> UserError:
    return UserError(
        f"Activations must be finite numbers. {site} holds NaN or infinity. Load the language model in fp32 or bf16."
    )
