"""L0 off its target: the controller is not there yet, or has settled elsewhere."""

from statistics import mean

from strata.doctor.findings import Finding, Severity
from strata.doctor.record import Points, Record
from strata.doctor.words import number, percent
from strata.sae.rules.registry import has_penalty

_OFF = 0.1  # recorded runs end within 5 %
_FAR_OFF = 0.5
_SETTLED = 0.3  # share of the run after which a controller should have found its coefficient


def l0_off_target(run: Record) -> list[Finding]:
    """Mean active latents per row against k, by what the gate promises."""
    found: list[Finding] = []
    for key in run.keys:
        sae, l0 = run.sae(key), run.points(key, "l0")
        if sae.k is None or len(l0) < 3:
            continue
        if sae.steered:
            finding = _steered(run, key, l0, k=sae.k)
        elif has_penalty(sae.architecture):
            finding = _fixed(key, l0, k=sae.k)
        else:
            finding = _too_few(run, key, l0, k=sae.k) or _held_out(run, key, k=sae.k)
        found += [] if finding is None else [finding]
    return found


def _steered(run: Record, key: str, l0: Points, *, k: int) -> Finding | None:
    now = mean(value for _, value in l0[-3:])
    before = mean(value for _, value in l0[-9:-6] or l0[:1])
    off, off_before = now / k - 1, before / k - 1
    coming = abs(off) < 0.7 * abs(off_before)
    early = run.facts.n_steps is None or run.progress < _SETTLED
    if abs(off) <= (_FAR_OFF if early else _OFF):
        return None
    severity: Severity = "note" if early or (coming and not run.ended) else "warning"
    state = "is not there yet" if severity == "note" else "has settled off its target"
    course = f"L0 {number(round(now, 1))} for k = {k}, off by {percent(abs(off))}; it was {number(round(before, 1))}"
    wait = f"Wait until {percent(_SETTLED)} of the run."
    more = "Train for more steps, or lower lr: the controller needs a few hundred steps in which L0 follows it."
    return Finding(
        name="l0-off-target",
        severity=severity,
        what=f"The controller of the sparsity coefficient {state}.",
        evidence=f"{course} some lines before.",
        todo=wait if early else "Look again in some hundred steps." if severity == "note" else more,
        numbers={"l0": now, "k": k, "off": off},
        sites=(key,),
        weight=abs(off),
    )


def _fixed(key: str, l0: Points, *, k: int) -> Finding | None:
    now = mean(value for _, value in l0[-3:])
    if k / 2 <= now <= 2 * k:
        return None
    return Finding(
        name="l0-off-target",
        severity="note",
        what="The fixed sparsity coefficient gives another L0 than k names.",
        evidence=f"L0 {number(round(now, 1))}, k = {k}.",
        todo='Leave sparsity_coefficient at "auto" if you want k.',
        numbers={"l0": now, "k": k},
        sites=(key,),
        weight=abs(now / k - 1),
    )


def _too_few(run: Record, key: str, l0: Points, *, k: int) -> Finding | None:
    """TopK and its kin give k by construction, unless fewer scores than that are positive."""
    now = mean(value for _, value in l0[-3:])
    if now >= (1 - _OFF) * k:
        return None
    return Finding(
        name="l0-off-target",
        severity="warning",
        what="Fewer latents than k have a positive score in a row.",
        evidence=f"L0 {number(round(now, 1))} for k = {k}, which this gate else gives exactly.",
        todo=f"Train with {run.lower_rate(key)}: the learning rate is more than four times that."
        if run.rate_is("high", key)
        else "Lower k, or widen the SAE (expansion_factor).",
        numbers={"l0": now, "k": k},
        sites=(key,),
        weight=1 - now / k,
    )


def _held_out(run: Record, key: str, *, k: int) -> Finding | None:
    points = run.held_out(key, "l0")
    if not points or run.progress < 0.5 or abs(points[-1][1] / k - 1) <= _OFF:
        return None
    step, value = points[-1]
    return Finding(
        name="l0-off-target",
        severity="warning",
        what="On held-out rows another number of latents fires than in training.",
        evidence=f"L0 {number(round(value, 1))} on held-out rows at step {step:,}, k = {k}.",
        todo="Train on text of the kind that the held-out documents are.",
        numbers={"held_out_l0": value, "k": k},
        sites=(key,),
        weight=abs(value / k - 1),
    )
