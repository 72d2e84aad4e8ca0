"""The tables in README and docs: between markers, each of them what the results say.

A line `<!-- figures:NAME -->`, the block, a line `<!-- /figures:NAME -->`. What lies between is written from
benchmarks/results/ and by nothing else; docs/figures.md is written as a whole.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from figure_blocks.registry import BLOCKS, rendered
from figure_blocks.results import Results
from figure_blocks.whole_page import whole_page

PAGE = Path("docs/figures.md")
_MARKER = re.compile(r"^<!-- (/?)figures:(\S+) -->$")


class PageError(ValueError):
    """A page whose markers cannot be read; its text says where and why."""


def marked(text: str, *, where: str) -> Iterator[tuple[str, int, int]]:
    """The blocks of a page: name, the number of its marker's line, that of the end's (from 0).

    Raises:
        PageError: a marker that no block has, an end without a beginning, a beginning without an end.
    """
    opened: tuple[str, int] | None = None
    for number, line in enumerate(text.splitlines()):
        found = _MARKER.match(line)
        if not found:
            continue
        ends, name = found[1] == "/", found[2]
        place = f"{where}, line {number + 1}"
        if name not in BLOCKS:
            raise PageError(f"{place}: there is no block {name!r}. Known are: {', '.join(BLOCKS)}.")
        if ends:
            if opened is None or opened[0] != name:
                raise PageError(f"{place}: the block {name!r} ends and has not begun. Put its marker before it.")
            yield name, opened[1], number
            opened = None
        elif opened is not None:
            raise PageError(f"{place}: {name!r} begins within {opened[0]!r}. End that one with its marker first.")
        else:
            opened = name, number
    if opened is not None:
        raise PageError(
            f"{where}, line {opened[1] + 1}: the block {opened[0]!r} has no end."
            f" Put `<!-- /figures:{opened[0]} -->` behind it."
        )


def filled(text: str, results: Results, *, where: str) -> tuple[str, list[str]]:
    """The page with all its blocks written anew, and the names of those that this changed.

    Raises:
        PageError: as `marked`.
    """
    lines, changed = text.splitlines(), []
    for name, start, end in reversed(list(marked(text, where=where))):
        block = ["", *rendered(name, results).splitlines(), ""]
        if lines[start + 1 : end] != block:
            lines[start + 1 : end] = block
            changed.append(name)
    return "\n".join(lines) + "\n" if changed else text, changed[::-1]


def pages(root: Path) -> list[Path]:
    """Those that may hold markers, relative to the root."""
    found = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    return [path.relative_to(root) for path in found if path.relative_to(root) != PAGE and path.exists()]


def outdated(root: Path) -> list[str]:
    """A sentence for each block that is not what the results say.

    Raises:
        PageError: as `marked`.
    """
    results = Results(root)
    found = []
    for page in pages(root):
        _, changed = filled((root / page).read_text("utf-8"), results, where=str(page))
        found += [f"{page}: the block {name!r} is not what the results say" for name in changed]
    if not (root / PAGE).exists() or (root / PAGE).read_text("utf-8") != whole_page(results):
        found.append(f"{PAGE} is not what the results say")
    return found


def write_pages(root: Path) -> list[str]:
    """Write every block and the page of all figures; gives what was changed.

    Raises:
        PageError: as `marked`; then nothing is written.
    """
    results = Results(root)
    new: dict[Path, tuple[str, list[str]]] = {}
    for page in pages(root):
        new[page] = filled((root / page).read_text("utf-8"), results, where=str(page))
    old = (root / PAGE).read_text("utf-8") if (root / PAGE).exists() else ""
    text = whole_page(results)
    new[PAGE] = text, [] if text == old else ["all"]
    for page, (content, changed) in new.items():
        if changed:
            (root / page).write_text(content, encoding="utf-8")
    return [f"{page} ({', '.join(changed)})" for page, (_, changed) in new.items() if changed]
