"""All checks, by what they look at. A new one is a function from a record to findings, and a row here."""

from collections.abc import Callable

from strata.doctor.checks import curves, dead, lines, rows, sparsity, speed
from strata.doctor.findings import Finding
from strata.doctor.record import Record

Check = Callable[[Record], list[Finding]]

# While a run goes on, and afterwards.
LIVE: tuple[Check, ...] = (
    lines.not_finite,
    curves.loss_spikes,
    curves.learning_rate_too_high,
    curves.learning_rate_too_low,
    curves.held_out_gap,
    dead.dead_latents,
    dead.short_window,
    sparsity.l0_off_target,
    rows.normalisation_drift,
    rows.outlier_rows,
    rows.small_buffer,
    speed.slower_than_predicted,
    speed.slowing_down,
    speed.waiting_for_rows,
    speed.small_batch,
)

# Of what is in the folder.
OF_A_FOLDER: tuple[Check, ...] = (lines.missing_lines, lines.stopped)
