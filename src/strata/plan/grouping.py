"""The plan of `strata groups`: what measuring the layers costs."""

from pathlib import Path
from typing import Any

from strata.activations.store_layout import read_manifest
from strata.amounts import prefixed
from strata.config.groups import GroupsConfig
from strata.config.plan import PlanOptions
from strata.costs.memory import ModelInMemory, RowsInMemory, training_memory
from strata.costs.step import Rates
from strata.errors import UserError
from strata.lm.outline import outline
from strata.plan.model import Model
from strata.plan.quote import Quote, price_per_second
from strata.plan.room import placed, too_large
from strata.plan.rows import RowShape
from strata.plan.subject import stored_rows
from strata.plan.tables import plan_of_quotes

_CKA_ROWS = 256  # of each forward (strata.activations.distances)


def plan_grouping(config: GroupsConfig, options: PlanOptions, rates: Rates) -> tuple[dict[str, Any], list[str]]:
    """All numbers of a measurement's plan, and its text.

    Raises:
        UserError: whatever in the description cannot be done, or an option for trainings alone.
    """
    options.check_for("groups")
    quote, name = _stored(config, options, rates) if config.from_store() else _streamed(config, options, rates)
    misfits = [f"It does not fit: {reason}." for reason in quote.excesses]
    lines = plan_of_quotes(
        name,
        rates,
        [quote],
        parts=True,
        said=[*misfits, "`strata plan train --groups auto` says what training in groups saves."],
        explained=[_EXPLAINED] if options.explain else [],
    )
    return {"command": "groups", "ways": [quote.as_json()]}, lines


_EXPLAINED = """\
Per row a forward to the last layer, and 2·L²·d FLOPs for the angles of all L layers with each other; with CKA
also 2·m²·d for each layer and 2·m² for each of the L·(L+1)/2 pairs of layers, for m = 256 rows of each forward.
Both at the rate of the language model's forward.
"""


def _streamed(config: GroupsConfig, options: PlanOptions, rates: Rates) -> tuple[Quote, str]:
    lm = outline("demo" if config.model == "auto" else config.model, trust_remote_code=config.trust_remote_code)
    if not lm.sites:
        raise UserError(f"`model` must be one whose layers are found. {lm.name} has none. Give another.")
    model = Model.of(lm, context_tokens=config.context_tokens, lm_dtype=config.lm_dtype, device=config.device,
                     on_device=rates.device_bytes > 0)  # fmt: skip
    widths = {site: lm.d_in(site) for site in lm.sites}
    n_forward_tokens = config.text_batch_size * config.context_tokens
    flops, forward = model.forward_flops(lm.sites), model.forward_seconds(lm.sites, rates)
    seconds = {
        "start": rates.start_seconds + model.weight_bytes / rates.disk_read_bytes_per_second,
        "language model": None if forward is None else config.n_tokens * forward,
    }
    memory = training_memory(
        [],
        batch_size=n_forward_tokens,
        rows=RowsInMemory(row_bytes=float(model.itemsize * sum(widths.values())), buffer_rows=2 * n_forward_tokens),
        model=ModelInMemory(
            weight_bytes=model.weight_bytes,
            forward_bytes=model.forward_bytes(n_tokens=n_forward_tokens, n_numbers=sum(widths.values())),
        ),
    )
    lm_flops = None if flops is None else config.n_tokens * flops
    moved = config.n_tokens / n_forward_tokens * model.weight_bytes
    parts = f"{lm.name}, {prefixed(model.n_parameters)} parameters: {len(lm.sites)} layers, {config.n_tokens:,} rows"
    return _quote(config, options, rates, widths, memory=memory, seconds=seconds, lm_flops=lm_flops, moved=moved), parts


def _stored(config: GroupsConfig, options: PlanOptions, rates: Rates) -> tuple[Quote, str]:
    folder = Path(config.activations)
    manifest = read_manifest(folder)
    widths = {site: d_in for site, d_in in manifest.sites.items() if site.removeprefix("layers.").isdecimal()}
    n_rows = min(config.n_tokens, stored_rows(folder, manifest))
    n_bytes = RowShape(widths=manifest.sites, n_numbers=0).stored_bytes(manifest.dtype)
    seconds: dict[str, float | None] = {
        "start": rates.start_seconds,
        "disk": n_rows * n_bytes / rates.disk_read_bytes_per_second,
    }
    memory = training_memory(
        [],
        batch_size=4096,
        rows=RowsInMemory(row_bytes=4.0 * sum(widths.values()), buffer_rows=min(n_rows, 65_536)),
    )
    name = f"{folder}: {len(widths)} layers, {n_rows:,} rows"
    found = _quote(config, options, rates, widths, memory=memory, seconds=seconds, lm_flops=0.0,
                   moved=float(n_rows * n_bytes))  # fmt: skip
    return found, name


def _quote(config: GroupsConfig, options: PlanOptions, rates: Rates, widths: dict[str, int], *,
           memory: dict[str, float], seconds: dict[str, float | None], lm_flops: float | None,
           moved: float) -> Quote:  # fmt: skip
    n_layers, d_in = len(widths), max(widths.values(), default=0)
    angles = 2.0 * n_layers**2 * d_in * config.n_tokens
    n_batches = config.n_tokens / (config.text_batch_size * config.context_tokens) if config.cka else 0.0
    alignment = n_batches * _CKA_ROWS**2 * n_layers * (2.0 * d_in + n_layers + 1)
    seconds = seconds | {"distances": (angles + alignment) / rates.forward_flops_per_second}
    ram, device = placed(memory, "stream", rates)
    return Quote(
        name="measuring layers", source="stream", n_saes=0, n_sites=n_layers, lm_flops=lm_flops, sae_flops=0.0,
        n_bytes=moved, ram_bytes=ram, device_bytes=device, disk_bytes={}, seconds=seconds,
        price_per_second=price_per_second(options),
        excesses=too_large(ram, device, {}, rates, free_bytes=None),
    )  # fmt: skip
