"""What asking costs: counts of requests and tokens, prices, and the limit that is not passed."""

import math
from dataclasses import dataclass


@dataclass
class Account:
    """Counts since a completer was made.

    Attributes:
        n_requests: wanted by the interpreter.
        n_cached: of these, answered by the cache or by an equal request; they cost nothing.
        n_answered: of these, answered by the model.
        n_failed: of these, not answered.
        n_sent: requests that left, those repeated after an error included.
        n_without_usage: answers whose tokens the server did not count; they are estimated here.
        n_prompt_tokens: read by the model.
        n_completion_tokens: written by the model.
        cost: of these tokens, in the currency of the prices.
        cost_of_timeouts: estimated, of requests whose answer never came and which may have been charged all the same.
    """

    n_requests: int = 0
    n_cached: int = 0
    n_answered: int = 0
    n_failed: int = 0
    n_sent: int = 0
    n_without_usage: int = 0
    n_prompt_tokens: int = 0
    n_completion_tokens: int = 0
    cost: float = 0.0
    cost_of_timeouts: float = 0.0


@dataclass(frozen=True)
class Prices:
    """What tokens cost, per million; 0 is free or unknown.

    Attributes:
        per_million_input: of tokens read.
        per_million_output: of tokens written.
    """

    per_million_input: float = 0.0
    per_million_output: float = 0.0

    def cost(self, n_prompt_tokens: int, n_completion_tokens: int) -> float:
        """Of one request, in the currency of the prices."""
        return (n_prompt_tokens * self.per_million_input + n_completion_tokens * self.per_million_output) / 1e6


class Estimate:
    """How many tokens a prompt has, before it is counted.

    A token of text is at least one byte, so a prompt has no more tokens than bytes, but for what the server puts around
    it. `most_tokens` is that bound, for a limit that is not to be passed. `n_tokens` is the largest number of tokens
    per byte that was counted so far, for what no server counted.
    """

    _AROUND_TOKENS = 256  # of a chat template, with the system's turn that some put first

    def __init__(self) -> None:
        self._tokens_per_byte = 0.0

    def most_tokens(self, n_bytes: int) -> int:
        """No fewer than there will be."""
        return max(n_bytes + self._AROUND_TOKENS, self.n_tokens(n_bytes))

    def n_tokens(self, n_bytes: int) -> int:
        """As many as a prompt of so many bytes was seen to have; one for each byte as long as none was counted."""
        return math.ceil(n_bytes * (self._tokens_per_byte or 1.0))

    def learn(self, n_bytes: int, n_tokens: int) -> None:
        """A prompt of so many bytes had so many tokens."""
        self._tokens_per_byte = max(self._tokens_per_byte, n_tokens / max(n_bytes, 1))
