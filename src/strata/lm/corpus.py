"""The corpus that every machine with Python has: the standard library's own source files."""

import hashlib
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# Test suites hold tables of broken encodings and are missing from many distributions' Python; without them
# the corpus is nearly the same on every machine.
_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
_HELD_OUT_PERCENT = 5


@cache
def standard_library_files() -> tuple[Path, ...]:
    """Source files of the running Python's standard library, without test suites and installed packages.

    Returns:
        Absolute paths, sorted by their path below the library's folder (so the order is the same everywhere).
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = (path for path in root.rglob("*.py") if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts))
    return tuple(sorted(found, key=lambda path: path.relative_to(root).as_posix()))


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def is_held_out(name: str) -> bool:
    """Whether the file of this name belongs to the held-out 5 % of a corpus (a hash of the name, so it never changes).

    Args:
        name: the path below the corpus' root, with forward slashes, e.g. ``"json/decoder.py"``.
    """
    return int.from_bytes(_digest(name)[:4], "big") % 100 < _HELD_OUT_PERCENT


def standard_library_texts(*, held_out: bool) -> Iterator[str]:
    """Texts of the standard library's files, one per file; files that are not UTF-8 are passed over.

    They come in the order of a hash of their names, so that the beginning of the corpus is a fair sample of it.

    Args:
        held_out: the held-out 5 % of the files if True, else the other 95 %. The embedded model was trained on
            the latter, so that its held-out loss and an SAE's held-out metrics are measured on text new to both.
    """
    root = Path(sysconfig.get_path("stdlib"))
    named = {path.relative_to(root).as_posix(): path for path in standard_library_files()}
    for name in sorted((n for n in named if is_held_out(n) == held_out), key=lambda n: _digest(n)[::-1]):
        path = named[name]
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip():
            yield text
