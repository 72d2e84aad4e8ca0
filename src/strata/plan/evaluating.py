"""The plan of `strata evaluate`: the passes over held-out text that runs ask for."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from strata.amounts import counted, prefixed
from strata.atomic import as_object, read_object
from strata.config.evaluate import EvaluateConfig
from strata.config.plan import PlanOptions
from strata.costs.step import Rates, SAEShape
from strata.errors import UserError
from strata.lm.outline import outline
from strata.plan.measuring import evaluation_flops, evaluation_seconds, held_out_text_seconds
from strata.plan.model import Model
from strata.plan.quote import Quote, price_per_second
from strata.plan.room import evaluating_memory, placed, too_large
from strata.plan.saes import PlannedSAE
from strata.plan.tables import plan_of_quotes

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
        UserError: a folder that is no run's, whatever in the description cannot be done, or an option for trainings
            alone.
    """
    options.check_for("evaluate")
    quotes = [_quote(Path(run), config, options, rates) for run in config.runs]
    misfits = [f"{quote.name} does not fit: {reason}." for quote in quotes for reason in quote.excesses]
    lines = plan_of_quotes(
        f"{counted(len(quotes), 'run')} on {config.n_tokens:,} held-out tokens",
        rates,
        quotes,
        parts=True,
        said=[*misfits, _NOT_COUNTED],
        explained=[_EXPLAINED] if options.explain else [],
    )
    return {"command": "evaluate", "ways": [quote.as_json() for quote in quotes]}, lines


def run_record(folder: Path) -> dict[str, Any]:
    """The run.json of a run.

    Raises:
        UserError: there is none, it is damaged, or it lacks what a plan needs.
    """
    path = folder / "run.json"
    try:
        record = read_object(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"`runs` must be folders of finished runs. {folder} has no run.json of one. Give e.g. runs/demo-stdlib."
        ) from error
    config = as_object(record.get("config"))
    needed = {"config": config, **{f"config.{key}": config.get(key) for key in ("model", "context_tokens", "sae")}}
    missing = next((key for key, value in needed.items() if not value), None)
    if missing is not None:
        raise UserError(f"`runs` must have a whole run.json. {path} lacks `{missing}`. Train the run again.")
    return record


def run_saes(folder: Path, record: dict[str, Any], *, d_in: Callable[[str], int]) -> list[PlannedSAE]:
    """The SAEs of a run: as its record names them, else (of an older one) as their folders do, else by its settings.

    Args:
        folder: of the run.
        record: its run.json.
        d_in: gives a site's width.

    Raises:
        UserError: a run of transcoders or one that is not finished, or none of these says what an SAE is.
    """
    named: dict[str, dict[str, Any]] = record.get("saes") or {}
    rows: dict[str, dict[str, int]] = record.get("layer_rows") or {}
    target = record["config"].get("target_site", "same")
    if target != "same":
        raise UserError(
            f"`runs` must hold SAEs. {folder} holds a transcoder to {target}, which `strata evaluate` leaves out. Give"
            " another run."
        )
    if not rows and not record.get("dead"):
        raise UserError(
            f"`runs` must be finished. {folder / 'run.json'} names no SAEs (status: {record.get('status', 'unknown')})."
            " Go on with strata train --resume."
        )
    settings = record["config"]["sae"]
    keys: Iterable[str] = rows or record["dead"]
    return [
        _run_sae(folder / "sae" / key, named.get(key) or {}, settings, sites=tuple(rows.get(key) or ()), d_in=d_in)
        for key in keys
    ]


def _run_sae(
    folder: Path,
    known: dict[str, Any],
    settings: dict[str, Any],
    *,
    sites: tuple[str, ...],
    d_in: Callable[[str], int],
) -> PlannedSAE:
    """One of them. Gates that are written as JumpReLU have lost their k: it is that of the settings."""
    if not sites or not {"d_in", "d_sae", "k"} <= known.keys():
        written = _written(folder)
        site = as_object(written.get("metadata")).get("site")
        sites = sites or tuple(written.get("sites") or ([site] if site else []))
        known = {"k": settings.get("k"), **written, **known}
    if sites and "d_sae" not in known and "expansion_factor" in settings:
        width = d_in(sites[0])
        known |= {"d_in": width, "d_sae": settings["expansion_factor"] * width}
    missing = ([] if sites else ["site"]) + [key for key in ("d_in", "d_sae", "k") if not known.get(key)]
    if missing:
        raise UserError(
            f"`runs` must say what their SAEs are. Neither run.json nor {folder} tells the {missing[0]}. Train the run"
            " again."
        )
    shape = SAEShape(d_in=known["d_in"], d_sae=known["d_sae"], k=known["k"], n_sites=len(sites))
    return PlannedSAE(sites=sites, shape=shape)


def _written(folder: Path) -> dict[str, Any]:
    """What an SAE's folder, or a group's, says of it; nothing where it says nothing."""
    for name in ("group.json", "cfg.json"):
        with suppress(OSError, ValueError):
            return read_object(folder / name)
    return {}


def _quote(folder: Path, config: EvaluateConfig, options: PlanOptions, rates: Rates) -> Quote:
    record = run_record(folder)
    described = record["config"]
    lm = outline(described["model"], trust_remote_code=config.trust_remote_code)
    saes = run_saes(folder, record, d_in=lm.d_in)
    model = Model.of(lm, context_tokens=described["context_tokens"], lm_dtype=config.lm_dtype, device=config.device,
                     on_device=rates.device_bytes > 0)  # fmt: skip
    n_sites = len({site for sae in saes for site in sae.sites})
    flops, encoding = evaluation_flops(model, saes)
    batch_tokens = described["sae"].get("text_batch_size", 32) * described["context_tokens"]
    weights = 4.0 * sum(2 * sae.shape.d_in * sae.shape.d_sae for sae in saes)
    memory = evaluating_memory(model, saes, n_tokens=config.n_tokens, batch_tokens=batch_tokens, examples=False)
    ram, device = placed(memory, "stream", rates)
    seconds = {
        "start": rates.start_seconds + (model.weight_bytes + weights) / rates.disk_read_bytes_per_second,
        "held-out text": held_out_text_seconds(rates, n_tokens=config.n_tokens),
        "evaluation": evaluation_seconds(model, saes, rates, n_tokens=config.n_tokens),
    }
    return Quote(
        name=f"{folder.name} ({prefixed(model.n_parameters)})", source="stream", n_saes=len(saes), n_sites=n_sites,
        lm_flops=None if flops is None else config.n_tokens * flops, sae_flops=config.n_tokens * encoding,
        n_bytes=config.n_tokens / batch_tokens * (model.weight_bytes + weights),
        ram_bytes=ram, device_bytes=device, disk_bytes={}, seconds=seconds,
        price_per_second=price_per_second(options),
        excesses=too_large(ram, device, {}, rates, free_bytes=None),
    )  # fmt: skip
