"""What `strata scaling` does: train a sweep from one store, write its table, fit its laws."""

import math
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from strata.activations.store import Store, open_store
from strata.amounts import counted
from strata.config.scaling import ScalingConfig
from strata.costs.scaling_fit import free_parameters
from strata.costs.step import SAEShape, step_work
from strata.errors import UserError
from strata.lm.loading import chosen_device
from strata.log import say
from strata.out_folder import check_free
from strata.plan.rates import known_rates
from strata.scaling.analysis import analyse
from strata.scaling.files import RECORD, begun, check_same, read_record, start_folder, write_record
from strata.scaling.memory import most_side_by_side
from strata.scaling.points import Training, key_of, run_training, trainings_left
from strata.scaling.subject import subject_of


def scaling_run(config: ScalingConfig, *, progress: bool = True) -> Path:
    """Train what of the sweep is not there yet, and fit the laws to it.

    Args:
        config: of the sweep and the fit.
        progress: say on stderr what happens.

    Returns:
        The folder, with scaling.json and the trainings' metrics.

    Raises:
        UserError: whatever cannot be done; the table of what was trained stays.
        Interrupted: a signal came; with `resume` the sweep goes on.
    """
    folder = config.folder()
    record = read_record(folder) if config.fit_only else _swept(config, folder, progress=progress)
    say(f"fitting {len(record['points'])} points, drawn anew {config.n_bootstrap} times", shown=progress)
    subject = subject_of(record, config)
    fit = analyse(record, config, subject=subject, forward_flops=_forward_flops(record, config))
    write_record(folder, record | {"fit": fit})
    return folder


def _swept(config: ScalingConfig, folder: Path, *, progress: bool) -> dict[str, Any]:
    """The sweep's record, with all of its points."""
    check_free(folder, record=RECORD, what="sweeps", overwrite=config.overwrite, resume=config.resume)
    store = open_store(config.activations)
    site = store.sites[(len(store.sites) - 1) // 2] if config.site == "middle" else config.site
    store = store.only(site)
    held_out = _held_out(store, site, config)
    record = begun(config, store, n_held_out=len(held_out))
    steps = config.steps(store.n_rows())
    for one in config.sae_configs():
        one.d_sae(store.d_in(site))
    _check_points(config, n_budgets=len(set(steps)))
    if config.resume:
        before = read_record(folder)
        check_same(before, record)
        record = before | {"config": record["config"]}
    device = str(chosen_device(config.device))
    left = list(
        trainings_left(
            steps,
            config.sae_configs(),
            done={key_of(point) for point in record["points"]},
            side_by_side=_side_by_side(config, store, device),
        )
    )
    say(_summary(store, left, device=device), shown=progress)
    if not config.resume:
        start_folder(folder, record)
    _train_all(left, store, held_out, folder, config, record, device=device, progress=progress)
    return record


def _train_all(
    left: list[Training], store: Store, held_out: Tensor, folder: Path, config: ScalingConfig, record: dict[str, Any],
    *, device: str, progress: bool,
) -> None:  # fmt: skip
    """One training after the other; the table is written after each."""
    flops, spent, start = [one.flops(record["d_in"]) for one in left], 0.0, time.perf_counter()
    for number, training in enumerate(left):
        n_tokens = training.n_steps * config.batch_size
        said = f"training {number + 1} of {len(left)}: {counted(len(training.configs), 'SAE')} on {n_tokens:,} rows"
        if spent:
            rest = (time.perf_counter() - start) * (sum(flops) / spent - 1)
            said += f"; about {math.ceil(rest / 60)} min left at this speed"
        say(said, shown=progress)
        points, told = run_training(
            training,
            store,
            held_out=held_out,
            folder=folder / "trainings" / training.name,
            order_seed=record["order_seed"],
            device=device,
            progress=progress,
        )
        record["points"] += points
        record["trainings"].append(told)
        write_record(folder, record)
        spent += flops[number]


def _check_points(config: ScalingConfig, *, n_budgets: int) -> None:
    """That a law can be fitted to what will be trained."""
    n_widths, n_ks = len(set(config.widths)), len(set(config.k))
    n_points = n_widths * n_ks * n_budgets * len(set(config.seeds))
    form = "additive" if config.form == "auto" else config.form
    free = free_parameters(widths=n_widths > 1, tokens=n_budgets > 1, ks=n_ks > 1, form=form)
    if n_points <= len(free):
        raise UserError(
            f"A sweep must give more points than its law has parameters, {len(free)}. Got {n_points}, widths × k ×"
            f" n_tokens × seeds. Add some of them."
        )


def _held_out(store: Store, site: str, config: ScalingConfig) -> Tensor:
    rows = store.held_out(config.held_out_rows, site=site)
    if len(rows) < 2:
        raise UserError(
            f"`activations` must be a store with held-out rows. {store.folder} holds {len(rows)}. Collect it with"
            " --held-out-tokens."
        )
    return rows


def _side_by_side(config: ScalingConfig, store: Store, device: str) -> int:
    """SAEs of one training: as asked for, or as many of the widest as fit into the free memory."""
    if config.side_by_side != "auto":
        return config.side_by_side
    d_in, widest = store.d_in(store.sites[0]), config.sae_configs()[-1]
    shape = SAEShape(d_in=d_in, d_sae=widest.d_sae(d_in), k=max(config.k), architecture=config.architecture)
    found = most_side_by_side(shape, batch_size=config.batch_size, device=device)
    if found == 0:
        raise UserError(
            f"`widths` must fit into the free memory. One SAE of {shape.d_sae} latents does not. Lower widths or"
            " batch_size, or give side_by_side to try it."
        )
    return found


def _summary(store: Store, left: list[Training], *, device: str) -> str:
    """What there is to do and what it costs, in a line."""
    d_in, n_saes = store.d_in(store.sites[0]), sum(len(one.configs) for one in left)
    rates, seconds = known_rates(device=device), 0.0
    for training in left:
        for one in training.configs:
            shape = SAEShape(d_in=d_in, d_sae=one.d_sae(d_in), k=one.k, architecture=one.architecture)
            work = step_work(shape, batch_size=one.batch_size)
            seconds += training.n_steps * rates.step.of(work)
    flops = sum(one.flops(d_in) for one in left)
    saes, trainings = counted(n_saes, "SAE"), counted(len(left), "training")
    return (
        f"{store.folder}: {store.n_rows():,} rows of {store.sites[0]}, width {d_in}. To train: {saes} in {trainings},"
        f" {flops:.3g} FLOPs, about {math.ceil(seconds / 60)} min ({rates.kind} rates)"
    )


def _forward_flops(record: dict[str, Any], config: ScalingConfig) -> float:
    """Of the language model per token, as far as the site; 0 where it does not count."""
    if not config.streamed:
        return 0.0
    from strata.lm.flops import forward_flops_of
    from strata.lm.outline import outline

    lm = outline(str(record["model"]["name"]), trust_remote_code=config.trust_remote_code)
    return forward_flops_of(lm, [record["site"]], context_tokens=record["text"]["context_tokens"])
