"""The plan of `strata collect`: a store in each type."""

from typing import Any

from strata.activations.store_layout import Part
from strata.amounts import counted, prefixed, sized
from strata.config.collect import CollectConfig
from strata.config.plan import PlanOptions
from strata.costs.memory import ModelInMemory, RowsInMemory, training_memory
from strata.costs.step import Rates
from strata.lm.outline import outline
from strata.plan.model import Model
from strata.plan.quote import Quote, price_per_second
from strata.plan.room import free_bytes, placed, too_large
from strata.plan.rows import STORE_TYPES, RowShape, StoreType
from strata.plan.tables import plan_of_quotes
from strata.plan.text import TokenCount, count_tokens
from strata.run_rows import chosen_sites

_BUFFER_ROWS = 65_536


def plan_collecting(config: CollectConfig, options: PlanOptions, rates: Rates) -> tuple[dict[str, Any], list[str]]:
    """All numbers of a collection's plan, and its text.

    Raises:
        UserError: whatever in the description cannot be done, or an option for trainings alone.
    """
    options.check_for("collect")
    whole = config.n_tokens == "all"
    lm = outline(config.model, trust_remote_code=config.trust_remote_code, tokenizer=whole)
    sites = chosen_sites(lm, config.sites)
    tokens = (
        count_tokens(config.data, lm.tokenizer) if config.n_tokens == "all" else TokenCount(config.n_tokens, "given")
    )
    part = Part.parse(config.part)
    n_rows = -(-tokens.n_tokens // part.n_parts) + (config.held_out_tokens if part.index == 0 else 0)
    model = Model.of(lm, context_tokens=config.context_tokens, lm_dtype=config.lm_dtype, device=config.device,
                     on_device=rates.device_bytes > 0)  # fmt: skip
    widths = {site: lm.d_in(site) for site in sites}
    shape = RowShape(widths=widths, n_numbers=sum(widths.values()))
    free = free_bytes(config.folder()) if options.hardware == "this" else None
    dtypes: list[StoreType] = [config.dtype, *(dtype for dtype in STORE_TYPES if dtype != config.dtype)]
    quotes = [_quote(config, model, shape, rates, options, dtype=d, n_rows=n_rows, free=free) for d in dtypes]
    size = "" if model.n_parameters is None else f", {prefixed(model.n_parameters)} parameters"
    said = f" of part {part}" if part.n_parts > 1 else ""
    lines = plan_of_quotes(
        f"{config.model}{size}; text: {config.data}; {n_rows:,} rows{said} ({tokens.source}) of"
        f" {counted(len(sites), 'site')}, {config.held_out_tokens:,} held-out ones among them",
        rates,
        quotes,
        parts=False,
        said=_advice(quotes),
        explained=_EXPLAINED.split("\n\n") if options.explain else [],
    )
    numbers = {"command": "collect", "n_rows": n_rows, "rows_source": tokens.source, "sites": widths}
    return {**numbers, "ways": [quote.as_json() for quote in quotes]}, lines


_EXPLAINED = """\
A row takes 4·d (fp32), 2·d (fp16, bf16) or d + 4 (int8) bytes of each site, and up to an eighth more for int8's
outlier channels, which is not counted.

time: the language model, what its seconds do not hide of tokenising, writing to the disk and copying into and
out of the shuffle buffer, one after the other.
"""


def _quote(config: CollectConfig, model: Model, shape: RowShape, rates: Rates, options: PlanOptions, *,
           dtype: StoreType, n_rows: int, free: float | None) -> Quote:  # fmt: skip
    sites = list(shape.widths)
    flops, forward = model.forward_flops(sites), model.forward_seconds(sites, rates)
    stored = float(n_rows * shape.stored_bytes(dtype))
    n_forward_tokens = config.text_batch_size * config.context_tokens
    shard_rows = _shard_rows(config, shape, dtype)
    buffer = max(_BUFFER_ROWS, 4 * max(shard_rows, n_forward_tokens))
    memory = training_memory(
        [],
        batch_size=shard_rows,
        rows=RowsInMemory(
            row_bytes=float(model.itemsize * shape.n_kept),
            buffer_rows=min(n_rows, buffer if config.buffer_tokens == "auto" else config.buffer_tokens),
        ),
        model=ModelInMemory(
            weight_bytes=model.weight_bytes,
            forward_bytes=model.forward_bytes(n_tokens=n_forward_tokens, n_numbers=shape.n_kept),
        ),
    )
    ram, device = placed(memory, "stream", rates)
    copied = 4.0 * model.itemsize * shape.n_kept * n_rows
    seconds = {
        "start": rates.start_seconds + model.weight_bytes / rates.disk_read_bytes_per_second,
        "language model": None if forward is None else n_rows * forward,
        "tokenising": None if forward is None else max(0.0, n_rows * (1 / rates.tokenised_per_second - forward)),
        "disk": stored / rates.disk_write_bytes_per_second,
        "copies": copied / rates.copy_bytes_per_second,
    }
    return Quote(
        name=f"store in {dtype}", source=dtype, n_saes=0, n_sites=len(sites),
        lm_flops=None if flops is None else n_rows * flops, sae_flops=0.0,
        n_bytes=copied + stored + n_rows / n_forward_tokens * model.weight_bytes,
        ram_bytes=ram, device_bytes=device, disk_bytes={"store": stored}, seconds=seconds,
        price_per_second=price_per_second(options),
        excesses=too_large(ram, device, {"store": stored}, rates, free_bytes=free),
    )  # fmt: skip


def _shard_rows(config: CollectConfig, shape: RowShape, dtype: str) -> int:
    if config.shard_rows != "auto":
        return config.shard_rows
    return max(4_096, min(32_768, 2**28 // shape.stored_bytes(dtype)))


def _advice(quotes: list[Quote]) -> list[str]:
    first, largest = quotes[0], max(quotes, key=lambda quote: quote.disk_bytes["store"])
    lines = [f"{quote.name} does not fit: {reason}." for quote in quotes for reason in quote.excesses]
    if first is not largest:
        lines.append(
            f"{first.name} takes {sized(first.disk_bytes['store'], 'B')} on disk, {largest.name}"
            f" {sized(largest.disk_bytes['store'], 'B')}."
        )
    return [*lines, "`strata plan train --n-trainings N` says whether a store pays against streaming."]
