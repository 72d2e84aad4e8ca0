"""A store's folder: what its files are called, what they say, and how they come into being whole.

manifest.json                      what the rows are: model, text, sites, type; the same for every process
encoding.safetensors               of int8 stores: centre and outlier channels of each site
part-00000-of-00002.json           a process' finished shards
part-00000-shard-00000.safetensors rows in random order, one tensor per site; its header holds a CRC-32 per block
held-out-00000.safetensors         rows of held-out documents, in the same form
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from strata.activations.quantization import Encoding, Int8, Plain
from strata.activations.shards import ShardRecord
from strata.activations.whole_files import write_first
from strata.atomic import read_object, write_json
from strata.errors import UserError

FORMAT = "strata-store"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
ENCODING = "encoding.safetensors"


@dataclass(frozen=True)
class Part:
    """The share of one of several processes that write a store: every n-th document.

    Attributes:
        index: which, from 0.
        n_parts: of how many.
    """

    index: int
    n_parts: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """From how people write it: "2/4" is the second of four.

        Raises:
            UserError: it is not written so, or out of range.
        """
        first, _, second = text.partition("/")
        if first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
            return cls(int(first) - 1, int(second))
        raise UserError(f"`part` must be the number of a process and how many there are, 1/4 to 4/4. Got {text!r}.")

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.n_parts}"

    def record_name(self) -> str:
        """The file with its finished shards."""
        return f"part-{self.index:05d}-of-{self.n_parts:05d}.json"

    def shard_name(self, number: int) -> str:
        """The file of one of its shards."""
        return f"part-{self.index:05d}-shard-{number:05d}.safetensors"


@dataclass(frozen=True)
class PartRecord:
    """What one process has written so far."""

    shards: tuple[ShardRecord, ...] = ()
    held_out: tuple[ShardRecord, ...] = ()
    complete: bool = False


@dataclass(frozen=True)
class Manifest:
    """What a store's rows are. All processes that write one agree on all of it.

    Attributes:
        model: fingerprint of the language model.
        text: tokenizer, context and texts, as `TokenStream.describe` says.
        sites: width of each site.
        dtype: "fp32", "fp16", "bf16" or "int8".
        n_tokens: rows asked for, all parts together; "all" is the whole text.
        held_out_tokens: rows of held-out documents asked for.
        n_parts: processes that write it.
        shard_rows: rows of a shard, but for the last ones.
        block_rows: rows that are read together and have a checksum.
        settings: what else decides which row stands where.
    """

    model: dict[str, Any]
    text: dict[str, Any]
    sites: dict[str, int]
    dtype: str
    n_tokens: int | str
    held_out_tokens: int
    n_parts: int
    shard_rows: int
    block_rows: int
    settings: dict[str, Any] = field(default_factory=dict[str, Any])


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store.

    Raises:
        UserError: there is none, it is damaged, or of a later version of Strata.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = "is no folder" if not folder.is_dir() else f"holds no {MANIFEST}"
        raise UserError(f"A store is a folder that `strata collect` wrote. {folder} {what}. Give another path.")
    content = _read_json(path)
    if content.get("format") != FORMAT or not isinstance(content.get("format_version"), int):
        raise UserError(f"A store's {MANIFEST} names the format {FORMAT!r}. {path} does not. Give another path.")
    if content["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"This Strata reads stores of version {FORMAT_VERSION} and older. {folder} is of version"
            f" {content['format_version']}. Install a newer Strata."
        )
    try:
        return Manifest(**{key: value for key, value in content.items() if key not in ("format", "format_version")})
    except TypeError as error:
        raise UserError(f"{path} is damaged: its keys are not those of a store. Collect again elsewhere.") from error


def write_manifest(folder: Path, manifest: Manifest) -> bool:
    """Write the manifest if there is none yet; of processes that do so at once exactly one succeeds.

    Returns:
        Whether it was written.
    """
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)}
    return write_first(folder / MANIFEST, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))


def read_part(folder: Path, part: Part) -> PartRecord:
    """What a process has written; nothing, where it has not begun.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / part.record_name()
    if not path.exists():
        return PartRecord()
    content = _read_json(path)
    try:
        shards, held_out = (tuple(ShardRecord(**shard) for shard in content[key]) for key in ("shards", "held_out"))
        return PartRecord(shards=shards, held_out=held_out, complete=content["complete"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged. Delete it, and collect its part again.") from error


def write_part(folder: Path, part: Part, record: PartRecord) -> None:
    """Replace what is noted of a process, whole or not at all."""
    write_json(folder / part.record_name(), asdict(record))


def read_encodings(folder: Path, manifest: Manifest) -> dict[str, Encoding] | None:
    """How each site's rows are stored; None where no process has chosen it yet.

    Raises:
        UserError: the file is damaged.
    """
    if manifest.dtype != "int8":
        return dict.fromkeys(manifest.sites, Plain(manifest.dtype))
    path = folder / ENCODING
    if not path.exists():
        return None
    try:
        found = safetensors.torch.load_file(path)
        encodings: dict[str, Encoding] = {
            site: Int8(centre=found[f"{site}:centre"], outliers=found[f"{site}:outliers"]) for site in manifest.sites
        }
        sums = {key: zlib.crc32(tensor.numpy().tobytes()) for key, tensor in found.items() if key != "crc32"}
        damaged = [sums[key] for key in sorted(sums)] != found["crc32"].tolist()
    except (SafetensorError, KeyError, OSError):
        encodings, damaged = {}, True
    if damaged:
        raise UserError(f"{path} is damaged, and no row of the store can be read without it. Collect again elsewhere.")
    return encodings


def choose_encodings(folder: Path, manifest: Manifest, rows: dict[str, torch.Tensor]) -> dict[str, Encoding]:
    """How each site's rows are stored, chosen by whichever process comes first.

    Args:
        folder: the store.
        manifest: its manifest.
        rows: some thousands of rows of each site.
    """
    found = read_encodings(folder, manifest)
    if found is not None:
        return found
    fitted = {site: Int8.fit(tensor.cpu()) for site, tensor in rows.items()}
    content = {f"{site}:centre": one.centre.contiguous() for site, one in fitted.items()}
    content |= {f"{site}:outliers": one.outliers.contiguous() for site, one in fitted.items()}
    sums = [zlib.crc32(content[key].numpy().tobytes()) for key in sorted(content)]
    content["crc32"] = torch.tensor(sums, dtype=torch.int64)
    write_first(folder / ENCODING, lambda path: safetensors.torch.save_file(content, path))
    chosen = read_encodings(folder, manifest)
    assert chosen is not None
    return chosen


def content_crc32(folder: Path, parts: Sequence[Part]) -> int:
    """CRC-32 over what identifies a store's content: the manifest and what its parts say."""
    total = zlib.crc32((folder / MANIFEST).read_bytes())
    for part in parts:
        path = folder / part.record_name()
        total = zlib.crc32(path.read_bytes() if path.exists() else b"", total)
    return total


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or cannot be read ({type(error).__name__}: {error}).") from error
