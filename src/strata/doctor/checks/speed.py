"""Speed: as predicted or not, which part takes the time, and what would be faster."""

from collections.abc import Mapping
from itertools import pairwise
from statistics import median

from strata.costs.step import SAEShape, step_work
from strata.doctor.findings import Finding, Severity
from strata.doctor.pace import between, pace, pace_or_estimate, seconds_so_far, steady_lines
from strata.doctor.record import Record, is_number
from strata.doctor.words import number, percent, span

_SLOWER = 1.5  # times the prediction
_SHORT = 3.0  # seconds of training that say nothing of it: first steps find caches cold
_SLOWED = 1.6
_WAITS = {True: 0.7, False: 0.4}  # share of the time waiting for rows: streaming, or reading a store
_OPTIMISER = 0.6  # share of a step's bytes
_LARGEST_BATCH, _FEWEST_STEPS = 4096, 1000
_ROWS_OF_A_FORWARD = 4096
_ON_GPU = " On a GPU the parts are measured where the program waits, not where the GPU works."


def slower_than_predicted(run: Record) -> list[Finding]:
    """Against what `strata plan` predicts with this machine's measured rates, part by part; assumed ones prove nothing,
    and the run has said that they are.
    """
    now, predicted = pace(run), run.facts.predicted
    told = {part: predicted.get(f"{part}_seconds") for part in _PARTS}
    wanted = {part: value for part, value in told.items() if is_number(value)}
    if now is None or len(wanted) < len(told) or len(run.lines) < 2 or predicted.get("kind") != "measured":
        return []
    total = sum(wanted.values())
    too_short = seconds_so_far(run).get("seconds", 0.0) < _SHORT
    if too_short or total <= 0 or now.total < _SLOWER * total:
        return []
    took = {"rows": now.rows, "sae": now.sae}
    known = {part: value for part, value in took.items() if value is not None}
    part = max(known, key=lambda part: known[part] - wanted[part], default=None)
    parts = [f"{_PARTS[p]} {span(known[p])} (predicted {span(wanted[p])})" for p in known]
    rates = f"measured rates of {predicted.get('rates', 'this machine')}"
    return [
        Finding(
            name="slower-than-predicted",
            severity="warning",
            what=f"A step takes {number(round(now.total / total, 1))} times as long as this machine should need.",
            evidence=f"{span(now.total)} a step, predicted {span(total)} with {rates}"
            + (f": {', '.join(parts)}." if parts else ".")
            + ("" if run.facts.on_cpu is not False else _ON_GPU),
            todo=_SLOW_TODO.get(part or "", "Look what else the machine does."),
            numbers={"seconds_per_step": now.total, "predicted_seconds_per_step": total},
        )
    ]


_PARTS = {"rows": "waiting for rows", "sae": "SAE steps"}
_SLOW_TODO = {
    "rows": "Look what else uses the processor or the disk; then collect the activations first (strata collect).",
    "sae": "Look what else uses the processor, and how many threads the training has (OMP_NUM_THREADS).",
}


def slowing_down(run: Record) -> list[Finding]:
    """Steps that take longer and longer."""
    timed = steady_lines(run)[1:]
    if len(timed) < 13:
        return []
    quarter = len(timed) // 4
    first, last = between(timed[: quarter + 1]), between(timed[-quarter - 1 :])
    if first is None or last is None or last.total < _SLOWED * first.total:
        return []
    steps = [between([a, b]) for a, b in pairwise(timed)]
    each = [one.total for one in steps if one is not None]
    if median(each[-quarter:]) < 0.8 * _SLOWED * median(each[:quarter]):
        return []  # one long pause
    grew = "all of it"
    if first.rows is not None and first.sae is not None and last.rows is not None and last.sae is not None:
        grew = _PARTS["rows" if last.rows - first.rows > last.sae - first.sae else "sae"]
    return [
        Finding(
            name="slowing-down",
            severity="warning",
            what=f"Steps take {number(round(last.total / first.total, 1))} times as long as at the start.",
            evidence=f"{span(first.total)} a step in the first quarter of the lines, {span(last.total)} in the last;"
            f" most of what came on top is {grew}.",
            todo="Look for other programs on the machine, memory that is swapped out, and a processor or GPU that"
            " throttles.",
            numbers={"first_seconds_per_step": first.total, "last_seconds_per_step": last.total},
        )
    ]


def waiting_for_rows(run: Record) -> list[Finding]:
    """Most of the time goes into getting rows: the language model's forward, memory, or the disk."""
    now = pace_or_estimate(run)
    if now is None or now.shares is None or not run.lines[1:]:
        return []
    streams = run.facts.source == "stream"
    waits, steps = now.shares
    if waits < _WAITS[streams]:
        return []
    seconds = f"{percent(waits)} of the time is spent waiting for rows, {percent(steps)} in the SAE steps"
    seconds += f" ({span(now.total)} a step)."
    if not streams:
        severity, todo = _SLOW_SOURCES[run.facts.source or "unknown"]
        return [_waiting(severity, "The rows come too slowly.", seconds, todo, {"rows_share": waits})]
    n_epochs, forward = run.facts.n_epochs, run.facts.forward_rows or 0
    rate = (
        "" if not run.facts.batch_size else f" That is {number(run.facts.batch_size / (waits * now.total))} tokens per"
    )
    rate += " second from the language model." if rate else ""
    gain = 1 / (waits / n_epochs + 1 - waits)
    numbers = {"rows_share": waits, "sae_share": steps, "n_epochs": n_epochs, "gain_of_collecting": gain}
    what = "The language model is the bottleneck, not the SAE."
    if n_epochs > 1:
        what += f" It reads the same text {n_epochs} times, because the activations are not kept."
        todo = (
            f"Collect the activations first (strata collect, then --activations): one pass instead of {n_epochs} makes"
            f" the whole {number(round(gain, 1))} times as fast, if the disk keeps up."
        )
    elif forward < _ROWS_OF_A_FORWARD:
        todo = f"Raise text_batch_size: one forward pass has {forward:,} tokens, {_ROWS_OF_A_FORWARD:,} use it better."
    else:
        todo = (
            "Train all the SAEs you will want side by side (--sweep, more sites) on this one pass, or collect first;"
            f" later SAEs on the same rows are then {number(round(1 / max(1 - waits, 0.01), 1))} times as fast."
        )
    return [_waiting("warning" if n_epochs > 1 else "note", what, seconds + rate, todo, numbers)]


_SWAP = (
    "Look whether the machine swaps; if not, small SAEs are simply quicker than the copying of their rows: train more"
    " of them side by side (--sweep)."
)
_SLOW_STORE = "Collect onto a faster disk; onto one below 1 GB/s with --dtype int8."
_SLOW_SOURCES: dict[str, tuple[Severity, str]] = {
    "store": ("warning", _SLOW_STORE),
    "memory": ("note", _SWAP),
    "unknown": ("note", f"Rows of a store? {_SLOW_STORE} Rows in memory? {_SWAP}"),
}


def _waiting(severity: Severity, what: str, seen: str, todo: str, numbers: Mapping[str, int | float]) -> Finding:
    return Finding(
        name="waiting-for-rows",
        severity=severity,
        what=what,
        evidence=seen,
        todo=todo,
        numbers=numbers,
    )


def small_batch(run: Record) -> list[Finding]:
    """Batches so small that a step mostly carries weights and moments between memory and processor."""
    batch, now = run.facts.batch_size, pace_or_estimate(run)
    split = None if now is None else now.shares
    saes = [
        SAEShape(d_in=one.d_in, d_sae=one.d_sae, k=one.k, architecture=one.architecture)
        for one in (run.sae(key) for key in run.keys)
        if one.d_in and one.d_sae and one.k
    ]
    if not batch or not saes or len(run.lines) < 2 or (split is not None and split[1] < 0.5):
        return []
    total, optimiser = _bytes(saes, batch)
    share = optimiser / total
    larger = _larger_batch(saes, batch, n_rows=run.facts.n_rows)
    if share < _OPTIMISER or larger < 2 * batch:
        return []
    larger_total, _ = _bytes(saes, larger)
    faster = (total / batch) / (larger_total / larger)
    whole = faster if split is None else 1 / (1 - split[1] + split[1] / faster)
    measured = "" if split is None else f" {percent(split[1])} of the time is spent in the SAE steps."
    return [
        Finding(
            name="small-batch",
            severity="warning" if whole >= 2 else "note",
            what="The SAE step is the bottleneck, and most of it is the optimiser: it reads and writes weights for only"
            f" {batch:,} rows.",
            evidence=f"{percent(share)} of a step's {number(round(total / 1e9, 2))} GB between memory and processor are"
            f" weights and moments, counted from the shapes as if every latent fired.{measured}",
            todo=f"Set batch_size to {larger:,}: by these counts rows then pass {number(round(faster, 1))} times as"
            f" fast through the SAE, and the run is up to {number(round(whole, 1))} times as fast (fewer, larger"
            " steps; lr=auto grows along).",
            numbers={
                "optimiser_share": share,
                "bytes_per_step": total,
                "larger_batch_size": larger,
                "gain_of_sae": faster,
                "gain_of_run": whole,
            },
        )
    ]


def _bytes(saes: list[SAEShape], batch_size: int) -> tuple[float, float]:
    """Bytes of a step of all SAEs, and those of the optimiser among them: those that do not grow with the rows."""
    total = sum(step_work(one, batch_size=batch_size).n_bytes() for one in saes)
    none = sum(step_work(one, batch_size=0).n_bytes() for one in saes)
    return total, none


def _larger_batch(saes: list[SAEShape], batch_size: int, *, n_rows: int | None) -> int:
    """The smallest doubling at which the optimiser is less than half, and enough steps are left."""
    larger = batch_size
    while larger < _LARGEST_BATCH:
        total, optimiser = _bytes(saes, larger)
        if optimiser < total / 2 or (n_rows is not None and n_rows // (2 * larger) < _FEWEST_STEPS):
            break
        larger *= 2
    return larger
