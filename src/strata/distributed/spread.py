"""What each rank does of a training: the SAEs dealt out, each batch shared, or one SAE's latents shared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from strata.activations.draws import keys_of
from strata.assignments import Assignment
from strata.config.train import Parallel
from strata.costs.step import SAEShape, step_work
from strata.distributed.latents import LatentShard
from strata.distributed.ranks import ALONE, Ranks
from strata.distributed.replicated import ReplicatedLearner
from strata.errors import UserError
from strata.machine.hardware import device_bytes
from strata.sae.learner import Learner

_DEVICE_SHARE = 0.5  # of a device's memory that one SAE's training may take before its latents are shared out
_TRAINING_BYTES = 12  # of a weight and its two moments


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a training is spread over ranks.

    Attributes:
        ranks: over which; `ALONE` is one process.
        kind: "saes", "data" or "latents"; see `strata.config.train.TrainConfig.parallel`.
        owners: of "saes", by key the rank that trains it.
    """

    ranks: Ranks = ALONE
    kind: Parallel = "saes"
    owners: Mapping[str, int] = field(default_factory=dict[str, int])

    def trains(self, key: str, *, rank: int | None = None) -> bool:
        """Whether a rank (None: this one) has a learner of it."""
        return self.kind != "saes" or self.owners.get(key, 0) == (self.ranks.rank if rank is None else rank)

    @property
    def speaks(self) -> bool:
        """Whether this rank says what became of its learners: of replicas and shards the first does."""
        return self.kind == "saes" or self.ranks.is_first

    def reads(self, assignments: Mapping[str, Assignment], *, rank: int) -> list[Any]:
        """The sites and groups whose rows a rank trains on, each once."""
        mine = [one for key, one in assignments.items() if self.trains(key, rank=rank)]
        return list(dict.fromkeys(read for one in mine for read in (one.read, one.target_site) if read is not None))

    def keys(self, assignments: Mapping[str, Assignment]) -> list[list[str]]:
        """By rank the keys of a batch that it needs."""
        return [
            [key for read in self.reads(assignments, rank=rank) for key in keys_of(read)]
            for rank in range(self.ranks.size)
        ]

    def learner(self, config: Any, **given: Any) -> Learner:
        """One in training, as this spread wants it; see `strata.sae.learner.Learner`."""
        if self.ranks.size == 1 or self.kind == "saes":
            return Learner(config, **given)
        made = {"data": ReplicatedLearner, "latents": LatentShard}[self.kind]
        return made(config, ranks=self.ranks, **given)


def chosen_spread(
    assignments: Mapping[str, Assignment],
    *,
    widths: Mapping[str, int],
    ranks: Ranks,
    wanted: Parallel,
    device: torch.device,
) -> Spread:
    """The spread that is asked for, or that suits ("auto"): "saes" where there is one for every rank, else "latents"
    where one does not fit the CUDA device, else "data".

    Args:
        assignments: what is trained.
        widths: of the sites' rows.
        ranks: over which.
        wanted: as `TrainConfig.parallel`.
        device: of the training.

    Raises:
        UserError: rows or latents that cannot be shared.
    """
    if ranks.size == 1:
        return Spread()
    shapes = {key: _shape(one, widths) for key, one in assignments.items()}
    kind = wanted
    if kind == "auto":
        kind = "saes" if len(assignments) >= ranks.size else "data"
        if kind == "data" and any(_is_too_large(shape, device) for shape in shapes.values()):
            kind = "latents"
    batch_size = next(iter(assignments.values())).config.batch_size
    if batch_size % ranks.size:
        raise UserError(
            f"`SAEConfig.batch_size` must be a multiple of the number of processes. Got {batch_size} with"
            f" {ranks.size}. Give {batch_size + -batch_size % ranks.size}."
        )
    return Spread(ranks=ranks, kind=kind, owners=dealt(shapes, n_ranks=ranks.size, batch_size=batch_size))


def dealt(shapes: Mapping[str, SAEShape], *, n_ranks: int, batch_size: int) -> dict[str, int]:
    """By key a rank, so that the busiest has little more to do than the others: the dearest SAE first, each to the rank
    that has least.

    Args:
        shapes: of the SAEs.
        n_ranks: how many.
        batch_size: rows of a step.
    """
    work = {key: step_work(shape, batch_size=batch_size).flops for key, shape in shapes.items()}
    loads = [0.0] * n_ranks
    owners: dict[str, int] = {}
    for key in sorted(work, key=lambda key: -work[key]):
        rank = loads.index(min(loads))
        owners[key] = rank
        loads[rank] += work[key]
    return {key: owners[key] for key in shapes}


def _shape(one: Assignment, widths: Mapping[str, int]) -> SAEShape:
    d_in, config = widths[one.sites[0]], one.config
    d_out = None if one.target_site is None else widths[one.target_site]
    return SAEShape(d_in=d_in, d_sae=config.d_sae(d_in), k=config.k, architecture=config.architecture, d_out=d_out)


def _is_too_large(shape: SAEShape, device: torch.device) -> bool:
    """Not executed yet on a GPU."""
    if device.type != "cuda":
        return False
    n_weights = shape.d_sae * (shape.d_in + (shape.d_out or shape.d_in))
    return n_weights * _TRAINING_BYTES > _DEVICE_SHARE * device_bytes(device)
