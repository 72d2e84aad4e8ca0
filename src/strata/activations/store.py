"""Activations on disk: a store that is opened for training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.activations.collected import Activations
from strata.activations.draws import Draws
from strata.activations.quantization import Encoding
from strata.activations.shards import ShardRecord, check_size
from strata.activations.source import RowSource
from strata.activations.store_blocks import Blocks
from strata.activations.store_layout import (
    Manifest,
    Part,
    PartRecord,
    content_crc32,
    read_encodings,
    read_manifest,
    read_part,
)
from strata.activations.store_reading import StoredRows
from strata.config.layer_groups import Group
from strata.errors import UserError, did_you_mean


class Store:
    """Activations on disk, read in a random order and a block at a time (`strata.activations.source.RowSource`).

    Made by `open_store`.

    Attributes:
        folder: where they lie.
        sites: whose rows are read; see `only`.
        manifest: what they are.
    """

    def __init__(self, folder: Path, manifest: Manifest, parts: Sequence[PartRecord], *, sites: list[str]) -> None:
        self.folder, self.manifest, self.sites = folder, manifest, sites
        self._parts = list(parts)
        shards = [shard for part in parts for shard in part.shards]
        found = read_encodings(folder, manifest)
        assert found is not None or not shards
        self._encodings: dict[str, Encoding] = found or {}
        self._blocks = Blocks(folder, shards, block_rows=manifest.block_rows)

    def only(self, sites: Sequence[str] | str) -> "Store":
        """The same store with some of its sites; those left out are not read.

        Raises:
            UserError: the store has no such site, or none is named.
        """
        names = [sites] if isinstance(sites, str) else list(sites)
        if not names:
            raise UserError(f"`sites` must name at least one site of the store {self.folder}. Got none.")
        for name in names:
            self.d_in(name)
        return Store(self.folder, self.manifest, self._parts, sites=names)

    def d_in(self, site: str) -> int:
        """Width of a site's rows.

        Raises:
            UserError: the store has no such site.
        """
        if site not in self.manifest.sites:
            raise UserError(
                f"The store {self.folder} has no site {site!r}.{did_you_mean(site, self.manifest.sites)} Collect it in"
                " another store."
            )
        return self.manifest.sites[site]

    def n_rows(self) -> int:
        """Rows of each site."""
        return self._blocks.n_rows

    def shuffled(
        self, *, batch_size: int, n_epochs: int, seed: int, reads: Sequence[str | Group] | None = None
    ) -> StoredRows:
        """The rows in a new random order every epoch; fp32 if the store is int8, else in its own type."""
        draws = Draws(self.sites if reads is None else reads, seed=seed)
        encodings = {site: self._encodings[site] for site in draws.sites}
        return StoredRows(self._blocks, encodings, draws, batch_size=batch_size, n_epochs=n_epochs, seed=seed)

    def __getitem__(self, site: str) -> Float[Tensor, "rows d_in"]:
        """All rows of a site, in memory, in the order in which they lie on disk.

        Raises:
            UserError: the store has no such site, or a shard is damaged.
        """
        self.d_in(site)
        return _all_rows(self._blocks, site, self._encodings[site])

    def held_out(self, n_rows: int | None = None, *, site: str) -> Float[Tensor, "rows d_in"]:
        """Rows of documents that are not among those to train on, fp32; none where the store was collected without.

        Args:
            n_rows: how many at most; None is all.
            site: whose.

        Raises:
            UserError: the store has no such site, or a shard is damaged.
        """
        d_in = self.d_in(site)
        shards = [shard for part in self._parts for shard in part.held_out]
        if not shards:
            return torch.zeros(0, d_in)
        blocks = Blocks(self.folder, shards, block_rows=self.manifest.block_rows)
        return _all_rows(blocks, site, self._encodings[site])[:n_rows].float()

    def close(self) -> None:
        """Let go of the files, e.g. to delete them; they are opened again when rows are asked for."""
        self._blocks.close()

    def check_model(self, fingerprint: dict[str, Any]) -> None:
        """That a language model is the one whose activations these are; its name may differ (it may have moved).

        Args:
            fingerprint: of the model, as `LanguageModel.fingerprint` gives it.

        Raises:
            UserError: it is another.
        """
        mine = self.manifest.model
        wrong = [key for key in mine if key != "name" and mine[key] != fingerprint.get(key)]
        if wrong:
            raise UserError(
                f"The store {self.folder} holds activations of {mine.get('name')!r}. Got the language model"
                f" {fingerprint.get('name')!r}, whose {' and '.join(wrong)} differ. Give that model, or another store."
            )

    def fingerprint(self) -> str:
        """Identifies the store's content, as ``crc32:<hex>``: what it is of, and every row through its checksum."""
        return f"crc32:{content_crc32(self.folder, self._part_numbers()):08x}"

    def describe(self) -> dict[str, Any]:
        """Where the rows come from: `model` and `text` as a stream says it, and `store`."""
        kept = {"dtype": self.manifest.dtype, "n_rows": self.n_rows(), "fingerprint": self.fingerprint()}
        return {"mode": "store", "model": self.manifest.model, "text": self.manifest.text, "store": kept}

    def _part_numbers(self) -> list[Part]:
        return [Part(index, self.manifest.n_parts) for index in range(self.manifest.n_parts)]


def open_store(path: str | Path, *, allow_incomplete: bool = False) -> Store:
    """Open activations on disk.

    Args:
        path: the folder that `strata collect` or `collect_activations(store=...)` wrote.
        allow_incomplete: open it also before all of it is written: with the shards that are finished now.

    Raises:
        UserError: it is no store, or damaged; not complete; or there is no row in it.
    """
    folder = Path(path).expanduser()
    manifest = read_manifest(folder)
    parts = [Part(index, manifest.n_parts) for index in range(manifest.n_parts)]
    records = [read_part(folder, part) for part in parts]
    unfinished = [str(part) for part, record in zip(parts, records, strict=True) if not record.complete]
    if unfinished and not allow_incomplete:
        raise UserError(
            f"The store {folder} is not complete: part {', '.join(unfinished)} is not. Give the command that collects"
            " it again, or open it with allow_incomplete=True."
        )
    shards: list[ShardRecord] = [shard for record in records for shard in (*record.shards, *record.held_out)]
    for shard in shards:
        check_size(folder, shard)
    if not any(record.shards for record in records):
        raise UserError(f"The store {folder} holds no rows yet. Collect into it first.")
    return Store(folder, manifest, records, sites=list(manifest.sites))


def rows_of(given: Any) -> RowSource:
    """What can be trained on, from what a user gives: activations, a tensor [rows d_in], a store or its path.

    Raises:
        UserError: it is none of them, or no store lies there.
    """
    if isinstance(given, str | Path):
        return open_store(given)
    if isinstance(given, Tensor):
        return Activations.of(given)
    if isinstance(given, RowSource):
        return given
    raise UserError(
        "Training needs Activations, a floating-point Tensor [rows d_in], or the path of a store. Got"
        f" {type(given).__name__}."
    )


def _all_rows(blocks: Blocks, site: str, encoding: Encoding) -> Tensor:
    return torch.cat([blocks.decode(block, site, encoding) for block in range(len(blocks))])
