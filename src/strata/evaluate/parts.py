"""What an evaluation has found before its end, kept so that the same command need not find it again."""

import hashlib
import json
from collections.abc import Callable, Iterable
from copy import copy
from pathlib import Path
from typing import Any

from strata.amounts import counted
from strata.atomic import as_json, write_json
from strata.errors import UserError
from strata.log import say


class Parts:
    """Finished parts of an evaluation, by name; in a file, if there is one, after each of them.

    Args:
        path: the file. One that is there already is gone on with if it is of the same evaluation, else replaced when
            the first part is finished. None keeps nothing beyond this object.
        of: what the numbers depend on: JSON-able, the same for the same evaluation and for no other.
        progress: say on stderr how many parts were there.
    """

    def __init__(self, path: Path | None, *, of: Any, progress: bool = True) -> None:
        self._path = path
        self._of = hashlib.sha256(json.dumps(of, default=str).encode()).hexdigest()
        self._within: tuple[str, ...] = ()
        self._found: dict[str, Any] = {} if path is None else _read(path, self._of)
        if self._found:
            say(f"going on: {counted(len(self._found), 'part')} of it done before", shown=progress)

    def within(self, *name: str) -> "Parts":
        """The same, for parts whose names are told apart by this one in front."""
        own = copy(self)
        own._within = (*self._within, *name)
        return own

    def of(self, *name: str | None, make: Callable[[], Any]) -> Any:
        """A part: the one that was finished before, or a new one.

        Args:
            name: what no other part is called.
            make: finds it; JSON-able.

        Returns:
            What `make` returned, now or before, as JSON gives it back: a copy of its own.

        Raises:
            UserError: the file cannot be written.
        """
        key = json.dumps((*self._within, *name))
        if key not in self._found:
            self._found[key] = as_json(make())
            self._write()
        return as_json(self._found[key])

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, {"of": self._of, "parts": self._found})
        except OSError as error:
            raise UserError(
                f"`out` must be a folder that can be written. {self._path.parent}: {error.strerror}. Give another path."
            ) from error


def stamps(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Path, size in bytes and time of change in ns of each file, of a folder of all files in it."""
    files = (file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    return sorted((str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def _read(path: Path, of: str) -> dict[str, Any]:
    """The parts in a file; none where there is no file, a damaged one or that of another evaluation."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return dict(kept["parts"]) if kept["of"] == of else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
