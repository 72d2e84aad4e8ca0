"""Prompts in pairs: what a task is, whatever it asks for, and how its text becomes tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from random import Random
from typing import Any

from jaxtyping import Int
from torch import Tensor

from strata.errors import UserError
from strata.lm.tokenization import Encoder, special_token_ids

_DRAWS_AT_ONCE = 64


@dataclass(frozen=True)
class TaskPairs:
    """Pairs of prompts that ask the same question and have different answers; all prompts are equally long.

    The prediction is read at the last position. ``answer_ids`` is right for the clean prompt, ``wrong_ids`` for the
    corrupt one.

    Attributes:
        name: of the task.
        clean_ids: prompts [n seq].
        corrupt_ids: their counterparts [n seq].
        answer_ids: the token that continues the clean prompt [n].
        wrong_ids: the token that continues the corrupt prompt [n].
    """

    name: str
    clean_ids: Int[Tensor, "n seq"]
    corrupt_ids: Int[Tensor, "n seq"]
    answer_ids: Int[Tensor, " n"]
    wrong_ids: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.answer_ids)

    def split(self, n_discovery: int) -> "tuple[TaskPairs, TaskPairs]":
        """The first pairs, in which a circuit is sought, and the others, on which it is judged.

        Args:
            n_discovery: how many pairs the first part has, in [1, n − 1].

        Raises:
            UserError: a part would be empty.
        """
        if not 0 < n_discovery < len(self):
            raise UserError(
                f"`n_discovery` must leave pairs on both sides of the split. Got {n_discovery} of {len(self)} pairs; "
                "take less than there are, or make more pairs."
            )
        return self._part(slice(None, n_discovery)), self._part(slice(n_discovery, None))

    def _part(self, part: slice) -> "TaskPairs":
        return TaskPairs(self.name, *(getattr(self, f.name)[part] for f in fields(self) if f.name != "name"))


@dataclass(frozen=True)
class IdPair:
    """One pair in token ids; both prompts have the same length and start as a document does."""

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    answer: int
    wrong: int


@dataclass(frozen=True)
class TextPair:
    """One pair as text: ``clean + answer`` and ``corrupt + wrong`` are what a good model expects."""

    clean: str
    corrupt: str
    answer: str
    wrong: str

    def swapped(self) -> "TextPair":
        """The same pair with the corrupt prompt as the clean one."""
        return TextPair(self.corrupt, self.clean, self.wrong, self.answer)


@dataclass(frozen=True)
class Task:
    """A kind of question.

    Attributes:
        question: what has to be predicted, in one sentence.
        needs: what a tokenizer must have as single tokens, for the error where it has not.
        draw: ``draw(tokenizer, random)`` gives pairs without end, drawn from ``random``; None stands for one that this
            tokenizer cannot express.
    """

    question: str
    needs: str
    draw: Callable[[Any, Random], Iterator[IdPair | None]]


def words(text: str) -> tuple[str, ...]:
    """The words of a list that is written as text."""
    return tuple(text.split())


def document_start(encoder: Encoder) -> tuple[int, ...]:
    """The ids before a document's own tokens at the start of a packed sequence, as `strata.lm.tokens` frames it.

    The tokenizer's prefix (BOS) where it has one, else the token between documents, if it has that. The first position
    of a sequence is where attention sinks are; so it is a special token, which no SAE replaces.
    """
    frame = encoder.frame()
    return frame.prefix or (() if frame.separator is None else (frame.separator,))


def from_text(draw: Callable[[Random], TextPair]) -> Callable[[Any, Random], Iterator[IdPair | None]]:
    """The `Task.draw` of pairs that are written as text.

    A pair can be expressed where both prompts have the same number of tokens, and each of the two answers is one token
    after each of the two prompts, which keep their own tokens when it follows; no token may be special (unknown).
    """

    def draw_ids(tokenizer: Any, random: Random) -> Iterator[IdPair | None]:
        encoder = Encoder(tokenizer)
        start, special = document_start(encoder), special_token_ids(tokenizer)
        while True:
            pairs = [draw(random) for _ in range(_DRAWS_AT_ONCE)]
            prompts = [prompt for pair in pairs for prompt in (pair.clean, pair.corrupt)]
            continued = [
                prompt + end
                for pair in pairs
                for prompt in (pair.clean, pair.corrupt)
                for end in (pair.answer, pair.wrong)
            ]
            ids = [tuple(found.tolist()) for found in encoder.encode(prompts + continued)]
            for number in range(len(pairs)):
                own = ids[2 * number : 2 * number + 2]
                longer = ids[len(prompts) + 4 * number : len(prompts) + 4 * number + 4]
                found = _id_pair(start, own, longer)
                known = special.isdisjoint(id_ for sequence in longer for id_ in sequence)
                yield found if known else None

    return draw_ids


def _id_pair(start: tuple[int, ...], prompts: list[tuple[int, ...]], longer: list[tuple[int, ...]]) -> IdPair | None:
    """From the ids of clean and corrupt, and of clean-answer, clean-wrong, corrupt-answer, corrupt-wrong."""
    clean, corrupt = prompts
    kept = all(ids[:-1] == prompt for ids, prompt in zip(longer, (clean, clean, corrupt, corrupt), strict=True))
    if not kept or len(clean) != len(corrupt):
        return None
    answer, wrong = longer[0][-1], longer[1][-1]
    if (answer, wrong) != (longer[2][-1], longer[3][-1]) or answer == wrong or clean == corrupt:
        return None
    return IdPair(start + clean, start + corrupt, answer, wrong)
