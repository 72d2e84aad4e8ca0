"""`strata bench`: times, floors, memory and quality of one SAE step, of Strata and of the peers that are installed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.atomic import write_json
from strata.bench.floors import copy_bytes_per_second, forward_tokens_per_second, product_timers, selection_timer
from strata.bench.machine import describe, is_busy
from strata.bench.memory import peak_bytes
from strata.bench.quality import open_record, train_all
from strata.bench.reached import all_reached
from strata.bench.registry import OURS, chosen
from strata.bench.rows import open_rows
from strata.bench.tables import lines_of
from strata.bench.turns import Timer, Times, take_turns
from strata.bench.worker import Worker
from strata.config.bench import BenchOptions
from strata.errors import UserError
from strata.kernels.backend import score_dtype
from strata.lm.loading import chosen_device
from strata.log import say

_N_BATCHES = 8  # different batches that the steps go through
_N_STEPS = 300  # at least, of the run that the schedules believe in
_SELECTION = "selection"
_RATE = 1e-3  # of the timed steps: it changes no time

Rows = Float[Tensor, "n d_in"]


def bench(options: BenchOptions, *, progress: bool = True) -> list[str]:
    """Measure as described, write the JSON, and give the tables' lines.

    Args:
        options: what to measure.
        progress: say on stderr how far it is.

    Raises:
        UserError: a contender that is unknown or not installed, rows or files that do not fit.
    """
    if options.threads != "auto":
        torch.set_num_threads(options.threads)
    device = chosen_device(options.device)
    names = chosen(options.contenders, device)
    machine = describe(device)
    if is_busy(machine):
        load = machine["load_average"]
        say(f"the machine is busy (load {load}): these times are not worth keeping", shown=progress)
    record = measured(options, names, device=device, progress=progress) | {"machine": machine}
    record |= {"quality": None, "reached": []}
    _write(options, record)  # quality may take hours
    record["quality"] = _quality(options, device=device, progress=progress)
    record["reached"] = _reached(record)
    _write(options, record)
    return lines_of(record)


def measured(options: BenchOptions, names: list[str], *, device: torch.device, progress: bool = True) -> dict[str, Any]:
    """All but quality.

    Returns:
        setting; steps: by contender times, rows per second and peak_bytes; products: by dtype and piece times; floor:
        the fastest of them; selection: times of Strata's product and choice of winners; copy_bytes_per_second;
        forward_tokens_per_second; widths.
    """
    shape = {"d_in": options.d_in, "n_rows": _N_BATCHES * options.rows}
    rows = open_rows(options.rows_from, **shape, n_held_out=0).train.float().to(device)
    workers = [_worker(name, options, device=device) for name in names]
    timers: dict[str, Timer] = {worker.name: worker for worker in workers}
    x, n = rows[: options.rows], options.steps_per_round
    products = product_timers(x, d_sae=options.d_sae, n=n, device=device)
    timers |= {f"{dtype}, {piece}": timer for dtype, found in products.items() for piece, timer in found.items()}
    timers[_SELECTION] = selection_timer(x, d_sae=options.d_sae, k=options.k, n=n, device=device)
    try:
        times = take_turns(timers, n_rounds=options.rounds, progress=progress)
    finally:
        for worker in workers:
            worker.close()
    selection = times.pop(_SELECTION).as_json()
    by_torch = {dtype: {piece: times.pop(f"{dtype}, {piece}") for piece in found} for dtype, found in products.items()}
    dtype, piece, seconds = fastest(by_torch)
    steps: dict[str, dict[str, Any]] = {
        name: one.as_json() | {"rows_per_second": options.rows / one.median_seconds} for name, one in times.items()
    }
    widths = _widths(options, rows, device=device, progress=progress)
    del timers, rows, x
    for name in names if options.memory else []:
        steps[name]["peak_bytes"] = peak_bytes(name, _contender_setting(options, device), progress=progress)
    return {
        "setting": _setting(options),
        "steps": steps,
        "products": {name: {piece: one.as_json() for piece, one in found.items()} for name, found in by_torch.items()},
        "floor": {"dtype": dtype, "piece": piece, "seconds": seconds},
        "selection": selection | {"dtype": str(score_dtype(device)).removeprefix("torch.")},
        "copy_bytes_per_second": copy_bytes_per_second(device),
        "forward_tokens_per_second": forward_tokens_per_second(device) if options.language_model else {},
        "widths": widths,
    }


def fastest(products: Mapping[str, Mapping[str, Times]]) -> tuple[str, str, float]:
    """Dtype, piece and median seconds of the fastest score product."""
    found = [(one.median_seconds, dtype, piece) for dtype, pieces in products.items() for piece, one in pieces.items()]
    seconds, dtype, piece = min(found)
    return dtype, piece, seconds


def _worker(name: str, options: BenchOptions, *, device: torch.device, d_sae: int | None = None) -> Worker:
    n_steps = max(_N_STEPS, (options.rounds + 1) * (options.steps_per_round + 1))
    shape = {} if d_sae is None else {"d_sae": d_sae}
    turn = {"name": name, "lr": _RATE, "n_steps": n_steps, "n_timed": options.steps_per_round}
    return Worker(_contender_setting(options, device) | shape | turn)


def _widths(options: BenchOptions, rows: Rows, *, device: torch.device, progress: bool) -> list[dict[str, Any]]:
    """Strata's step and the score product at multiples of d_sae, each width's in turn."""
    found: list[dict[str, Any]] = []
    for multiple in options.widths:
        d_sae, n = multiple * options.d_sae, options.steps_per_round
        products = product_timers(rows[: options.rows], d_sae=d_sae, n=n, device=device)
        timers: dict[str, Timer] = {
            f"{dtype}, {piece}": timer for dtype, one in products.items() for piece, timer in one.items()
        }
        timers[OURS] = worker = _worker(OURS, options, device=device, d_sae=d_sae)
        say(f"d_sae {d_sae} ...", shown=progress)
        times = take_turns(timers, n_rounds=options.rounds, progress=progress)
        worker.close()
        step = times.pop(OURS).median_seconds
        product = min(one.median_seconds for one in times.values())
        found.append({"d_sae": d_sae, "step_seconds": step, "product_seconds": product, "ratio": step / product})
    return found


def _contender_setting(options: BenchOptions, device: torch.device) -> dict[str, Any]:
    names = ("d_in", "d_sae", "k", "rows", "seed", "threads")
    own = {name: getattr(options, name) for name in names}
    return own | {"n_batches": _N_BATCHES, "device": str(device), "rows_from": str(options.rows_from)}


def _setting(options: BenchOptions) -> dict[str, Any]:
    names = ("d_in", "d_sae", "k", "rows", "rounds", "steps_per_round", "seed", "threads", "device", "rows_from")
    return {name: getattr(options, name) for name in names}


def _quality(options: BenchOptions, *, device: torch.device, progress: bool) -> dict[str, Any] | None:
    """The record of trainings, made now or read; None where there is none."""
    if options.quality:
        n_rows = options.steps * options.rows
        shape = {"d_in": options.d_in, "n_rows": n_rows, "n_held_out": options.held_out_rows}
        return train_all(options, open_rows(options.rows_from, **shape), device=device, progress=progress)
    if options.quality_file == "none":
        return None
    shape = {name: getattr(options, name) for name in ("d_in", "d_sae", "k", "rows")}
    return open_record(options.quality_file, shape, must_exist=True)


def _reached(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    if record["quality"] is None:
        return []
    medians = {name: one["median_seconds"] for name, one in record["steps"].items()}
    return [vars(one) | {"ratio": one.ratio} for one in all_reached(record["quality"], medians)]


def _write(options: BenchOptions, record: Mapping[str, Any]) -> None:
    if options.json == "none":
        return
    path = Path(options.json)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
    except OSError as error:
        raise UserError(
            f"`json` must be a file that can be written. {path}: {error.strerror}. Give another."
        ) from error
