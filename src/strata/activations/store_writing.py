"""Writing a store: one pass of the language model over the text, its rows shuffled, a shard at a time."""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from strata.activations.harvest import token_stream
from strata.activations.quantization import tensor_name
from strata.activations.shards import ShardRecord, check_size, write_shard
from strata.activations.source import SiteRows
from strata.activations.store_layout import (
    Part,
    PartRecord,
    choose_encodings,
    read_manifest,
    read_part,
    write_manifest,
    write_part,
)
from strata.activations.store_plan import StorePlan, differences, make_manifest
from strata.activations.stream import Stream
from strata.activations.whole_files import only_writer, writing_to
from strata.amounts import counted
from strata.atomic import as_json
from strata.errors import UserError
from strata.lm.model import LanguageModel
from strata.lm.text import open_texts
from strata.lm.tokens import TokenStream
from strata.log import say

_FITTED_ROWS = 8_192  # choose the int8 encoding
_SECONDS_BETWEEN_LINES = 5


def write_store(
    lm: LanguageModel, texts: Any, *, sites: list[str], folder: Path, plan: StorePlan, progress: bool = True
) -> None:
    """Write this process' part of a store, or what is missing of it.

    Args:
        lm: the language model.
        texts: anything that `strata.lm.text.open_texts` takes.
        sites: where to read; all in one pass.
        folder: the store: new, empty, or begun with the same plan.
        plan: how.
        progress: say on stderr what happens.

    Raises:
        UserError: the folder holds something else or cannot be written, the plan cannot be carried out, the rows do not
            fit the dtype. Shards that are finished stay, and the same call goes on behind them.
    """
    plan.check()
    writer = _Writer(lm, texts, sites=sites, folder=folder, plan=plan, progress=progress)
    writer.join()
    part = Part.parse(plan.part)
    with only_writer(folder, part.record_name(), what=f"Part {part} of the store {folder}"):
        writer.write()


class _Writer:
    """One process at its part of a store."""

    def __init__(
        self, lm: LanguageModel, texts: Any, *, sites: list[str], folder: Path, plan: StorePlan, progress: bool
    ) -> None:
        self._lm, self._texts, self._sites, self._folder = lm, texts, sites, folder
        self._plan, self._part, self._progress = plan, Part.parse(plan.part), progress
        self._tokens = self._token_stream(plan.split)
        for setting, asked in (("part", self._part.n_parts > 1), ("held_out_tokens", plan.held_out_tokens > 0)):
            if asked and self._tokens.one_shot:
                raise UserError(
                    f"`{setting}` needs texts that can be opened more than once: a list, a path or a dataset. Got an"
                    " iterator."
                )
        self._held_out_tokens = self._token_stream("held_out") if plan.held_out_tokens else None
        self._manifest = make_manifest(plan, lm, sites=sites, text=self._tokens.describe())

    def join(self) -> None:
        """Begin the store, or make sure that it was begun with the same plan."""
        folder = self._folder
        if folder.exists() and not folder.is_dir():
            raise UserError(f"A store must be a folder. {folder} is a file. Give another path.")
        with writing_to(folder):
            folder.mkdir(parents=True, exist_ok=True)
            strange = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
            if strange and not (folder / "manifest.json").exists():
                raise UserError(
                    f"A store needs a folder of its own. {folder} holds {sorted(strange)[0]!r} and no manifest.json."
                    " Give another path."
                )
            write_manifest(folder, self._manifest)
        before = read_manifest(folder)
        changed = differences(asdict(before), as_json(asdict(self._manifest)))
        if changed:
            raise UserError(
                f"A store is written with one plan by all its processes. {folder} was begun with another:"
                f" {'; '.join(changed)}. Give the same again, or another path."
            )

    def write(self) -> None:
        """Write what is missing: shards that are gone, then those that follow, then held-out rows."""
        record = read_part(self._folder, self._part)
        record = self._repair(record)
        if record.complete:
            say(f"{self._folder}: part {self._part} is complete", shown=self._progress)
            return
        self._refuse_iterator(continues=bool(record.shards))
        if record.shards:
            n_rows = sum(shard.rows for shard in record.shards)
            say(f"going on behind {counted(len(record.shards), 'shard')}, {n_rows:,} rows", shown=self._progress)
        record = self._write_rows(record)
        if self._part.index == 0 and self._held_out_tokens is not None:
            record = self._write_held_out(record, self._held_out_tokens)
        if not record.shards and self._part.n_parts == 1:
            raise UserError("The text must hold at least one token that is neither pad nor special. It holds none.")
        self._note(replace(record, complete=True))

    def _refuse_iterator(self, *, continues: bool) -> None:
        if continues and self._tokens.one_shot:
            raise UserError(
                f"A store cannot be continued from an iterator of texts, whose beginning is gone. {self._folder} was"
                " begun before. Give a list, a path or a dataset, and another path for the store."
            )

    def _token_stream(self, split: str) -> TokenStream:
        plan, part = self._plan, self._part
        texts = open_texts(self._texts, split=split, text_column=plan.text_column, tokenizer=self._lm.tokenizer)
        if texts.split != split:
            raise UserError(f"`split` must be what the texts were opened with, {texts.split!r}. Got {split!r}.")
        if split != "held_out":
            texts = texts.part(part.index, part.n_parts)
        return token_stream(self._lm, texts, context_tokens=plan.context_tokens, text_batch_size=plan.text_batch_size)

    def _batches(self, tokens: TokenStream, n_rows: int | None, *, start: int) -> Iterator[SiteRows]:
        """The rows in shards, from the one numbered `start` on."""
        stream = Stream(
            self._lm,
            tokens,
            sites=self._sites,
            n_tokens=sys.maxsize if n_rows is None else n_rows,
            repeat=False,
            buffer_tokens=self._plan.buffer_tokens,
            lm_dtype=self._plan.lm_dtype,
        )
        seed = self._plan.seed * 1_000_003 + self._part.index
        shuffled = stream.shuffled(batch_size=self._manifest.shard_rows, n_epochs=1, seed=seed, keep_rest=True)
        return shuffled.batches(start)

    def _write_rows(self, record: PartRecord) -> PartRecord:
        n_rows = self._plan.share()
        lines = _Lines(n_rows, done=sum(shard.rows for shard in record.shards), shown=self._progress)
        for batch in self._batches(self._tokens, n_rows, start=len(record.shards)):
            shard = self._write_shard(self._part.shard_name(len(record.shards)), batch)
            record = self._note(replace(record, shards=(*record.shards, shard)))
            lines.show(shard)
        lines.end()
        return record

    def _write_held_out(self, record: PartRecord, tokens: TokenStream) -> PartRecord:
        """The rows of held-out documents: as many as asked for, or as there are."""
        n_rows = 0
        for batch in tokens:
            n_rows = min(n_rows + int(batch.is_row.sum()), self._plan.held_out_tokens)
            if n_rows == self._plan.held_out_tokens:
                break
        if n_rows == 0:
            say("The text has no held-out documents: the store has no held-out rows.", shown=self._progress)
            return record
        for batch in self._batches(tokens, n_rows, start=len(record.held_out)):
            shard = self._write_shard(_held_out_name(len(record.held_out)), batch)
            record = self._note(replace(record, held_out=(*record.held_out, shard)))
        return record

    def _repair(self, record: PartRecord) -> PartRecord:
        """Write shards anew that were finished and are gone or cut short."""
        for key in ("shards", "held_out"):
            for number, shard in enumerate(getattr(record, key)):
                try:
                    check_size(self._folder, shard)
                except UserError:
                    self._refuse_iterator(continues=True)
                    say(f"{shard.file} is missing or cut short: written anew", shown=self._progress)
                    held_out = self._held_out_tokens if key == "held_out" else None
                    tokens = held_out or self._tokens
                    n_rows = sum(one.rows for one in record.held_out) if held_out else self._plan.share()
                    batch = next(self._batches(tokens, n_rows, start=number))
                    found = list(getattr(record, key))
                    found[number] = self._write_shard(shard.file, batch)
                    record = self._note(replace(record, **{key: tuple(found)}))
        return record

    def _write_shard(self, name: str, batch: SiteRows) -> ShardRecord:
        first = {site: rows[:_FITTED_ROWS] for site, rows in batch.items()}
        with writing_to(self._folder):
            encodings = choose_encodings(self._folder, self._manifest, first)
        tensors: dict[str, Tensor] = {}
        for site, rows in batch.items():
            for part, tensor in encodings[site].encode(rows, site=site).items():
                tensors[tensor_name(site, part)] = tensor.cpu().contiguous()
        with writing_to(self._folder):
            return write_shard(self._folder, name, tensors, block_rows=self._manifest.block_rows)

    def _note(self, record: PartRecord) -> PartRecord:
        with writing_to(self._folder):
            write_part(self._folder, self._part, record)
        return record


class _Lines:
    """How far a collection is, on stderr every few seconds."""

    def __init__(self, n_rows: int | None, *, done: int, shown: bool) -> None:
        self._n_rows, self._done, self._shown = n_rows, done, shown
        self._before, self._bytes = done, 0
        self._said: int | None = None  # rows in the last line
        self._start = self._last = time.monotonic()

    def show(self, shard: ShardRecord) -> None:
        """A shard is finished."""
        self._done += shard.rows
        self._bytes += shard.bytes
        if time.monotonic() - self._last > _SECONDS_BETWEEN_LINES:
            self._say()

    def end(self) -> None:
        """All shards are finished."""
        if self._said != self._done:
            self._say()

    def _say(self) -> None:
        self._last, self._said = time.monotonic(), self._done
        rate = (self._done - self._before) / max(self._last - self._start, 1e-9)
        left = ""
        if self._n_rows is not None and rate > 0 and self._done < self._n_rows:
            minutes, seconds = divmod(int((self._n_rows - self._done) / rate), 60)
            left = f"  {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
        of = "" if self._n_rows is None else f" of {self._n_rows:,}"
        written = f"{self._bytes / 1e9:.2f} GB written"
        say(f"{self._done:,}{of} rows  {written}  {rate:,.0f} rows/s{left}", shown=self._shown)


def _held_out_name(number: int) -> str:
    return f"held-out-{number:05d}.safetensors"
