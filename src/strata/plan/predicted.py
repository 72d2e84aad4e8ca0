"""What a training says of its own speed before it begins: run.json's `predicted`, which the doctor compares."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strata.activations.store_layout import read_manifest
from strata.assignments import Assignment, sites_read
from strata.config.train import TrainConfig
from strata.costs.step import Rates
from strata.lm.model import LanguageModel
from strata.plan.rows import Source, row_shape, store_type, waiting_seconds
from strata.plan.saes import planned_saes, step_seconds
from strata.plan.subject import described_assignments, model_of
from strata.run_rows import chosen_sites


def predicted(
    config: TrainConfig,
    lm: LanguageModel | None,
    rates: Rates,
    *,
    assignments: Mapping[str, Assignment] | None = None,
    widths: Mapping[str, int] | None = None,
    n_steps: int | None = None,
) -> dict[str, Any]:
    """Seconds of a training by part, without any pass over rows or text.

    Gates other than TopK are reckoned with the work of TopK: no factor of their own has been measured.

    Args:
        config: the run, its "auto" resolved or not.
        lm: its language model, loaded or an outline; None for a store whose model is not at hand.
        rates: of the machine.
        assignments: what is trained; None is what the description says (see `described_assignments`).
        widths: of every site that is read; None asks the language model.
        n_steps: of the whole run; None is what `n_tokens` gives, where that is a number.

    Returns:
        ``kind`` and ``rates`` (where the speeds come from, its name), ``rows_seconds`` and ``sae_seconds`` per step,
        ``seconds`` of all steps. A number is None where the language model's cost or the number of steps is not known.
        Collecting rows before a training, measuring and evaluating are not in it.
    """
    batch_size, n_epochs = config.sae.batch_size, config.sae.num_epochs
    if assignments is None:
        assert lm is not None, "without a language model the assignments have to be given"
        sites = chosen_sites(lm, ("all",) if config.groups != "none" else config.sites)
        assignments, _ = described_assignments(config, sites, lm.sites)
    if widths is None:
        assert lm is not None, "without a language model the widths have to be given"
        widths = {site: lm.d_in(site) for site in sites_read(assignments)}
    if n_steps is None and config.n_tokens != "all":
        n_steps = config.n_tokens * n_epochs // batch_size
    saes = planned_saes(assignments, widths)
    targets = [one.target_site for one in assignments.values() if one.target_site is not None]
    source = source_of(config)
    model = None if lm is None else model_of(lm, config, on_device=rates.device_bytes > 0)
    forward = None
    if source == "stream":
        assert model is not None, "a stream has a language model"
        forward = model.forward_seconds(sites_read(assignments), rates)
    waiting = waiting_seconds(
        row_shape(saes, widths, targets=targets),
        source,
        rates,
        forward=forward,
        itemsize=4 if model is None else model.itemsize,
        n_rows=0 if n_steps is None else n_steps * batch_size // n_epochs,
        n_epochs=n_epochs,
    )
    rows = None if None in waiting.values() else batch_size * sum(part for part in waiting.values() if part is not None)
    sae = step_seconds(saes, rates, batch_size=batch_size)
    total = None if rows is None or n_steps is None else n_steps * (rows + sae)
    return {"kind": rates.kind, "rates": rates.name, "rows_seconds": rows, "sae_seconds": sae, "seconds": total}


def source_of(config: TrainConfig) -> Source:
    """Where a described run gets its rows; of a store its type.

    Raises:
        UserError: no such store.
    """
    if config.activations == "stream":
        return "stream"
    if config.activations == "collected":
        return "collected"
    return store_type(read_manifest(Path(config.activations)).dtype)
