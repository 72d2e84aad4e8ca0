"""Markdown pages as a reader uses them: their fenced blocks, their links, their headings."""

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

_FENCE = re.compile(
    r"^(?P<before><!-- not run: [^\n]+ -->\n)?```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```\s*$",
    re.MULTILINE | re.DOTALL,
)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_CODE = re.compile(r"`[^`\n]+`")
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: behind the fence; "" without one.
        line: of the file, on which the code begins, from 1.
        code: within the fences.
        is_run: whether a reader can run it anywhere; a line `<!-- not run: why -->` before the fence says not.
    """

    language: str
    line: int
    code: str
    is_run: bool


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text."""
    return [
        Block(
            found["language"],
            text.count("\n", 0, found.start("code")) + 1,
            found["code"],
            is_run=found["before"] is None,
        )
        for found in _FENCE.finditer(text)
    ]


def run_python(path: Path) -> None:
    """Run a page's Python blocks one after the other in one namespace; tracebacks name the page's lines."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(path.read_text(encoding="utf-8")):
        if block.language == "python" and block.is_run:
            exec(compiled(block, path), namespace)


def compiled(block: Block, path: Path) -> CodeType:
    """A Python block as code that knows its place."""
    return compile("\n" * (block.line - 1) + block.code, str(path), "exec")


def read(path: Path) -> str:
    """A page's Markdown; of a notebook that of its text cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def prose(text: str) -> str:
    """What is left without fenced blocks and comments."""
    return _COMMENT.sub("", _FENCE.sub("", text))


def links(text: str) -> list[str]:
    """Targets of the links and pictures in a text, in order."""
    return re.findall(r"\]\(([^)\s]+)\)", _CODE.sub("", prose(text)))


def code_spans(text: str) -> list[str]:
    """What stands between backticks outside of blocks."""
    return [span[1:-1] for span in _CODE.findall(prose(text))]


def anchors(text: str) -> set[str]:
    """The names under which a page's headings can be linked to, as Python-Markdown makes them."""
    return {_slug(heading) for heading in _HEADING.findall(prose(text))}


def _slug(heading: str) -> str:
    plain = unicodedata.normalize("NFKD", heading.replace("`", "")).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
