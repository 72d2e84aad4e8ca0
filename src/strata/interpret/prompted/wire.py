"""Requests and answers as the OpenAI protocol has them: ``/chat/completions``, and ``/completions`` with `echo`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from strata.interpret.explain.interpreter import Failed
from strata.interpret.prompted.completer import AnswerToken, Blanks, Chat, Reply, Request

LIMITS = ("max_tokens", "max_completion_tokens")  # of what is written; newer models of OpenAI take the second alone


@dataclass(frozen=True)
class Wire:
    """A request as it is sent.

    Attributes:
        path: ``"chat/completions"`` or ``"completions"``.
        body: the JSON.
        request: what it asks.
    """

    path: str
    body: dict[str, Any]
    request: Request

    @property
    def n_most_written(self) -> int:
        """Tokens that the model may write."""
        if isinstance(self.request, Blanks):
            return 0
        limits = [self.body.get(name) for name in LIMITS]
        return max((limit for limit in limits if isinstance(limit, int)), default=self.request.max_tokens)

    @property
    def n_prompt_bytes(self) -> int:
        """Of all texts that the model reads."""
        texts = [self.body["prompt"]] if "prompt" in self.body else [m["content"] for m in self.body["messages"]]
        return sum(len(text.encode()) for text in texts)


def wire(request: Request, *, model: str, n_top: int, extra: Mapping[str, Any]) -> Wire:
    """A request in the protocol's words.

    Args:
        request: what to ask.
        model: the model's name for the server.
        n_top: how many of the likeliest tokens to ask for at each place.
        extra: more fields of the body, or others; with a limit of what is written, it takes the place of ours.
    """
    common = {"model": model, "temperature": 0.0}
    if isinstance(request, Chat):
        messages = [{"role": message.role, "content": message.text} for message in request.messages]
        probabilities = {"logprobs": True, "top_logprobs": n_top} if request.choices else {}
        limit = {} if any(name in extra for name in LIMITS) else {"max_tokens": request.max_tokens}
        body = {**common, "messages": messages, **limit, **probabilities, **extra}
        return Wire("chat/completions", body, request)
    prompt, _ = filled_in(request)
    body = {**common, "prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": n_top, **extra}
    return Wire("completions", body, request)


def filled_in(request: Blanks) -> tuple[str, list[int]]:
    """The conversation and the answer as plain text, the filler in each blank, and where the blanks begin."""
    text = "\n\n".join(message.text for message in request.messages) + "\n\n"
    places: list[int] = []
    for piece in request.pieces:
        text += piece
        places.append(len(text))
        text += request.filler
    return text, places


def reply(answer: Any, request: Request) -> Reply | Failed:
    """A server's JSON as a reply; Failed where it is not what the protocol says."""
    try:
        choice = answer["choices"][0]
        return _chat_reply(choice, request) if isinstance(request, Chat) else _blanks_reply(choice, request)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        return Failed("not an answer of this protocol")


def usage(answer: Any) -> tuple[int, int] | None:
    """Tokens read and written as the server counted them; None where it did not."""
    try:
        return int(answer["usage"]["prompt_tokens"]), int(answer["usage"].get("completion_tokens") or 0)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _chat_reply(choice: Mapping[str, Any], request: Chat) -> Reply | Failed:
    text = choice["message"]["content"]
    if not isinstance(text, str):
        return Failed("no text in the answer")
    probabilities: dict[str, Any] = (choice.get("logprobs") if request.choices else None) or {}
    told: list[dict[str, Any]] = probabilities.get("content") or []
    pieces = [bytes(token["bytes"]) if token.get("bytes") else token["token"].encode() for token in told]
    # Tokens that end the answer, or spaces that the server cut off, may stand beside its text.
    shift = b"".join(pieces).find(text.encode())
    if not told or shift < 0:
        return Reply(text=text)
    starts = accumulate((len(piece) for piece in pieces), initial=-shift)
    tokens = [
        AnswerToken(
            start=start,
            text=piece.decode(errors="replace"),
            probabilities=_of_choices(
                [(top["token"], top["logprob"]) for top in token.get("top_logprobs") or [token]], request.choices
            ),
        )
        for start, piece, token in zip(starts, pieces, told, strict=False)
    ]
    return Reply(text=text, tokens=tuple(tokens))


def _blanks_reply(choice: Mapping[str, Any], request: Blanks) -> Reply | Failed:
    told: dict[str, Any] = choice.get("logprobs") or {}
    tokens: list[str] = told.get("tokens") or []
    tops: list[dict[str, float] | None] = told.get("top_logprobs") or []
    if not tokens or len(tops) != len(tokens):
        return Failed("no log-probabilities of the prompt")
    prompt, blanks = filled_in(request)
    starts = _starts_of_tokens(tokens, told.get("text_offset"), prompt, blanks, request.filler)
    at = {
        start: top for start, token, top in zip(starts, tokens, tops, strict=True) if token.startswith(request.filler)
    }
    found = [_of_choices(list((at.get(blank) or {}).items()), request.choices) for blank in blanks]
    return Reply(blanks=tuple(found))


def _starts_of_tokens(
    tokens: Sequence[str], offsets: Sequence[int] | None, prompt: str, blanks: Sequence[int], filler: str
) -> list[int]:
    """The character of the prompt at which each token begins.

    Servers count differently: with or without the text of a token that begins the sequence. Bytes of one character in
    several tokens spoil the sum of lengths. So the candidate that finds most blanks is taken.
    """
    lengths = [len(token) for token in tokens]
    shift = max("".join(tokens).find(prompt), 0)
    summed = list(accumulate(lengths[:-1], initial=0))
    told = list(offsets) if offsets is not None and len(offsets) == len(tokens) else summed
    candidates = [told, [start - shift for start in told], [start - shift for start in summed]]
    wanted = set(blanks)

    def n_found(starts: list[int]) -> int:
        return sum(s in wanted and token.startswith(filler) for s, token in zip(starts, tokens, strict=True))

    return max(candidates, key=n_found)


def _of_choices(tops: Sequence[tuple[str, float]], choices: tuple[str, ...]) -> dict[str, float]:
    """Probabilities of the choices among the returned tokens, spaces around them aside."""
    found: dict[str, float] = {}
    for text, logprob in tops:
        if text.strip() in choices:
            found[text.strip()] = found.get(text.strip(), 0.0) + math.exp(min(float(logprob), 0.0))
    return found
