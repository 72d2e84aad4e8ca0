"""The text of an index cut into pieces, each of one document, and the documents dealt to explaining and to scoring."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Integer

from strata.errors import UserError
from strata.interpret.windows import Windows

LEAST_PIECE_TOKENS = 8  # of a piece that is shown; or the piece's full length where that is shorter


@dataclass(frozen=True)
class Pieces:
    """Runs of at most `window_tokens` tokens of one sequence and one document; no two overlap.

    They are cut at fixed places and not around firings, so that a token's column says nothing about whether the feature
    fires there, and windows in which it is silent are cut as the others are.

    Differs: delphi cuts windows around the strongest token, so that the middle gives it away; Bills et al. 2023 take
    64-token sequences that begin where documents begin.

    Attributes:
        window_tokens: the longest.
        token_ids: of all tokens of the index, one after the other.
        is_row: which of them were encoded.
        of_token: the piece of each token.
        starts: the number of each piece's first token.
        lengths: of each piece, in tokens.
        documents: of each piece.
        is_test: whether its document is for scoring; documents that are not are for explaining.
        is_shown: whether it is long enough, and of tokens.
    """

    window_tokens: int
    token_ids: Int[np.ndarray, " tokens"]
    is_row: Bool[np.ndarray, " tokens"]
    of_token: Int[np.ndarray, " tokens"]
    starts: Int[np.ndarray, " pieces"]
    lengths: Int[np.ndarray, " pieces"]
    documents: Int[np.ndarray, " pieces"]
    is_test: Bool[np.ndarray, " pieces"]
    is_shown: Bool[np.ndarray, " pieces"]

    @staticmethod
    def cut(
        token_ids: Integer[np.ndarray, "n_seqs seq"],
        *,
        documents: Int[np.ndarray, "n_seqs seq"],
        is_token: Bool[np.ndarray, "n_seqs seq"],
        is_row: Bool[np.ndarray, "n_seqs seq"],
        window_tokens: int,
        seed: int,
    ) -> "Pieces":
        """Cut the text of an index.

        Args:
            token_ids: all tokens.
            documents: the number of each token's document, ascending.
            is_token: False where there is no token.
            is_row: whether each token was encoded.
            window_tokens: of the longest piece.
            seed: of the deal of documents.

        Raises:
            UserError: fewer than two documents.
        """
        n_seqs, n_columns = map(int, token_ids.shape)
        documents, is_token = documents.reshape(-1), is_token.reshape(-1)
        block = np.add.outer(np.arange(n_seqs) * n_columns, np.arange(n_columns) // window_tokens).reshape(-1)
        begins = np.ones(documents.size, bool)
        begins[1:] = (np.diff(block) != 0) | (np.diff(documents) != 0) | (np.diff(is_token.astype(np.int8)) != 0)
        starts = np.flatnonzero(begins)
        lengths = np.diff(starts, append=documents.size)
        shown = is_token[starts] & (lengths >= min(LEAST_PIECE_TOKENS, n_columns, window_tokens))
        return Pieces(
            window_tokens=min(window_tokens, n_columns),
            token_ids=token_ids.reshape(-1).astype(np.int32),
            is_row=is_row.reshape(-1) & is_token,
            of_token=(np.cumsum(begins) - 1).astype(np.int32),
            starts=starts,
            lengths=lengths,
            documents=documents[starts].astype(np.int64),
            is_test=test_documents(documents[is_token], seed=seed)[documents[starts]],
            is_shown=shown,
        )

    def windows(
        self, pieces: Int[np.ndarray, " windows"], *, tokens: Int[np.ndarray, " fired"], values: np.ndarray
    ) -> Windows:
        """Pieces, no one twice, with what a feature does in them; what is behind a shorter piece's end is no token.

        Args:
            pieces: their numbers.
            tokens: the numbers of the tokens at which the feature fires.
            values: its activation at each.
        """
        columns = np.arange(self.window_tokens)
        starts, lengths = self.starts[pieces], self.lengths[pieces]
        is_token = columns < lengths[:, None]
        ids = np.where(is_token, self.token_ids[np.where(is_token, starts[:, None] + columns, 0)], 0)
        activations = np.zeros(is_token.shape, np.float32)
        if len(pieces):
            order = np.argsort(pieces)
            owners = self.of_token[tokens]
            at = np.searchsorted(pieces, owners, sorter=order).clip(max=len(pieces) - 1)
            inside = pieces[order[at]] == owners
            rows = order[at[inside]]
            activations[rows, tokens[inside] - starts[rows]] = values[inside]
        peaks = np.where(activations.any(1), activations.argmax(1), lengths // 2)
        return Windows(ids, activations, is_token, peaks, self.documents[pieces], starts)

    def measured(self, windows: Windows) -> Bool[np.ndarray, "windows tokens"]:
        """At which tokens of windows the feature was encoded; elsewhere its activation is not known."""
        places = np.add.outer(windows.starts, np.arange(int(windows.token_ids.shape[1])))
        return windows.is_token & self.is_row[np.where(windows.is_token, places, 0)]


def test_documents(documents: Int[np.ndarray, " tokens"], *, seed: int) -> Bool[np.ndarray, " documents"]:
    """Which documents are for scoring: in the order of a seeded hash of their numbers, the first to hold half of all
    tokens are for explaining, the rest for scoring, at least one each.

    Args:
        documents: of every token.
        seed: of the hash.

    Returns:
        For each document number up to the largest.

    Raises:
        UserError: fewer than two documents.
    """
    n_tokens = np.bincount(documents)
    numbers = np.flatnonzero(n_tokens)
    if len(numbers) < 2:
        raise UserError(
            f"`n_tokens` must reach over at least 2 documents: explanations are scored on other documents than"
            f" those that they are made from. Got {len(numbers)}. Give more tokens or a text of several documents."
        )
    hashed = numbers[np.argsort(_hash(numbers, seed=seed), kind="stable")]
    before = np.cumsum(n_tokens[hashed]) - n_tokens[hashed]
    is_test = np.zeros(len(n_tokens), bool)
    is_test[hashed[2 * before >= n_tokens.sum()]] = True
    is_test[hashed[-1]] = True
    return is_test


def _hash(numbers: Int[np.ndarray, " n"], *, seed: int) -> np.ndarray:
    """64 bits of each number that look random (the finaliser of SplitMix64)."""
    mixed = numbers.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
