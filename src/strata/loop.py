"""The training loop: SAEs side by side on the same batches, and how it stops and goes on."""

import time
from collections.abc import Mapping
from contextlib import closing

import torch
from torch import Tensor

from strata.activations.source import SiteRows, layers_of
from strata.checkpoint import load_checkpoint, save_checkpoint
from strata.distributed.checkpoint import restored, save_shared
from strata.doctor.live import Watch
from strata.errors import UserError
from strata.log import Progress, say
from strata.prepare import Prepared
from strata.recording import Recording, RunLines
from strata.sae.graphed import GraphedSteps, are_recorded
from strata.sae.learner import Learner
from strata.signals import Interrupted, StopSignals


def run_loop(prepared: Prepared, recording: Recording) -> dict[str, float]:
    """Train all learners to their end, from the last checkpoint if the recording says so.

    Returns:
        Seconds of the whole run, resumed parts included: `total`, in the `sae` steps, and waiting for `rows`.

    Raises:
        UserError: a loss that is not finite, nothing to resume, a run that was another, or a folder that cannot be
            written.
        Interrupted: a signal came, and a checkpoint is written.
    """
    learners, n_steps, ranks = prepared.learners, prepared.n_steps, prepared.spread.ranks
    recording.check()
    step, seconds = _restore(prepared, recording) if recording.resume else (0, _begun(prepared))
    saved_step, stopped_by = step if recording.resume else None, 0
    checkpoint_every = prepared.steps(recording.checkpoint_every)
    batches = prepared.rows.batches(start_step=step)
    lines = RunLines(prepared, recording, step=step, seconds=seconds["total"])
    watch = Watch(prepared.facts)
    recorded = {key for key, one in learners.items() if type(one) is Learner and are_recorded(one.device)}
    steps = {key: GraphedSteps(one) if key in recorded else one for key, one in learners.items()}
    bar = Progress(n_steps=n_steps, first_step=step, shown=recording.progress and ranks.is_first)
    stopping = StopSignals(wanted=recording.folder is not None)
    with closing(batches), closing(lines), bar as progress, stopping as stop:
        while step < n_steps:
            start = time.perf_counter()
            batch = next(batches)
            got_rows = time.perf_counter()
            step_all(learners, batch, steps)
            step += 1
            for key, stepping in steps.items():
                for happened in stepping.new_lines():
                    progress.note(f"{key}: {happened}")
            end = time.perf_counter()
            for part, spent in (("rows", got_rows - start), ("sae", end - got_rows), ("total", end - start)):
                seconds[part] += spent
            progress.advance(step)
            if step % recording.log_every_steps == 0 or step == n_steps:
                line = lines.write(step, seconds=seconds)
                progress.show(step, rows_per_second=line["rows_per_second"], sites=line["sites"])
                for finding in watch.see(line):
                    progress.note(finding)
            due = step % checkpoint_every == 0 and step < n_steps
            stopped_by = ranks.largest(stop.received or 0)  # all stop after the same step
            if recording.checkpoints and (due or stopped_by):
                _save(prepared, recording, step=step, seconds=seconds)
                saved_step, stopped_by = step, ranks.largest(stop.received or 0)  # one may have come meanwhile
            if stopped_by:
                break
    if stopped_by:
        raise _interrupted(recording, number=stopped_by, step=saved_step, n_steps=n_steps)
    return seconds


def step_all(
    learners: Mapping[str, Learner], batch: SiteRows, steps: Mapping[str, Learner | GraphedSteps] | None = None
) -> None:
    """One step of every learner; rows that several of them read are moved to their device once.

    Args:
        learners: by key.
        batch: rows.
        steps: who takes each one's step, recorded or not; None is the learners themselves.
    """
    moved: dict[tuple[str, torch.device], Tensor] = {}

    def rows(site: str, device: torch.device) -> Tensor:
        if (site, device) not in moved:
            moved[site, device] = batch[site].to(device)
        return moved[site, device]

    for key, learner in learners.items():
        target = None if learner.target_site is None else rows(learner.target_site, learner.device)
        layer = None if learner.group is None else rows(layers_of(learner.site), learner.device)
        (steps or learners)[key].step(rows(learner.site, learner.device), target, layer)


def _begun(prepared: Prepared) -> dict[str, float]:
    """The seconds that a training has spent before its first step."""
    return {"total": prepared.seconds, "sae": 0.0, "rows": prepared.seconds}


def _save(prepared: Prepared, recording: Recording, *, step: int, seconds: dict[str, float]) -> None:
    assert recording.checkpoints is not None
    rows = prepared.rows.state(step) if recording.keep_buffer else {}
    if prepared.spread.ranks.size > 1:
        save_shared(
            recording.checkpoints,
            ranks=prepared.spread.ranks,
            step=step,
            learners=prepared.learners,
            rows=rows,
            state={"step": step, "seconds": seconds},
            identity=prepared.identity,
            keep=recording.keep_checkpoints,
        )
        return
    learners = {key: learner.state() for key, learner in prepared.learners.items()}
    save_checkpoint(
        recording.checkpoints,
        step=step,
        state={"step": step, "seconds": seconds, "learners": learners, "rows": rows},
        identity=prepared.identity,
        keep=recording.keep_checkpoints,
    )


def _restore(prepared: Prepared, recording: Recording) -> tuple[int, dict[str, float]]:
    """Bring the learners to the last checkpoint of the folder; gives its step and the seconds spent until then."""
    assert recording.checkpoints is not None, "resume without a folder"
    device = next((learner.device for learner in prepared.learners.values()), torch.device("cpu"))
    found = load_checkpoint(recording.checkpoints, device=device)
    changed = [name for name, value in prepared.identity.items() if found.identity.get(name) != value]
    if changed:
        raise UserError(
            f"`resume` needs the settings, sites, model and rows of the training before. Changed: {', '.join(changed)}."
            f" Give what {recording.folder} was begun with, or start another."
        )
    states, rows = restored(found, prepared.learners, prepared.spread.ranks)
    for key, learner in prepared.learners.items():
        learner.load_state(states[key])
    if rows:
        prepared.rows.load_state(rows)
    step = found.state["step"]
    say(
        f"going on from step {step} of {prepared.n_steps}, the checkpoint {recording.checkpoints / f'step-{step}'}",
        shown=recording.progress and prepared.spread.ranks.is_first,
    )
    return step, found.state["seconds"]


def _interrupted(recording: Recording, *, number: int, step: int | None, n_steps: int) -> Interrupted:
    return Interrupted(
        f"stopped at step {step} of {n_steps}; a checkpoint is in {recording.checkpoints}, and --resume (in Python"
        f" Recording(resume=True)) goes on from it.",
        number=number,
    )
