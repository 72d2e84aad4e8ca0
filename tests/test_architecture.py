"""The page on the architecture: its picture is drawn from the imports, and no two rooms import each other."""

import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import rooms  # noqa: E402


def test_no_two_rooms_import_each_other() -> None:
    assert not rooms.cycles(rooms.graph())


def test_rooms_that_do_are_found() -> None:
    assert rooms.cycles(nx.DiGraph([("plan", "run"), ("run", "lm"), ("lm", "plan"), ("lm", "costs")])) == [
        ["lm", "plan", "run"]
    ]


def test_the_picture_is_what_the_imports_say() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "rooms.py"), "--check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_every_room_of_the_picture_is_in_the_pages_table() -> None:
    table = [line for line in rooms.PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    named = " ".join(table)
    missing = [room for room in rooms.graph() if room not in named]
    assert not missing


@pytest.mark.parametrize("path", ["sae/rules/registry.py", "sae/revival.py", "lm/sites.py", "lm/text.py"])
def test_where_to_add_something_is_there(path: str) -> None:
    page = rooms.PAGE.read_text(encoding="utf-8")
    assert Path(path).name in page
    assert (ROOT / "src" / "strata" / path).exists()
