"""One request and what becomes of it: attempts, waits, and errors that no further attempt would mend."""

import asyncio
import json
import random
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from strata.errors import MissingExtraError, UserError
from strata.interpret.explain.interpreter import Failed
from strata.interpret.prompted.dialect import Dialect
from strata.interpret.prompted.endpoint_settings import EndpointSettings
from strata.interpret.prompted.wire import Wire
from strata.visible_text import visible

_LONGEST_BACKOFF_SECONDS = 30.0
_RETRIED = frozenset({408, 409, 425, 429})
_OPENAIS_OWN = ("OpenAI-Organization", "OpenAI-Project")  # headers
_LONGEST_REASON = 200  # characters of a server's words that are passed on


class Refused(Failed):
    """A request that the server does not take as it is (a status of 400 to 499)."""


def check_library() -> None:
    """That the library `openai` is there.

    Raises:
        MissingExtraError: it is not.
    """
    if find_spec("openai") is None:
        raise MissingExtraError("openai", extra="openai", purpose="Asking a language model over HTTP")


class Exchange:
    """A client of one server, for as long as one event loop runs.

    Args:
        settings: of the server.
        dialect: its words, as far as they are known; more are learned.

    Raises:
        MissingExtraError: the library `openai` is not installed.
        UserError: no API key.
    """

    def __init__(self, settings: EndpointSettings, dialect: Dialect) -> None:
        check_library()
        import openai

        self._settings, self._key, self._dialect = settings, settings.api_key(), dialect
        # The client adds what it finds in OPENAI_ORG_ID and the like, which no other host is to see.
        hidden: Any = {} if settings.is_openai else dict.fromkeys(_OPENAIS_OWN, openai.Omit())
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=settings.base_url,
            max_retries=0,  # ours are counted, and obey the limit on cost
            timeout=settings.timeout_seconds,
            default_headers=hidden,
            http_client=openai.DefaultAsyncHttpxClient(**_client_options(settings)),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(self, wire: Wire, *, may_send: Callable[[], bool], lost: Callable[[], None]) -> Any | Failed:
        """The server's JSON, after as many attempts as it takes and the settings allow.

        Args:
            wire: the request.
            may_send: called before each attempt; once it says no, the request is Failed("budget").
            lost: called when an attempt may have been charged though its answer never came.

        Raises:
            UserError: the server refuses the key (401, 403), does not know the model or the path (404), or the account
                is empty.
        """
        import openai

        failed, attempt = Failed("not asked"), 0
        while attempt <= self._settings.n_retries:
            if not may_send():
                return Failed("budget")
            wait = self._backoff_seconds(attempt)
            body = self._dialect.body(wire.body)
            try:
                async with asyncio.timeout(self._settings.timeout_seconds):
                    return await self._attempt(wire.path, body)
            except (openai.APITimeoutError, TimeoutError):
                failed = Failed("timeout")
                lost()
            except openai.APIConnectionError:
                failed = Failed("connection broken")
                lost()
            except openai.APIStatusError as error:
                failed = self._status_failure(error)
                if isinstance(failed, Refused) and self._dialect.body(wire.body) != body:
                    continue  # in other words at once, and without using up an attempt
                if isinstance(failed, Refused):
                    return failed
                wait = self._obeyed(error.response.headers.get("retry-after"), wait)
            except (json.JSONDecodeError, UnicodeDecodeError):
                failed = Failed("not an answer of this protocol")
                lost()
            attempt += 1
            if attempt <= self._settings.n_retries:
                await asyncio.sleep(wait)
        return failed

    async def _attempt(self, path: str, body: dict[str, Any]) -> Any:
        chat, legacy = self._client.chat.completions.with_raw_response, self._client.completions.with_raw_response
        known = {key: body[key] for key in ("model", "messages", "prompt") if key in body}
        more = {key: value for key, value in body.items() if key not in known}
        create: Any = chat.create if path == "chat/completions" else legacy.create
        raw = await create(**known, extra_body=more)
        return json.loads(raw.http_response.content)

    def _status_failure(self, error: Any) -> Failed:
        """What a status means: an error for the user, Refused for this request, or Failed for now."""
        status, base_url = error.status_code, self._settings.base_url
        if status in (401, 403):
            variable = self._settings.key_variable
            given = f"the one in the environment variable `{variable}`" if variable else "a request without one"
            raise UserError(
                f"The API key must be one that {base_url} takes. It refused (status {status}) {given}."
                f" {'Set that to another' if variable else 'Name its variable with `api_key_variable`'}."
            ) from None
        if status == 404:
            raise UserError(
                f"`model` must be one that `base_url` serves. {base_url} answered 404 to {self._settings.model!r}."
                " Check both."
            ) from None
        said = visible(" ".join(str(error.message).split()))
        said = (said.replace(self._key, "…") if self._key else said)[:_LONGEST_REASON]
        if getattr(error, "code", None) == "insufficient_quota":
            raise UserError(f"The account behind the API key must have money left. {base_url} says: {said}") from None
        if status in _RETRIED or status >= 500:
            return Failed(f"status {status}")
        self._dialect.learn(said, parameter=getattr(error, "param", None), code=getattr(error, "code", None))
        return Refused(f"status {status}: {said}")

    def _backoff_seconds(self, attempt: int) -> float:
        longest = min(self._settings.backoff_seconds * 2.0**attempt, _LONGEST_BACKOFF_SECONDS)
        return longest * (1 - 0.25 * random.random())  # not all at the same moment

    def _obeyed(self, retry_after: str | None, backoff_seconds: float) -> float:
        """What the server asked for, where it is a number of seconds, within bounds; else the backoff."""
        try:
            wished = float(retry_after or "")
        except ValueError:
            return backoff_seconds
        return min(max(wished, 0.0), self._settings.most_retry_after_seconds) if wished == wished else backoff_seconds


def _client_options(settings: EndpointSettings) -> dict[str, Any]:
    """To this machine: no proxy; and without TLS no certificates (they load for 0.1 s) and no way to elsewhere."""
    if not settings.is_loopback:
        return {}
    if settings.base_url.lower().startswith("https:"):
        return {"trust_env": False}
    return {"trust_env": False, "verify": False, "follow_redirects": False}
