"""What measuring costs beside a training: held-out rows now and then, the evaluation at the end, finding groups."""

from collections import Counter
from collections.abc import Sequence

from strata.costs.step import Rates
from strata.durations import Duration
from strata.plan.model import Model
from strata.plan.saes import PlannedSAE, works
from strata.plan.subject import Subject

_CHOICE = 32  # tokens read for each that is taken (strata.evaluate.held_out_text)
_SINK_ROWS = 4096  # read before examples are looked for (strata.interpret.examples)
_LOSS_BYTES = 44  # per logit: picked 8, their log-softmax 16, the divergence 12, the log-softmax's copy or sum 8
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
    encoding = sum(_encoding_flops(sae) for sae in saes)
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
    """Of evaluating SAEs on some held-out tokens, their losses among it; None where the language model is not known."""
    flops, encoding = evaluation_flops(model, saes)
    per_flop = model.seconds_per_flop(rates)
    if flops is None or per_flop is None:
        return None
    n_here = Counter(site for sae in saes for site in sae.sites)
    n_passes = 1 + len(n_here) + sum(n_here.values()) + (max(n_here.values()) if len(n_here) > 1 else 0)
    losses = n_passes * model.n_scores * _LOSS_BYTES / rates.copy_bytes_per_second
    return n_tokens * (flops * per_flop + _encoding_seconds(encoding, saes, rates) + losses)


def report_seconds(
    model: Model, saes: Sequence[PlannedSAE], rates: Rates, *, n_tokens: int, targets: Sequence[str]
) -> dict[str, float | None]:
    """Of what follows a training, by part: reading held-out text, evaluating on it, and finding features' examples.
    The page itself takes no time to speak of.

    Args:
        model: the language model.
        saes: all that were trained.
        rates: of the machine.
        n_tokens: of the held-out text.
        targets: sites that transcoders predict: they are compared on rows, without any changed pass.
    """
    sites = [site for sae in saes for site in sae.sites]
    forward, both = model.forward_seconds(sites, rates), model.forward_seconds([*sites, *targets], rates)
    if forward is None or both is None:
        return {"evaluation": None}
    n_suites = max(Counter(sites).values())
    encoding = _encoding_seconds(sum(_encoding_flops(sae) for sae in saes), saes, rates)
    evaluated = (
        n_tokens * (len(saes) * both + encoding)
        if targets
        else evaluation_seconds(model, saes, rates, n_tokens=n_tokens)
    )
    return {
        "held-out text": held_out_text_seconds(rates, n_tokens=n_tokens),
        "evaluation": evaluated,
        "examples": n_suites * (n_tokens + min(n_tokens, _SINK_ROWS)) * forward + n_tokens * encoding,
    }


def held_out_text_seconds(rates: Rates, *, n_tokens: int) -> float:
    """Of reading held-out text: many more tokens than are taken, so that they come from many documents."""
    return _CHOICE * n_tokens / rates.tokenised_per_second


def _encoding_flops(sae: PlannedSAE) -> float:
    """Per token at all its sites."""
    return 2.0 * sae.shape.d_in * sae.shape.d_sae * len(sae.sites)


def _encoding_seconds(flops: float, saes: Sequence[PlannedSAE], rates: Rates) -> float:
    """Per token, of so many FLOPs of encoding with SAEs: the product, and looking at each of its scores."""
    once = sum(_encoding_flops(sae) for sae in saes)
    n_scores = sum(sae.shape.d_sae * len(sae.sites) for sae in saes) * flops / once
    return flops * rates.step.product_flops + n_scores * rates.step.n_scores


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
    reading = held_out_text_seconds(rates, n_tokens=config.held_out_rows) if subject.store is None else 0.0
    return reading + config.held_out_rows * forward + n_measurements(subject) * (encoding + copies)


def n_measurements(subject: Subject) -> int:
    """How often held-out rows are measured while a training runs: when they are due and a line is logged, and at the
    end.
    """
    config = subject.config
    every = Duration.parse(config.held_out_every, setting="held_out_every")
    step = every.steps(n_steps=subject.n_steps, batch_size=config.sae.batch_size)
    return 1 + subject.n_steps // max(1, step, config.log_every_steps)


def grouping_seconds(model: Model, layers: Sequence[str], rates: Rates, *, n_tokens: int, d_in: int) -> float | None:
    """Of measuring how near layers are: a forward to the last one, and their products with each other."""
    forward = model.forward_seconds(layers, rates)
    if forward is None:
        return None
    return n_tokens * (forward + 2.0 * len(layers) ** 2 * d_in / rates.forward_flops_per_second)
