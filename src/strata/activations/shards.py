"""One shard of a store: a safetensors file of rows, written whole, read by blocks whose checksums are looked at."""

import json
import mmap
import os
import weakref
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from strata.activations.whole_files import replace_whole
from strata.errors import UserError

_TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8}


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard.

    Attributes:
        file: its name in the folder.
        rows: how many it holds of each site.
        bytes: the file's size.
        header_crc32: of the file's header, which holds those of the rows.
    """

    file: str
    rows: int
    bytes: int
    header_crc32: int


def write_shard(folder: Path, name: str, tensors: dict[str, Tensor], *, block_rows: int) -> ShardRecord:
    """Write one shard, whole or not at all.

    Args:
        folder: the store.
        name: of the file.
        tensors: all [rows ...], by name.
        block_rows: rows that get a checksum together.
    """
    sums = {key: _block_sums(tensor, block_rows) for key, tensor in tensors.items()}
    unfinished = folder / f".{name}.unfinished"
    try:
        safetensors.torch.save_file(tensors, unfinished, metadata={"crc32": json.dumps(sums)})
        header = read_header(unfinished)
        n_bytes = unfinished.stat().st_size
        replace_whole(unfinished, folder / name)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    n_rows = len(next(iter(tensors.values())))
    return ShardRecord(file=name, rows=n_rows, bytes=n_bytes, header_crc32=zlib.crc32(header))


class Shard:
    """A shard that is mapped into memory: nothing is read but the header until rows are asked for.

    Reading is safe from several threads.

    Args:
        folder: the store.
        record: of the shard.
        block_rows: rows that have a checksum together.

    Raises:
        UserError: the file is missing, cut short, or its header has changed.
    """

    def __init__(self, folder: Path, record: ShardRecord, *, block_rows: int) -> None:
        self._path, self._block_rows = folder / record.file, block_rows
        self.rows = record.rows
        check_size(folder, record)
        try:
            header = read_header(self._path)
            if zlib.crc32(header) != record.header_crc32:
                raise damaged(self._path, "its header has changed")
            self._handle = os.open(self._path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._handle)
            content = mmap.mmap(self._handle, 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise damaged(self._path, error.strerror or str(error)) from error
        self._header: dict[str, Any] = json.loads(header[8:])
        self._sums: dict[str, list[int]] = json.loads(self._header.pop("__metadata__")["crc32"])
        self._start = len(header)
        self._bytes = np.frombuffer(content, dtype=np.uint8)

    def row_bytes(self, name: str) -> int:
        """Bytes that a row of a tensor takes."""
        first, last = self._header[name]["data_offsets"]
        return (last - first) // self.rows

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor's values."""
        return _TORCH_DTYPES[self._header[name]["dtype"]]

    def block(self, name: str, block: int, *, verify: bool) -> np.ndarray:
        """The bytes of a block of rows, uint8 [rows bytes_per_row], in the mapped file itself.

        Args:
            name: of the tensor.
            block: its number in the shard.
            verify: whether its checksum is computed and compared.

        Raises:
            UserError: it differs.
        """
        start, end = self._span(name, block)
        if hasattr(os, "posix_fadvise"):  # all of the block at once, not as the reading comes along
            os.posix_fadvise(self._handle, start, end - start, os.POSIX_FADV_WILLNEED)
        content = self._bytes[start:end]
        if verify and zlib.crc32(content.data) != self._sums[name][block]:
            raise damaged(self._path, f"the checksum of {name}, block {block}, differs")
        return content.reshape(min(self._block_rows, self.rows - block * self._block_rows), -1)

    def _span(self, name: str, block: int) -> tuple[int, int]:
        first, row_bytes = self._start + self._header[name]["data_offsets"][0], self.row_bytes(name)
        end = min((block + 1) * self._block_rows, self.rows)
        return first + block * self._block_rows * row_bytes, first + end * row_bytes


def check_size(folder: Path, record: ShardRecord) -> None:
    """That a shard is there and as long as it was written.

    Raises:
        UserError: it is not.
    """
    path = folder / record.file
    if not path.is_file():
        raise damaged(path, "it is missing")
    if path.stat().st_size != record.bytes:
        raise damaged(path, f"it has {path.stat().st_size} bytes instead of {record.bytes}")


def damaged(path: Path, why: str) -> UserError:
    """What to say of a shard that cannot be read."""
    return UserError(
        f"The store's shard {path} is damaged: {why}. Delete that file and give the command again that collected it: it"
        " writes this shard anew and leaves the others."
    )


def read_header(path: Path) -> bytes:
    """The header of a safetensors file, its eight bytes of length included."""
    with path.open("rb") as file:
        length = file.read(8)
        return length + file.read(min(int.from_bytes(length, "little"), 2**27))


def _block_sums(tensor: Tensor, block_rows: int) -> list[int]:
    return [zlib.crc32(block.view(torch.uint8).numpy().data) for block in torch.split(tensor, block_rows)]
