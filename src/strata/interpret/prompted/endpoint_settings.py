"""Where a language model is asked over HTTP, how patiently, and for how much money."""

import ipaddress
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

from strata.config.settings import require
from strata.errors import UserError
from strata.interpret.prompted.account import Prices

_OPENAI = "api.openai.com"
_OPENAI_KEY = "OPENAI_API_KEY"


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """How a server that speaks the OpenAI protocol is asked.

    Attributes:
        model: its name for the server.
        base_url: of the server, up to the part that every path begins with. It is written into records, so it must hold
            no user, password or query.
        api_key_variable: the environment variable that holds the key; ``"auto"`` is ``OPENAI_API_KEY`` for OpenAI's own
            hosts and none for any other, so that no key goes where it was not meant to. The key is written nowhere.
        simulation: ``"chat"``: the model writes the levels, and they are read from the log-probabilities of what it
            wrote; ``"completions"``: one forward for each window without writing, from log-probabilities of the prompt
            (``/completions`` with ``echo``, which vLLM and some others have).
        n_concurrent: requests under way at a time; at least 1.
        n_top_tokens: likeliest tokens asked for at each place, 1 to 20.
        timeout_seconds: of one attempt, above 0.
        n_retries: further attempts after a timeout, a broken connection, 408, 409, 429 or 5xx; at least 0.
        backoff_seconds: before the first retry; doubles with each, up to 30 seconds, less a random quarter.
        most_retry_after_seconds: how long a server's ``Retry-After`` is obeyed at most.
        price_per_million_input: of tokens read, in any currency; 0 is free or unknown.
        price_per_million_output: of tokens written.
        max_cost: what may be spent by this object; infinite by default. Answers of the cache cost nothing.
        extra_body: more fields of every request, e.g. ``{"chat_template_kwargs": {"enable_thinking": False}}``. A
            ``max_tokens`` or ``max_completion_tokens`` among them takes the place of ours.

    Raises:
        UserError: a setting out of range.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    api_key_variable: str = "auto"
    simulation: Literal["chat", "completions"] = "chat"
    n_concurrent: int = 16
    n_top_tokens: int = 20
    timeout_seconds: float = 60.0
    n_retries: int = 5
    backoff_seconds: float = 0.5
    most_retry_after_seconds: float = 60.0
    price_per_million_input: float = 0.0
    price_per_million_output: float = 0.0
    max_cost: float = math.inf
    extra_body: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        _check_address(self.base_url)
        known = self.simulation in ("chat", "completions")
        require(known, "simulation", "be 'chat' or 'completions'", repr(self.simulation), "Give one of them.")
        require(1 <= self.n_top_tokens <= 20, "n_top_tokens", "be 1 to 20, which is what servers give",
                self.n_top_tokens, "Give e.g. 5.")  # fmt: skip
        require(self.n_concurrent >= 1, "n_concurrent", "be at least 1", self.n_concurrent, "Give a larger number.")
        require(self.n_retries >= 0, "n_retries", "be at least 0", self.n_retries, "Give 0 for none.")
        require(self.timeout_seconds > 0, "timeout_seconds", "be above 0", self.timeout_seconds, "Give e.g. 60.")
        names = ("backoff_seconds", "most_retry_after_seconds", "price_per_million_input", "price_per_million_output")
        for name in (*names, "max_cost"):
            require(getattr(self, name) >= 0, name, "be at least 0", getattr(self, name), "Give 0 or more.")
        priced = math.isinf(self.max_cost) or self.price_per_million_input + self.price_per_million_output > 0
        require(priced, "max_cost", "come with prices to count with", f"{self.max_cost:g} and prices of 0",
                "Give `price_per_million_input` and `price_per_million_output`.")  # fmt: skip

    @property
    def prices(self) -> Prices:
        """Of the model's tokens."""
        return Prices(self.price_per_million_input, self.price_per_million_output)

    @property
    def is_loopback(self) -> bool:
        """Whether the server is this machine, which no proxy leads to."""
        try:
            return ipaddress.ip_address(self._host).is_loopback
        except ValueError:
            return self._host == "localhost" or self._host.endswith(".localhost")

    @property
    def is_openai(self) -> bool:
        """Whether the server is OpenAI's."""
        return self._host == _OPENAI or self._host.endswith(f".{_OPENAI}")

    @property
    def key_variable(self) -> str:
        """The environment variable that holds the key; empty where none is sent."""
        if self.api_key_variable != "auto":
            return self.api_key_variable
        return _OPENAI_KEY if self.is_openai else ""

    @property
    def sends_key_openly(self) -> bool:
        """Whether the key goes over a network without TLS, where others can read it."""
        return bool(self.key_variable) and not self.is_loopback and urlsplit(self.base_url).scheme == "http"

    def api_key(self) -> str:
        """The key, from the environment; empty where none is sent.

        Raises:
            UserError: the variable is not set.
        """
        key = os.environ.get(self.key_variable, "").strip() if self.key_variable else ""
        if self.key_variable and not key:
            raise UserError(
                f"The environment variable `{self.key_variable}` must hold the API key of {self.base_url}. It is not"
                " set. Set it, or name another with `api_key_variable`."
            )
        return key

    @property
    def _host(self) -> str:
        return (urlsplit(self.base_url).hostname or "").lower()


def _check_address(base_url: str) -> None:
    """That an address is one, and holds nothing that must not be written down."""
    try:
        parts = urlsplit(base_url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number, half a bracket
        parts, known = SplitResult("", "", "", "", ""), False
    shown = "one with a user or password" if "@" in base_url else repr(base_url)
    require(known, "base_url", "be an address", shown, "Give e.g. https://api.openai.com/v1.")
    bare = "@" not in parts.netloc and not parts.query and not parts.fragment
    require(bare, "base_url", "hold no user, password or query, since it is written into records", "one that does",
            "Put the key into an environment variable and name that with `api_key_variable`.")  # fmt: skip
