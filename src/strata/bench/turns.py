"""Times of things that take turns, so that what the machine does meanwhile hits them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from strata.bench.contender import Contender
from strata.log import say

Timer = Callable[[], list[float]]
"""A turn: seconds of what was timed in it."""


@dataclass(frozen=True)
class Times:
    """Seconds over all rounds.

    Attributes:
        median_seconds: what is compared.
        min_seconds: the fastest.
        max_seconds: the slowest.
    """

    median_seconds: float
    min_seconds: float
    max_seconds: float

    @staticmethod
    def of(seconds: Sequence[float]) -> "Times":
        """Of one or more measurements."""
        return Times(statistics.median(seconds), min(seconds), max(seconds))

    def as_json(self) -> dict[str, float]:
        """The fields."""
        return asdict(self)


def timed(run: Callable[[int], object], *, n: int, device: torch.device) -> Timer:
    """A turn of `run`, which is given the number of the call: once untimed, then n times.

    On a GPU the n are timed together, as waiting for each would cost more than some steps take; the turn then has one
    measurement, their mean.
    """
    turn = 0

    def timer() -> list[float]:
        nonlocal turn
        seconds: list[float] = []
        together = n if device.type == "cuda" else 1
        run(turn)
        turn += 1
        for _ in range(n // together):
            synchronize(device)
            start = time.perf_counter()
            for _ in range(together):
                run(turn)
                turn += 1
            synchronize(device)
            seconds.append((time.perf_counter() - start) / together)
        return seconds

    return timer


def step_timer(
    made: Contender,
    batches: Sequence[Float[Tensor, "rows d_in"]],
    *,
    sample: Float[Tensor, "sample d_in"],
    n: int,
    device: torch.device,
) -> Timer:
    """Turns of a contender's steps, going round the batches.

    Args:
        made: the contender; it is prepared here.
        batches: on its device.
        sample: what it may look at first.
        n: timed steps per turn.
        device: where it trains.
    """
    made.prepare(sample)
    return timed(lambda turn: made.step(batches[turn % len(batches)]), n=n, device=device)


def take_turns(timers: Mapping[str, Timer], *, n_rounds: int, progress: bool = True) -> dict[str, Times]:
    """Times of every timer over the rounds (A B C A B C ...); a first round is thrown away.

    Args:
        timers: by name.
        n_rounds: that count.
        progress: a line on stderr after each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for number in range(n_rounds + 1):
        for name, timer in timers.items():
            found = timer()
            if number > 0:
                seconds[name] += found
        say(f"round {number} of {n_rounds}{' (thrown away)' if number == 0 else ''}", shown=progress)
    return {name: Times.of(found) for name, found in seconds.items()}


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
