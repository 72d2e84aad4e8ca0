"""Documents, read anew by every iteration."""

import itertools
from collections.abc import Callable, Iterator

from jaxtyping import Int
from torch import Tensor


class Texts:
    """A source of documents that is read anew by every iteration (unless it came from a one-shot iterator).

    Attributes:
        name: what the source is called, e.g. a file's name.
        kind: ``list``, ``iterator``, ``iterable``, ``files``, ``stdlib``, ``datasets``, ``hub`` or ``token_ids``.
        split: ``train``, ``held_out`` or ``all``.
        fingerprint: identifies the content before the split, as ``<how>:<value>``; ``unknown`` where it takes a pass.
        token_ids: the sequences, if the source is not text but token ids; iterating such a source is an error.
    """

    def __init__(
        self,
        documents: Callable[[], Iterator[str]],
        *,
        name: str,
        kind: str,
        split: str,
        fingerprint: str,
        token_ids: Int[Tensor, "n_seqs seq"] | None = None,
    ) -> None:
        self.name, self.kind, self.split, self.fingerprint = name, kind, split, fingerprint
        self.token_ids = token_ids
        self._documents = documents

    def __iter__(self) -> Iterator[str]:
        """The documents of the split, in the source's order.

        Raises:
            UserError: the source has no text at all, is broken, or is a one-shot iterator that was read before.
        """
        return self._documents()

    def part(self, index: int, n_parts: int) -> "Texts":
        """Every n-th document (or sequence of token ids): the share of one of several processes.

        Args:
            index: which share, in [0, n_parts).
            n_parts: how many there are; the fingerprint stays that of the whole.
        """
        assert 0 <= index < n_parts
        return Texts(
            lambda: itertools.islice(self._documents(), index, None, n_parts),
            name=self.name,
            kind=self.kind,
            split=self.split,
            fingerprint=self.fingerprint,
            token_ids=None if self.token_ids is None else self.token_ids[index::n_parts],
        )

    def describe(self) -> dict[str, str]:
        """What the run folder keeps of it: ``source``, ``kind``, ``split``, ``fingerprint``."""
        return {"source": self.name, "kind": self.kind, "split": self.split, "fingerprint": self.fingerprint}
