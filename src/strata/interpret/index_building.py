"""Making an index: the language model runs once over some text, and what every SAE makes of it is kept."""

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.activations.harvest import forward_dtype, harvest, token_stream
from strata.activations.source import SiteRows
from strata.atomic import remove_folder, write_json, write_whole
from strata.errors import UserError
from strata.interpret.index import FeatureIndex
from strata.interpret.index_layout import (
    LOGIT_EFFECTS,
    RECORD,
    VOCABULARY,
    TokenShard,
    checked_key,
    codes_path,
    shard_sequences,
    tokens_path,
)
from strata.interpret.index_record import Reading, begun, record_of
from strata.interpret.index_writing import IndexWriter
from strata.interpret.logit_effects import LogitEffects
from strata.lm.model import LanguageModel
from strata.lm.sites import depth
from strata.lm.tokens import TokenBatch, TokenStream
from strata.lm.unembedding import unembedding
from strata.lm.vocabulary import token_texts
from strata.log import say
from strata.sae.model import SAE
from strata.sae.normalization import Normalization
from strata.shapes import SparseCode

_SAID_EVERY_SECONDS = 5


def build_index(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    texts: Any,
    *,
    folder: str | Path,
    n_tokens: int = 262_144,
    context_tokens: int | None = None,
    text_batch_size: int = 32,
    lm_dtype: str = "auto",
    progress: bool = True,
) -> FeatureIndex:
    """Run the language model once over a text and keep where each feature of each SAE fires.

    Attention sinks (told by `Normalization` from the first batch) are no rows, as in training and evaluation.

    Args:
        lm: the language model; it runs no further than the last site.
        saes: key → SAE, whose ``metadata["site"]`` says where it reads; the key is that site where it says nothing.
        texts: anything that `strata.lm.text.open_texts` takes.
        folder: of the index; an index that is there goes.
        n_tokens: how many tokens to read; the text may end before.
        context_tokens: length of the sequences; None is the model's own, at most 1024.
        text_batch_size: sequences per forward.
        lm_dtype: precision of the forward: "auto", "fp32" or "bf16".
        progress: say on stderr how far it is.

    Raises:
        UserError: an unknown site, a text without a row, or a folder that holds something else.
    """
    reading = Reading(texts, n_tokens, context_tokens, text_batch_size, lm_dtype)
    return build(lm, saes, reading, folder=Path(folder), progress=progress)


def build(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    reading: Reading,
    *,
    folder: Path,
    stated: dict[str, Any] | None = None,
    going_on: bool = False,
    progress: bool = True,
) -> FeatureIndex:
    """As `build_index`.

    Args:
        lm: the language model.
        saes: those that are read.
        reading: which text.
        folder: of the index.
        stated: what the index is of; None is told from the others.
        going_on: with an index of the same that was interrupted, or with a whole one of the same text, which then has
            these SAEs too.
        progress: say on stderr how far it is.
    """
    _check(lm, saes, reading, folder)
    tokens = token_stream(lm, reading.texts, context_tokens=reading.context_tokens,
                          text_batch_size=reading.text_batch_size)  # fmt: skip
    if not going_on:
        remove_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = begun(lm, saes, tokens, reading, stated)
    before = record_of(folder) or {}
    _make_room(folder, record, before)
    whole = before if before.get("complete") else record
    write_json(folder / RECORD, whole | {"being_made": record["stated"]["saes"]})
    _read_text(lm, saes, tokens, reading, folder=folder, progress=progress)
    n_shards = _n_shards(folder, saes)
    if n_shards == 0:
        raise UserError("The text must hold at least one token that is neither pad nor special. Give more text.")
    write_whole(folder / VOCABULARY, json.dumps(token_texts(lm.tokenizer, lm.vocabulary_size)))
    with_effects = _write_logit_effects(lm, saes, folder)
    n_sequences = sum(len(TokenShard.read(tokens_path(folder, number)).token_ids) for number in range(n_shards))
    found = {
        "n_shards": n_shards,
        "n_sequences": n_sequences,
        "logit_effects": [*whole.get("logit_effects", []), *with_effects],
        "saes": dict(sorted((whole["saes"] | record["saes"]).items(), key=lambda sae: depth(sae[0]))),
        "stated": record["stated"] | {"saes": whole["stated"]["saes"] | record["stated"]["saes"]},
        "complete": True,
        "being_made": {},
    }
    write_json(folder / RECORD, record | found)
    return FeatureIndex.open(folder)


def _make_room(folder: Path, record: dict[str, Any], before: dict[str, Any]) -> None:
    """Delete what an interrupted building left of other SAEs under these keys."""
    left = before.get("being_made", {})
    for key, found in record["stated"]["saes"].items():
        if left.get(key) != found:
            shutil.rmtree(folder / key, ignore_errors=True)


def _check(lm: LanguageModel, saes: Mapping[str, SAE], reading: Reading, folder: Path) -> None:
    """Before anything is touched."""
    if not saes:
        raise UserError("`saes` must hold at least one SAE. Got none. Give {site: sae}.")
    if reading.n_tokens < 1:
        raise UserError(f"`n_tokens` must be at least 1. Got {reading.n_tokens}. Give a larger number.")
    for key, sae in saes.items():
        checked_key(key)
        lm.site(sae.metadata.get("site") or key)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"The index must have a folder of its own. {folder} is a file. Give another.")
    if folder.exists() and any(folder.iterdir()) and record_of(folder) is None:
        raise UserError(f"The index must have a folder of its own. {folder} holds something else. Give another.")


def _write_logit_effects(lm: LanguageModel, saes: Mapping[str, SAE], folder: Path) -> list[str]:
    """Of which SAEs there are any."""
    matrix = unembedding(lm)
    written: list[str] = []
    for key, sae in saes.items():
        if matrix is not None and matrix.shape[1] == sae.d_out:
            LogitEffects.of(sae.W_dec, matrix).save(folder / key / LOGIT_EFFECTS)
            written.append(key)
    return written


@torch.inference_mode()
def _read_text(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    tokens: TokenStream,
    reading: Reading,
    *,
    folder: Path,
    progress: bool,
) -> None:
    done = _n_shards(folder, saes)
    seq = tokens.context_tokens
    skipped = done * shard_sequences(seq)
    writer = IndexWriter(folder, {key: sae.d_sae for key, sae in saes.items()}, sequence_tokens=seq,
                         vocabulary_size=lm.vocabulary_size, first_shard=done)  # fmt: skip
    encoder = Encoder(lm, saes, lm_dtype=reading.lm_dtype)
    n_wanted, n_read, start, said = -(-reading.n_tokens // seq), skipped, time.monotonic(), time.monotonic()
    for number, batch in enumerate(cut(tokens, n_wanted, at=shard_sequences(seq))):
        wanted = skipped < len(batch.input_ids)  # shards end where batches do
        skipped -= 0 if wanted else len(batch.input_ids)
        if number > 0 and not wanted:
            continue
        rows = encoder.rows(batch)
        if number == 0:
            encoder.tell_sinks(rows)  # also when going on
        if not wanted:
            continue
        writer.add(batch, encoder.codes(batch, rows))
        n_read += len(batch.input_ids)
        if time.monotonic() - said > _SAID_EVERY_SECONDS:
            said = time.monotonic()
            rate = (n_read - done * shard_sequences(seq)) * seq / (said - start)
            say(f"indexing: {n_read * seq:,} of {n_wanted * seq:,} tokens, {rate:,.0f} a second", shown=progress)
    writer.finish_shard()


def cut(batches: Iterable[TokenBatch], n_sequences: int, *, at: int) -> Iterator[TokenBatch]:
    """The first sequences, in batches that no shard's end, after each `at` of them, runs through."""
    place = 0
    for batch in batches:
        first = 0
        while first < len(batch.input_ids) and place < n_sequences:
            end = min(len(batch.input_ids), first + at - place % at, first + n_sequences - place)
            yield TokenBatch(*(part[first:end] for part in (batch.input_ids, batch.attention_mask, batch.is_row)))
            place, first = place + end - first, end
        if place >= n_sequences:
            return


class Encoder:
    """Batches of tokens in, codes of all SAEs out."""

    def __init__(self, lm: LanguageModel, saes: Mapping[str, SAE], *, lm_dtype: str) -> None:
        self._lm, self._saes = lm, saes
        self._site = {key: sae.metadata.get("site") or key for key, sae in saes.items()}
        self._dtype = forward_dtype(lm, lm_dtype)
        self._sinks: dict[str, Normalization] = {}

    def rows(self, batch: TokenBatch) -> SiteRows:
        """The language model's pass."""
        return harvest(self._lm, batch, list(dict.fromkeys(self._site.values())), autocast_dtype=self._dtype)

    def tell_sinks(self, rows: SiteRows) -> None:
        """Which rows are attention sinks is told from these, which are to be the text's first."""
        self._sinks = {site: Normalization.estimate(x, site=site) for site, x in rows.items()}

    def codes(self, batch: TokenBatch, rows: SiteRows) -> dict[str, tuple[SparseCode, Int[Tensor, " _"]]]:
        """For each SAE its code and the rows' places in the flattened batch."""
        is_row = batch.is_row.reshape(-1).nonzero().squeeze(1)
        kept = {site: self._no_sinks(site, x) for site, x in rows.items()}
        found: dict[str, tuple[SparseCode, Int[Tensor, " _"]]] = {}
        for key, sae in self._saes.items():
            site = self._site[key]
            x = rows[site] if len(kept[site]) == len(rows[site]) else rows[site][kept[site]]
            found[key] = (sae.encode_sparse(x.to(sae.device)), is_row[kept[site].cpu()].to(sae.device))
        return found

    def _no_sinks(self, site: str, x: Float[Tensor, "rows d_in"]) -> Int[Tensor, " kept"]:
        """Places of the rows that are no sinks; what these are told by goes to where the rows are."""
        told = self._sinks[site]
        if told.median.device != x.device:
            told = replace(told, mean=told.mean.to(x.device), median=told.median.to(x.device))
            self._sinks[site] = told
        return (~told.is_sink(x)).nonzero().squeeze(1)


def _n_shards(folder: Path, saes: Mapping[str, SAE]) -> int:
    """How many shards are whole: tokens are written after all codes."""
    number = 0
    while tokens_path(folder, number).exists() and all(codes_path(folder, key, number).exists() for key in saes):
        number += 1
    return number
