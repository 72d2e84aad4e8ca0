"""The README's Python is run as it stands, top to bottom, as a reader would."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def python_blocks(text: str) -> list[tuple[int, str]]:
    """The fenced Python blocks of a Markdown text.

    Returns:
        For each block the number of the line on which its code begins (from 1), and the code.
    """
    fence = re.compile(r"^```python[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)) + 1, match.group(1)) for match in fence.finditer(text)]


def run_blocks(path: Path) -> None:
    """Run a Markdown file's Python blocks one after the other in one namespace; tracebacks name the file's lines."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code in python_blocks(path.read_text(encoding="utf-8")):
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), namespace)


def test_blocks_share_a_namespace_and_keep_their_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\nx = 1\n```\n\n```bash\nexit 1\n```\n\n```python\nassert x == 2\n```\n")
    assert python_blocks(page.read_text()) == [(4, "x = 1\n"), (12, "assert x == 2\n")]
    with pytest.raises(AssertionError) as failure:
        run_blocks(page)
    assert failure.traceback[-1].lineno + 1 == 12  # pytest counts from 0


@pytest.mark.skipif(not README.exists(), reason="there is no README.md yet")
def test_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert python_blocks(README.read_text(encoding="utf-8")), "README.md shows no Python"
    run_blocks(README)
