"""The plan of `strata train`: what is trained, all ways of it, what is advised, and how it compares."""

from collections.abc import Sequence
from typing import Any

from strata.amounts import counted, prefixed, sized
from strata.config.plan import PlanOptions
from strata.config.train import TrainConfig
from strata.costs.pretraining import known_training_tokens
from strata.costs.step import Rates
from strata.plan.against import against, formulas, render
from strata.plan.argument import Case
from strata.plan.explained import explanation
from strata.plan.measuring import GROUPING_TOKENS, evaluation_flops, n_measurements
from strata.plan.predicted import source_of
from strata.plan.pricing import Pricing
from strata.plan.quote import Quote
from strata.plan.recommend import as_json, break_even, recommend
from strata.plan.room import free_bytes
from strata.plan.saes import PlannedSAE, uncalibrated
from strata.plan.subject import Subject, subject_of
from strata.plan.tables import groups_table, listed, machine_line, parts_table, quotes_table, wrapped
from strata.plan.ways import Ways, ways_of

_SEVERAL = (
    "These columns spread SAEs over devices and the language model's tokens evenly, as `--parallel saes` does, and"
    " count no exchange of rows: the least that it can take."
)


def plan_training(config: TrainConfig, options: PlanOptions, rates: Rates) -> tuple[dict[str, Any], list[str]]:
    """All numbers of a training's plan, and its text.

    Raises:
        UserError: whatever in the description cannot be done.
    """
    subject = subject_of(config, on_device=rates.device_bytes > 0)
    free = free_bytes(config.folder()) if options.hardware == "this" else None
    pricing = Pricing(subject, rates, options, free_bytes=free)
    source = source_of(config)
    ways = ways_of(pricing, source)
    n_passes = config.sae.num_epochs * options.n_trainings
    below = _below(subject)
    found = break_even(
        subject.shape(), rates, flops_per_second=_flops_per_second(subject, rates), below=below, n_passes=n_passes
    )
    compared = _against(subject, options, ways)
    advice = recommend(
        ways, found, below=below, n_passes=n_passes, n_trainings=options.n_trainings, assumed=rates.kind == "assumed"
    )
    numbers = {
        "command": "train",
        "subject": described(subject),
        "ways": ways.as_json(),
        "break_even": as_json(found),
        "recommendation": advice,
        "against": compared,
    }
    lines = [*_headline(subject, rates), "", *_tables(subject, ways, rates, options), "", "Recommendation"]
    lines += listed(advice)
    lines += [] if compared is None else ["", *render(compared)]
    if options.explain:
        lines += ["", *explanation(subject, rates), *([] if compared is None else ["", *formulas(compared)])]
    return numbers, lines


def described(subject: Subject) -> dict[str, Any]:
    """What is planned, in numbers."""
    model = subject.model
    return {
        "model": model.name,
        "n_parameters": model.n_parameters,
        "active_parameters": model.active_parameters,
        "weight_bytes": model.weight_bytes,
        "forward_flops_per_token": model.forward_flops(subject.sites),
        "sites": {site: subject.widths[site] for site in subject.sites},
        "saes": [
            {"sites": list(sae.sites), "d_in": sae.shape.d_in, "d_sae": sae.shape.d_sae, "k": sae.shape.k,
             "architecture": sae.shape.architecture, "d_out": sae.shape.d_out, "skip": sae.shape.skip}
            for sae in subject.saes
        ],
        "n_rows": subject.n_rows,
        "rows_source": subject.tokens.source,
        "n_epochs": subject.config.sae.num_epochs,
        "batch_size": subject.config.sae.batch_size,
        "n_steps": subject.n_steps,
        "context_tokens": subject.config.context_tokens,
        "notes": subject.notes,
    }  # fmt: skip


def _headline(subject: Subject, rates: Rates) -> list[str]:
    model, config = subject.model, subject.config
    size = "" if model.n_parameters is None else f", {prefixed(model.n_parameters)} parameters"
    flops = model.forward_flops(subject.sites)
    forward = (
        ""
        if flops is None
        else (f"; {sized(flops, 'FLOP')} per token as far as {_deepest(subject)} (context {config.context_tokens})")
    )
    text = f"text: {config.data}" if subject.store is None else f"store: {config.activations}"
    epochs = counted(config.sae.num_epochs, "epoch")
    steps = f"{subject.n_steps:,} steps of {config.sae.batch_size:,} rows"
    lines = [
        f"{model.name}{size}{forward}",
        f"{text}; {epochs} of {subject.n_rows:,} rows ({subject.tokens.source}): {steps}",
        _saes(subject.saes),
        machine_line(rates),
    ]
    notes = list(subject.notes)
    gates = uncalibrated(subject.saes)
    if gates:
        notes.append(
            f"The steps of {', '.join(gates)} are reckoned as those of topk: their own factor is not measured."
        )
    if subject.targets:
        notes.append("Transcoders are of single sites: no table of groups.")
    elif not subject.layers:
        notes.append("The model's layers are not known or differ in width: no table of groups.")
    return [line for text in [*lines, *notes] for line in wrapped(text, indent="  ")]


def _saes(saes: Sequence[PlannedSAE]) -> str:
    """`8 SAEs on 8 sites (layers.0 … layers.7) of width 192: 3,072 latents, k 32`."""
    sites = list(dict.fromkeys(site for sae in saes for site in sae.sites))
    named = sites[0] if len(sites) == 1 else f"{sites[0]} … {sites[-1]}"
    shapes = [sae.shape for sae in saes]

    def both(values: list[int]) -> str:
        return f"{min(values):,}" if min(values) == max(values) else f"{min(values):,} to {max(values):,}"

    noun = "SAE" if shapes[0].d_out is None else "transcoder"
    skipping = " with a skip connection" if shapes[0].skip else ""
    return (
        f"{counted(len(saes), noun)}{skipping} on {counted(len(sites), 'site')} ({named})"
        f" of width {both([one.d_in for one in shapes])}: {both([one.d_sae for one in shapes])} latents,"
        f" k {both([one.k for one in shapes])}, {', '.join(sorted({one.architecture for one in shapes}))}"
    )


def _deepest(subject: Subject) -> str:
    return max(subject.sites, key=lambda site: subject.model.n_blocks([site]))


def _tables(subject: Subject, ways: Ways, rates: Rates, options: PlanOptions) -> list[str]:
    assumed = rates.kind == "assumed"
    one, *several = ways.described
    lines = ["Ways to get the rows"]
    lines += quotes_table(ways.sources, assumed=assumed, n_trainings=options.n_trainings)
    lines += _misfits(ways.sources)
    if several:
        lines += ["", "As described, on several devices"]
        lines += quotes_table([one, *several], assumed=assumed, n_trainings=options.n_trainings, by_devices=True)
    lines += ["", "Where the time goes, as described", *parts_table([one], assumed=assumed)]
    if len(ways.groups) > 1:
        lines += ["", f"SAEs on all {len(subject.layers)} layers: one each, or shared by groups of neighbours"]
        lines += groups_table(ways, assumed=assumed)
    return [*lines, *(wrapped(_SEVERAL) if several else [])]


def _misfits(quotes: Sequence[Quote]) -> list[str]:
    """Why ways do not fit, each reason once."""
    names: dict[str, list[str]] = {}
    for quote in quotes:
        for excess in quote.excesses:
            names.setdefault(str(excess), []).append(quote.name)
    return [line for why, those in names.items() for line in wrapped(f"{', '.join(those)}: {why}.", indent="  ")]


def _below(subject: Subject) -> float | None:
    flops = subject.model.forward_flops(subject.sites)
    return None if flops is None else flops / 2


def _flops_per_second(subject: Subject, rates: Rates) -> float:
    """Of this model's forward: measured if it was, else the machine's."""
    seconds, flops = subject.model.forward_seconds(subject.sites, rates), subject.model.forward_flops(subject.sites)
    return flops / seconds if seconds and flops else rates.forward_flops_per_second


def _against(subject: Subject, options: PlanOptions, ways: Ways) -> dict[str, Any] | None:
    model, quote = subject.model, ways.described[0]
    flops = model.forward_flops(subject.sites)
    if model.n_parameters is None or flops is None:
        return None
    tokens, source = options.training_tokens, "given"
    if tokens == "auto":
        known = known_training_tokens(model.name)
        tokens, source = (None, "not known") if known is None else (known.n_tokens, known.source)
    saes = _of_one_setting(subject.saes)
    case = Case(
        subject_parameters=model.n_parameters,
        training_tokens=tokens,
        training_source=source,
        sae_flops=quote.sae_flops,
        lm_flops=quote.lm_flops or 0.0,
        n_features=float(sum(sae.shape.d_sae for sae in saes)),
        forward_flops_per_token=flops,
        active_parameters=model.active_parameters,
        explainer_parameters=float(options.explainer_parameters),
        saes=[sae.shape for sae in saes],
        measuring_flops=_measuring_flops(subject),
        n_settings=len(subject.configs),
    )
    return against(case)


def _of_one_setting(saes: Sequence[PlannedSAE]) -> list[PlannedSAE]:
    """Of a sweep the widest SAE of each site or group: those of one setting."""
    widest: dict[tuple[str, ...], PlannedSAE] = {}
    for sae in saes:
        if sae.sites not in widest or sae.shape.d_sae > widest[sae.sites].shape.d_sae:
            widest[sae.sites] = sae
    return list(widest.values())


def _measuring_flops(subject: Subject) -> float | None:
    """Of held-out rows (made once, then encoded), the evaluation and examples at the end, and finding groups. None
    where the language model's cost is not known.
    """
    config, model = subject.config, subject.model
    forward = model.forward_flops(subject.sites)
    passes, encoding = evaluation_flops(model, subject.saes)
    if forward is None or passes is None:
        return None
    rows = n_measurements(subject) * sum(
        2.0 * sae.shape.d_in * sae.shape.d_sae for sae in subject.saes
    )  # of a group one layer's
    total = config.held_out_rows * ((forward if subject.store is None else 0.0) + rows)
    if config.report:
        once = sum(2.0 * sae.shape.d_in * sae.shape.d_sae * len(sae.sites) for sae in subject.saes)
        evaluated = len(subject.saes) * forward + once if subject.targets else passes + encoding
        total += config.held_out_tokens * (evaluated + len(subject.configs) * forward + once)
    if config.groups == "auto":
        total += min(GROUPING_TOKENS, subject.n_rows) * (model.forward_flops(subject.layers) or 0.0)
    return total
