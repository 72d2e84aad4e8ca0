"""A language model behind HTTP: one queue over all prompts, a cache, an account, and a limit on cost."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from strata.errors import UserError
from strata.interpret.explain.interpreter import Failed
from strata.interpret.prompted.account import Account, Estimate
from strata.interpret.prompted.cache import RequestCache
from strata.interpret.prompted.completer import Reply, Request, Task
from strata.interpret.prompted.dialect import Dialect
from strata.interpret.prompted.endpoint_settings import EndpointSettings
from strata.interpret.prompted.exchange import Exchange, Refused
from strata.interpret.prompted.wire import Wire, reply, usage, wire
from strata.log import say

_SECONDS_BETWEEN_LINES = 5.0
_MOST_UNANSWERED = 20  # requests, with no answer yet: it is the settings or the server, not the prompts


class Endpoint:
    """A `strata.interpret.prompted.completer.Completer` over any server that speaks the OpenAI protocol.

    Equal requests are asked once, and what the cache holds is not asked at all. An answer is kept as soon as it is
    there, whatever it says, so that an interrupted run pays for nothing twice. Requests without an answer are not kept.

    Args:
        settings: the server, its model, patience and prices.
        cache: of answers, e.g. ``RequestCache(RUN / "answers.sqlite")``; whoever made it closes it.
        progress: say on stderr every few seconds how far it is.

    Attributes:
        settings: as given.
        cache: as given.
        progress: as given.
        estimate: how many tokens prompts have, as far as the server has counted any.
        dialect: what was learned of the server's words.
        account: what was asked and what it cost, since this object was made.
    """

    def __init__(self, settings: EndpointSettings, *, cache: RequestCache, progress: bool = True) -> None:
        self.settings, self.cache, self.progress = settings, cache, progress
        self.estimate, self.dialect = Estimate(), Dialect()
        self.account = Account()
        if settings.sends_key_openly:
            say(f"the API key goes to {settings.base_url} without TLS: others on the way can read it. Use https://.")

    @property
    def name(self) -> str:
        """The model's."""
        return self.settings.model

    @property
    def fills_in(self) -> frozenset[Task]:
        """Simulation, where it goes through ``/completions``."""
        return frozenset({"simulate"} if self.settings.simulation == "completions" else ())

    def complete(self, requests: Sequence[Request]) -> list[Reply | Failed]:
        """Answers in the order of the requests.

        Raises:
            UserError: the key is refused, the model is unknown, or the server answers none of the first 20 requests.
            MissingExtraError: the library `openai` is not installed.
        """
        settings = self.settings
        wires = [
            wire(r, model=settings.model, n_top=settings.n_top_tokens, extra=settings.extra_body) for r in requests
        ]
        keys = [
            RequestCache.key(
                {"base_url": settings.base_url, "path": w.path, "body": w.body, "choices": w.request.choices}
            )
            for w in wires
        ]
        wanted = dict(zip(keys, wires, strict=True))
        answers: dict[str, Reply | Failed] = dict(self.cache.get(wanted))
        open_ = {key: w for key, w in wanted.items() if key not in answers}
        self.account.n_requests += len(requests)
        if open_:
            asking = _Asking(open_, endpoint=self)
            _run_to_end(asking.run, stop=asking.stop)
            answers |= asking.answers
        found = [answers[key] for key in keys]
        self.account.n_failed += (n_failed := sum(isinstance(answer, Failed) for answer in found))
        n_answered = sum(isinstance(answers[key], Reply) for key in open_)
        self.account.n_answered += n_answered
        self.account.n_cached += len(found) - n_failed - n_answered
        return found


class _Asking:
    """The queue of one call: workers that take the next request as soon as they have an answer."""

    def __init__(self, open_: dict[str, Wire], *, endpoint: Endpoint) -> None:
        self._settings, self._account, self._dialect = endpoint.settings, endpoint.account, endpoint.dialect
        self._estimate, self._cache, self._shown = endpoint.estimate, endpoint.cache, endpoint.progress
        self._waiting = deque(open_.items())
        self._n = len(open_)
        self._in_flight: dict[str, float] = {}  # key → what it costs at most
        self._has_answer = self._account.n_answered > 0
        self._n_unanswered = self._n_refused = 0
        self._finished = asyncio.Condition()
        self._stopped = self._over_budget = False
        self.answers: dict[str, Reply | Failed] = {}

    def stop(self) -> None:
        """Take no further request."""
        self._stopped = True

    async def run(self) -> None:
        """Ask everything.

        Raises:
            UserError: as `Endpoint.complete`.
        """
        exchange = Exchange(self._settings, self._dialect)
        lines = asyncio.create_task(self._say_now_and_then())
        workers = [asyncio.create_task(self._work(exchange)) for _ in range(min(self._settings.n_concurrent, self._n))]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in (lines, *workers):
                task.cancel()
            await asyncio.gather(lines, *workers, return_exceptions=True)
            await exchange.close()
            self._say_how_far()
        self._say_what_was_not_asked()

    async def _work(self, exchange: Exchange) -> None:
        while self._waiting and not self._stopped:
            key, asked = self._waiting.popleft()
            estimate = self._most_cost(asked)
            if not await self._admitted(key, estimate):
                self.answers[key] = Failed("budget")
                continue
            try:
                self.answers[key] = await self._ask(key, asked, exchange, estimate)
            finally:
                async with self._finished:
                    del self._in_flight[key]
                    self._finished.notify_all()

    async def _ask(self, key: str, asked: Wire, exchange: Exchange, estimate: float) -> Reply | Failed:
        def may_send() -> bool:
            if not self._fits(0.0):
                self._over_budget = True
                return False
            self._account.n_sent += 1
            return True

        def lost() -> None:
            self._account.cost_of_timeouts += estimate

        answer = await exchange.ask(asked, may_send=may_send, lost=lost)
        if isinstance(answer, Failed):
            if not self._has_answer and answer != Failed("budget"):
                self._count_unanswered(answer)
            return answer
        self._charge(answer, asked)
        found = reply(answer, asked.request)
        if isinstance(found, Reply):
            self._has_answer = True  # what fails from now on is the prompts' fault, or passes
            self._cache.put(key, found)
        return found

    def _most_cost(self, asked: Wire) -> float:
        return self._settings.prices.cost(self._estimate.most_tokens(asked.n_prompt_bytes), asked.n_most_written)

    def _fits(self, cost: float) -> bool:
        spent = self._account.cost + self._account.cost_of_timeouts
        return spent + sum(self._in_flight.values()) + cost <= self._settings.max_cost

    async def _admitted(self, key: str, cost: float) -> bool:
        """Whether a request of this cost may be sent; waits while those under way may prove cheaper than estimated."""
        async with self._finished:
            while not (self._over_budget or self._fits(cost)):
                if not self._in_flight:
                    self._over_budget = True
                    break
                await self._finished.wait()
            if self._over_budget:
                return False
            self._in_flight[key] = cost
            return True

    def _charge(self, answer: Any, asked: Wire) -> None:
        counted = usage(answer)
        if counted is None:
            self._account.n_without_usage += 1
            counted = self._estimate.n_tokens(asked.n_prompt_bytes), asked.n_most_written
        else:
            self._estimate.learn(asked.n_prompt_bytes, counted[0])
        self._account.n_prompt_tokens += counted[0]
        self._account.n_completion_tokens += counted[1]
        self._account.cost += self._settings.prices.cost(*counted)

    def _count_unanswered(self, failed: Failed) -> None:
        """A request that got no answer, as none before it."""
        self._n_unanswered += 1
        self._n_refused += isinstance(failed, Refused)
        if self._n_refused >= _MOST_UNANSWERED:
            raise UserError(
                f"The server must take requests of this kind. {self._settings.base_url} refused the first"
                f" {_MOST_UNANSWERED} and answered none: {failed.reason}. Change `simulation`, `n_top_tokens` (some"
                " give fewer likeliest tokens) or `extra_body`, or ask another model."
            )
        if self._n_unanswered >= _MOST_UNANSWERED and not self._n_refused:
            raise UserError(
                f"The server must answer. {self._settings.base_url} answered none of the first {_MOST_UNANSWERED}"
                f" requests: {failed.reason}. Check `base_url`, or raise `timeout_seconds` or `n_retries`."
            )

    async def _say_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_SECONDS_BETWEEN_LINES)
            self._say_how_far()

    def _say_how_far(self) -> None:
        n_failed = sum(isinstance(answer, Failed) for answer in self.answers.values())
        prices = self._settings.price_per_million_input or self._settings.price_per_million_output
        cost = f", cost {self._account.cost + self._account.cost_of_timeouts:.4f}" if prices else ""
        n_answered = len(self.answers) - n_failed
        say(f"{self._settings.model}: {n_answered:,} of {self._n:,} prompts answered, {n_failed:,} failed{cost}",
            shown=self._shown)  # fmt: skip

    def _say_what_was_not_asked(self) -> None:
        n_left = sum(answer == Failed("budget") for answer in self.answers.values())
        if n_left:
            spent = self._account.cost + self._account.cost_of_timeouts
            say(f"{n_left:,} prompts were not asked: {spent:.4f} of `max_cost` {self._settings.max_cost:g} are spent,"
                " and one more might pass it", shown=self._shown)  # fmt: skip


def _run_to_end(work: Callable[[], Coroutine[Any, Any, None]], *, stop: Callable[[], None]) -> None:
    """Run a coroutine, also from within a notebook, whose own event loop is busy with the cell."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work())
        return
    with ThreadPoolExecutor(1) as other_thread:
        running = other_thread.submit(lambda: asyncio.run(work()))
        try:
            while not running.done():
                time.sleep(0.02)
        finally:
            stop()
        running.result()
