"""Where texts come from: lists, iterators, files, Hugging Face datasets, the standard library, or given token ids."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from strata.errors import UserError, did_you_mean
from strata.lm import text_datasets, text_sources
from strata.lm.records import RecordReader
from strata.lm.text_sources import Reading
from strata.lm.texts import Texts

SPLITS = ("train", "held_out", "all")

# The first that takes what is given reads it. A new kind is a function and a row here.
_KINDS: tuple[Callable[[Any, Reading], Texts | None], ...] = (
    text_sources.token_ids,
    text_sources.standard_library,
    text_sources.files,
    text_datasets.hub,
    text_datasets.dataset,
    text_sources.listed,
    text_sources.iterator,
    text_sources.iterable,
)


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
    reading = Reading(split, RecordReader(text_column=text_column, tokenizer=tokenizer))
    for kind in _KINDS:
        found = kind(source, reading)
        if found is not None:
            return found
    if isinstance(source, str | Path):
        shown = str(source) if len(str(source)) <= 200 else f"{str(source)[:200]}…"
        raise UserError(
            f"A source of texts given by name must be a file or folder that exists, 'stdlib', or a Hugging Face "
            f"dataset 'org/name'. {shown!r} is none of them; a text itself is given in a list: [text]."
        )
    raise UserError(
        f"Texts must be a list or iterator of str, a path, 'stdlib', a Hugging Face dataset (or its id), or token ids "
        f"[n_seqs seq]. Got {type(source).__name__}; of a table, give the column with the text as a list."
    )
