"""What a training costs beside its steps: getting ready, and the checkpoints that it leaves."""

from collections.abc import Sequence

from strata.costs.step import Rates
from strata.costs.tensors import checkpoint_bytes
from strata.durations import Duration
from strata.plan.saes import PlannedSAE
from strata.plan.subject import Subject

_SAMPLE_ROWS = 65_536  # from which an SAE starts (strata.prepare)
_CHECKED_BYTES_PER_SECOND = 5e8  # serialised, and its checksum taken: an assumption


def preparing_seconds(subject: Subject, saes: Sequence[PlannedSAE], rates: Rates) -> float:
    """Of normalisations and first weights of SAEs on one device."""
    n_rows = min(_SAMPLE_ROWS, subject.n_rows)
    return n_rows * sum(sae.shape.d_in * len(sae.sites) for sae in saes) / rates.prepared_per_second


def checkpoint_seconds(subject: Subject, saes: Sequence[PlannedSAE], rates: Rates) -> float:
    """Of writing checkpoints while a run goes on, whole and checked, none at its end."""
    every = Duration.parse(subject.config.checkpoint_every, setting="checkpoint_every")
    step = max(1, every.steps(n_steps=subject.n_steps, batch_size=subject.config.sae.batch_size))
    n_bytes = checkpoint_bytes([sae.shape for sae in saes])
    per_byte = 1 / rates.disk_write_bytes_per_second + 1 / _CHECKED_BYTES_PER_SECOND
    return max(0, (subject.n_steps - 1) // step) * n_bytes * per_byte
