"""The blocks of a store: rows that are read together, from shards that are opened when they are needed."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from strata.activations.quantization import Encoding, tensor_name
from strata.activations.shards import Shard, ShardRecord

_OPEN_SHARDS = 256  # each holds two file handles


class Blocks:
    """The blocks of some shards, whose files are opened when they are needed and kept open, some hundreds at most.

    Args:
        folder: the store.
        records: its shards.
        block_rows: rows of a block; the last one of a shard may have fewer.
    """

    def __init__(self, folder: Path, records: Sequence[ShardRecord], *, block_rows: int) -> None:
        self._folder, self._records, self._block_rows = folder, records, block_rows
        counts = np.array([record.rows for record in records], dtype=np.int64)
        per_shard = -(-counts // block_rows)
        self._shard = np.repeat(np.arange(len(records)), per_shard)
        self._number = np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(int(n)) for n in per_shard)])
        self.rows = np.minimum(counts[self._shard] - self._number * block_rows, block_rows)  # of each block
        self.n_rows = int(counts.sum())
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._verified: set[tuple[int, str]] = set()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._shard)

    def shard(self, block: int) -> Shard:
        """The shard that holds a block.

        Raises:
            UserError: its file is damaged.
        """
        index = int(self._shard[block])
        with self._lock:
            found = self._open.get(index)
            if found is None:
                found = Shard(self._folder, self._records[index], block_rows=self._block_rows)
                self._open[index] = found
                while len(self._open) > _OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(index)
        return found

    def close(self) -> None:
        """Let go of the files; they are opened again when they are needed."""
        with self._lock:
            self._open.clear()

    def read(self, block: int, name: str) -> np.ndarray:
        """The bytes of a block of a tensor, uint8 [rows bytes_per_row]; its checksum is looked at the first time.

        Raises:
            UserError: its file is damaged.
        """
        key = (block, name)
        content = self.shard(block).block(name, int(self._number[block]), verify=key not in self._verified)
        self._verified.add(key)
        return content

    def decode(self, block: int, site: str, encoding: Encoding) -> Tensor:
        """The rows of a block [rows d_in]."""
        shard = self.shard(block)
        parts = {part: tensor_name(site, part) for part in encoding.parts}
        return encoding.decode(
            {part: as_tensor(self.read(block, name).copy(), shard.dtype(name)) for part, name in parts.items()}
        )


def as_tensor(content: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Bytes [rows bytes_per_row] as values [rows values_per_row], in the same memory."""
    return torch.from_numpy(content).view(dtype)
