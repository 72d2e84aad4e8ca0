"""The kinds of text that need no other library: token ids, Python's own sources, files, lists, iterators.

Each function takes what a user gave, and gives None where that is of another kind.
"""

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from strata.errors import UserError
from strata.lm.corpus import is_held_out, standard_library_files, standard_library_texts
from strata.lm.records import Record, RecordReader
from strata.lm.text_files import files_fingerprint, find_text_files, read_records
from strata.lm.texts import Texts


@dataclass(frozen=True)
class Reading:
    """How a source is read.

    Attributes:
        split: ``train``, ``held_out`` or ``all``.
        reader: makes texts of records.
    """

    split: str
    reader: RecordReader

    def texts(self, records: Callable[[], Iterator[Record]], *, name: str, kind: str, fingerprint: str) -> Texts:
        """The documents of a split, from records; see `Texts` for the names.

        Args:
            records: reads them from the start.
            name: of the source.
            kind: of the source.
            fingerprint: of all records.
        """
        return Texts(
            lambda: self._documents(records, name), name=name, kind=kind, split=self.split, fingerprint=fingerprint
        )

    def _documents(self, records: Callable[[], Iterator[Record]], name: str) -> Iterator[str]:
        any_text = False
        for place, record in records():
            text = self.reader.text(place, record)
            if text is None:
                continue
            first, any_text = not any_text, any_text or bool(text.strip())
            held_out = is_held_out(text) and not first
            if self.split == "all" or held_out == (self.split == "held_out"):
                yield text
        if not any_text:
            raise UserError(f"A source of texts must hold some text. {name!r} holds none.")


def token_ids(source: Any, reading: Reading) -> Texts | None:
    """Token ids as an integer Tensor or array [n_seqs seq]; arrays of other numbers are no source.

    Raises:
        UserError: a Tensor of another shape or type, or ids below 0.
    """
    if isinstance(source, np.ndarray) and source.dtype.kind in "iu":
        source = torch.from_numpy(source.astype(np.int64))
    if not isinstance(source, Tensor):
        return None
    if source.ndim != 2 or not _is_integer(source) or 0 in source.shape:
        raise UserError(
            f"Token ids must be an integer Tensor [n_seqs seq] that is not empty. Got {source.dtype}"
            f" {list(source.shape)}."
        )
    ids = source.detach().cpu().long()
    if int(ids.min()) < 0:
        raise UserError(f"Token ids must be 0 or above. Got {int(ids.min())}; pads take the tokenizer's pad token.")
    digest = hashlib.sha256(str(list(ids.shape)).encode() + ids.numpy().tobytes()).hexdigest()
    name = f"token ids {list(ids.shape)}"
    if reading.split != "all":
        rows = cast(list[list[int]], ids.tolist())
        held_out = torch.tensor([is_held_out(" ".join(map(str, row))) for row in rows])
        held_out[0] = False
        ids = ids[held_out == (reading.split == "held_out")]

    def no_documents() -> Iterator[str]:
        raise UserError("These texts are token ids and cannot be read as text. Give the texts themselves.")

    fingerprint = f"sha256:{digest}"
    return Texts(no_documents, name=name, kind="token_ids", split=reading.split, fingerprint=fingerprint, token_ids=ids)


def standard_library(source: object, reading: Reading) -> Texts | None:
    """``"stdlib"``: the sources of Python's standard library."""
    if not isinstance(source, str) or source != "stdlib":
        return None
    digest = hashlib.sha256()
    for path in standard_library_files():
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())

    def documents() -> Iterator[str]:
        if reading.split != "held_out":
            yield from standard_library_texts(held_out=False)
        if reading.split != "train":
            yield from standard_library_texts(held_out=True)

    version = ".".join(str(part) for part in sys.version_info[:3])
    fingerprint = f"python-{version}:{digest.hexdigest()}"
    return Texts(documents, name="stdlib", kind="stdlib", split=reading.split, fingerprint=fingerprint)


def files(source: object, reading: Reading) -> Texts | None:
    """The path of a file or folder that exists.

    Raises:
        UserError: it holds no text that can be read.
    """
    if not isinstance(source, str | Path):
        return None
    path = Path(source).expanduser()
    try:
        exists = path.exists()
    except (OSError, ValueError):  # a whole text where a path should be: name too long, null byte
        exists = False
    if not exists:
        return None
    paths = find_text_files(path)
    root = path if path.is_dir() else path.parent

    def records() -> Iterator[Record]:
        for one in paths:
            yield from read_records(one, columns=reading.reader.columns)

    fingerprint = files_fingerprint(paths, root=root)
    return reading.texts(records, name=path.resolve().name, kind="files", fingerprint=fingerprint)


def listed(source: Any, reading: Reading) -> Texts | None:
    """A list or tuple of records.

    Raises:
        UserError: it is empty.
    """
    if not isinstance(source, list | tuple):
        return None
    records = cast(Sequence[object], source)
    if not records:
        raise UserError("A list of texts must hold some text. Got an empty one.")
    return reading.texts(
        lambda: numbered(records, "text"),
        name=f"list of {len(records)}",
        kind="list",
        fingerprint=_list_fingerprint(records),
    )


def iterator(source: Any, reading: Reading) -> Texts | None:
    """An iterator of records, which can be read once."""
    if not isinstance(source, Iterator):
        return None
    return reading.texts(_once(cast(Iterator[object], source)), name="iterator", kind="iterator", fingerprint="unknown")


def iterable(source: Any, reading: Reading) -> Texts | None:
    """Whatever else can be iterated over again and again; not text itself, mappings or tables."""
    if not isinstance(source, Iterable) or isinstance(source, str | Mapping | bytes | Path):
        return None
    records = cast(Iterable[object], source)
    if hasattr(records, "columns"):
        return None
    name = type(records).__name__
    return reading.texts(lambda: numbered(records, "text"), name=name, kind="iterable", fingerprint="unknown")


def numbered(records: Iterable[object], name: str) -> Iterator[Record]:
    """Records with their places, which are told by their number."""
    for number, record in enumerate(records):
        yield f"{name} number {number}", record


def _once(records: Iterator[object]) -> Callable[[], Iterator[Record]]:
    read = False

    def reader() -> Iterator[Record]:
        nonlocal read
        if read:
            raise UserError(
                "An iterator of texts can be read only once. For a second pass (epochs, evaluation) give a list, a "
                "path or a dataset."
            )
        read = True
        yield from numbered(records, "text")

    return reader


def _list_fingerprint(records: Sequence[object]) -> str:
    digest = hashlib.sha256()
    for record in records:
        content = (record if isinstance(record, str) else repr(record)).encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big"))  # so that ["ab"] and ["a", "b"] differ
        digest.update(content)
    return f"sha256:{digest.hexdigest()}"


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
