"""Records that hold text: plain ones, objects with columns, conversations; and the text of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

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
        found = record
        if isinstance(record, Mapping):
            fields = cast(Mapping[Any, Any], record)
            column = next((name for name in self.columns if name in fields), None)
            if column is None:
                raise UserError(missing_column(self.columns, [str(name) for name in fields], place=place))
            found = fields[column]
            if found is None:
                return None
        if _is_conversation(found):
            found = self._conversation(place, list(found))
        if not isinstance(found, str):
            raise UserError(
                f"A document must be a text, a record with a text column or a list of messages. {place} is of type "
                f"{type(found).__name__}; token ids are given as one integer Tensor [n_seqs seq]."
            )
        return _encodable(found)

    def _conversation(self, place: str, messages: list[Mapping[str, Any]]) -> str:
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


def _is_conversation(record: object) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    if not isinstance(record, list | tuple):
        return False
    messages = cast(Sequence[object], record)
    return len(messages) > 0 and all(isinstance(message, Mapping) for message in messages)


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
