"""A run's folder, looked at whole."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata.amounts import counted
from strata.doctor.checks.registry import LIVE, OF_A_FOLDER
from strata.doctor.findings import Finding, exit_code, merged
from strata.doctor.pace import seconds_so_far
from strata.doctor.record import Record, is_number, read_run
from strata.doctor.words import between, number, percent, span


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found.

    Attributes:
        folder: of the run.
        summary: its key numbers, in a few lines.
        findings: the worst first.
        n_checks: how many looked.
    """

    folder: Path
    summary: tuple[str, ...]
    findings: tuple[Finding, ...]
    n_checks: int

    @property
    def exit_code(self) -> int:
        """0 nothing but notes, 3 a warning is the worst, 4 an error is."""
        return exit_code(self.findings)

    def lines(self) -> list[str]:
        """For people."""
        found = [line for finding in self.findings for line in ["", *finding.lines()]]
        verdict = "Healthy" if self.exit_code == 0 else "Not healthy"
        n_bad = sum(finding.severity != "note" for finding in self.findings)
        n_notes = len(self.findings) - n_bad
        notes = f", {counted(n_notes, 'note')}" if n_notes else ""
        return [*self.summary, f"{verdict}: {self.n_checks} checks, {counted(n_bad, 'complaint')}{notes}.", *found]

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "run": str(self.folder),
            "exit_code": self.exit_code,
            "summary": list(self.summary),
            "findings": [finding.as_json() for finding in self.findings],
        }


def examine(folder: Path) -> Diagnosis:
    """Look at a run, finished, stopped or still going.

    Args:
        folder: with run.json and metrics.jsonl.

    Raises:
        UserError: there is no run, or its run.json is damaged.
    """
    run = read_run(Path(folder))
    checks = (*LIVE, *OF_A_FOLDER)
    findings = merged(finding for check in checks for finding in check(run))
    return Diagnosis(
        folder=Path(folder), summary=_summary(Path(folder), run), findings=tuple(findings), n_checks=len(checks)
    )


def _summary(folder: Path, run: Record) -> tuple[str, ...]:
    status = {"trained": "finished", "training": "not finished"}.get(run.facts.status or "", "unknown whether finished")
    of = "" if run.facts.n_steps is None else f" of {run.facts.n_steps:,}"
    left = _checkpoint(run)
    if not run.lines:
        return (f"{folder}: {status}, no line in metrics.jsonl yet.", *left)
    said = [f"{folder}: {status}, step {run.step:,}{of}{_time(run)}.", *left]
    quality = [f"FVU {between(found)} (share of the variance that is lost)" for found in [_last(run, "fvu")] if found]
    quality += [f"L0 {between(found)}" for found in [_last(run, "l0")] if found]
    quality += [
        f"dead {between(found, shown='percent')}{_window(run)}" for found in [_last(run, "dead_share")] if found
    ]
    return (*said, f"{'; '.join(quality)}.") if quality else tuple(said)


def _checkpoint(run: Record) -> list[str]:
    """What a run that is not finished can go on from; whether it was stopped or is going on its folder does not say."""
    if run.facts.status != "training" or run.checkpoint_step is None:
        return []
    resume = "If it was stopped, the same command with --resume goes on from there."
    return [f"Its last checkpoint is of step {run.checkpoint_step:,}. {resume}"]


def _time(run: Record) -> str:
    seconds, rows = run.lines[-1].get("seconds"), run.lines[-1].get("rows")
    if not is_number(seconds) or seconds <= 0:
        return ""
    speed = f", {number(round(rows / seconds))} rows per second" if is_number(rows) else ""
    whole = seconds_so_far(run)
    parts = ""
    if {"rows_seconds", "sae_seconds"} <= set(whole):
        sae, waiting = (percent(whole[part] / whole["seconds"]) for part in ("sae_seconds", "rows_seconds"))
        parts = f", {sae} of it in SAE steps, {waiting} waiting for rows"
    return f", {span(seconds)}{speed}{parts}"


def _last(run: Record, name: str) -> list[float]:
    found = [run.last(key, name) for key in run.keys]
    return [value for value in found if value is not None]


def _window(run: Record) -> str:
    windows = {run.sae(key).window_steps for key in run.keys}
    window, batch = next(iter(windows)), run.facts.batch_size
    if len(windows) > 1 or window is None or batch is None:
        return ""
    return f" (silent for {window * batch:,} rows)"
