"""Preparing a training: everything that its input can be wrong about is looked at before the first step."""

import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from strata.activations.source import RowSource, ShuffledRows, layers_of
from strata.assignments import Assignment, sites_read
from strata.atomic import as_json
from strata.distributed.rows import ExchangedRows, shared_rows
from strata.distributed.spread import Spread
from strata.durations import Duration
from strata.errors import UserError
from strata.kernels.backend import score_dtype
from strata.origins import origins
from strata.sae.learner import Learner
from strata.sae.normalization import Normalization
from strata.training_facts import training_facts

_NORMALIZATION_ROWS = 2**16
_FINGERPRINT_ROWS = 256


@dataclass(frozen=True)
class Prepared:
    """A training that can begin: everything that its input can be wrong about has been looked at.

    Attributes:
        learners: by key, normalised and initialised.
        rows: in their shuffled order.
        batch_size: rows of a step.
        n_steps: of the whole run.
        metadata: by key, what the SAEs will say of their origin (see `strata.origins`).
        identity: what has to be the same for a training to go on, JSON-able.
        held_out: by site, rows that are measured now and then; may be empty.
        seconds: spent on the first rows (streaming: of the language model, to fill the buffer).
        facts: of what is trained, for run.json and for those who look on: see `strata.training_facts`.
        spread: over which processes; `learners` are those of this one.
    """

    learners: dict[str, Learner]
    rows: ShuffledRows
    batch_size: int
    n_steps: int
    metadata: dict[str, dict[str, Any]]
    identity: dict[str, Any]
    held_out: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    spread: Spread = field(default_factory=Spread)

    def steps(self, duration: str) -> int:
        """A duration, such as "10%", in its steps; at least one."""
        parsed = Duration.parse(duration, setting="duration")
        return max(1, parsed.steps(n_steps=self.n_steps, batch_size=self.batch_size))


def prepare(
    source: RowSource,
    assignments: Mapping[str, Assignment],
    *,
    device: str | None = None,
    held_out: Mapping[str, Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
    n_steps: int | None = None,
    spread: Spread | None = None,
) -> Prepared:
    """Look at the source and make everything that is to be trained ready for it.

    Args:
        source: activations that were collected before, or a stream.
        assignments: by key, what is trained; see `strata.assignments.assign`.
        device: where to train; None is where the rows are.
        held_out: by site, rows to measure now and then.
        settings: what else decides the rows and their order, for a training that goes on to be the same.
        n_steps: take only so many batches of the rows; None takes all.
        spread: over which processes, all of which call this; None is this one alone.

    Raises:
        UserError: fewer rows than one batch, k larger than d_sae, activations that are not finite, or an `init` that
            does not fit.
    """
    config = next(iter(assignments.values())).config
    for one in assignments.values():
        _check_width(one, source)
    n_batches = source.n_rows() * config.num_epochs // config.batch_size
    n_steps = n_batches if n_steps is None else n_steps
    if n_batches == 0:
        raise UserError(
            f"The text must give at least one batch of `batch_size`={config.batch_size} rows. It gives"
            f" {source.n_rows()} a pass. Give more text or lower batch_size."
        )
    if not 1 <= n_steps <= n_batches:
        raise UserError(f"`n_steps` must be in [1, {n_batches}], the batches of the rows. Got {n_steps}. Give another.")
    order = {"batch_size": config.batch_size, "n_epochs": config.num_epochs, "seed": config.seed}
    spread = spread or Spread()
    rows = shared_rows(source, spread, assignments, **order)
    samples = _Samples(rows, device)
    learners = _learners(assignments, samples, n_steps=n_steps, spread=spread)
    return Prepared(
        learners=learners,
        rows=samples.rows,
        seconds=samples.seconds,
        batch_size=config.batch_size,
        n_steps=n_steps,
        metadata={key: origins(source, one) for key, one in assignments.items()},
        identity=_identity(source, assignments, {"n_steps": n_steps, **(settings or {})}),
        held_out=_checked(held_out or {}, sites_read(assignments)),
        facts=training_facts(source, learners, assignments, n_steps=n_steps, spread=spread),
        spread=spread,
    )


class _Samples:
    """The rows from which learners start, of one assignment at a time: they may be large.

    Args:
        rows: of the training.
        device: where they are wanted; None is where they are.

    Attributes:
        seconds: spent on them; a stream fills its buffer for the first one.
    """

    def __init__(self, rows: ShuffledRows, device: str | None) -> None:
        self.rows, self._device, self.seconds = rows, device, 0.0
        self._kept: dict[str, Tensor] = {}

    def only(self, keys: Iterable[str | None]) -> None:
        """Let go of all others."""
        self._kept = {key: rows for key, rows in self._kept.items() if key in set(keys)}

    def of(self, key: str) -> Tensor:
        """The sample of a site, a group or its layers."""
        if key not in self._kept:
            start = time.perf_counter()
            self._kept[key] = self.rows.sample(_NORMALIZATION_ROWS, site=key).to(self._device)
            self.seconds += time.perf_counter() - start
        return self._kept[key]


def _learners(
    assignments: Mapping[str, Assignment], samples: _Samples, *, n_steps: int, spread: Spread
) -> dict[str, Learner]:
    """Those of this process. All processes look at all samples, which they may make together."""
    learners: dict[str, Learner] = {}
    for key, one in assignments.items():
        if not (spread.trains(key) or isinstance(samples.rows, ExchangedRows)):
            continue
        samples.only([one.site, one.target_site, layers_of(one.site)])
        own = samples.of(one.site)
        target = None if one.target_site is None else samples.of(one.target_site).to(own.device)
        layers = None if one.group is None else samples.of(layers_of(one.site))
        if not spread.trains(key):
            continue
        learners[key] = spread.learner(
            one.config,
            n_steps=n_steps,
            sample=own,
            site=one.site,
            score_dtype=score_dtype(own.device),
            init=one.init,
            target_sample=target,
            target_site=one.target_site,
            skip=one.skip,
            group=one.group,
            layers=layers,
        )
    return learners


def _check_width(assignment: Assignment, source: RowSource) -> None:
    """That k fits the latents, and that layers of a group have one width."""
    widths = {site: source.d_in(site) for site in assignment.sites}
    if len(set(widths.values())) > 1:
        raise UserError(f"`groups` must be of layers of one width. {assignment.site} has {widths}. Split it.")
    assignment.config.d_sae(widths[assignment.sites[0]])


def _identity(source: RowSource, assignments: Mapping[str, Assignment], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same for a training to go on: settings by name, what is trained, model, text."""
    configs = [asdict(one.config) for one in assignments.values()]
    by_setting = {name: [config[name] for config in configs] for name in configs[0]}
    common = {name: values[0] if values == values[:1] * len(values) else values for name, values in by_setting.items()}
    described = source.describe()
    if "model" not in described:  # rows of unknown origin are known by what some of them are
        shuffled = source.shuffled(batch_size=1, n_epochs=1, seed=0)  # whatever the seed of the training
        content = shuffled.sample(_FINGERPRINT_ROWS, site=source.sites[0]).detach().float().cpu().contiguous()
        described = described | {"rows": f"crc32:{zlib.crc32(content.numpy().tobytes()):08x}"}
    return as_json({**common, **settings, "sites": list(assignments), **described})


def _checked(held_out: Mapping[str, Tensor], sites: Sequence[str]) -> dict[str, Tensor]:
    """Held-out rows of all sites, or none of any where there are too few to measure anything."""
    if not held_out:
        return {}
    missing = [site for site in sites if site not in held_out]
    if missing:
        raise UserError(f"`held_out` must hold rows of every site. Got none of {missing[0]}. Collect them too.")
    if len(held_out[sites[0]]) < 2:
        return {}
    for site in sites:
        Normalization.estimate(held_out[site].float(), site=site)  # finite, and not all equal
    return {site: held_out[site] for site in sites}
