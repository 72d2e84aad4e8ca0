"""Prompts as token ids, put together piece by piece, so that it is certain where an answer is read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from strata.errors import UserError
from strata.interpret.prompted.completer import Blanks, Chat, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TAB = "\t"  # before every blank


class PromptIds:
    """Token ids of requests for one tokenizer.

    Args:
        tokenizer: the language model's.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer: Any = tokenizer
        self._choices: dict[str, int] = {}

    def chat(self, request: Chat) -> list[int]:
        """Ids of a conversation that the model is to go on with."""
        return self._conversation(request.messages)

    def blanks(self, request: Blanks) -> tuple[list[int], list[int]]:
        """Ids of a conversation and its answer, and the place of the last token before each blank.

        Raises:
            UserError: a choice is not one token.
        """
        for choice in request.choices:
            self.choice(choice)
        ids = self._conversation(request.messages)
        places: list[int] = []
        for i, piece in enumerate(request.pieces):
            ids += self._ids(piece) if i == 0 else self._after(request.filler, piece)
            places.append(len(ids) - 1)
            ids += self._after(_TAB, request.filler)
        return ids, places

    def choice(self, text: str) -> int:
        """The one token that says this behind a tab.

        Raises:
            UserError: it takes several, or the tokenizer joins it to the tab.
        """
        if text not in self._choices:
            tab, both = self._ids(_TAB), self._ids(_TAB + text)
            said = both[len(tab) :] if both[: len(tab)] == tab else both
            unknown = self._tokenizer.unk_token_id
            if len(said) != 1 or len(both) == 1 or said[0] == unknown:
                raise UserError(
                    f'The interpreting model must have each of its answers as one token, "0" to "10" for simulation.'
                    f" Its tokenizer makes {self._tokenizer.convert_ids_to_tokens(both)} of a tab and {text!r}. Take a"
                    " model whose numbers up to 10 are single tokens, such as Llama 3, or one behind an `Endpoint` with"
                    " `simulation='chat'`."
                )
            self._choices[text] = said[0]
        return self._choices[text]

    def text(self, ids: Sequence[int]) -> str:
        """What ids say, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _conversation(self, messages: Sequence[Message]) -> list[int]:
        if self._tokenizer.chat_template:
            turns = [{"role": message.role, "content": message.text} for message in messages]
            text = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            return self._ids(text)  # the template has its special tokens
        text = "\n\n".join(message.text for message in messages) + "\n\n"
        return list(self._tokenizer(text, add_special_tokens=True)["input_ids"])

    def _after(self, before: str, text: str) -> list[int]:
        """Ids of a text as they are behind another: some tokenizers put a space before a text that stands alone."""
        first, both = self._ids(before), self._ids(before + text)
        return both[len(first) :] if both[: len(first)] == first else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
