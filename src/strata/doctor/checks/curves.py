"""The course of the reconstruction error: spikes, learning rate too high or too low, the gap to held-out rows."""

import math
from itertools import pairwise
from statistics import median

from strata.amounts import counted
from strata.doctor.findings import Finding
from strata.doctor.record import Points, Record
from strata.doctor.words import number

_SPIKE, _LEAST_SPIKE = 2.0, 0.05  # times the lines before, and above them
_BEFORE = 5  # lines that a line is compared with
_SWING = 0.15  # of the logarithm of FVU from line to line
_RISE = 1.2
_STEEP, _VERY_STEEP = 0.2, 1.2  # exponents of the fall of FVU with rows: 0.3 to 0.8 in the demo
_GAP, _LEAST_GAP = 1.8, 0.05  # held-out FVU over that in training: 1.3 in the demo
_WORSE = 1.15


def loss_spikes(run: Record) -> list[Finding]:
    """FVU that jumps from one line to the next. FVU and not the loss, which rises when a revival term begins."""
    found: list[Finding] = []
    for key in run.keys:
        points = run.points(key, "fvu")
        values = [value for _, value in points]
        high = [i for i in range(3, len(points)) if values[i] > _SPIKE * min(values[max(0, i - _BEFORE) : i])]
        spikes = [i for i in high if _is_spike(points, i)]
        first = [i for i in spikes if i - 1 not in spikes]
        if not first:
            continue
        worst = max(first, key=lambda i: points[i][1] / points[i - 1][1])
        before = median(value for _, value in points[max(0, worst - _BEFORE) : worst])
        step, height = points[worst]
        last = median(value for _, value in points[-3:])
        stays = worst < len(points) - 3 and last > 1.5 * before
        where = f"FVU {number(before)} before, {number(height)} at step {step:,}, {number(last)} now"
        found.append(
            Finding(
                name="loss-spike",
                severity="error" if stays else "warning",
                what="The reconstruction error jumped and did not come back."
                if stays
                else f"The reconstruction error jumped {counted(len(first), 'time')} from one line to the next.",
                evidence=f"{where}.",
                todo=f"Start again with {run.lower_rate(key)}; a later checkpoint is spoilt."
                if stays
                else f"If it comes again, train with {run.lower_rate(key)}, or look at the text of these steps.",
                numbers={"step": step, "fvu_before": before, "fvu_at": height, "fvu_now": last, "n_spikes": len(first)},
                sites=(key,),
                weight=height / before,
            )
        )
    return found


def _is_spike(points: Points, i: int) -> bool:
    before = median(value for _, value in points[max(0, i - _BEFORE) : i])
    return points[i][1] > _SPIKE * before and points[i][1] > before + _LEAST_SPIKE


def learning_rate_too_high(run: Record) -> list[Finding]:
    """FVU above 1 after the warm-up, or rising or swinging at the full rate."""
    found: list[Finding] = []
    for key in run.keys:
        sae, points = run.sae(key), run.points(key, "fvu")
        start = max(sae.warmup_steps or 0, points[0][0] if points else 0)
        later = [point for point in points if point[0] > start]
        if len(later) < 3:
            continue
        worse = min(value for _, value in later[-3:])
        if worse > 1:
            found.append(_too_high(run, key, "The SAE is worse than the mean of the rows.",
                                   f"FVU {number(worse)} or more in the last three lines; 1 is the mean alone.",
                                   severity="error", weight=10 * worse))  # fmt: skip
            continue
        full = _at_full_rate(run, key, later)
        seen = _began_badly(later) or _unsteady(full) or (None if _l0_fell(run, key, full) else _rising(full))
        if seen is not None:
            found.append(_too_high(run, key, *seen, severity="warning", weight=later[-1][1]))
    return found


def _at_full_rate(run: Record, key: str, points: Points) -> Points:
    phase = run.phase(key)
    return points if phase is None else [point for point in points if phase[0] < point[0] <= phase[1]]


def _began_badly(points: Points) -> tuple[str, str] | None:
    bad = [value for _, value in points if value > 1]
    if len(bad) < 2:
        return None
    return (
        "The reconstruction error was above that of the mean of the rows after the warm-up.",
        f"FVU was above 1 in {len(bad)} lines after the warm-up, at worst {number(max(bad))}; the mean gives 1.",
    )


def _unsteady(points: Points) -> tuple[str, str] | None:
    recent = points[-10:]
    if len(recent) < 8:
        return None
    steps = [math.log(max(b, 1e-9) / max(a, 1e-9)) for (_, a), (_, b) in pairwise(recent)]
    swing, turns = median(abs(step) for step in steps), sum(a * b < 0 for a, b in pairwise(steps))
    if swing < _SWING or abs(sum(steps)) > 2 * swing or turns < len(steps) // 2:
        return None
    low, high = min(value for _, value in recent), max(value for _, value in recent)
    course = f"FVU went up and down between {number(low)} and {number(high)} over the last {len(recent)} lines"
    return "The reconstruction error swings instead of falling.", f"{course}, {100 * swing:.0f} % from line to line."


def _rising(points: Points) -> tuple[str, str] | None:
    if len(points) < 12:
        return None
    quarter = len(points) // 4
    quarters = [median(value for _, value in points[i * quarter : (i + 1) * quarter]) for i in range(4)]
    last, best = median(value for _, value in points[-quarter:]), min(quarters)
    if min(value for _, value in points[-quarter:]) < _RISE * best:
        return None
    return (
        "The reconstruction error rises while the learning rate is at its full height.",
        f"FVU {number(best)} at best, {number(last)} now (medians of a quarter of the lines).",
    )


def _l0_fell(run: Record, key: str, points: Points) -> bool:
    """Fewer active latents reconstruct less: no fault of the learning rate."""
    steps = {step for step, _ in points}
    l0 = [value for step, value in run.points(key, "l0") if step in steps]
    return len(l0) > 1 and l0[-1] < 0.95 * max(l0)


def _too_high(run: Record, key: str, what: str, seen: str, *, severity: str, weight: float) -> Finding:
    peak, auto = run.learning_rates(key)
    known = "" if peak is None else f" The learning rate's peak is {number(peak)}"
    known += f", {number(peak / auto)} times what lr=auto gives." if peak is not None and auto is not None else ""
    return Finding(
        name="learning-rate-too-high",
        severity="error" if severity == "error" else "warning",
        what=what,
        evidence=seen + known + ("" if known.endswith(".") or not known else "."),
        todo=f"Start again with {run.lower_rate(key)}.",
        numbers={} if peak is None else {"peak": peak},
        sites=(key,),
        weight=weight,
    )


def learning_rate_too_low(run: Record) -> list[Finding]:
    """FVU still falling steeply when the rate's decay begins, after which little more is learnt; of a rate that is not
    too high.
    """
    found: list[Finding] = []
    for key in run.keys:
        phase = run.phase(key)
        if phase is None or run.step < phase[1] or phase[1] <= phase[0]:
            continue
        full = _at_full_rate(run, key, run.points(key, "fvu"))
        late = [point for point in full if point[0] >= 0.6 * phase[1]]
        early = [point for point in full if point[0] <= 0.4 * phase[1]]
        if len(late) < 2 or len(early) < 2 or not 0.01 < late[-1][1] < 1 or run.rate_is("high", key):
            continue
        slope = -_exponent(late)
        low = run.rate_is("low", key) and slope > max(_STEEP, -_exponent(early))
        if not low and slope < _VERY_STEEP:
            continue
        peak, auto = run.learning_rates(key)
        (first, before), (last, after) = late[0], late[-1]
        seen = f"FVU fell from {number(before)} at step {first:,} to {number(after)} at step {last:,}, where the decay"
        seen += f" begins: as rows to the power −{number(round(slope, 2))} (0.3 to 0.8 in the demo)."
        rate = ""
        if low and peak is not None and auto is not None:
            rate = f" The learning rate's peak is {number(peak)}, lr=auto gives {number(auto)}."
        found.append(
            Finding(
                name="learning-rate-too-low",
                severity="warning" if low else "note",
                what="The reconstruction error was still falling steeply when the learning rate began to decay.",
                evidence=seen + rate,
                todo="Train with lr=auto." if low else "Train on more rows (n_tokens), or with twice the rate (lr).",
                numbers={"exponent": slope, "fvu_at_decay": after},
                sites=(key,),
                weight=slope,
            )
        )
    return found


def _exponent(points: Points) -> float:
    """Slope of log FVU over log step, between the medians of the first and of the last points."""
    n = max(1, len(points) // 3)
    (first, before), (last, after) = (
        (median(step for step, _ in part), median(value for _, value in part)) for part in (points[:n], points[-n:])
    )
    return math.log(max(after, 1e-9) / max(before, 1e-9)) / math.log(last / first)


def held_out_gap(run: Record) -> list[Finding]:
    """Held-out FVU far above that in training, or rising while the other falls.

    Without centring the two are not comparable: in training the mean counts as variance. Matryoshka's FVU in training
    is a mean over nested dictionaries, so that only a rise tells.
    """
    found: list[Finding] = []
    for key in run.keys:
        sae, held_out = run.sae(key), run.held_out(key, "fvu")
        if not held_out or not sae.centring or (run.facts.n_steps and run.progress < 0.3):
            continue
        step, value = held_out[-1]
        near = [fvu for at, fvu in run.points(key, "fvu") if at <= step][-3:]
        if not near:
            continue
        training, best = median(near), min(fvu for _, fvu in held_out)
        apart = value > _GAP * training and value > training + _LEAST_GAP
        rises = len(held_out) >= 3 and value > _WORSE * best and value > best + 0.01 and training < value
        if not (apart or rises):
            continue
        of = f"FVU {number(value)} on held-out rows at step {step:,}, {number(training)} in training"
        again = f" after {run.facts.n_epochs} passes over the text" if run.facts.n_epochs > 1 else ""
        found.append(
            Finding(
                name="held-out-gap",
                severity="warning",
                what="Held-out rows are reconstructed worse and worse: the SAE learns its training rows by heart."
                if rises
                else "Held-out rows are reconstructed much worse than those of the training.",
                evidence=f"{of}{again}; the best was {number(best)}. In the demo the ratio is 1.3.",
                todo="Train on more text with fewer passes (n_tokens, num_epochs)."
                if rises or run.facts.n_epochs > 1
                else "Train on more text, and on the kind of text that the held-out documents are.",
                numbers={"held_out_fvu": value, "training_fvu": training, "best_held_out_fvu": best},
                sites=(key,),
                weight=value / max(training, 1e-9),
            )
        )
    return found
