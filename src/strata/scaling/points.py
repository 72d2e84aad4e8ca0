"""A sweep's trainings, and what each of its SAEs came to on held-out rows."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from strata.activations.source import RowSource, ShuffledRows
from strata.activations.store import Store
from strata.assignments import Assignment
from strata.atomic import remove_folder
from strata.checkpoint import checkpoint_steps
from strata.config.layer_groups import Group
from strata.config.train import SAEConfig
from strata.costs.flops import sae_step_flops
from strata.evaluate.quality import reconstruction_quality
from strata.prepare import prepare
from strata.recording import Recording
from strata.sae.model import SAE
from strata.train import Trained, train

_MEASURED = ("fvu", "explained_variance", "l0", "silent_share", "n_sink_rows")
PointKey = tuple[int, int, int, int]  # width, k, seed, steps


@dataclass(frozen=True)
class Training:
    """SAEs that are trained side by side.

    Attributes:
        n_steps: of batches.
        configs: one per SAE.
    """

    n_steps: int
    configs: tuple[SAEConfig, ...]

    @property
    def name(self) -> str:
        """The name of its folder: what it holds decides it."""
        said = ";".join(self.assignments("any"))
        return f"{self.n_steps}-steps-{zlib.crc32(said.encode()):08x}"

    def assignments(self, site: str) -> dict[str, Assignment]:
        """One for each SAE, by what tells it from the others."""
        return {
            f"width={one.expansion_factor},k={one.k},seed={one.seed}": Assignment(site=site, config=one)
            for one in self.configs
        }

    def keys(self) -> list[PointKey]:
        """What tells its points from others."""
        return [(one.expansion_factor, one.k, one.seed, self.n_steps) for one in self.configs]

    def flops(self, d_in: int) -> float:
        """Of all SAEs together."""
        rows = self.n_steps * self.configs[0].batch_size
        return sum(rows * sae_step_flops(d_in, one.d_sae(d_in), one.k) for one in self.configs)


def key_of(point: Mapping[str, Any]) -> PointKey:
    """What tells a recorded point from others."""
    return point["width"], point["k"], point["seed"], point["n_steps"]


def trainings_left(
    steps: Sequence[int], configs: Sequence[SAEConfig], *, done: set[PointKey], side_by_side: int
) -> Iterator[Training]:
    """What is still to do, the shortest trainings first.

    Args:
        steps: of the token budgets.
        configs: of each of them.
        done: points that are there.
        side_by_side: SAEs of a training, at most.
    """
    for n_steps in steps:
        missing = [one for one in configs if (one.expansion_factor, one.k, one.seed, n_steps) not in done]
        for start in range(0, len(missing), side_by_side):
            yield Training(n_steps, tuple(missing[start : start + side_by_side]))


class SameOrder:
    """Rows in one order whatever seed is asked for, so that every training of a sweep sees the same batches
    (`strata.activations.source.RowSource`).

    Args:
        source: of the rows.
        seed: of their order.
    """

    def __init__(self, source: RowSource, *, seed: int) -> None:
        self._source, self._seed = source, seed
        self.sites = source.sites

    def d_in(self, site: str) -> int:
        """Width of a site's rows."""
        return self._source.d_in(site)

    def n_rows(self) -> int:
        """Rows of each site."""
        return self._source.n_rows()

    def shuffled(
        self, *, batch_size: int, n_epochs: int, seed: int, reads: Sequence[str | Group] | None = None
    ) -> ShuffledRows:
        """The rows in the one order."""
        return self._source.shuffled(batch_size=batch_size, n_epochs=n_epochs, seed=self._seed, reads=reads)

    def describe(self) -> dict[str, Any]:
        """Where they come from."""
        return self._source.describe()


def run_training(
    training: Training, store: Store, *, held_out: Tensor, folder: Path, order_seed: int, device: str, progress: bool
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train the SAEs side by side, from their last checkpoint if there is one, and measure them.

    Args:
        training: which.
        store: with one site.
        held_out: rows to measure on [rows d_in].
        folder: for metrics.jsonl, and checkpoints while it runs.
        order_seed: of the rows.
        device: where.
        progress: show it on stderr.

    Returns:
        One point per SAE, and the training: its tokens, SAEs, seconds and FLOPs.

    Raises:
        UserError: as `strata.prepare.prepare` and `strata.train.train`.
        Interrupted: a signal came, and a checkpoint is written.
    """
    [site] = store.sites
    assignments = training.assignments(site)
    source = SameOrder(store, seed=order_seed)
    settings = {"order_seed": order_seed}
    prepared = prepare(source, assignments, device=device, n_steps=training.n_steps, settings=settings)
    resume = bool(checkpoint_steps(folder / "checkpoints"))
    trained = train(prepared, Recording(folder=folder, resume=resume, progress=progress))
    d_in, n_tokens = store.d_in(site), training.n_steps * prepared.batch_size
    points = [
        _point(config, trained, key, held_out, n_steps=training.n_steps, d_in=d_in)
        for config, key in zip(training.configs, assignments, strict=True)
    ]
    told = {"n_steps": training.n_steps, "n_tokens": n_tokens, "n_saes": len(points), "seconds": trained.seconds}
    remove_folder(folder / "checkpoints")
    return points, told | {"flops": training.flops(d_in)}


def _point(
    config: SAEConfig, trained: Trained, key: str, held_out: Tensor, *, n_steps: int, d_in: int
) -> dict[str, Any]:
    sae = trained.saes[key]
    assert isinstance(sae, SAE)
    measured = reconstruction_quality(sae, held_out)
    n_tokens = n_steps * config.batch_size
    return {
        "width": config.expansion_factor,
        "d_sae": sae.d_sae,
        "k": config.k,
        "seed": config.seed,
        "n_steps": n_steps,
        "n_tokens": n_tokens,
        "flops": n_tokens * sae_step_flops(d_in, sae.d_sae, config.k),
        **{name: measured[name] for name in _MEASURED},
        **trained.dead[key],
    }
