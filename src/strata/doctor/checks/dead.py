"""Dead latents: which phase the run is in, what is arithmetic, and what is death."""

from strata.amounts import counted
from strata.config.train import SAEConfig
from strata.doctor.facts import SAEFacts
from strata.doctor.findings import Finding, Severity
from strata.doctor.pace import pace_or_estimate
from strata.doctor.record import Record
from strata.doctor.recorded import Expected, expected_dead, silent_on_held_out
from strata.doctor.words import between, number, percent, span

_MUCH_SILENT_IN_A_STEP = 0.5
_MUCH_SILENT_SINCE_START = 0.5
_MOST_EXPECTED = 0.15  # a dead share below this is never worth a warning
_HALF = 0.5
_FEWEST_USES = 20  # of each latent in a window, if all were used alike
_METHODS = {"lift": "AuxK with rising biases", "auxk": "AuxK", "ghost": "ghost gradients", "resample": "resampling"}


def silent_in_one_step(*, batch_size: int, k: int, d_sae: int) -> float:
    """The share of latents that cannot fire in a step: of `batch_size`·k places each latent takes at most one."""
    return max(0.0, 1 - batch_size * k / d_sae)


def unused_if_equal(*, rows: int, k: int, d_sae: int) -> float:
    """The share of latents that would not fire in some rows if each row drew its k at random: (1 − k/d_sae)^rows."""
    return (1 - k / d_sae) ** rows if k < d_sae else 0.0


def dead_latents(run: Record) -> list[Finding]:
    """Whether dead latents are on track, by the phase: before the window has passed, reviving, settled."""
    found: list[Finding] = []
    for key in run.keys:
        sae = run.sae(key)
        early = sae.window_steps is not None and run.step <= sae.window_steps
        finding = _early(run, key, sae) if early else _later(run, key, sae)
        found += [] if finding is None else [finding]
    return found


def short_window(run: Record) -> list[Finding]:
    """A window in which living latents have no time to fire."""
    found: list[Finding] = []
    batch = run.facts.batch_size
    for key, sae in run.facts.saes.items():
        if not (batch and sae.window_steps and sae.k and sae.d_sae) or sae.revival == "none":
            continue
        rows = sae.window_steps * batch
        uses = rows * sae.k / sae.d_sae
        if uses >= _FEWEST_USES:
            continue
        wanted = -(-_FEWEST_USES * 5 * sae.d_sae // (sae.k * batch))
        severity, todo = _longer_window(sae.window_steps, wanted, batch_size=batch, n_steps=run.facts.n_steps)
        found.append(
            Finding(
                name="short-window",
                severity=severity,
                what="The window after which a latent counts as dead is so short that living ones are called dead, and"
                " revival disturbs them.",
                evidence=f"In {counted(sae.window_steps, 'step')} ({rows:,} rows) {sae.d_sae:,} latents used alike fire"
                f" {number(uses)} times each; the rarer ones hardly at all.",
                todo=todo,
                numbers={"window_rows": rows, "uses_per_latent": uses},
                sites=(key,),
                weight=-uses,
            )
        )
    return found


def _longer_window(window: int, wanted: int, *, batch_size: int, n_steps: int | None) -> tuple[Severity, str]:
    """How bad a short window is, and what to do: nobody is blamed for the default, nor told what the run is too short
    for.
    """
    longer = f"Set dead_feature_window to at least {wanted:,} steps."
    if n_steps is None:
        return "warning", longer
    auto = SAEConfig(batch_size=batch_size).window_steps(n_steps)
    severity: Severity = "warning" if window < auto else "note"
    if wanted < n_steps:
        return severity, longer
    if window < auto:
        return severity, f'Leave dead_feature_window at "auto": in a run of {n_steps:,} steps it is {auto:,}.'
    return severity, f"Train on more rows (n_tokens): {n_steps:,} steps are too few to tell dead latents from rare."


def _early(run: Record, key: str, sae: SAEFacts) -> Finding | None:
    """Before the window has passed nothing is dead, whatever is silent."""
    in_step, since = run.last(key, "silent_step_share"), run.last(key, "silent_1m_share")
    batch, k, d_sae, window = run.facts.batch_size, sae.k, sae.d_sae, sae.window_steps
    floor = silent_in_one_step(batch_size=batch, k=k, d_sae=d_sae) if batch and k and d_sae else None
    much = (in_step or 0) >= _MUCH_SILENT_IN_A_STEP and (floor or 0) > 0
    used = batch and k and d_sae and run.step * batch * k / d_sae >= _FEWEST_USES
    much = much or (bool(used) and (since or 0) >= _MUCH_SILENT_SINCE_START)
    if not much or window is None:
        return None
    never = run.facts.n_steps is not None and window >= run.facts.n_steps
    late = never and run.progress > _HALF
    rows = run.step * (batch or 0)
    equal = unused_if_equal(rows=rows, k=k, d_sae=d_sae) if rows and k and d_sae else None
    seen = _silence(in_step=in_step, floor=floor, since=since, equal=equal, rows=rows, run=run, sae=sae)
    when, minutes = _revival_begins(run, sae)
    wait = "read dead_share, not what is silent in one step"
    numbers = {
        "silent_step_share": in_step, "arithmetic_share": floor, "silent_since_start_share": since,
        "unused_if_equal_share": equal, "window_steps": window, "minutes_to_revival": minutes,
    }  # fmt: skip
    return Finding(
        name="too-early-for-dead-latents",
        severity="warning" if late and (since or 0) >= _MUCH_SILENT_SINCE_START else "note",
        what=f"No latent can be called dead yet: that takes {window:,} steps without firing"
        + (f" ({window * batch:,} rows)" if batch else "")
        + f", and the run is at step {run.step:,}.",
        evidence=f"{seen} {when}",
        todo=f"Lower dead_feature_window below the {run.facts.n_steps:,} steps of the run." if never
        else f"Wait until step {window:,} and {wait}.",
        numbers={name: value for name, value in numbers.items() if value is not None},
        sites=(key,),
        weight=max(in_step or 0, since or 0),
    )  # fmt: skip


def _silence(
    *,
    in_step: float | None,
    floor: float | None,
    since: float | None,
    equal: float | None,
    rows: int,
    run: Record,
    sae: SAEFacts,
) -> str:
    """What is silent, and how much of it is arithmetic, in words."""
    parts: list[str] = []
    if in_step is not None:
        parts.append(f"{percent(in_step)} did not fire in the last step")
        if floor:
            batch, k, d_sae = run.facts.batch_size or 0, sae.k or 0, sae.d_sae or 0
            parts[-1] += (
                f"; {percent(floor)} cannot, by arithmetic: {batch:,} rows with {k} active latents fire at most"
                f" {batch * k:,} of {d_sae:,}"
            )
    if since is not None and rows <= 1_000_000:
        parts.append(f"{percent(since)} have not fired in all {rows:,} rows so far")
        if equal is not None:
            parts[-1] += f" ({percent(equal)} would not if all were used alike; at the start they are not)"
    return ". ".join(parts) + "."


def _revival_begins(run: Record, sae: SAEFacts) -> tuple[str, float | None]:
    """When revival begins, in words, and in how many minutes."""
    window = sae.window_steps or 0
    if sae.revival == "none":
        return "Nothing will bring dead ones back: revival is switched off.", None
    if run.facts.n_steps is not None and window >= run.facts.n_steps:
        return f"Revival never begins: the run has {run.facts.n_steps:,} steps.", None
    method, now = _METHODS.get(sae.revival or "", "revival"), pace_or_estimate(run)
    if now is None:
        return f"Revival ({method}) begins after step {window:,}.", None
    seconds = (window - run.step) * now.total
    when = f"in about {span(seconds)} at {number(round(1 / now.total, 2))} steps per second"
    return f"Revival ({method}) begins after step {window:,}, {when}.", seconds / 60


def _later(run: Record, key: str, sae: SAEFacts) -> Finding | None:
    """The window has passed: dead means dead, and the question is whether it is more than usual."""
    points = run.points(key, "dead_share")
    if not points:
        return None
    share, rows = points[-1][1], run.step * (run.facts.batch_size or 0)
    known = expected_dead(
        rows=rows or 300_000, architecture=sae.architecture, revival=sae.revival, centring=sae.centring
    )
    usual = max(_MOST_EXPECTED, 2 * known.high, silent_on_held_out(sae.architecture) if not known.alike else 0)
    if share <= usual:
        return None
    window, phase = sae.window_steps, run.phase(key)
    settled = run.ended or (phase is not None and run.step >= phase[1])
    reviving = not settled and window is not None and (run.step <= 2 * window or _falls(points, window))
    severity: Severity = "note" if reviving else "error" if share > _HALF else "warning"
    state = "settled: little changes while the learning rate falls" if settled else "reviving"
    of = counted(window, "step") if window is not None else "the window"
    if window is not None and run.facts.batch_size:
        of += f" ({window * run.facts.batch_size:,} rows)"
    return Finding(
        name="dead-latents",
        severity=severity,
        what=f"{percent(share)} of the latents are dead: silent for {of}. The run is {state}.",
        evidence=_against(known, usual=usual) + _course(points),
        todo=_dead_todo(run, key, sae, reviving=reviving),
        numbers={"dead_share": share, "expected_low": known.low, "expected_high": known.high, "warns_above": usual},
        sites=(key,),
        weight=share,
    )


def _falls(points: list[tuple[int, float]], window: int) -> bool:
    """Whether the share is a fifth lower than it was a window ago, or the last half of the lines."""
    step, share = points[-1]
    before = [value for at, value in points if at <= step - window] or [points[len(points) // 2][1]]
    return share <= 0.8 * before[-1]


def _against(known: Expected, *, usual: float) -> str:
    runs = f"{counted(len(known.names), 'recorded run')}, {known.names[0]} among them"
    like = "with the same gate and revival" if known.alike else "that come nearest; none has this gate and revival"
    return (
        f"At this many rows {runs}, {like}, had {between([known.low, known.high], shown='percent')}; this check"
        f" speaks above {percent(usual)}."
    )


def _course(points: list[tuple[int, float]]) -> str:
    step, value = max(points, key=lambda point: point[1])
    return "" if step == points[-1][0] else f" The most was {percent(value)}, at step {step:,}."


def _dead_todo(run: Record, key: str, sae: SAEFacts, *, reviving: bool) -> str:
    if reviving:
        return "Nothing yet: look again after as many steps as the window has."
    if run.rate_is("high", key):
        return f"Train with {run.lower_rate(key)}: the learning rate is more than four times that."
    if not sae.centring:
        return "Train with centring=True: large means of a few dimensions kill latents, and no revival mends that."
    if sae.revival == "none":
        return 'Train with revival="lift", the default.'
    if sae.revival in ("auxk", "ghost", "resample"):
        return f'Train with revival="lift", the default, instead of "{sae.revival}".'
    return f"Train with {run.lower_rate(key)}, or with fewer latents (expansion_factor)."
