"""Held-out FVU after equal rows: trainings of contenders at several learning rates, kept one by one in a JSON file."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.atomic import write_json
from strata.bench.contender import Contender, Given
from strata.bench.machine import describe
from strata.bench.registry import CONTENDERS, OURS, entry, family, installed, make
from strata.bench.rows import BenchRows
from strata.bench.turns import synchronize
from strata.config.bench import RUN, BenchOptions
from strata.errors import UserError
from strata.log import say

_SAMPLE_ROWS = 2**16  # from which normalisations are estimated
_CHUNK = 1024  # held-out rows at a time


@dataclass(frozen=True)
class Training:
    """One training of the comparison.

    Attributes:
        name: of the contender.
        steps: how many, and what its schedules believe in.
        lr: learning rate; None is the contender's own.
        key: under which the record keeps it, e.g. "saelens:3e-3" or "strata@100:default".
    """

    name: str
    steps: int
    lr: float | None
    key: str

    @staticmethod
    def parse(key: str, *, steps: int) -> "Training":
        """Of one that names a single rate, or none.

        Args:
            key: contender[@steps][:rate].
            steps: where it names none.

        Raises:
            UserError: it cannot be read.
        """
        found = RUN.fullmatch(key)
        rate = "default" if found is None or found["rates"] is None else found["rates"]
        wrong = UserError(f"`quality_file` must hold trainings written as contender[@steps][:rate]. Got {key!r}.")
        if found is None:
            raise wrong
        try:
            lr = None if rate == "default" else float(rate)
        except ValueError as error:
            raise wrong from error
        return Training(found["name"], int(found["steps"] or steps), lr, key)

    def same(self, other: "Training") -> bool:
        """Whether it is the same training, however its rate is written."""
        return (self.name, self.steps, self.lr) == (other.name, other.steps, other.lr)


def trainings(runs: Sequence[str], *, steps: int) -> list[Training]:
    """One training per contender, number of steps and rate of `BenchOptions.quality_runs`."""
    found: list[Training] = []
    for run in runs:
        name, _, rates = run.partition(":")
        keys = [f"{name}:{rate}" for rate in (rates or "default").split(",")]
        found += [Training.parse(key, steps=steps) for key in keys]
    return found


def open_record(path: Path | str, setting: Mapping[str, Any], *, must_exist: bool = False) -> dict[str, Any]:
    """The file's record, or an empty one: {"machine", "setting", "results": {key: numbers}}.

    Args:
        path: the file; "none" is none.
        setting: what its trainings have to have in common; see `setting_of`.
        must_exist: there has to be one.

    Raises:
        UserError: it is of another setting, is not there, or cannot be read.
    """
    if path == "none" or (not Path(path).exists() and not must_exist):
        return {"machine": describe(), "setting": dict(setting), "results": {}}
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        found, _ = dict(record["setting"]), record["results"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"`quality_file` must be one that `strata bench --quality` wrote. {path}: {error}.") from error
    differing = [name for name in setting if found.get(name) != setting[name]]
    if differing:
        was = ", ".join(f"{name}={found.get(name)!r}" for name in differing)
        now = ", ".join(f"{name}={setting[name]!r}" for name in differing)
        raise UserError(f"`quality_file` must be of the same setting. {path} has {was}, here {now}. Give another file.")
    return record


def setting_of(options: BenchOptions, *, source: str) -> dict[str, Any]:
    """What trainings that are compared must have in common."""
    names = {"d_sae": "d_sae", "k": "k", "steps": "steps", "rows": "rows", "held_out": "held_out_rows", "seed": "seed"}
    return {key: getattr(options, name) for key, name in names.items()} | {"source": source, "d_in": options.d_in}


def train_all(options: BenchOptions, rows: BenchRows, *, device: torch.device, progress: bool = True) -> dict[str, Any]:
    """The record with every training of `quality_runs` in it whose package is installed. Those that the file holds are
    not run again (but Strata's without a curve: seconds to a mark need it), and it is written after each.

    Raises:
        UserError: an unknown contender, or a file of another setting.
    """
    record = open_record(options.quality_file, setting_of(options, source=rows.source))
    held = [
        Training.parse(key, steps=options.steps)
        for key, found in record["results"].items()
        if "curve" in found or family(key.partition(":")[0]) != OURS
    ]
    wanted = trainings(options.quality_runs, steps=options.steps)
    for training in wanted:
        if training.name not in CONTENDERS:
            entry(training.name)
    longest = max(training.steps for training in wanted)
    if longest * options.rows > len(rows.train):
        raise UserError(
            f"`quality_runs` must not take more than `steps`={options.steps}. Got {longest}. Raise --steps."
        )
    for training in wanted:
        if any(training.same(other) for other in held):
            say(f"{training.key}: done before", shown=progress)
        elif not installed(training.name):
            say(f"{training.key}: not installed, left out", shown=progress)
        else:
            record["results"][training.key] = train(training, options, rows, device=device, progress=progress)
            if options.quality_file != "none":
                path = Path(options.quality_file)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, record)
    return record


def train(
    training: Training, options: BenchOptions, rows: BenchRows, *, device: torch.device, progress: bool = True
) -> dict[str, Any]:
    """Train, and measure on the way.

    Returns:
        fvu: Σ‖x − x̂‖² / Σ‖x − mean‖² over all held-out rows, at the end. silent_share: of latents that fire on none of
        them (rare ones too: it is no share of dead ones). l0: on them. seconds: of the steps alone. curve: pairs of
        steps done and fvu, the last one's included.
    """
    torch.manual_seed(options.seed)
    given = Given(
        d_in=options.d_in,
        d_sae=options.d_sae,
        k=options.k,
        lr=training.lr,
        n_steps=training.steps,
        n_rows=options.rows,
        seed=options.seed,
        device=device,
    )
    made = make(training.name, given)
    made.prepare(rows.train[:_SAMPLE_ROWS].float().to(device))
    held_out = rows.held_out.float().to(device)
    seconds = 0.0
    curve: list[list[float]] = []
    for number, batch in enumerate(torch.split(rows.train, options.rows)[: training.steps], 1):
        x = batch.float().to(device)
        seconds += _seconds(made.step, x, device)
        if number % options.curve_every == 0 and number < training.steps:
            curve.append([number, held_out_fvu(made, held_out)])
            say(f"{training.key}: step {number}, FVU {curve[-1][1]:.4f}, {seconds:.0f} s", shown=progress)
    found = evaluate(made, held_out)
    curve.append([training.steps, found["fvu"]])
    say(f"{training.key}: done, FVU {found['fvu']:.4f}, {seconds:.0f} s", shown=progress)
    return found | {"seconds": round(seconds, 2), "curve": curve}


def _seconds(step: Callable[[Tensor], object], x: Tensor, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    step(x)
    synchronize(device)
    return time.perf_counter() - start


@torch.no_grad()
def held_out_fvu(made: Contender, x: Float[Tensor, "rows d_in"]) -> float:
    """Σ‖x − x̂‖² / Σ‖x − mean‖², with one mean over all rows."""
    error = sum((piece - made.reconstruct(piece)).double().square().sum().item() for piece in torch.split(x, _CHUNK))
    return error / (x - x.mean(0)).double().square().sum().item()


@torch.no_grad()
def evaluate(made: Contender, x: Float[Tensor, "rows d_in"]) -> dict[str, float]:
    """Held-out FVU, share of silent latents and mean L0."""
    n_active, fired = 0, None
    for piece in torch.split(x, _CHUNK):
        active = made.codes(piece) > 0
        n_active += int(active.sum())
        fired = active.any(0) if fired is None else fired | active.any(0)
    assert fired is not None, "BenchOptions has at least one held-out row"
    silent = 1 - fired.float().mean().item()
    return {"fvu": held_out_fvu(made, x), "silent_share": silent, "l0": n_active / len(x)}
