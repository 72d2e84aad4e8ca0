"""Draw the rooms of the package and who imports whom, from the imports themselves, into docs/architecture.md.

    .venv/bin/python scripts/rooms.py            # write the picture
    .venv/bin/python scripts/rooms.py --check    # exit code 1 where the page shows another one

An arrow goes from a room to one that it imports. Left out is what a longer way says already (a transitive reduction),
and the few methods of the public contract that hand on to a higher room (`DELEGATES` in tests/test_house.py).
"""

import argparse
import sys
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from test_house import DELEGATES, LAYERS, imports_of_ours, layer  # noqa: E402

PAGE = ROOT / "docs" / "architecture.md"
_START, _END = "<!-- rooms -->\n", "<!-- /rooms -->\n"

# Files at the top of the package that share a noun are one room of the picture; a folder is a room by itself.
TOGETHER = {
    "words": ("shapes", "durations", "amounts", "errors", "cache", "visible_text"),
    "config": ("config", "recipes"),
    "grouping": ("grouping", "similarity"),
    "files": ("atomic", "out_folder", "checkpoint", "log", "loggers", "signals", "memory"),
    "assignments": ("assignments", "origins"),
    "train": ("loop", "prepare", "recording", "train", "training_facts"),
    "cli": ("cli", "flags", "__main__"),
}
_ROOM_OF = {name: room for room, names in TOGETHER.items() for name in names}
# Parts of a folder that belong to a higher layer than the rest of it.
_PARTS = {"strata.distributed.spread": "spread", "strata.distributed.rows": "spread"}


def room_of(module: str) -> str:
    """The room of a module by its dotted name."""
    name = module.split(".")[1]
    return _PARTS.get(module) or _ROOM_OF.get(name, name)


def graph() -> nx.DiGraph:
    """Rooms, each with its layer, and an edge to every room that it imports."""
    found = nx.DiGraph()
    for module, one in imports_of_ours():
        mine, theirs = room_of(module), room_of(one.target)
        for room, level in ((mine, layer(module)), (theirs, layer(one.target))):
            found.add_node(room, layer=level)
        if mine != theirs and not one.only_for_types and (module, one.function or "") not in DELEGATES:
            found.add_edge(mine, theirs)
    return found


def cycles(rooms: nx.DiGraph) -> list[list[str]]:
    """Rooms that import each other, in some number of steps."""
    return [sorted(found) for found in nx.strongly_connected_components(rooms) if len(found) > 1]


def mermaid(rooms: nx.DiGraph) -> str:
    """The picture in Mermaid's words: a box per layer, the highest first."""
    lines = ["```mermaid", "flowchart TD"]
    for level in reversed(range(len(LAYERS))):
        inside = sorted(room for room, its in rooms.nodes(data="layer") if its == level)
        lines += [f"  subgraph layer{level}[{LAYERS[level][0]}]", *(f"    {room}" for room in inside), "  end"]
    lines += [f"  {room} --> {other}" for room, other in sorted(nx.transitive_reduction(rooms).edges)]
    return "\n".join([*lines, "```", ""])


def page_with(picture: str) -> str:
    """The page as it is, with this picture between its marks."""
    before, rest = PAGE.read_text(encoding="utf-8").split(_START)
    return f"{before}{_START}\n{picture}\n{_END}{rest.split(_END)[1]}"


def main() -> int:
    """Write or check the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    only_check = parser.parse_args().check
    found = graph()
    if wrong := cycles(found):
        print(f"rooms that import each other: {wrong}", file=sys.stderr)
        return 1
    page = page_with(mermaid(found))
    same = page == PAGE.read_text(encoding="utf-8")
    if not only_check:
        PAGE.write_text(page, encoding="utf-8")
    elif not same:
        print("docs/architecture.md shows other rooms: run `python scripts/rooms.py`", file=sys.stderr)
    return 0 if same or not only_check else 1


if __name__ == "__main__":
    sys.exit(main())
