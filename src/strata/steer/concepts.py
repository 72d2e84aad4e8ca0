"""Concepts of Python source code that a short program can see in a text, finished or not: no language model judges."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from strata.errors import UserError, did_you_mean

_LEXEME = re.compile(
    r"""
    (?P<docstring>[rRbBuUfF]{0,2}(?:\"\"\".*?(?:\"\"\"|\Z)|'''.*?(?:'''|\Z)))
  | (?P<string>[rRbBuUfF]{0,2}(?:"(?:\\.|[^"\\\n])*(?:"|$)|'(?:\\.|[^'\\\n])*(?:'|$)))
  | (?P<comment>\#[^\n]*)
  | (?P<number>\b(?:0[xXoObB][\da-fA-F_]+|\d[\d_]*(?:\.\d*)?(?:[eE][+-]?\d+)?))
  | (?P<name>[^\W\d]\w*)
  | (?P<newline>\n[ \t]*)
  | (?P<mark>[^\w\s])
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Lexeme:
    """A word of source code.

    Attributes:
        kind: ``docstring`` (any string in triple quotes), ``string``, ``comment``, ``number``, ``name``, ``newline``
            (with the indentation behind it) or ``mark``.
        text: as it stands there.
    """

    kind: str
    text: str


def lexemes(text: str) -> list[Lexeme]:
    """Source code in words; whatever is left open at the end (a string, say) ends there.

    Differs: Python's own `tokenize` refuses code that is not finished, as most of what a small model writes.
    """
    return [Lexeme(str(found.lastgroup), found[0]) for found in _LEXEME.finditer(text)]


def lines_outside_strings(text: str) -> list[bool]:
    """For each line of source code whether it begins outside of a string in triple quotes."""
    outside = [True] * (text.count("\n") + 1)
    for found in _LEXEME.finditer(text):
        if found.lastgroup == "docstring" and "\n" in found[0]:
            first = text.count("\n", 0, found.start())
            last = first + found[0].count("\n")
            outside[first + 1 : last + 1] = [False] * (last - first)
    return outside


@dataclass(frozen=True)
class Concept:
    """Something that source code has or has not.

    Attributes:
        name: of the concept.
        sees: whether words of source code have it.
        endings: how a line goes on with the concept and how without, in as few words as show it: contrastive activation
            addition reads the last token of a text that ends so.
    """

    name: str
    sees: Callable[[Sequence[Lexeme]], bool]
    endings: tuple[tuple[str, str], ...]

    def in_text(self, text: str) -> bool:
        """Whether a text has the concept."""
        return self.sees(lexemes(text))


def _names(*names: str) -> Callable[[Sequence[Lexeme]], bool]:
    return lambda words: any(word.kind == "name" and word.text in names for word in words)


def _kind(kind: str) -> Callable[[Sequence[Lexeme]], bool]:
    return lambda words: any(word.kind == kind for word in words)


def _formats(words: Sequence[Lexeme]) -> bool:
    """An f-string, or a string with ``%`` or ``.format`` behind it."""
    for place, word in enumerate(words):
        if word.kind not in ("string", "docstring"):
            continue
        behind = [one.text for one in words[place + 1 : place + 3]]
        prefix = re.split("[\"']", word.text, maxsplit=1)[0]
        if "f" in prefix.lower() or behind[:1] == ["%"] or behind == [".", "format"]:
            return True
    return False


CONCEPTS: dict[str, Concept] = {
    concept.name: concept
    for concept in (
        Concept(
            "exceptions", _names("raise", "except", "try"),
            (("raise", "return"), ("raise", "x"), ("try", "if"), ("except", "else")),
        ),
        Concept(
            "imports", _names("import"), (("import", "return"), ("import", "x"), ("from", "if"), ("import", "print"))
        ),
        Concept("docstrings", _kind("docstring"), (('"""', "return"), ('"""', "x"), ('"""', "if"), ("'''", "self"))),
        Concept(
            "formatting", _formats, (('x = "%s" %', 'x = "s" +'), ("x = f\"", 'x = "'), ('"{}".format', '"{}".split'))
        ),
        Concept("comments", _kind("comment"), (("#", "return"), ("#", "x"), ("# The", "if"), ("#", "self"))),
        Concept("loops", _names("for", "while"), (("for", "return"), ("for", "x"), ("while", "if"), ("for i", "self"))),
    )
}  # fmt: skip
"""By name. A new concept is a row here."""


def named_concepts(names: Sequence[str]) -> list[Concept]:
    """The concepts of these names; all for ``("all",)``.

    Raises:
        UserError: an unknown name.
    """
    if tuple(names) == ("all",):
        return list(CONCEPTS.values())
    for name in names:
        if name not in CONCEPTS:
            raise UserError(f"`concepts` must be concepts that there are. Got {name!r}.{did_you_mean(name, CONCEPTS)}")
    return [CONCEPTS[name] for name in names]
