"""Records that hold text: plain ones, objects with columns, conversations; and the text of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strata.errors import UserError

# Where a record stands (for error sentences), and what stands there.
Record = tuple[str, object]
_MESSAGES_COLUMN = "messages"


@dataclass(frozen=True)
class RecordReader:
    """Turns records into texts."""

    text_column: str
    tokenizer: Any

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that may hold the text; the first one that a record has does."""
        return tuple(dict.fromkeys((self.text_column, _MESSAGES_COLUMN)))

    def text(self, place: str, record: object) -> str | None:
        """The text of a record, None if its column holds null."""
        if isinstance(record, Mapping):
            column = next((name for name in self.columns if name in record), None)
            if column is None:
                raise UserError(missing_column(self.columns, [str(name) for name in record], place=place))
            record = record[column]
            if record is None:
                return None
        if isinstance(record, list | tuple) and record and all(isinstance(message, Mapping) for message in record):
            record = self._conversation(place, list(record))
        if not isinstance(record, str):
            raise UserError(
                f"A document must be a text, a record with a text column or a list of messages. {place} is of type "
                f"{type(record).__name__}; token ids are given as one integer Tensor [n_seqs seq]."
            )
        return _encodable(record)

    def _conversation(self, place: str, messages: list[Mapping]) -> str:
        if self.tokenizer is None:
            raise UserError(f"Conversations need a tokenizer with a chat template. {place} is one; give `tokenizer`.")
        if not getattr(self.tokenizer, "chat_template", None):
            raise UserError(
                f"Conversations need a tokenizer with a chat template. {place} is one, and this tokenizer has none; "
                f"set `tokenizer.chat_template` or give plain texts."
            )
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception as error:  # templates raise what they like: jinja's errors, KeyError, ValueError
            raise UserError(f"The tokenizer's chat template refuses the conversation at {place}: {error}.") from error


def missing_column(columns: tuple[str, ...], present: list[str], *, place: str) -> str:
    """The error sentence on a record that has none of the columns that were looked for."""
    wanted, there = " or ".join(repr(name) for name in columns), ", ".join(repr(name) for name in present) or "none"
    return f"`text_column` must name a column with the text. {place} has no {wanted}; its columns are: {there}."


def _encodable(text: str) -> str:
    """The same text; half surrogate pairs, which JSON can smuggle in and no tokenizer takes, become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
