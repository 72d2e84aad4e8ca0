"""A server on this machine that speaks the OpenAI protocol as far as Strata does, and misbehaves as it is told."""

import json
import math
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass
class Answer:
    """What is sent back.

    `content` of a dict is sent as JSON; of bytes as it is. `closes` breaks the connection without an answer;
    `hangs` never answers (until the server is closed).
    """

    content: Any = field(default_factory=dict)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    closes: bool = False
    hangs: bool = False
    seconds: float = 0.0


Behaviour = Callable[[dict[str, Any], int], Answer]  # of the body and the number of the request, from 1


class _Listening(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # more than ever knock at once; of the standard library's 5 the sixth may be turned away


class LoopbackServer:
    """`with LoopbackServer(behaviour) as server`: all requests are kept in `requests`, as (path, body, headers)."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.n_at_once = self.most_at_once = self.n_hanging = self.n_answered = 0
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._server = _Listening(("127.0.0.1", 0), self._handler())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body, _ in self.requests]

    def __enter__(self) -> "LoopbackServer":
        threading.Thread(target=lambda: self._server.serve_forever(poll_interval=0.01), daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body leave together: apart, they wait 40 ms for each other
            disable_nagle_algorithm = True

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.requests.append((self.path, body, {k.lower(): v for k, v in self.headers.items()}))
                    number = len(server.requests)
                    server.n_at_once += 1
                    server.most_at_once = max(server.most_at_once, server.n_at_once)
                with suppress(BrokenPipeError, ConnectionResetError):
                    self._answer(server.behaviour(body, number))

            def _answer(self, answer: Answer) -> None:
                if answer.hangs:
                    with server._lock:
                        server.n_hanging += 1
                    server._closed.wait()
                server._closed.wait(answer.seconds)
                with server._lock:
                    server.n_at_once -= 1
                if answer.closes or answer.hangs:
                    self.close_connection = True
                    self.connection.close()
                    return
                content = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode()
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                with server._lock:
                    server.n_answered += 1

        return Handler


def task_of(body: dict[str, Any]) -> str:
    """The last turn of a chat, or the whole prompt."""
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


def tokens_of(text: str) -> list[str]:
    """Text as this server's model sees it: numbers, words with the space before them, everything else alone."""
    return re.findall(r"\d+| ?[^\W\d_]+|\s|.", text, re.DOTALL)


def usage_of(body: dict[str, Any], written: str) -> dict[str, int]:
    read = body["prompt"] if "prompt" in body else "".join(m["content"] for m in body["messages"])
    n_read, n_written = len(tokens_of(read)), len(tokens_of(written))
    return {"prompt_tokens": n_read, "completion_tokens": n_written, "total_tokens": n_read + n_written}


def chat_answer(
    body: dict[str, Any],
    text: str,
    *,
    tops: Callable[[int, str], dict[str, float]] | None = None,
    told: bool = True,
) -> dict[str, Any]:
    """An answer of /chat/completions.

    Args:
        tops: number and text of an answer's token → probabilities of the likeliest; by default the token alone.
        told: whether the model tells log-probabilities where it is asked for them.
    """
    choice: dict[str, Any] = {
        "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}, "logprobs": None
    }  # fmt: skip
    if told and body.get("logprobs"):
        content = []
        for i, token in enumerate(tokens_of(text)):
            likely = tops(i, token) if tops else {token: 1.0}
            content.append(
                {
                    "token": token,
                    "bytes": list(token.encode()),
                    "logprob": math.log(likely.get(token, 1e-9)),
                    "top_logprobs": [{"token": t, "bytes": None, "logprob": math.log(p)} for t, p in likely.items()],
                }
            )
        choice["logprobs"] = {"content": content}
    return {"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage_of(body, text)}


def echo_answer(
    body: dict[str, Any], tops: Callable[[int], dict[str, float]], *, begins: str = "", offsets: bool = True
) -> dict[str, Any]:
    """An answer of /completions to a prompt with blanks, which it gives back with log-probabilities.

    Args:
        tops: number of the blank → probabilities of the likeliest tokens there.
        begins: text of a token that the server puts before the prompt, and counts.
        offsets: whether ``text_offset`` is told.
    """
    assert body["echo"] is True and body["max_tokens"] == 0
    answer_starts = body["prompt"].rindex("\n\n")
    tokens = [*([begins] if begins else []), *tokens_of(body["prompt"])]
    starts, likely, start, n_blanks = [], [], 0, 0
    for token in tokens:
        starts.append(start)
        is_blank = token == "?" and likely and tokens[len(likely) - 1] == "\t" and start - len(begins) > answer_starts
        likely.append(tops(n_blanks) if is_blank else {token: 1.0})
        n_blanks += bool(is_blank)
        start += len(token)
    logprobs = {
        "tokens": tokens,
        "token_logprobs": [None, *(-1.0 for _ in tokens[1:])],
        "top_logprobs": [None, *({t: math.log(p) for t, p in top.items()} for top in likely[1:])],
        "text_offset": starts if offsets else None,
    }
    choice = {"index": 0, "finish_reason": "length", "text": body["prompt"], "logprobs": logprobs}
    return {"object": "text_completion", "model": body["model"], "choices": [choice], "usage": usage_of(body, "")}
