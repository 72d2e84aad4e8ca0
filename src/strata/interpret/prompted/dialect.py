"""What a server wants said otherwise: parameters that newer models take under another name, or not at all."""

import re
from collections.abc import Mapping
from typing import Any

from strata.log import say

_UNKNOWN = re.compile(
    r"unsupported|not support|instead|unrecogni[sz]ed|unknown|not permitted|not allowed|deprecated", re.IGNORECASE
)
_CODES = frozenset({"unsupported_parameter", "unsupported_value", "unknown_parameter"})


class Dialect:
    """Requests in the words that one server takes, learned from its refusals.

    OpenAI's reasoning models refuse ``max_tokens`` (they want ``max_completion_tokens``) and any ``temperature`` but
    their own. Answers are then kept under the request as it was meant, so that what was learned changes no key.
    """

    def __init__(self) -> None:
        self._renames = self._drops_temperature = False

    def body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request's body in these words."""
        said = dict(body)
        if self._renames and "messages" in said and "max_tokens" in said:
            said["max_completion_tokens"] = said.pop("max_tokens")
        if self._drops_temperature:
            said.pop("temperature", None)
        return said

    def learn(self, message: str, *, parameter: str | None, code: str | None) -> None:
        """Why a request was refused; what that does not name stays as it is.

        Args:
            message: the server's.
            parameter: that it names apart, if it does.
            code: of the error, if there is one.
        """
        if code not in _CODES and not _UNKNOWN.search(message):
            return
        if not self._renames and (parameter == "max_tokens" or re.search(r"\bmax_tokens\b", message)):
            self._renames = True
            say("the server wants `max_completion_tokens` in place of `max_tokens`: it gets that")
        if not self._drops_temperature and (parameter == "temperature" or re.search(r"\btemperature\b", message)):
            self._drops_temperature = True
            say("the server takes no `temperature` of 0: it answers at its own, and not the same each time")
