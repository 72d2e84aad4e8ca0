"""The plan of `strata evaluate`: the passes over held-out text that runs ask for."""

import json
from pathlib import Path
from typing import Any

from strata.amounts import prefixed
from strata.costs.memory import training_memory
from strata.costs.step import Rates, SAEShape
from strata.errors import UserError
from strata.evaluate_config import EvaluateConfig
from strata.lm.outline import outline
from strata.plan.measuring import evaluation_flops, evaluation_seconds
from strata.plan.model import Model
from strata.plan.pricing import START_SECONDS
from strata.plan.quote import Quote
from strata.plan.room import placed, too_large
from strata.plan.saes import PlannedSAE
from strata.plan.tables import listed, parts_table, quotes_table, wrapped
from strata.plan_config import PlanOptions

_NOT_COUNTED = (
    "Downstream tasks, circuits, lm-eval and principal components are not in it: their texts are not known beforehand."
)
_EXPLAINED = (
    "Per held-out token: one whole pass; from each site on one pass with zeros and one for each SAE; one with all SAEs"
    " of a run; and 2·d·h for each encoding. The passes of several runs of one model share the first two kinds; here"
    " each run has its own, so that the sum is the most that it can take."
)


def plan_evaluating(config: EvaluateConfig, options: PlanOptions, rates: Rates) -> tuple[dict[str, Any], list[str]]:
    """All numbers of an evaluation's plan, and its text.

    Raises:
        UserError: a folder that is no run's, or whatever in the description cannot be done.
    """
    quotes = [_quote(Path(run), config, options, rates) for run in config.runs]
    assumed = rates.kind == "assumed"
    lines = [
        *wrapped(f"{len(quotes)} run(s) on {config.n_tokens:,} held-out tokens"),
        f"on {rates.name} ({rates.source if rates.kind == 'measured' else 'assumed'})",
        "",
        *quotes_table(quotes, assumed=assumed),
        "",
        *parts_table(quotes[:4], assumed=assumed),
        "",
        *listed(
            [*(f"{quote.name} does not fit: {reason}." for quote in quotes for reason in quote.excesses), _NOT_COUNTED]
        ),
    ]
    if options.explain:
        lines += ["", *listed([_EXPLAINED])]
    return {"command": "evaluate", "ways": [quote.as_json() for quote in quotes]}, lines


def run_record(folder: Path) -> dict[str, Any]:
    """The run.json of a finished run.

    Raises:
        UserError: there is none, it is damaged, or it lacks what a plan needs.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _ = record["config"]["sae"], record["config"]["model"], record["layer_rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"`runs` must be folders of finished runs. {folder} has no run.json of one. Give e.g. runs/demo-stdlib."
        ) from error
    return record


def run_saes(record: dict[str, Any], widths: dict[str, int]) -> list[PlannedSAE]:
    """The SAEs of a run: as its record names them, else (of an older one) by the settings that they have in common.

    Args:
        record: its run.json.
        widths: of the sites.
    """
    sae, named = record["config"]["sae"], record.get("saes") or {}
    found = []
    for key, rows in record["layer_rows"].items():
        sites, one = tuple(rows), named.get(key, {})
        d_in = one.get("d_in", widths[sites[0]])
        d_sae = one.get("d_sae", sae["expansion_factor"] * d_in)
        found.append(PlannedSAE(sites=sites, shape=SAEShape(d_in=d_in, d_sae=d_sae, k=one.get("k", sae["k"]))))
    return found


def _quote(folder: Path, config: EvaluateConfig, options: PlanOptions, rates: Rates) -> Quote:
    record = run_record(folder)
    described = record["config"]
    lm = outline(described["model"], trust_remote_code=config.trust_remote_code)
    model = Model.of(lm, context_tokens=described["context_tokens"], lm_dtype=config.lm_dtype, device=config.device,
                     on_device=rates.device_bytes > 0)  # fmt: skip
    sites = list(dict.fromkeys(site for rows in record["layer_rows"].values() for site in rows))
    saes = run_saes(record, {site: lm.d_in(site) for site in sites})
    flops, encoding = evaluation_flops(model, saes)
    n_forward_tokens = described["sae"].get("text_batch_size", 32) * described["context_tokens"]
    n_read = sum(lm.d_in(site) for site in sites)
    weights = 4.0 * sum(2 * sae.shape.d_in * sae.shape.d_sae for sae in saes)
    memory = training_memory(
        [], batch_size=n_forward_tokens, weight_bytes=model.weight_bytes + weights,
        forward_bytes=model.forward_bytes(n_tokens=n_forward_tokens, n_numbers=n_read, logits=True),
        row_bytes=4.0 * n_read, buffer_rows=n_forward_tokens,
    )  # fmt: skip
    ram, device = placed(memory, "stream", rates)
    seconds = {
        "start": START_SECONDS + (model.weight_bytes + weights) / rates.disk_read_bytes_per_second,
        "evaluation": evaluation_seconds(model, saes, rates, n_tokens=config.n_tokens),
    }
    per_hour = options.price_per_hour
    return Quote(
        name=f"{folder.name} ({prefixed(model.n_parameters)})", source="stream", n_saes=len(saes), n_sites=len(sites),
        lm_flops=None if flops is None else config.n_tokens * flops, sae_flops=config.n_tokens * encoding,
        n_bytes=config.n_tokens / n_forward_tokens * (model.weight_bytes + weights),
        ram_bytes=ram, device_bytes=device, disk_bytes={}, seconds=seconds,
        price_per_second=None if per_hour == "none" else per_hour / 3600,
        excesses=too_large(ram, device, {}, rates, free_bytes=None),
    )  # fmt: skip
