"""Texts from datasets of Hugging Face's library: by id from the hub, or as objects that the user has loaded.

Each function takes what a user gave, and gives None where that is of another kind.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from strata.errors import MissingExtraError, UserError
from strata.lm.records import Record, RecordReader
from strata.lm.text_sources import Reading, numbered
from strata.lm.texts import Texts

_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?")
_LONGEST_ID = 200
_OF_FILES = frozenset({".txt", ".jsonl", ".json", ".parquet", ".gz"})


def hub(source: object, reading: Reading) -> Texts | None:
    """``"org/name"`` or ``"org/name:config"``: its split ``train`` is streamed.

    Raises:
        UserError: there is no such dataset, no network, or no split to take.
        MissingExtraError: the library is not installed.
    """
    found = _HUB_ID.fullmatch(source) if isinstance(source, str) and len(source) <= _LONGEST_ID else None
    if found is None or Path(found.string).suffix in _OF_FILES:
        return None
    name = found["id"]
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        purpose = f"Reading the Hugging Face dataset {name!r}"
        raise MissingExtraError("datasets", extra="data", purpose=purpose) from error
    try:
        builder = datasets.load_dataset_builder(name, found["config"])
        streams = builder.as_streaming_dataset()
    except Exception as error:  # network, authorisation, unknown id or config: each with its library's types
        raise UserError(
            f"The Hugging Face dataset {name!r} could not be opened: {_first_line(error)} "
            f"Check the id (a config is given as 'org/name:config') and the network, or give a local path."
        ) from error
    stream = _narrow(_only_split(streams, name), reading.reader)

    def records() -> Iterator[Record]:
        try:
            for number, record in enumerate(stream):
                yield f"{name!r} record {number}", record
        except (OSError, DatasetsError) as error:
            raise UserError(f"Reading the Hugging Face dataset {name!r} failed: {_first_line(error)}") from error

    fingerprint = f"hub:{name}:{builder.config.name}:{builder.hash}"
    return reading.texts(records, name=name, kind="hub", fingerprint=fingerprint)


def dataset(source: Any, reading: Reading) -> Texts | None:
    """A dataset that is loaded, or a dictionary of its splits.

    Raises:
        UserError: there is no split to take.
    """
    datasets: Any = sys.modules.get("datasets")  # an object of that library exists only where the library is loaded
    if datasets is None:
        return None
    if isinstance(source, datasets.DatasetDict | datasets.IterableDatasetDict):
        source = _only_split(source, "the dataset given")
    if not isinstance(source, datasets.Dataset | datasets.IterableDataset):
        return None
    name, rows = source.info.dataset_name or "datasets", _narrow(source, reading.reader)
    # A stream has no fingerprint of its own, and its content is not known without a pass.
    own = getattr(source, "_fingerprint", None)
    fingerprint = f"datasets:{own}" if own else "unknown"
    return reading.texts(lambda: numbered(rows, name), name=name, kind="datasets", fingerprint=fingerprint)


def _only_split(streams: Any, name: str) -> Any:
    if not isinstance(streams, Mapping):
        return streams
    splits = cast(Mapping[str, Any], streams)
    if "train" in splits or len(splits) == 1:
        return splits["train"] if "train" in splits else next(iter(splits.values()))
    raise UserError(
        f"A dataset with several splits must have one named 'train'. {name!r} has {list(splits)}; give one of them."
    )


def _narrow(dataset: Any, reader: RecordReader) -> Any:
    """The dataset with the text's column alone, so that no images or other heavy columns are decoded."""
    column = next((name for name in reader.columns if name in (dataset.column_names or [])), None)
    return dataset if column is None else dataset.select_columns([column])


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0].strip()
    return line if line.endswith((".", "!", "?")) else f"{line}."
