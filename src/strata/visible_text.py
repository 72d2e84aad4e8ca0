"""Text of which everything can be seen: line ends, control characters, what has no width or turns the direction."""

import unicodedata

_PICTURES = 0x2400  # where Unicode's pictures of the control characters begin
_NAMED = {"\n": "⏎", "\t": "⇥", "\x7f": "␡", "\x85": "␤", "\u2028": "␤", "\u2029": "␤"}
UNSEEN = "\ufffd"


def visible(text: str, *, breaks: bool = False) -> str:
    """The text with a picture for each character that could not be seen, or that would move others.

    ⏎ a line end, ⇥ a tab, Unicode's pictures for other control characters, U+FFFD for those that have none, for
    lone surrogates, and for characters of no width or of writing direction (category Cf), which could make a text look
    like another. Spaces of every kind stay.

    Args:
        text: any text.
        breaks: keep each line end and tab behind its picture.
    """
    return "".join(_shown(character, breaks=breaks) for character in text)


def _shown(character: str, *, breaks: bool) -> str:
    if character in _NAMED:
        return _NAMED[character] + (character if breaks and character in "\n\t" else "")
    if ord(character) < 0x20:
        return chr(_PICTURES + ord(character))
    return UNSEEN if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn") else character
