"""A training run: from a description to SAEs on disk, and the record of how they came about."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from strata.activations.source import RowSource
from strata.amounts import spent
from strata.assignments import Assignment, assign, sites_read
from strata.atomic import remove_folder, remove_leftovers
from strata.config.sweep import check_sweep, sweep_configs
from strata.config.train import TrainConfig
from strata.distributed.ranks import ALONE, Ranks
from strata.distributed.spread import Spread, chosen_spread
from strata.errors import UserError
from strata.groups.of_run import RunGroups, check_groups, groups_of
from strata.lm.loading import chosen_device
from strata.log import say
from strata.plan.predicted import predicted
from strata.plan.rates import known_rates
from strata.prepare import Prepared, prepare
from strata.recording import Recording
from strata.run_folder import (
    begun,
    check_folder,
    check_same,
    load_saes,
    make_folder,
    read_record,
    save_saes,
    write_record,
)  # fmt: skip
from strata.run_rows import RunRows, open_rows
from strata.train import Trained, train


def train_run(config: TrainConfig, *, progress: bool = True, ranks: Ranks = ALONE) -> tuple[RunRows, Trained]:
    """Train as described and leave a run folder: run.json, metrics.jsonl, sae/<key>/, checkpoints while it runs.

    Args:
        config: the run.
        progress: say on stderr what happens.
        ranks: the processes that train together, all of which call this; the first writes and speaks.

    Returns:
        What it was trained on, for what comes next, and what was trained (of several processes to the first all, to the
        others their own). A run that is resumed after its training had ended gives what it left.

    Raises:
        UserError: whatever in the description cannot be done; the folder of an earlier run then stays as it was.
        Interrupted: a signal came, and a checkpoint is written.
    """
    folder, progress = config.folder(), progress and ranks.is_first
    check_folder(folder, config)
    check_sweep(sweep_configs(config.sae, config.sweep))
    check_groups(config)
    before = read_record(folder) if config.resume else None
    rows = open_rows(config)
    config = rows.config
    say(rows.summary(), shown=progress)
    groups = groups_of(config, rows, before=before, progress=progress)
    assignments = assignments_of(config, rows.sites, groups)
    source = rows.open(sites_read(assignments), ranks=ranks)
    device = chosen_device(config.device)
    widths = {site: source.d_in(site) for site in sites_read(assignments)}
    spread = chosen_spread(assignments, widths=widths, ranks=ranks, wanted=config.parallel, device=device)
    record = begun(config, source, device)
    if before is not None:
        check_same(before, record)
        if ranks.is_first:
            remove_leftovers(folder)
        if before["status"] == "trained":
            trained = _load_trained(folder, before, report=config.report)
            say("the training had ended; what is left is the evaluation", shown=progress)
            return rows, trained
    recording = _recording(config, folder, progress=progress)
    prepared = _prepared(rows, source, assignments, device=device, spread=spread)
    record |= {**prepared.facts, "groups": groups.named(), "groups_measured": groups.measured()}
    say(_price(prepared.facts["predicted"]), shown=progress and before is None)
    ranks.wait_for_all()  # all have looked at the folder
    if before is None and ranks.is_first:
        make_folder(folder, record)
        groups.write(folder)
    ranks.wait_for_all()
    trained = train(prepared, recording)
    save_saes(folder, trained.saes if spread.speaks else {}, ranks=ranks)
    if not ranks.is_first:
        return rows, trained
    if ranks.size > 1:
        trained = replace(trained, saes=load_saes(folder, trained.dead))
    write_record(folder, (before or record) | _ended(trained))
    with contextlib.suppress(OSError):
        remove_folder(folder / "checkpoints")
    return rows, trained


def _ended(trained: Trained) -> dict[str, Any]:
    """What run.json says of a training that has ended."""
    seconds = {**trained.seconds, "language_model": trained.seconds["rows"]}
    return {"status": "trained", "dead": trained.dead, "layer_rows": trained.layer_rows, "seconds": seconds}


def assignments_of(config: TrainConfig, sites: list[str], groups: RunGroups) -> dict[str, Assignment]:
    """What a described run is to make.

    Args:
        config: the run.
        sites: those that it reads.
        groups: of them, if there are any.

    Raises:
        UserError: a sweep that is none, or a transcoder of several sites.
    """
    targets: Mapping[str, str] = {}
    if config.target_site != "same":
        if len(sites) > 1:
            raise UserError(
                f"`target_site` is for a single site. Got {len(sites)} sites, {', '.join(sites[:3])} among them. Give"
                f" --sites with one name."
            )
        targets = {sites[0]: config.target_site}
    configs = sweep_configs(config.sae, config.sweep)
    return assign(sites, configs, target_sites=targets, skip=config.skip, groups=groups.sites)


def _recording(config: TrainConfig, folder: Path, *, progress: bool) -> Recording:
    """What the run records; found out now whether it can."""
    recording = Recording(
        folder=folder,
        resume=config.resume,
        log_every_steps=config.log_every_steps,
        checkpoint_every=config.checkpoint_every,
        keep_checkpoints=config.keep_checkpoints,
        keep_buffer=config.keep_buffer,
        held_out_every=config.held_out_every,
        loggers=config.loggers,
        progress=progress,
    )
    recording.check_loggers()
    return recording


def _prepared(
    rows: RunRows, source: RowSource, assignments: Mapping[str, Assignment], *, device: torch.device, spread: Spread
) -> Prepared:
    """Ready to begin, with how long it should take on this machine (`strata.plan.predicted`) among its facts."""
    sites = sites_read(assignments)
    held_out = rows.held_out(sites)
    # Streamed rows are trained on where the language model leaves them, others where the description says.
    where = None if rows.streams else str(device)
    prepared = prepare(source, assignments, device=where, held_out=held_out, spread=spread)
    price = predicted(
        rows.config,
        rows.language_model if rows.streams else None,
        known_rates(device=rows.config.device),
        assignments=assignments,
        widths={site: source.d_in(site) for site in sites},
        n_steps=prepared.n_steps,
    )
    return replace(prepared, facts={**prepared.facts, "predicted": price})


def _price(found: Mapping[str, Any]) -> str:
    """A line on what was predicted."""
    seconds = found["seconds"]
    if seconds is None:
        return "how long this takes is not known beforehand: the model's configuration does not tell its cost"
    share = found["sae_seconds"] / max(found["rows_seconds"] + found["sae_seconds"], 1e-12)
    how = "as measured" if found["kind"] == "measured" else "assumed, not measured; `strata plan --calibrate` measures"
    return f"training should take about {spent(seconds)}, {share:.0%} of it in the SAEs' steps ({how})"


def _load_trained(folder: Path, record: dict[str, Any], *, report: bool) -> Trained:
    """What a run left whose training had ended but not its report."""
    if not report or (folder / "report" / "index.html").exists():
        raise UserError(f"`resume` needs a run that is not finished. {folder} is. Start another with --out.")
    return Trained(
        saes=load_saes(folder, record["dead"]),
        dead=record["dead"],
        layer_rows=record["layer_rows"],
        n_steps=record["n_steps"],
        seconds=record["seconds"],
    )
