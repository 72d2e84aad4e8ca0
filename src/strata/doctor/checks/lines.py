"""The lines themselves: numbers that are none, lines that are missing, a run that stopped."""

import math
from itertools import pairwise

from strata.amounts import counted
from strata.doctor.findings import Finding
from strata.doctor.record import Record
from strata.doctor.words import span

_SILENT_SECONDS = 600.0
_SILENT_LINES = 20


def not_finite(run: Record) -> list[Finding]:
    """NaN or infinity among the numbers of a site."""
    found: list[Finding] = []
    for key in run.keys:
        bad = [
            (line["step"], name)
            for line in run.lines
            for name, value in line["sites"].get(key, {}).items()
            if isinstance(value, float) and not math.isfinite(value)
        ]
        if bad:
            step, name = bad[0]
            found.append(
                Finding(
                    name="not-finite",
                    severity="error",
                    what="A number is not finite: the training has broken down.",
                    evidence=f"{name} at step {step:,}, the first of {len(bad)}.",
                    todo=f"Start again with {run.lower_rate(key)}, or load the language model in fp32 or bf16.",
                    numbers={"step": step, "n_numbers": len(bad)},
                    sites=(key,),
                    weight=len(bad),
                )
            )
    return found


def missing_lines(run: Record) -> list[Finding]:
    """Lines that are damaged, doubled or not there."""
    steps = [line["step"] for line in run.lines]
    gaps = [b - a for a, b in pairwise(steps)]
    holes = [
        steps[i] for i in range(1, len(gaps) - 1) if gaps[i] >= 3 * gaps[i - 1] and gaps[i] >= 3 * gaps[i + 1]
    ]  # fmt: skip
    said: list[str] = []
    if run.n_damaged:
        said.append(f"{counted(run.n_damaged, 'line')} cannot be read")
    if run.n_backwards:
        said.append(f"{counted(run.n_backwards, 'line')} with steps that were there before")
    if holes:
        said.append(f"lines are missing after step {', '.join(f'{step:,}' for step in holes[:3])}")
    n_steps = run.facts.n_steps
    if run.facts.status == "trained" and n_steps is not None and run.step < n_steps:
        said.append(f"the run says that it ended, but the last line is of step {run.step:,} of {n_steps:,}")
    if not said:
        return []
    return [
        Finding(
            name="missing-lines",
            severity="warning",
            what="metrics.jsonl is not whole.",
            evidence=f"{'; '.join(said)[0].upper()}{'; '.join(said)[1:]}.",
            todo="Look whether the disk was full, or two trainings wrote to one folder.",
            numbers={"n_damaged": run.n_damaged, "n_repeated": run.n_backwards, "n_holes": len(holes)},
        )
    ]


def stopped(run: Record) -> list[Finding]:
    """A run that is not finished and writes nothing any more."""
    silent = run.silent_seconds
    if silent is None or run.facts.status != "training":
        return []
    seconds = run.lines[-1].get("seconds", 0.0) / len(run.lines) if run.lines else 0.0
    if silent < max(_SILENT_SECONDS, _SILENT_LINES * seconds):
        return []
    of = "" if run.facts.n_steps is None else f" of {run.facts.n_steps:,}"
    return [
        Finding(
            name="stopped",
            severity="warning",
            what="The run stopped before it was finished.",
            evidence=f"The last line is of step {run.step:,}{of}; nothing was written for {span(silent)}.",
            todo="It left no checkpoint: begin again with the same command and --overwrite."
            if run.checkpoint_step is None
            else f"Go on from the checkpoint of step {run.checkpoint_step:,}: the same command with --resume.",
            numbers={"step": run.step, "silent_seconds": silent},
        )
    ]
