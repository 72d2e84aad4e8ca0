"""What a plan advises, with its reasons in words: store or stream, what to lower, whether groups pay."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from strata.amounts import prefixed, share
from strata.costs.step import Rates
from strata.plan.quote import Quote
from strata.plan.rows import STORE_TYPES, RowShape
from strata.plan.tables import timed
from strata.plan.ways import Ways

_NEARLY = 1.05  # ways within 5 % count as equally fast: the simpler, then the more exact one is advised
_WAYS_OUT = {
    "language model": "Take a machine or device with more memory, or --lm-dtype bf16.",
    "forward": "Lower sae.text_batch_size or context_tokens.",
    "rows": "Lower n_tokens where rows are kept in memory, else buffer_tokens.",
    "joining of rows": "Lower n_tokens, or stream.",
    "tokens": "Give --n-tokens: the text is then not kept as tokens.",
    "weights and optimiser": "Train fewer SAEs in one run (sites, sweep, groups), or lower sae.expansion_factor.",
    "first weights": "Lower sae.expansion_factor.",
    "step": "Lower sae.batch_size or sae.expansion_factor.",
    "finished copies": "Train fewer SAEs in one run (sites, sweep, groups), or lower sae.expansion_factor.",
    "store": "Lower n_tokens, or take another dtype.",
    "checkpoints": "Lower keep_checkpoints.",
    "index": "Lower held_out_tokens, or leave the report out (--no-report).",
    "SAEs": "Lower sae.expansion_factor, or give --out on another disk.",
}


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """When reading a row from a store of one type is cheaper than making it again.

    Attributes:
        dtype: of the store.
        row_bytes: of a token at all sites that are read, d·bytes.
        for_reading: parameters below the sites (half of the forward's FLOPs per token) above which each further pass
            is cheaper from the store: d·bytes·rate/(2·read bandwidth).
        for_all: the same with writing it once, spread over the passes that are planned; None for a single pass, which
            a store can only make longer.
        pays: whether this model is above `for_all`; None where its cost is not known.
    """

    dtype: str
    row_bytes: int
    for_reading: float
    for_all: float | None
    pays: bool | None


def break_even(shape: RowShape, rates: Rates, *, flops_per_second: float, below: float | None,
               n_passes: int) -> list[BreakEven]:  # fmt: skip
    """For every type of store.

    Streaming n passes takes n·2P/R seconds a token, a store 2P/R + b/W + n·b/D: equal at P = b·R/2·(1/W + n/D)/(n−1).

    Args:
        shape: of a row.
        rates: of the machine: W written and D read bytes per second.
        flops_per_second: R, of the language model's forward on it.
        below: P, half of the forward's FLOPs per token.
        n_passes: n, epochs times trainings.
    """
    found: list[BreakEven] = []
    for dtype in STORE_TYPES:
        n_bytes = shape.stored_bytes(dtype)
        one = n_bytes * flops_per_second / 2
        reading = one / rates.disk_read_bytes_per_second
        spread = 1 / rates.disk_write_bytes_per_second + n_passes / rates.disk_read_bytes_per_second
        total = one * spread / (n_passes - 1) if n_passes > 1 else None
        pays = None if below is None else total is not None and below > total
        found.append(BreakEven(dtype=dtype, row_bytes=n_bytes, for_reading=reading, for_all=total, pays=pays))
    return found


def as_json(found: Sequence[BreakEven]) -> list[dict[str, Any]]:
    """All numbers."""
    return [asdict(one) for one in found]


def recommend(
    ways: Ways, found: Sequence[BreakEven], *, below: float | None, n_passes: int, n_trainings: int, assumed: bool
) -> list[str]:
    """Sentences: what to do and why.

    Args:
        ways: all quotes.
        found: of `break_even`.
        below: parameters below the sites.
        n_passes: epochs times trainings.
        n_trainings: from the same activations.
        assumed: seconds are not measured ones and are marked with "~".
    """
    lines = [*_fitting(ways.described[0]), *_source(ways, n_trainings=n_trainings, assumed=assumed)]
    lines += _break_even_lines(found, below=below, n_passes=n_passes)
    return [*lines, *_groups(ways, assumed=assumed)]


def _fitting(described: Quote) -> list[str]:
    if described.fits:
        return []
    ways_out = dict.fromkeys(_WAYS_OUT.get(excess.part, "Take a machine with more.") for excess in described.excesses)
    why = "; ".join(map(str, described.excesses))
    return [f"As described it does not fit: {why}. {' '.join(ways_out)}"]


def _source(ways: Ways, *, n_trainings: int, assumed: bool) -> list[str]:
    """The fastest way that fits; of those that are nearly as fast the first, and a word of that."""
    known = [(seconds, quote) for quote in ways.sources if (seconds := quote.seconds_of(n_trainings)) is not None]
    fitting = [(seconds, quote) for seconds, quote in known if quote.fits]
    if not fitting:
        why = "none of the ways fits on this machine" if known else "the language model's cost is not known"
        return [f"No way to get rows is recommended: {why}."]
    least, fastest = min(fitting, key=lambda one: one[0])
    seconds, best = next((s, quote) for s, quote in fitting if s <= _NEARLY * least)
    nearly = ""
    if fastest is not best:
        other = fastest.name.removeprefix("as described: ").capitalize()
        nearly = (
            f" {other} takes {timed(least, assumed=assumed)}, which counts as equally fast (within"
            f" {share(_NEARLY - 1)}): of such ways the simpler, then the more exact one is advised."
        )
    described = ways.described[0]
    own = described.seconds_of(n_trainings)
    takes = timed(seconds, assumed=assumed) + (f" for {n_trainings} trainings" if n_trainings > 1 else "")
    if best is described:
        others = [f"{quote.name} {timed(s, assumed=assumed)}" for s, quote in fitting if quote is not best]
        against = f" against {', '.join(others)}" if others else ""
        return [f"Keep to what is described ({best.name.removeprefix('as described: ')}): {takes}{against}.{nearly}"]
    instead = f" instead of {timed(own, assumed=assumed)}" if own is not None and described.fits else ""
    return [f"Take {best.name}: {takes}{instead}.{nearly} {_HOW[_kind(best)].format(dtype=best.source)}"]


_HOW = {
    "stream": "Leave --activations out.",
    "collected": "Give --activations collected.",
    "store": "`strata collect --dtype {dtype}` makes the store, `strata train --activations FOLDER` trains from it.",
}


def _kind(quote: Quote) -> str:
    return quote.source if quote.source in _HOW else "store"


def _break_even_lines(found: Sequence[BreakEven], *, below: float | None, n_passes: int) -> list[str]:
    if below is None:
        return []
    reading = ", ".join(f"{one.dtype} {prefixed(one.for_reading)}" for one in found)
    bound = "d·bytes·rate/(2·disk bandwidth)"
    rule = f"A row is read from a store faster than it is made where more parameters lie below the sites than {bound}"
    lines = [f"{rule}: {reading}. Here {prefixed(below)} do."]
    if n_passes == 1:
        return [*lines, "But every row is used once, and writing it first can only add to that: a store does not pay."]
    total = ", ".join(f"{one.dtype} {prefixed(one.for_all)}" for one in found)
    paying = [one.dtype for one in found if one.pays]
    verdict = f"it pays in {', '.join(paying)}" if paying else "it does not pay"
    return [*lines, f"With writing it, over {n_passes} passes, the bound is {total}: {verdict}."]


def _groups(ways: Ways, *, assumed: bool) -> list[str]:
    """What groups save against one SAE per layer."""
    if len(ways.groups) < 2:
        return []
    n_layers = max(ways.groups)
    whole, half = ways.groups[n_layers][0], ways.groups[(n_layers + 1) // 2][0]
    total, less = whole.total_seconds, half.total_seconds
    saved = share(1 - half.sae_flops / whole.sae_flops)
    line = f"{n_layers} layers in {(n_layers + 1) // 2} groups save {saved} of the SAEs' work"
    if total is not None and less is not None:
        sae = whole.seconds["SAE steps"]
        part = share(None if sae is None else sae / total)
        times = f"{timed(total, assumed=assumed)} → {timed(less, assumed=assumed)}"
        line += f" and {share(1 - less / total)} of all seconds ({times}): with one SAE per layer {part} are SAE steps"
    return [f"{line}. `strata groups` measures which layers are alike."]
