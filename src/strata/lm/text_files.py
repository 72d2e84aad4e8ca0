"""Files with text in them: which ones there are, their records one by one, and what identifies their content."""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from strata.errors import MissingExtraError, UserError
from strata.lm.records import Record, missing_column

# A longer text file is read as several documents, so that it never lies in memory whole and has a held-out part.
PIECE_CHARACTERS = 1 << 16
_WHOLE_HASH_BYTES = 64 << 20
_END_HASH_BYTES = 1 << 20
_PARQUET_BATCH_ROWS = 1024


def find_text_files(path: Path) -> list[Path]:
    """The files of a source: the path itself, or every readable file below a folder, in the order of their names.

    Args:
        path: a file or folder that exists. Hidden files and folders (names that start with a dot) are passed over.

    Raises:
        UserError: a suffix that is not known, an empty file, or a folder without any file of a known suffix.
    """
    known = ", ".join([*_READERS, *(f"{suffix}.gz" for suffix in _COMPRESSED)])
    if path.is_dir():
        below = (found for found in path.rglob("*") if found.is_file() and _kind(found))
        visible = [found for found in below if not any(part.startswith(".") for part in found.relative_to(path).parts)]
        if not visible:
            raise UserError(f"A folder of texts must hold files of a known kind ({known}). {str(path)!r} has none.")
        return sorted(visible, key=lambda found: found.relative_to(path).as_posix())
    if not _kind(path):
        raise UserError(f"A file of texts must end in one of {known}. Got {str(path)!r}; convert it or rename it.")
    with _readable(path):
        if path.stat().st_size == 0:
            raise UserError(f"A file of texts must hold some text. {str(path)!r} is empty.")
    return [path]


def read_records(path: Path, *, columns: tuple[str, ...]) -> Iterator[Record]:
    """The records of one file, read a little at a time (a ``.json`` file: whole).

    Args:
        path: a file that :func:`find_text_files` gave.
        columns: of a Parquet file, only the first of these columns that it has is read.

    Raises:
        UserError: the file cannot be read, is not UTF-8, is broken (with the line), or has none of the columns.
    """
    read = _READERS[_kind(path)]
    with _readable(path):
        yield from read(path, columns)


def files_fingerprint(paths: list[Path], *, root: Path) -> str:
    """SHA-256 over the files' names below ``root``, sizes and contents, wherever on the disk they lie.

    Sources above 64 MiB are hashed by the first and last MiB of each file (and all sizes), which costs no pass over the
    data and misses a change in the middle that keeps the length; such a fingerprint starts with ``sha256-ends:``.
    """
    total = hashlib.sha256()
    sizes = {path: path.stat().st_size for path in paths}
    whole = sum(sizes.values()) < _WHOLE_HASH_BYTES
    for path in paths:
        with _readable(path), path.open("rb") as file:
            name = path.relative_to(root).as_posix()
            if whole:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            else:
                digest = hashlib.sha256(file.read(_END_HASH_BYTES))
                file.seek(max(sizes[path] - _END_HASH_BYTES, 0))
                digest.update(file.read(_END_HASH_BYTES))
                content = digest.hexdigest()
            total.update(json.dumps([name, sizes[path], content]).encode())
    return f"{'sha256' if whole else 'sha256-ends'}:{total.hexdigest()}"


def _kind(path: Path) -> str:
    """The suffix that decides how a file is read, ``""`` if none does."""
    name = path.name.lower()
    if name.endswith(".gz"):
        name = name.removesuffix(".gz")
        return next((suffix for suffix in _COMPRESSED if name.endswith(suffix)), "")
    return next((suffix for suffix in _READERS if name.endswith(suffix)), "")


@contextmanager
def _readable(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(
            f"A file of texts must be UTF-8. {str(path)!r} is not ({error.reason}, byte "
            f"{error.object[error.start]:#04x}); convert it, e.g. with `iconv -t UTF-8`."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"The texts in {str(path)!r} could not be read: {reason}.") from error


def _open_text(path: Path) -> io.TextIOWrapper:
    # utf-8-sig: a byte order mark, as some editors write it, is no text.
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _read_plain(path: Path, columns: tuple[str, ...]) -> Iterator[Record]:
    """One document, or several if the file is long, cut at blank lines where possible; joined they are the file."""
    n_pieces, rest = 0, ""
    with _open_text(path) as file:
        while chunk := file.read(PIECE_CHARACTERS):
            rest += chunk
            while len(rest) > PIECE_CHARACTERS:
                cut = _cut(rest)
                n_pieces += 1
                yield f"{str(path)!r} part {n_pieces}", rest[:cut]
                rest = rest[cut:]
    if rest:
        yield f"{str(path)!r}", rest


def _cut(text: str) -> int:
    """Where to end a piece: behind its last blank line, else line, else word, in the second half of the piece."""
    for mark in ("\n\n", "\n", " "):
        found = text.rfind(mark, PIECE_CHARACTERS // 2, PIECE_CHARACTERS)
        if found >= 0:
            # A word keeps the space before it: byte-level vocabularies hold it as one token.
            return found if mark == " " else found + len(mark)
    return PIECE_CHARACTERS


def _read_json_lines(path: Path, columns: tuple[str, ...]) -> Iterator[Record]:
    with _open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"Each line must be JSON. {str(path)!r} line {number} is not: {error.msg}.") from error
            yield f"{str(path)!r} line {number}", record


def _read_json(path: Path, columns: tuple[str, ...]) -> Iterator[Record]:
    with _open_text(path) as file:
        content = file.read()
    if not content.strip():
        return
    try:
        records = json.loads(content)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one value after the other: JSON lines under another name
            yield from _read_json_lines(path, columns)
            return
        raise UserError(f"{str(path)!r} must be JSON. Line {error.lineno}: {error.msg}.") from error
    several = cast(list[Any], records) if isinstance(records, list) else [records]
    for number, record in enumerate(several, start=1):
        yield f"{str(path)!r} record {number}", record


def _read_parquet(path: Path, columns: tuple[str, ...]) -> Iterator[Record]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", extra="data", purpose="Reading Parquet files") from error
    arrow_error = cast(type[Exception], pa.ArrowException)
    try:
        with cast(Any, pq).ParquetFile(path) as file:
            present = file.schema_arrow.names
            column = next((name for name in columns if name in present), None)
            if column is None:
                raise UserError(missing_column(columns, present, place=repr(str(path))))
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield f"{str(path)!r} row {number}", {column: value}
    except arrow_error as error:
        raise UserError(f"{str(path)!r} could not be read as Parquet: {str(error).splitlines()[0]}") from error


_READERS: dict[str, Callable[[Path, tuple[str, ...]], Iterator[Record]]] = {
    ".txt": _read_plain,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
_COMPRESSED = (".txt", ".jsonl", ".json")
