"""Texts that steering methods learn from, and prompts that they are tried on: pieces of source code, cut and sorted."""

import ast
import itertools
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from strata.errors import UserError
from strata.steer.concepts import Concept, lines_outside_strings

_PIECE_LINES = 6
_FIRST_DOCUMENTS = 300
_PIECES_OF_A_DOCUMENT = 12
_PROMPT_LINES = 4


@dataclass(frozen=True)
class Contrast:
    """Training material of one concept; every method takes what it needs.

    Attributes:
        concept: its name.
        positive: texts with the concept.
        negative: texts without it, not paired with the others.
        pairs: texts that are alike but for their last words, which have the concept and have it not.
    """

    concept: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


def pieces(documents: Iterable[str], *, seed: int = 0) -> list[str]:
    """Runs of six lines that are not blank, each from a line outside of strings on; at most twelve of a document, so
    that long tables do not outweigh the rest.

    Args:
        documents: the first 300 are cut.
        seed: which pieces of a long document.
    """
    found: list[str] = []
    chosen = random.Random(seed)
    for text in itertools.islice(documents, _FIRST_DOCUMENTS):
        told = zip(text.split("\n"), lines_outside_strings(text), strict=True)
        lines = [(line, outside) for line, outside in told if line.strip()]
        starts = [n for n in range(0, len(lines) - _PIECE_LINES + 1, _PIECE_LINES) if lines[n][1]]
        starts = sorted(chosen.sample(starts, min(len(starts), _PIECES_OF_A_DOCUMENT)))
        found += ["\n".join(line for line, _ in lines[n : n + _PIECE_LINES]) + "\n" for n in starts]
    return found


def contrast(concept: Concept, pool: Sequence[str], *, n_texts: int, n_pairs: int, seed: int = 0) -> Contrast:
    """Training material of a concept from pieces of source code.

    Args:
        concept: by whose own judge the pieces are sorted.
        pool: pieces of training documents.
        n_texts: texts with it, and as many without.
        n_pairs: paired texts: the beginning of a piece without the concept, then the indentation of its next line and
            one of the concept's endings.
        seed: which of them.

    Raises:
        UserError: too few pieces have the concept, or have it not.
    """
    shuffled = random.Random(seed).sample(list(pool), len(pool))
    have: list[str] = []
    lack: list[str] = []
    for piece in shuffled:
        (have if concept.in_text(piece) else lack).append(piece)
        if len(have) >= n_texts and len(lack) >= n_texts + n_pairs:
            break
    if len(have) < n_texts or len(lack) < n_texts + n_pairs:
        raise UserError(
            f"The text must be Python source code with enough of {concept.name!r}: {n_texts} pieces with it and"
            f" {n_texts + n_pairs} without. Got {len(have)} and {len(lack)}. Leave the concept out, or give more text."
        )
    bases = lack[n_texts : n_texts + n_pairs]
    endings = itertools.cycle(concept.endings)
    pairs = tuple(_pair(base, ending) for base, ending in zip(bases, endings, strict=False))
    return Contrast(concept.name, tuple(have[:n_texts]), tuple(lack[:n_texts]), pairs)


def _pair(base: str, ending: tuple[str, str]) -> tuple[str, str]:
    lines = base.splitlines()
    half, following = lines[: _PIECE_LINES // 2], lines[_PIECE_LINES // 2]
    indentation = following[: len(following) - len(following.lstrip())]
    before = "\n".join(half) + "\n" + indentation
    return before + ending[0], before + ending[1]


def prompts(documents: Iterable[str], *, n: int, fits: Callable[[str], bool], seed: int = 0) -> list[str]:
    """Prompts from documents that nobody learned from: the head of a block with the lines before it, up to its newline.

    They are of code that compiles, lie outside of strings, and end where a block begins.

    Args:
        documents: held-out ones.
        n: how many.
        fits: whether a prompt is short enough.
        seed: which of them.

    Raises:
        UserError: there are not so many.
    """
    heads = itertools.chain.from_iterable(map(_heads, itertools.islice(documents, _FIRST_DOCUMENTS)))
    found = list(filter(fits, dict.fromkeys(heads)))
    if len(found) < n:
        raise UserError(
            f"`n_prompts` must be at most the heads of blocks in the held-out text, {len(found)}. Got {n}. Lower it, or"
            " give more Python source code."
        )
    return random.Random(seed).sample(found, n)


def _heads(text: str) -> Iterator[str]:
    try:
        with warnings.catch_warnings():  # of escapes in other people's strings
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    lines, outside = text.split("\n"), lines_outside_strings(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.If | ast.For | ast.While | ast.With) and node.body:
            head = node.lineno - 1  # where it begins; only heads of one line
            if node.body[0].lineno - 1 > head and lines[head].rstrip().endswith(":"):
                first = max(0, head - _PROMPT_LINES + 1)
                if all(outside[first : head + 1]):
                    yield "\n".join(line for line in lines[first : head + 1] if line.strip()) + "\n"
