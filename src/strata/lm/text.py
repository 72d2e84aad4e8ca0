"""Where texts come from: lists, iterators, files, Hugging Face datasets, the standard library, or given token ids."""

import hashlib
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from strata.errors import MissingExtraError, UserError, did_you_mean
from strata.lm.corpus import is_held_out, standard_library_files, standard_library_texts
from strata.lm.records import Record, RecordReader
from strata.lm.text_files import files_fingerprint, find_text_files, read_records

SPLITS = ("train", "held_out", "all")
_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?")


class Texts:
    """A source of documents that is read anew by every iteration (unless it came from a one-shot iterator).

    Attributes:
        name: what the source is called, e.g. a file's name.
        kind: ``list``, ``iterator``, ``iterable``, ``files``, ``stdlib``, ``datasets``, ``hub`` or ``token_ids``.
        split: ``train``, ``held_out`` or ``all``.
        fingerprint: identifies the content before the split, as ``<how>:<value>``; ``unknown`` where it takes a pass.
        token_ids: the sequences, if the source is not text but token ids; iterating such a source is an error.
    """

    def __init__(
        self,
        documents: Callable[[], Iterator[str]],
        *,
        name: str,
        kind: str,
        split: str,
        fingerprint: str,
        token_ids: Int[Tensor, "n_seqs seq"] | None = None,
    ) -> None:
        self.name, self.kind, self.split, self.fingerprint = name, kind, split, fingerprint
        self.token_ids = token_ids
        self._documents = documents

    def __iter__(self) -> Iterator[str]:
        """The documents of the split, in the source's order.

        Raises:
            UserError: the source has no text at all, is broken, or is a one-shot iterator that was read before.
        """
        return self._documents()

    def part(self, index: int, n_parts: int) -> "Texts":
        """Every n-th document (or sequence of token ids): the share of one of several processes.

        Args:
            index: which share, in [0, n_parts).
            n_parts: how many there are; the fingerprint stays that of the whole.
        """
        assert 0 <= index < n_parts
        return Texts(
            lambda: itertools.islice(self._documents(), index, None, n_parts),
            name=self.name,
            kind=self.kind,
            split=self.split,
            fingerprint=self.fingerprint,
            token_ids=None if self.token_ids is None else self.token_ids[index::n_parts],
        )

    def describe(self) -> dict[str, str]:
        """What the run folder keeps of it: ``source``, ``kind``, ``split``, ``fingerprint``."""
        return {"source": self.name, "kind": self.kind, "split": self.split, "fingerprint": self.fingerprint}


def open_texts(source: object, *, split: str = "train", text_column: str = "text", tokenizer: Any = None) -> Texts:
    """Makes a source of documents of (nearly) anything that holds text.

    A record is a text, an object with the text in ``text_column``, or a conversation: a list of ``{"role", "content"}``
    messages, by itself or in the column ``messages``, which is written out with the tokenizer's chat template.

    Args:
        source: one of
            a list or another re-iterable of records;
            an iterator or generator of records, which can be read only once: a second iteration raises a UserError;
            a file or folder of ``.txt``, ``.jsonl``, ``.json`` (each also with ``.gz``) or ``.parquet`` files; a text
            file of more than 65,536 characters counts as several documents, cut at blank lines;
            ``"stdlib"``, the Python standard library's sources;
            a ``datasets`` object, or the id ``"org/name"`` or ``"org/name:config"`` of one on the Hugging Face hub,
            whose split ``train`` is streamed;
            token ids as an integer Tensor or array [n_seqs seq], for which no tokenizer is needed;
            Texts, returned as they are, whatever ``split`` says.
        split: ``held_out`` takes about 5 % of the documents, chosen by a hash of their text (so the same document is
            always on the same side, wherever it stands; stdlib: by file name, as for the embedded model), ``train`` the
            others, ``all`` both. The first document is always one to train on. A small source may have no held-out
            document: the iteration is then empty, which is for the caller to judge.
        text_column: the column of records that holds the text (or a conversation); null values are passed over.
        tokenizer: a Hugging Face tokenizer, needed only for conversations.

    Raises:
        UserError: nothing of the kinds above, an unknown split, or a source that cannot be read.
        MissingExtraError: a library that this kind of source needs is not installed.
    """
    if isinstance(source, Texts):
        return source
    if split not in SPLITS:
        raise UserError(f"`split` must be one of {', '.join(SPLITS)}. Got {split!r}.{did_you_mean(split, SPLITS)}")
    if isinstance(source, np.ndarray) and source.dtype.kind in "iu":
        source = torch.from_numpy(source.astype(np.int64))
    if isinstance(source, Tensor):
        return _open_token_ids(source, split=split)
    if isinstance(source, str) and source == "stdlib":
        return _open_stdlib(split)
    reader = RecordReader(text_column=text_column, tokenizer=tokenizer)
    opened = _open_named(source, reader) if isinstance(source, str | Path) else _open_object(source, reader)
    return Texts(
        lambda: _documents(opened, reader, split),
        name=opened.name,
        kind=opened.kind,
        split=split,
        fingerprint=opened.fingerprint,
    )


@dataclass(frozen=True)
class _Source:
    """Records that have not been turned into texts yet."""

    name: str
    kind: str
    fingerprint: str
    records: Callable[[], Iterator[Record]]


def _documents(source: _Source, reader: RecordReader, split: str) -> Iterator[str]:
    any_text = False
    for place, record in source.records():
        text = reader.text(place, record)
        if text is None:
            continue
        first, any_text = not any_text, any_text or bool(text.strip())
        held_out = is_held_out(text) and not first
        if split == "all" or held_out == (split == "held_out"):
            yield text
    if not any_text:
        raise UserError(f"A source of texts must hold some text. {source.name!r} holds none.")


def _open_stdlib(split: str) -> Texts:
    digest = hashlib.sha256()
    for path in standard_library_files():
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())

    def documents() -> Iterator[str]:
        if split != "held_out":
            yield from standard_library_texts(held_out=False)
        if split != "train":
            yield from standard_library_texts(held_out=True)

    version = ".".join(str(part) for part in sys.version_info[:3])
    fingerprint = f"python-{version}:{digest.hexdigest()}"
    return Texts(documents, name="stdlib", kind="stdlib", split=split, fingerprint=fingerprint)


def _open_token_ids(ids: Tensor, *, split: str) -> Texts:
    if ids.ndim != 2 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or 0 in ids.shape:
        raise UserError(
            f"Token ids must be an integer Tensor [n_seqs seq] that is not empty. Got {ids.dtype} {list(ids.shape)}."
        )
    ids = ids.detach().cpu().long()
    if int(ids.min()) < 0:
        raise UserError(f"Token ids must be 0 or above. Got {int(ids.min())}; pads take the tokenizer's pad token.")
    digest = hashlib.sha256(str(list(ids.shape)).encode() + ids.numpy().tobytes()).hexdigest()
    name = f"token ids {list(ids.shape)}"
    if split != "all":
        held_out = torch.tensor([is_held_out(" ".join(map(str, row))) for row in ids.tolist()])
        held_out[0] = False
        ids = ids[held_out == (split == "held_out")]

    def no_documents() -> Iterator[str]:
        raise UserError("These texts are token ids and cannot be read as text. Give the texts themselves.")

    return Texts(no_documents, name=name, kind="token_ids", split=split, fingerprint=f"sha256:{digest}", token_ids=ids)


def _open_named(source: str | Path, reader: RecordReader) -> _Source:
    """A path, or an id on the hub."""
    shown = str(source) if len(str(source)) <= 200 else f"{str(source)[:200]}…"
    path = Path(source).expanduser()
    try:
        exists = path.exists()
    except (OSError, ValueError):  # a whole text where a path should be: name too long, null byte
        exists = False
    if exists:
        files = find_text_files(path)
        root = path if path.is_dir() else path.parent

        def records() -> Iterator[Record]:
            for file in files:
                yield from read_records(file, columns=reader.columns)

        return _Source(path.resolve().name, "files", files_fingerprint(files, root=root), records)
    found = _HUB_ID.fullmatch(shown) if isinstance(source, str) else None
    if found is None or path.suffix in {".txt", ".jsonl", ".json", ".parquet", ".gz"}:
        raise UserError(
            f"A source of texts given by name must be a file or folder that exists, 'stdlib', or a Hugging Face "
            f"dataset 'org/name'. {shown!r} is none of them; a text itself is given in a list: [text]."
        )
    return _open_hub(found["id"], found["config"], reader)


def _open_hub(name: str, config: str | None, reader: RecordReader) -> _Source:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        purpose = f"Reading the Hugging Face dataset {name!r}"
        raise MissingExtraError("datasets", extra="data", purpose=purpose) from error
    try:
        builder = datasets.load_dataset_builder(name, config)
        streams = builder.as_streaming_dataset()
    except Exception as error:  # network, authorisation, unknown id or config: each with its library's types
        raise UserError(
            f"The Hugging Face dataset {name!r} could not be opened: {_first_line(error)} "
            f"Check the id (a config is given as 'org/name:config') and the network, or give a local path."
        ) from error
    dataset = _narrow(_only_split(streams, name), reader)

    def records() -> Iterator[Record]:
        try:
            for number, record in enumerate(dataset):
                yield f"{name!r} record {number}", record
        except (OSError, DatasetsError) as error:
            raise UserError(f"Reading the Hugging Face dataset {name!r} failed: {_first_line(error)}") from error

    return _Source(name, "hub", f"hub:{name}:{builder.config.name}:{builder.hash}", records)


def _open_object(source: Any, reader: RecordReader) -> _Source:
    datasets = sys.modules.get("datasets")  # an object of that library exists only where the library is loaded
    if datasets is not None and isinstance(source, datasets.DatasetDict | datasets.IterableDatasetDict):
        source = _only_split(source, "the dataset given")
    if datasets is not None and isinstance(source, datasets.Dataset | datasets.IterableDataset):
        name, dataset = source.info.dataset_name or "datasets", _narrow(source, reader)
        # A stream has no fingerprint of its own, and its content is not known without a pass.
        own = getattr(source, "_fingerprint", None)
        return _Source(name, "datasets", f"datasets:{own}" if own else "unknown", lambda: _numbered(dataset, name))
    if isinstance(source, list | tuple):
        if not source:
            raise UserError("A list of texts must hold some text. Got an empty one.")
        return _Source(f"list of {len(source)}", "list", _list_fingerprint(source), lambda: _numbered(source, "text"))
    if isinstance(source, Iterator):
        return _Source("iterator", "iterator", "unknown", _once(source))
    if isinstance(source, Iterable) and not isinstance(source, Mapping | bytes) and not hasattr(source, "columns"):
        return _Source(type(source).__name__, "iterable", "unknown", lambda: _numbered(source, "text"))
    raise UserError(
        f"Texts must be a list or iterator of str, a path, 'stdlib', a Hugging Face dataset (or its id), or token ids "
        f"[n_seqs seq]. Got {type(source).__name__}; of a table, give the column with the text as a list."
    )


def _only_split(streams: Any, name: str) -> Any:
    if not isinstance(streams, Mapping):
        return streams
    if "train" in streams or len(streams) == 1:
        return streams["train"] if "train" in streams else next(iter(streams.values()))
    raise UserError(
        f"A dataset with several splits must have one named 'train'. {name!r} has {list(streams)}; give one of them."
    )


def _narrow(dataset: Any, reader: RecordReader) -> Any:
    """The dataset with the text's column alone, so that no images or other heavy columns are decoded."""
    column = next((name for name in reader.columns if name in (dataset.column_names or [])), None)
    return dataset if column is None else dataset.select_columns([column])


def _numbered(records: Iterable[object], name: str) -> Iterator[Record]:
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
        yield from _numbered(records, "text")

    return reader


def _list_fingerprint(records: list | tuple) -> str:
    digest = hashlib.sha256()
    for record in records:
        content = (record if isinstance(record, str) else repr(record)).encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big"))  # so that ["ab"] and ["a", "b"] differ
        digest.update(content)
    return f"sha256:{digest.hexdigest()}"


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0].strip()
    return line if line.endswith((".", "!", "?")) else f"{line}."
