"""The index of a run's features, opened: where each feature fires on a text, without running anything again."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt

from strata.errors import UserError, did_you_mean
from strata.interpret.index_layout import RECORD, VOCABULARY, TokenShard, tokens_path
from strata.interpret.index_record import whole_record
from strata.interpret.shown_texts import TopTexts
from strata.interpret.site_index import SiteIndex

_SEQUENCES_AS_DOCUMENT = 32  # where documents cannot be told


class FeatureIndex:
    """An index that `strata.interpret.index_building` made.

    Tokens are numbered through all sequences; token number n stands at ``token_ids.reshape(-1)[n]``.

    Attributes:
        folder: where it lies.
        record: index.json.
    """

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder, self.record = folder, record

    @classmethod
    def open(cls, folder: str | Path) -> "FeatureIndex":
        """Open an index from disk; the language model is not needed.

        Args:
            folder: ``RUN/index``, or the run's folder.

        Raises:
            UserError: there is none, or it is not complete.
        """
        folder = Path(folder)
        path = next((p for p in (folder / RECORD, folder / "index" / RECORD) if p.is_file()), None)
        if path is None:
            raise UserError(f"{folder} must hold an index. There is no {RECORD}. Make one: strata explain RUN.")
        record = whole_record(path)
        if not record.get("complete"):
            raise UserError(f"An index must be complete. {path.parent} was interrupted. Go on: strata explain RUN.")
        return cls(path.parent, record)

    @property
    def keys(self) -> list[str]:
        """The SAEs: their folders below the run's sae/, ``"layers.3"`` or ``"layers.0-2/layers.1"``."""
        return list(self.record["saes"])

    def __getitem__(self, key: str) -> SiteIndex:
        """The features of one SAE, by its key, or by its site where no other SAE has it.

        Raises:
            UserError: there is no such SAE.
        """
        found = self.keys_of(key)
        if len(found) > 1:
            raise UserError(
                f"An SAE must be named by its key where a site has several. Got {key!r}. Give one of {found}."
            )
        return self._sites[found[0]]

    def keys_of(self, name: str) -> list[str]:
        """The SAE of that key, or all at that site.

        Raises:
            UserError: there is none.
        """
        found = [name] if name in self.keys else [key for key in self.keys if self._sites[key].site == name]
        if not found:
            raise UserError(f"The index has no SAE {name!r}.{did_you_mean(name, self.keys)}")
        return found

    @cached_property
    def _sites(self) -> dict[str, SiteIndex]:
        # SAEs of one index share tokens and documents, which are read when a site first needs them.
        return {key: SiteIndex(self, key) for key in self.keys}

    @property
    def n_sequences(self) -> int:
        """How many sequences were read."""
        return self.record["n_sequences"]

    @property
    def sequence_tokens(self) -> int:
        """How long they are."""
        return self.record["sequence_tokens"]

    @property
    def n_tokens(self) -> int:
        """Tokens that were read, pads among them."""
        return self.n_sequences * self.sequence_tokens

    @cached_property
    def _tokens(self) -> TokenShard:
        shards = [TokenShard.read(tokens_path(self.folder, number)) for number in range(self.record["n_shards"])]
        parts = zip(*((shard.token_ids, shard.is_token, shard.is_row) for shard in shards), strict=True)
        return TokenShard(*(np.concatenate(part) for part in parts))

    @property
    def token_ids(self) -> UInt[np.ndarray, "n_seqs seq"]:
        """All tokens' ids."""
        return self._tokens.token_ids

    @property
    def is_token(self) -> Bool[np.ndarray, "n_seqs seq"]:
        """False on pads."""
        return self._tokens.is_token

    @property
    def is_row(self) -> Bool[np.ndarray, "n_seqs seq"]:
        """False on pads and special tokens, where no feature is measured."""
        return self._tokens.is_row

    @cached_property
    def documents(self) -> Int[np.ndarray, "n_seqs seq"]:
        """The number of the document that each token belongs to, ascending.

        Documents are told by the token that the tokenizer puts between them. A document that happens to begin where a
        sequence does cannot always be told from the one before it, and then counts as part of it: what is of two
        documents here is of two documents. Of given token ids each sequence is one. Of a tokenizer without such a token
        nobody knows: there each 32 sequences in a row count as one, and a text may run on from one into the next.
        """
        separator, n_prefix, n_suffix = (self.record[n] for n in ("separator", "n_prefix_tokens", "n_suffix_tokens"))
        if separator == "none":
            length = 1 if self.record["text"]["texts"]["kind"] == "token_ids" else _SEQUENCES_AS_DOCUMENT
            numbers = np.arange(self.n_sequences, dtype=np.int32) // length
            return np.broadcast_to(numbers[:, None], self.token_ids.shape)
        begins = self.token_ids == separator
        places, lengths = np.arange(self.sequence_tokens), self.is_token.sum(1, keepdims=True)
        begins &= (places >= n_prefix) & (places < lengths - n_suffix)
        return begins.reshape(-1).cumsum(dtype=np.int32).reshape(begins.shape)

    @cached_property
    def vocabulary(self) -> list[str]:
        """The text of each token id."""
        path = self.folder / VOCABULARY
        try:
            texts: list[str] | None = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            texts = None
        if not isinstance(texts, list):
            raise UserError(f"An index must be whole. {path} is missing or damaged. Make it anew: --reindex.")
        return texts

    def top_texts(
        self, feature: int, site: str | None = None, *, n: int = 10, before: int = 24, after: int = 8
    ) -> TopTexts:
        """Where a feature is strongest: shown as a table in a notebook, as lines elsewhere.

        Args:
            feature: the latent's number.
            site: of its SAE; None where the index has only one.
            n: how many texts.
            before: tokens shown before the peak.
            after: tokens shown behind it.

        Raises:
            UserError: no such site or feature, or a site is needed.
        """
        if site is None:
            if len(self.keys) != 1:
                raise UserError(f"`site` must be given where an index has several SAEs. Known are: {self.keys}.")
            site = self.keys[0]
        found = self[site]
        return TopTexts.of(found.top(feature, n=n, before=before, after=after), self.vocabulary,
                           title=f"{found.key}, latent {feature}", density=found.density(feature))  # fmt: skip

    def sites(self) -> Iterator[SiteIndex]:
        """The SAEs, one after the other."""
        return (self[key] for key in self.keys)
