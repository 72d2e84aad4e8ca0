"""Writing an index: batches of tokens and codes in, shards out, latent by latent."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strata.errors import UserError
from strata.interpret.index_layout import (
    TokenShard,
    codes_path,
    shard_sequences,
    stored_places,
    tokens_path,
    write_codes,
)
from strata.lm.tokens import TokenBatch
from strata.shapes import SparseCode


class IndexWriter:
    """Fills one shard after the other; a shard is on disk when its tokens are, which are written last.

    It holds one shard's codes: 65,536 tokens times the active latents, 12 bytes each, for every SAE.

    Args:
        folder: of the index.
        d_saes: key → latents of that SAE.
        sequence_tokens: seq.
        vocabulary_size: of the language model.
        first_shard: the first that is not written yet.
    """

    def __init__(
        self,
        folder: Path,
        d_saes: Mapping[str, int],
        *,
        sequence_tokens: int,
        vocabulary_size: int,
        first_shard: int = 0,
    ) -> None:
        self._folder, self._d_saes = folder, dict(d_saes)
        self._sequence_tokens, self._most = sequence_tokens, shard_sequences(sequence_tokens)
        self._id_type = np.uint16 if vocabulary_size <= 2**16 else np.uint32
        self._number = first_shard
        self._begin()

    def _begin(self) -> None:
        self._batches: list[TokenBatch] = []
        self._n_sequences = 0
        self._codes: dict[str, list[_Part]] = {key: [] for key in self._d_saes}

    @property
    def room_sequences(self) -> int:
        """How many sequences the shard still takes; batches must not be longer."""
        return self._most - self._n_sequences

    def add(self, batch: TokenBatch, codes: Mapping[str, tuple[SparseCode, Int[Tensor, " _"]]]) -> None:
        """Take in a batch.

        Args:
            batch: at most `room_sequences` sequences.
            codes: key → the code [rows k] and the rows' places in the flattened [batch seq], ascending.
        """
        assert len(batch.input_ids) <= self.room_sequences
        first = self._n_sequences * self._sequence_tokens
        for key, (code, places) in codes.items():
            self._codes[key].append(_Part.of(code, places, first=first))
        self._batches.append(batch)
        self._n_sequences += len(batch.input_ids)
        if self.room_sequences == 0:
            self.finish_shard()

    def finish_shard(self) -> None:
        """Write what there is as a shard, if there is anything."""
        if not self._batches:
            return
        shard_tokens = self._n_sequences * self._sequence_tokens
        for key, parts in self._codes.items():
            _write_sorted(codes_path(self._folder, key, self._number), parts, self._d_saes[key], shard_tokens)
        ids, is_token, is_row = (
            torch.cat([getattr(batch, part) for batch in self._batches]).numpy()
            for part in ("input_ids", "attention_mask", "is_row")
        )
        self._write_tokens(TokenShard(ids.astype(self._id_type), is_token, is_row))
        self._number += 1
        self._begin()

    def _write_tokens(self, tokens: TokenShard) -> None:
        """Write a shard's tokens, or find them there already, of other SAEs of this index."""
        path = tokens_path(self._folder, self._number)
        if not path.exists():
            tokens.write(path)
        elif not np.array_equal(TokenShard.read(path).token_ids, tokens.token_ids):
            raise UserError(f"An index must be of one text. {path} holds another. Make it anew with --reindex.")


class _Part:
    """The firings of one batch, token by token: latents, places within the shard, values; and how many rows it had."""

    def __init__(
        self, latents: Int[Tensor, " e"], places: Int[Tensor, " e"], values: Float[Tensor, " e"], n_rows: int
    ) -> None:
        self.latents, self.places, self.values, self.n_rows = latents, places, values, n_rows

    @classmethod
    def of(cls, code: SparseCode, places: Int[Tensor, " rows"], *, first: int) -> "_Part":
        fires: Bool[Tensor, "rows k"] = code.values > 0
        at = (places[:, None] + first).expand_as(code.indices)[fires]
        latents, at, values = code.indices[fires].int().cpu(), at.int().cpu(), code.values[fires].float().cpu()
        return cls(latents, at, values, len(places))


def _write_sorted(path: Path, parts: list[_Part], d_sae: int, shard_tokens: int) -> None:
    """By latent; the sort is stable, so that a latent's places ascend as they came."""
    latents = torch.cat([part.latents for part in parts]).numpy()
    # 16-bit keys are sorted by radix: five times as fast as by merging (docs/LOG.md).
    order = np.argsort(latents.astype(np.uint16) if d_sae <= 2**16 else latents, kind="stable")
    offsets = np.concatenate([[0], np.bincount(latents, minlength=d_sae).cumsum()])
    places = torch.cat([part.places for part in parts]).numpy()[order]
    write_codes(
        path,
        offsets=offsets,
        places=stored_places(places, shard_tokens=shard_tokens),
        values=torch.cat([part.values for part in parts]).numpy()[order],
        n_rows=sum(part.n_rows for part in parts),
    )
