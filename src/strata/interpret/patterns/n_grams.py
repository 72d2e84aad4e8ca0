"""The tokens of a text with up to two to their left, each numbered and counted once, for all features."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from strata.interpret.explain.pieces import Pieces

LONGEST = 3  # tokens


@dataclass(frozen=True)
class NGrams:
    """The 1-, 2- and 3-grams that end at each token of the documents to explain from, within its piece.

    N-grams are numbered so that those with the same last tokens stand together: sorted by the last token, then by the
    one before it, then by the one before that. So one sort of a feature's firings by their 3-gram sorts them by all.

    Attributes:
        numbers: of each token, the number of its 1-gram, 2-gram and 3-gram; -1 in documents to score on, and at tokens
            that were not encoded.
        n_places: how often each 1-gram, 2-gram and 3-gram occurs at such a token.
        is_whole: whether each 1-gram, 2-gram and 3-gram has all its tokens; at a piece's beginning the left ones lack.
    """

    numbers: tuple[Int[np.ndarray, " tokens"], ...]
    n_places: tuple[Int[np.ndarray, " _"], ...]
    is_whole: tuple[Bool[np.ndarray, " _"], ...]

    @staticmethod
    def count(pieces: Pieces) -> "NGrams":
        """Count those of a text's documents to explain from."""
        counted = np.flatnonzero(pieces.is_row & ~pieces.is_test[pieces.of_token])
        columns = counted - pieces.starts[pieces.of_token[counted]]
        numbers: list[np.ndarray] = []
        n_places: list[np.ndarray] = []
        is_whole: list[np.ndarray] = []
        number = np.zeros(len(counted), np.int64)
        whole = np.ones(len(counted), bool)
        for left in range(LONGEST):
            whole = whole & (columns >= left)
            # 0 stands for no token
            added = np.where(whole, pieces.token_ids[np.maximum(counted - left, 0)].astype(np.int64) + 1, 0)
            _, first, number, n = np.unique(
                number * (int(added.max(initial=0)) + 1) + added,
                return_index=True, return_inverse=True, return_counts=True,
            )  # fmt: skip
            placed = np.full(len(pieces.token_ids), -1, np.int32)
            placed[counted] = number
            numbers.append(placed)
            n_places.append(n)
            is_whole.append(whole[first])
        return NGrams(tuple(numbers), tuple(n_places), tuple(is_whole))
