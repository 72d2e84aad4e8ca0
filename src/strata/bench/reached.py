"""Seconds to the peers' final FVU: steps of the quality comparison times seconds a step of the timing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strata.bench.quality import Training
from strata.bench.registry import OURS, family


@dataclass(frozen=True)
class Reached:
    """How Strata fares against one peer at that peer's best.

    Attributes:
        peer: its family's name, e.g. "saelens".
        best: the key of its training with the lowest final held-out FVU.
        fvu: that one's final FVU, the mark.
        peer_steps: after how many steps the peer was there first.
        ours: the key of the training of Strata that needed fewest steps; None where none got there.
        our_steps: how many.
        peer_seconds: `peer_steps` times the median seconds of its step; None where it was not timed.
        our_seconds: the same of Strata.
        timed_as: the contender whose step the peer's seconds are of: its own, or its family's with the defaults.
    """

    peer: str
    best: str
    fvu: float
    peer_steps: int
    ours: str | None
    our_steps: int | None
    peer_seconds: float | None
    our_seconds: float | None
    timed_as: str | None

    @property
    def ratio(self) -> float | None:
        """How many times as long the peer takes."""
        if self.peer_seconds is None or self.our_seconds is None:
            return None
        return self.peer_seconds / self.our_seconds


def first_step(found: Mapping[str, Any], mark: float, *, steps: int) -> int | None:
    """The first measured step at which a training's held-out FVU was at or below the mark; None if at none. Nothing is
    read between measurements.

    Args:
        found: one of the record's results. One without a curve was measured at its end only.
        mark: FVU.
        steps: of that training.
    """
    curve = found.get("curve") or [[steps, found["fvu"]]]
    return next((int(step) for step, fvu in curve if fvu <= mark), None)


def all_reached(record: Mapping[str, Any], median_seconds: Mapping[str, float]) -> list[Reached]:
    """Against every peer of the record that was trained for all its steps.

    Strata's trainings are those with its default settings at any learning rate, shorter ones too ("strata@100:6e-3"),
    whose schedule ends earlier: the one that needs fewest steps counts. A peer's are all of its variants and rates.

    Differs:
        The peers' step is timed before any latent is dead, so that variants with revival are charged less than they
        take; ours likewise.

    Args:
        record: of the quality comparison.
        median_seconds: of a step, by contender.
    """
    steps = int(record["setting"]["steps"])
    runs = [(Training.parse(key, steps=steps), found) for key, found in record["results"].items()]
    own = [(run, found) for run, found in runs if run.name == OURS]
    peers = [(run, found) for run, found in runs if family(run.name) != OURS and run.steps == steps]
    marks: list[tuple[str, Training, Mapping[str, Any]]] = []
    for peer in dict.fromkeys(family(run.name) for run, _ in peers):
        of_peer = [(run, found) for run, found in peers if family(run.name) == peer]
        marks.append((peer, *min(of_peer, key=lambda pair: pair[1]["fvu"])))
    return [_reached(peer, run, found, own=own, median_seconds=median_seconds) for peer, run, found in marks]


def _reached(
    peer: str,
    run: Training,
    found: Mapping[str, Any],
    *,
    own: Sequence[tuple[Training, Mapping[str, Any]]],
    median_seconds: Mapping[str, float],
) -> Reached:
    mark = found["fvu"]
    peer_steps = first_step(found, mark, steps=run.steps)
    assert peer_steps is not None, "its own end is at its own end's FVU"
    arrivals = [(first_step(result, mark, steps=ours.steps), ours.key) for ours, result in own]
    there = sorted((step, key) for step, key in arrivals if step is not None)
    our_steps, key = there[0] if there else (None, None)
    timed_as = next((name for name in (run.name, peer) if name in median_seconds), None)
    ours_timed = our_steps is not None and OURS in median_seconds
    return Reached(
        peer=peer,
        best=run.key,
        fvu=mark,
        peer_steps=peer_steps,
        ours=key,
        our_steps=our_steps,
        peer_seconds=None if timed_as is None else peer_steps * median_seconds[timed_as],
        our_seconds=our_steps * median_seconds[OURS] if ours_timed and our_steps is not None else None,
        timed_as=timed_as,
    )
