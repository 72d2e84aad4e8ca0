"""Writing an index: batches of tokens and codes in, shards out, latent by latent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strata.errors import UserError
from strata.interpret.index_layout import (
    CodeShard,
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
        self._codes: dict[str, list[Entries]] = {key: [] for key in self._d_saes}

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
            self._codes[key].append(Entries.of(code, places, first=first))
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
            shard = Entries.joined(parts).by_latent(self._d_saes[key])
            write_codes(
                codes_path(self._folder, key, self._number),
                offsets=shard.offsets,
                places=stored_places(shard.tokens, shard_tokens=shard_tokens),
                values=shard.values,
                n_rows=shard.n_rows,
            )
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


@dataclass(frozen=True)
class Entries:
    """Entries of an SAE's latents, token by token.

    Attributes:
        latents: which fired.
        tokens: at which token of the shard, or of all tokens.
        values: how strongly, above 0.
        n_rows: how many tokens were encoded.
    """

    latents: Int[Tensor, " entries"]
    tokens: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"]
    n_rows: int

    @classmethod
    def of(cls, code: SparseCode, places: Int[Tensor, " rows"], *, first: int = 0) -> "Entries":
        """Of a code; its places with value 0 are no firings.

        Args:
            code: [rows k].
            places: the token of each row, ascending.
            first: added to each of them.
        """
        fires: Bool[Tensor, "rows k"] = code.values > 0
        at = (places[:, None] + first).expand_as(code.indices)[fires]
        latents, at, values = code.indices[fires].int().cpu(), at.int().cpu(), code.values[fires].float().cpu()
        return cls(latents, at, values, len(places))

    @classmethod
    def joined(cls, parts: Sequence["Entries"]) -> "Entries":
        """One after the other."""
        latents, tokens, values = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("latents", "tokens", "values")
        )
        return cls(latents, tokens, values, sum(part.n_rows for part in parts))

    def by_latent(self, d_sae: int) -> CodeShard:
        """Listed by latent; the sort is stable, so that a latent's tokens ascend as they came."""
        latents = self.latents.numpy()
        # 16-bit keys are sorted by radix: five times as fast as by merging (docs/LOG.md).
        order = np.argsort(latents.astype(np.uint16) if d_sae <= 2**16 else latents, kind="stable")
        offsets = np.concatenate([[0], np.bincount(latents, minlength=d_sae).cumsum()])
        return CodeShard(offsets, self.tokens.numpy()[order].astype(np.int64), self.values.numpy()[order], self.n_rows)
