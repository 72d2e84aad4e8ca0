"""Patterns of tokens as a sentence."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from strata.amounts import counted
from strata.interpret.explain.interpreter import Pattern

MOST_IS_PREDICTED = 0.5  # of the squared level: below it, the sentence says how much is


@dataclass(frozen=True)
class Wording:
    """How token patterns are written.

    Attributes:
        vocabulary: the text of each token id.
    """

    vocabulary: Sequence[str]

    def text(self, patterns: Sequence[Pattern], *, share: float, n_kinds: int) -> str:
        """The patterns with their levels, most telling first, and how much they leave unexplained where that is most.

        Args:
            patterns: in the order in which they are to be named.
            share: of the squared level that they predict.
            n_kinds: on how many different tokens the feature fires.
        """
        kinds = counted(n_kinds, "different token")
        if not patterns:
            return f"no token and no short context predicts it; it fires on {kinds}"
        levels = {pattern.level for pattern in patterns}
        if len(levels) == 1:
            named = ", ".join(self._pattern(pattern) for pattern in patterns) + f" (level {patterns[0].level:g})"
        else:
            named = ", ".join(f"{self._pattern(pattern)} ({pattern.level:g})" for pattern in patterns)
        if share >= MOST_IS_PREDICTED:
            return f"fires on {named}"
        return f"fires on {named}; that predicts {share:.0%} of it, which is spread over {kinds}"

    def _pattern(self, pattern: Pattern) -> str:
        *left, last = pattern.token_ids
        return f"{self._quoted([last])} after {self._quoted(left)}" if left else self._quoted([last])

    def _quoted(self, tokens: Sequence[int]) -> str:
        """Tokens as one text in quotes, whitespace visible; token by token where one is no text by itself."""
        texts = [self._token(token) for token in tokens]
        if any("\N{REPLACEMENT CHARACTER}" in text or not text for text in texts):
            return " ".join(f"token {token}" for token in tokens)
        return json.dumps("".join(texts), ensure_ascii=False)

    def _token(self, token: int) -> str:
        return self.vocabulary[token] if token < len(self.vocabulary) else ""
