"""The SAEs of a plan: shapes from descriptions, and what a step of all of them takes."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strata.assignments import Assignment
from strata.config.train import SAEConfig
from strata.costs.step import Rates, SAEShape, StepWork, step_work
from strata.sae.revival import METHODS


@dataclass(frozen=True, kw_only=True)
class PlannedSAE:
    """One SAE that would be trained.

    Attributes:
        sites: what it reads; several of a group.
        shape: what of it decides its cost.
        revives: whether dead latents get a term of their own.
    """

    sites: tuple[str, ...]
    shape: SAEShape
    revives: bool = True

    def work(self, batch_size: int) -> StepWork:
        """Of one step."""
        return step_work(self.shape, batch_size=batch_size, revives=self.revives)


def planned_sae(
    config: SAEConfig,
    sites: Sequence[str],
    widths: Mapping[str, int],
    *,
    target_site: str | None = None,
    skip: bool = False,
) -> PlannedSAE:
    """What a config makes of some sites.

    Args:
        config: of the SAE.
        sites: one, or those of a group.
        widths: of every site.
        target_site: of a transcoder.
        skip: a transcoder with a skip connection.

    Raises:
        UserError: k is larger than the number of latents.
    """
    d_in = widths[sites[0]]
    shape = SAEShape(
        d_in=d_in,
        d_sae=config.d_sae(d_in),
        k=config.k,
        architecture=config.architecture,
        n_sites=len(sites),
        d_out=None if target_site is None else widths[target_site],
        skip=skip,
    )
    return PlannedSAE(sites=tuple(sites), shape=shape, revives=config.revival_method() in METHODS)


def planned_saes(assignments: Mapping[str, Assignment], widths: Mapping[str, int]) -> list[PlannedSAE]:
    """Those of a training; see `planned_sae`."""
    return [
        planned_sae(one.config, one.sites, widths, target_site=one.target_site, skip=one.skip)
        for one in assignments.values()
    ]


def layer_saes(
    configs: Sequence[SAEConfig], layers: Sequence[str], widths: Mapping[str, int], *, n_groups: int
) -> list[PlannedSAE]:
    """One SAE per config and group of neighbouring layers, the groups as even as they can be.

    Only how many there are decides the cost: every SAE sees as many rows as one of a single layer.

    Args:
        configs: one, or those of a sweep.
        layers: of one width.
        widths: of every layer.
        n_groups: in [1, layers].
    """
    ends = [len(layers) * number // n_groups for number in range(n_groups + 1)]
    groups = [layers[start:end] for start, end in itertools.pairwise(ends)]
    return [planned_sae(config, group, widths) for config in configs for group in groups]


def works(saes: Sequence[PlannedSAE], *, batch_size: int) -> list[tuple[StepWork, int]]:
    """The work of a step by shape, with the number of SAEs that have it."""
    counted = Counter((sae.shape, sae.revives) for sae in saes)
    return [(step_work(shape, batch_size=batch_size, revives=revives), n) for (shape, revives), n in counted.items()]


def step_flops(saes: Sequence[PlannedSAE], *, batch_size: int) -> float:
    """FLOPs of one step of all."""
    return sum((n * work.flops for work, n in works(saes, batch_size=batch_size)), 0.0)


def step_bytes(saes: Sequence[PlannedSAE], *, batch_size: int) -> float:
    """Bytes between memory and processor in one step of all."""
    return sum((n * work.n_bytes() for work, n in works(saes, batch_size=batch_size)), 0.0)


def step_seconds(saes: Sequence[PlannedSAE], rates: Rates, *, batch_size: int) -> float:
    """Seconds of one step of all, one after the other on one device."""
    return sum((n * rates.step.of(work) for work, n in works(saes, batch_size=batch_size)), 0.0)


def busiest(saes: Sequence[PlannedSAE], *, n_devices: int) -> list[PlannedSAE]:
    """The SAEs of the device that has most to do when they are spread, the largest first, each to the least busy."""
    loads: list[list[PlannedSAE]] = [[] for _ in range(min(n_devices, len(saes)))]
    flops = [0.0] * len(loads)
    own = {sae.shape: sae.work(1).flops for sae in {one.shape: one for one in saes}.values()}
    for sae in sorted(saes, key=lambda one: -own[one.shape]):
        least = flops.index(min(flops))
        loads[least].append(sae)
        flops[least] += own[sae.shape]
    return loads[flops.index(max(flops))]


def uncalibrated(saes: Sequence[PlannedSAE]) -> list[str]:
    """The gates among them for which the work of TopK stands."""
    return sorted({sae.shape.architecture for sae in saes} - {"topk"})
