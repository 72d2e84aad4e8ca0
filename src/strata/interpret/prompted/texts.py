"""Tokens as a prompt shows them: one line each, or running text, with nothing that could be mistaken for the frame."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

MARKS = ("⟦", "⟧")  # around tokens that are said to make a feature fire; rare in any text, code included
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\ufffd": "\\ufffd"})
_MARK_ESCAPES = str.maketrans({mark: "\\" + mark for mark in MARKS})


def shown_token(text: str) -> str:
    r"""A token's text on one line without tabs: ``\n``, ``\t``, ``\r``, ``\\`` as in Python; a byte that is no text by
    itself is ``\ufffd``. Different texts stay different.
    """
    return text.translate(_ESCAPES)


def running_text(tokens: Sequence[str], marked: Bool[np.ndarray, " tokens"] | None = None) -> str:
    """Tokens one after the other, on one line.

    Args:
        tokens: their texts.
        marked: tokens to be put between marks, each run of them once; brackets of the text's own that look like marks
            get a backslash. None marks nothing.
    """
    shown = [shown_token(token) for token in tokens]
    if marked is None:
        return "".join(shown)
    opening, closing = MARKS
    parts = []
    for i, (text, is_marked) in enumerate(zip(shown, marked, strict=True)):
        before = opening if is_marked and (i == 0 or not marked[i - 1]) else ""
        after = closing if is_marked and (i + 1 == len(shown) or not marked[i + 1]) else ""
        parts.append(before + text.translate(_MARK_ESCAPES) + after)
    return "".join(parts)


def table(tokens: Sequence[str], levels: Int[np.ndarray, " tokens"]) -> str:
    """A line for each token: the token, a tab, its level."""
    return "\n".join(f"{shown_token(token)}\t{level}" for token, level in zip(tokens, levels, strict=True))
