"""What is asked of a language model and what it answers: plain data, the same over HTTP and on this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from strata.interpret.explain.interpreter import Failed
from strata.interpret.prompted.account import Account

Task = Literal["simulate", "judge"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: who speaks.
        text: what is said.
    """

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True)
class Chat:
    """Write the next turn, greedily.

    Attributes:
        messages: the conversation, a user's turn last.
        max_tokens: the answer's greatest length.
        choices: texts whose probabilities are wanted wherever the answer might have had them; empty for none.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Blanks:
    """How likely is each choice at each blank of an answer that is already written?

    One forward answers for all blanks: what stands in one blank tells nothing of the others, since all hold the filler.

    Attributes:
        messages: the conversation, a user's turn last.
        pieces: of the answer; a blank follows each. Each ends with a tab: few tokenizers join a tab to what comes next.
        choices: texts that may stand in a blank, each one token.
        filler: what stands in the blanks; no letter or digit, which some tokenizers join to the tab before.
    """

    messages: tuple[Message, ...]
    pieces: tuple[str, ...]
    choices: tuple[str, ...]
    filler: str = "?"


Request = Chat | Blanks


@dataclass(frozen=True)
class AnswerToken:
    """A token of an answer.

    Attributes:
        start: its first byte in the answer's UTF-8.
        text: what it says.
        probabilities: choice → probability, of those choices that the model named for this place.
    """

    start: int
    text: str
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        text: of a `Chat`, as written.
        tokens: of a `Chat` with choices: its tokens; empty where the model does not tell probabilities.
        blanks: of `Blanks`: choice → probability for each blank, of those choices that the model named there.
    """

    text: str = ""
    tokens: tuple[AnswerToken, ...] = ()
    blanks: tuple[Mapping[str, float], ...] = field(default=())


@runtime_checkable
class Completer(Protocol):
    """A language model that answers requests, wherever it runs."""

    @property
    def name(self) -> str:
        """What records call it, e.g. ``"gpt-4o-mini"``."""
        ...

    @property
    def fills_in(self) -> frozenset[Task]:
        """The work for which it wants `Blanks`; for the rest it wants `Chat`."""
        ...

    @property
    def account(self) -> Account:
        """What it was asked and what that cost, since it was made."""
        ...

    def complete(self, requests: Sequence[Request]) -> list[Reply | Failed]:
        """Answers in the order of the requests.

        Raises:
            UserError: none of them can be answered with these settings.
        """
        ...
