"""What measuring costs beside a training: held-out rows now and then, the evaluation at the end, finding groups."""

from collections import Counter
from collections.abc import Sequence

from strata.costs.step import Rates
from strata.durations import Duration
from strata.plan.model import Model
from strata.plan.saes import PlannedSAE, works
from strata.plan.subject import Subject

GROUPING_TOKENS = 100_000
"""Rows on which `--groups auto` measures layers (`strata.groups.of_run`)."""


def evaluation_flops(model: Model, saes: Sequence[PlannedSAE]) -> tuple[float | None, float]:
    """FLOPs per held-out token of `strata.evaluate.suites`, of the language model and of encoding.

    One whole pass as it is; for each site one with the site zeroed, for each SAE and site one with its reconstruction,
    both from the block behind the site on; and for each suite of several sites one with all its SAEs.

    Args:
        model: the language model.
        saes: all that are evaluated; a group's SAE at each of its sites.
    """
    n_here = Counter(site for sae in saes for site in sae.sites)
    encoding = sum(2.0 * sae.shape.d_in * sae.shape.d_sae * len(sae.sites) for sae in saes)
    encoding *= 2 if len(n_here) > 1 else 1  # alone, and with all
    return model.once(("evaluation", *n_here.items()), lambda: _passes(model, n_here)), encoding


def _passes(model: Model, n_here: Counter[str]) -> float | None:
    """FLOPs of the language model per token, by how many SAEs there are at each site."""
    whole = model.whole_flops()
    before = {site: model.forward_flops([site]) for site in n_here}
    if whole is None or None in before.values():
        return None
    rest = {site: whole - flops for site, flops in before.items() if flops is not None}
    runs = sum((1 + n_saes) * rest[site] for site, n_saes in n_here.items())
    together = max(n_here.values()) * max(rest.values()) if len(n_here) > 1 else 0.0
    return whole + runs + together


def evaluation_seconds(model: Model, saes: Sequence[PlannedSAE], rates: Rates, *, n_tokens: int) -> float | None:
    """Of evaluating SAEs on some held-out tokens; None where the language model is not known."""
    flops, encoding = evaluation_flops(model, saes)
    per_flop = model.seconds_per_flop(rates)
    if flops is None or per_flop is None:
        return None
    return n_tokens * (flops * per_flop + encoding * rates.step.product_flops)


def held_out_seconds(subject: Subject, saes: Sequence[PlannedSAE], rates: Rates) -> float | None:
    """Of measuring held-out rows while a training runs: making them once, then encoding them as often as they are due,
    each time with a copy of the weights.
    """
    config = subject.config
    if config.held_out_rows == 0:
        return 0.0
    forward: float | None = 0.0
    if subject.store is None:  # a store holds them
        sites = [site for sae in saes for site in sae.sites]
        forward = subject.model.forward_seconds(sites, rates)
    if forward is None:
        return None
    units = rates.step
    encoding = copies = 0.0
    for work, n_saes in works(saes, batch_size=config.held_out_rows):
        encoding += n_saes * (units.product_flops * work.product_flops + units.n_scores * work.n_scores)
        copies += n_saes * 2 * 4 * work.n_weights / rates.copy_bytes_per_second
    every = Duration.parse(config.held_out_every, setting="held_out_every")
    step = max(1, every.steps(n_steps=subject.n_steps, batch_size=config.sae.batch_size))
    n_times = min(subject.n_steps // step + 1, subject.n_steps // config.log_every_steps + 1)
    return config.held_out_rows * forward + n_times * (encoding + copies)


def grouping_seconds(model: Model, layers: Sequence[str], rates: Rates, *, n_tokens: int, d_in: int) -> float | None:
    """Of measuring how near layers are: a forward to the last one, and their products with each other."""
    forward = model.forward_seconds(layers, rates)
    if forward is None:
        return None
    return n_tokens * (forward + 2.0 * len(layers) ** 2 * d_in / rates.forward_flops_per_second)
