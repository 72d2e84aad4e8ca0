"""Where a language model is asked over HTTP, how patiently, and for how much money."""

import ipaddress
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from strata.errors import UserError
from strata.interpret.prompted.account import Prices


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """How a server that speaks the OpenAI protocol is asked.

    Attributes:
        model: its name for the server.
        base_url: of the server, up to the part that every path begins with.
        api_key_variable: the environment variable that holds the key. The key itself is written nowhere. A server on
            this machine needs none.
        simulation: ``"chat"``: the model writes the levels, and they are read from the log-probabilities of what it
            wrote; ``"completions"``: one forward for each window without writing, from log-probabilities of the prompt
            (``/completions`` with ``echo``, which vLLM and some others have).
        n_concurrent: requests under way at a time; at least 1.
        n_top: likeliest tokens asked for at each place, 1 to 20.
        timeout_seconds: of one attempt, above 0.
        n_retries: further attempts after a timeout, a broken connection, 408, 409, 429 or 5xx; at least 0.
        backoff_seconds: before the first retry; doubles with each, up to 30 seconds, less a random quarter.
        most_retry_after_seconds: how long a server's ``Retry-After`` is obeyed at most.
        price_per_million_input: of tokens read, in any currency; 0 is free or unknown.
        price_per_million_output: of tokens written.
        max_cost: what may be spent by this object; infinite by default. Answers of the cache cost nothing.
        extra_body: more fields of every request, e.g. ``{"chat_template_kwargs": {"enable_thinking": False}}``.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    api_key_variable: str = "OPENAI_API_KEY"
    simulation: Literal["chat", "completions"] = "chat"
    n_concurrent: int = 8
    n_top: int = 20
    timeout_seconds: float = 60.0
    n_retries: int = 5
    backoff_seconds: float = 0.5
    most_retry_after_seconds: float = 60.0
    price_per_million_input: float = 0.0
    price_per_million_output: float = 0.0
    max_cost: float = math.inf
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if urlsplit(self.base_url).scheme not in ("http", "https") or not urlsplit(self.base_url).hostname:
            raise UserError(f"`base_url` must be an address such as https://api.openai.com/v1. Got {self.base_url!r}.")
        if self.simulation not in ("chat", "completions"):
            raise UserError(f"`simulation` must be 'chat' or 'completions'. Got {self.simulation!r}.")
        if not 1 <= self.n_top <= 20:
            raise UserError(f"`n_top` must be 1 to 20, which is what servers give. Got {self.n_top}.")
        for name, least in (("n_concurrent", 1), ("n_retries", 0)):
            if getattr(self, name) < least:
                raise UserError(f"`{name}` must be at least {least}. Got {getattr(self, name)}.")
        if not self.timeout_seconds > 0:
            raise UserError(f"`timeout_seconds` must be above 0. Got {self.timeout_seconds}.")
        names = ("backoff_seconds", "most_retry_after_seconds", "price_per_million_input", "price_per_million_output")
        for name in (*names, "max_cost"):
            if not getattr(self, name) >= 0:
                raise UserError(f"`{name}` must be at least 0. Got {getattr(self, name)}.")
        if math.isfinite(self.max_cost) and not (self.price_per_million_input or self.price_per_million_output):
            raise UserError(
                "`max_cost` needs prices to count with. Give `price_per_million_input` and `price_per_million_output`."
            )

    @property
    def prices(self) -> Prices:
        """Of the model's tokens."""
        return Prices(self.price_per_million_input, self.price_per_million_output)

    @property
    def is_loopback(self) -> bool:
        """Whether the server is this machine, which no proxy leads to."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")

    def api_key(self) -> str:
        """The key, from the environment.

        Raises:
            UserError: there is none, and the server is another machine.
        """
        key = os.environ.get(self.api_key_variable, "").strip()
        if not key and not self.is_loopback:
            raise UserError(
                f"The environment variable `{self.api_key_variable}` must hold the API key of {self.base_url}. It is"
                " not set. Set it (to any word where the server wants none), or name another with `api_key_variable`."
            )
        return key or "none"
