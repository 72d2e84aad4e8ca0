"""How alike the layers of a model are: of a language model that reads a text, or of a store."""

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from strata.activations.distances import LayerSimilarity, layer_similarity, shuffled_rows, streamed_rows
from strata.activations.source import SiteRows
from strata.activations.store import Store
from strata.lm.flops import known_forward_flops
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenStream
from strata.log import say

_SECONDS_BETWEEN_LINES = 5


class StoredLayers:
    """The residual stream's layers in a store.

    Attributes:
        sites: in the model's order.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.sites = residual_layers(store.sites)

    def d_in(self) -> int:
        """The width of the layers."""
        return self._store.d_in(self.sites[0])

    def n_rows(self, most: int) -> int:
        """Tokens that there are, not more than so many."""
        return min(most, self._store.n_rows())

    def rows(self) -> Iterator[SiteRows]:
        """All of them, in random order."""
        return shuffled_rows(self._store.only(self.sites))

    def forward_flops(self) -> float | None:
        """Of the language model: its pass is paid already."""
        return 0.0

    def describe(self) -> dict[str, Any]:
        """Of which model and text they are."""
        return self._store.describe()


class TextLayers:
    """The residual stream's layers of a language model that reads a text.

    Attributes:
        sites: in the model's order.
    """

    def __init__(self, lm: LanguageModel, tokens: TokenStream, *, lm_dtype: str) -> None:
        self._lm, self._tokens, self._lm_dtype = lm, tokens, lm_dtype
        self.sites = list(lm.sites)

    def d_in(self) -> int:
        """The width of the layers."""
        return self._lm.d_in(self.sites[0])

    def n_rows(self, most: int) -> int:
        """Tokens of the text, counted as far as so many."""
        n_rows = 0
        for batch in self._tokens:
            n_rows += int(batch.is_row.sum())
            if n_rows >= most:
                return most
        return n_rows

    def rows(self) -> Iterator[SiteRows]:
        """All of them, in the text's order, one forward of the language model at a time."""
        return streamed_rows(self._lm, self._tokens, self.sites, lm_dtype=self._lm_dtype)

    def forward_flops(self) -> float | None:
        """Of the language model per token, as far as the last layer; None where its configuration does not tell."""
        return known_forward_flops(self._lm, self.sites, context_tokens=self._tokens.context_tokens)

    def describe(self) -> dict[str, Any]:
        """Of which model and text they are."""
        return {"mode": "stream", "model": self._lm.fingerprint(), "text": self._tokens.describe()}


Layers = StoredLayers | TextLayers


@dataclass(frozen=True)
class Measured:
    """What measuring gave, and what it took.

    Attributes:
        similarity: of the layers.
        n_tokens: tokens looked at, attention sinks and those for the means among them.
        seconds: the language model's pass included.
    """

    similarity: LayerSimilarity
    n_tokens: int
    seconds: float


def measure(layers: Layers, *, n_tokens: int, cka: bool, progress: bool = True) -> Measured:
    """How alike the layers are.

    Args:
        layers: of a text or a store.
        n_tokens: how many to look at, at least 20; of a store not more than there are.
        cka: measure that too.
        progress: a line on stderr every few seconds.

    Raises:
        UserError: what `layer_similarity` raises: a text that is much too short, for example.
    """
    start = time.perf_counter()
    if isinstance(layers, StoredLayers):
        n_tokens = layers.n_rows(n_tokens)
    counted = _Counted(layers.rows(), n_tokens=n_tokens, shown=progress)
    similarity = layer_similarity(counted, layers.sites, n_tokens=n_tokens, cka=cka)
    return Measured(similarity, min(counted.n_rows, n_tokens), time.perf_counter() - start)


def residual_layers(sites: Iterable[str]) -> list[str]:
    """Those of some sites that are a layer's residual stream, in the model's order."""
    numbers = sorted(int(match[1]) for site in sites if (match := re.fullmatch(r"layers\.(\d+)", site)))
    return [f"layers.{number}" for number in numbers]


class _Counted:
    """The same batches, counted, with a line every few seconds."""

    def __init__(self, rows: Iterator[SiteRows], *, n_tokens: int, shown: bool) -> None:
        self._rows, self._n_tokens, self._shown = rows, n_tokens, shown
        self.n_rows = 0

    def __iter__(self) -> Iterator[SiteRows]:
        last = time.monotonic()
        for batch in self._rows:
            self.n_rows += len(next(iter(batch.values())))
            yield batch
            if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                say(f"row {min(self.n_rows, self._n_tokens)}/{self._n_tokens}", shown=self._shown)
