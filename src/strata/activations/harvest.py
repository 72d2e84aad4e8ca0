"""From token batches to rows: the language model's forward, and collecting its activations in memory."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.activations.collected import Activations
from strata.activations.draws import Draws, join, places
from strata.activations.source import SiteRows
from strata.activations.store import Store, open_store
from strata.errors import UserError
from strata.lm.model import LanguageModel
from strata.lm.precision import fast_dtype
from strata.lm.text import open_texts
from strata.lm.texts import Texts
from strata.lm.tokens import TokenBatch, TokenStream

_LONGEST_CONTEXT = (
    1024  # of packed sequences when no length is given: longer ones cost more attention for the same rows
)
STORED_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def forward_dtype(lm: LanguageModel, lm_dtype: str) -> torch.dtype | None:
    """The autocast type of a forward in `lm_dtype` ("auto", "fp32", "bf16"); None leaves the model's own type.

    "auto" is bf16 where the hardware multiplies it fast and the model is fp32.
    """
    known = {"auto": fast_dtype(lm.device), "fp32": torch.float32, "bf16": torch.bfloat16}
    if lm_dtype not in known:
        raise UserError(f"`lm_dtype` must be one of {', '.join(known)}. Got {lm_dtype!r}.")
    wanted = known[lm_dtype]
    return wanted if wanted != lm.dtype and lm.dtype == torch.float32 else None


def harvest(
    lm: LanguageModel,
    batch: TokenBatch,
    sites: list[str],
    *,
    autocast_dtype: torch.dtype | None = None,
    draws: Draws | None = None,
    number: int = 0,
) -> SiteRows:
    """Rows of the sites for every token of the batch that is neither pad nor special, in reading order.

    Of a group, each token's row is read from the site that is drawn for it, and from no other.

    Args:
        lm: the language model; it runs no further than the last site.
        batch: packed sequences.
        sites: where to read, if there are no draws.
        autocast_dtype: see `forward_dtype`.
        draws: what to read, with groups.
        number: of the batch among all of the training, which decides the draws.
    """
    kept = batch.is_row.reshape(-1).nonzero().squeeze(1)
    # Without pads the mask is left out: attention takes its faster path.
    mask = None if bool(batch.attention_mask.all()) else batch.attention_mask
    everywhere = len(kept) == batch.is_row.numel()
    singles, groups = (sites, []) if draws is None else (draws.single_sites, draws.groups)
    wanted = {site: (site, None if everywhere else kept) for site in singles}
    layers = {} if draws is None else {group: draws.layers(group, len(kept), part=[number]) for group in groups}
    for group, layer in layers.items():
        drawn = places(layer, group)
        wanted |= {f"{group.name}/{site}": (site, kept[where]) for site, where in drawn.items()}
    found = lm.rows(batch.input_ids.long(), wanted, attention_mask=mask, autocast_dtype=autocast_dtype)
    rows = {site: found.pop(site) for site in singles}
    for group, layer in layers.items():
        rows |= join(group, layer, {site: found.pop(f"{group.name}/{site}") for site in group.sites})
    return rows


def collect(
    lm: LanguageModel,
    batches: Iterable[TokenBatch],
    *,
    sites: list[str],
    dtype: str = "fp32",
    lm_dtype: str = "auto",
    n_tokens: int | None = None,
) -> dict[str, Float[Tensor, "rows _"]]:
    """Run the language model over all batches and keep the rows of the sites in memory, on the CPU.

    Args:
        lm: the language model.
        batches: packed sequences.
        sites: where to read; all in one pass.
        dtype: type of the kept rows, "fp32", "bf16" or "fp16".
        lm_dtype: precision of the forward.
        n_tokens: stop after as many rows per site; None keeps all.

    Raises:
        UserError: an unknown dtype, a text without a row, or fp16 that overflows.
    """
    if dtype not in STORED_DTYPES:
        raise UserError(f"`dtype` must be one of {', '.join(STORED_DTYPES)}. Got {dtype!r}.")
    if n_tokens is not None and n_tokens < 1:
        raise UserError(f"`n_tokens` must be at least 1. Got {n_tokens}. Leave it out for the whole text.")
    for site in sites:
        lm.site(site)
    autocast_dtype = forward_dtype(lm, lm_dtype)
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    n_rows = 0
    for batch in batches:
        room = None if n_tokens is None else n_tokens - n_rows
        rows = harvest(lm, batch, sites, autocast_dtype=autocast_dtype)
        for site, tensor in rows.items():
            parts[site].append(tensor[:room].to("cpu", STORED_DTYPES[dtype]))
        n_rows += len(parts[sites[0]][-1])
        if n_tokens is not None and n_rows >= n_tokens:
            break
    if n_rows == 0:
        raise UserError(
            "The text must hold at least one token that is neither pad nor special. It holds none. Give more text."
        )
    collected = {site: torch.cat(parts.pop(site)) for site in sites}
    overflown = [site for site, tensor in collected.items() if dtype == "fp16" and not bool(tensor.isfinite().all())]
    if overflown:
        raise UserError(
            f'`dtype` "fp16" is too narrow for the activations of {overflown[0]}. Use dtype="bf16" or "fp32".'
        )
    return collected


def token_stream(
    lm: LanguageModel,
    texts: Any,
    *,
    context_tokens: int | None = None,
    text_batch_size: int = 32,
    split: str = "all",
    text_column: str = "text",
) -> TokenStream:
    """A model's packed token sequences of a text.

    Args:
        lm: whose tokenizer and context length are used.
        texts: anything that `open_texts` takes.
        context_tokens: length of the sequences; None is the model's own, at most 1024.
        text_batch_size: sequences per forward.
        split: "all", or "train" or "held_out" documents only.
        text_column: where records keep their text.
    """
    opened = open_texts(texts, split=split, text_column=text_column, tokenizer=lm.tokenizer)
    if context_tokens is not None and lm.max_positions is not None and context_tokens > lm.max_positions:
        raise UserError(
            f"`context_tokens` must be at most {lm.max_positions}, the model's longest text. Got {context_tokens}."
            f" Lower it."
        )
    length = min(lm.max_positions or _LONGEST_CONTEXT, _LONGEST_CONTEXT) if context_tokens is None else context_tokens
    return TokenStream(opened, lm.tokenizer, context_tokens=length, text_batch_size=text_batch_size)


def collect_activations(
    lm: LanguageModel,
    texts: Any,
    sites: Sequence[str] | str | None = None,
    *,
    n_tokens: int | None = None,
    dtype: str = "fp32",
    lm_dtype: str = "auto",
    context_tokens: int | None = None,
    text_batch_size: int = 32,
    store: str | Path | None = None,
    held_out_tokens: int = 0,
    part: str = "1/1",
    seed: int = 0,
    progress: bool = True,
) -> Activations | Store:
    """Activations of a text at some sites, from one pass of the language model, in memory or in a store on disk.

    A store that was begun by the same call before is continued where it stopped.

    Args:
        lm: the language model.
        texts: a list or iterator of str, a path, "stdlib", a dataset or its id, or token ids [n_seqs seq].
        sites: where to read; None is the middle layer.
        n_tokens: rows to collect per site; None is the whole text. Long texts are split, never cut.
        dtype: of the kept rows, "fp32", "bf16" or "fp16"; in a store also "int8".
        lm_dtype: precision of the forward: "auto" (bf16 where the hardware is fast at it), "fp32", "bf16".
        context_tokens: length of the packed sequences; None is the model's own, at most 1024.
        text_batch_size: sequences per forward.
        store: a folder for the rows, in random order; None keeps them in memory, in reading order.
        held_out_tokens: of a store: rows of held-out documents beside the others, which are then of the training
            documents only.
        part: of a store: which of several processes this is, "1/4" to "4/4".
        seed: of a store's order.
        progress: of a store: say on stderr how far it is.

    Returns:
        Rows by site; the same row of every site comes from the same token. A store is opened with what there is by now,
        should other parts be missing.

    Raises:
        UserError: an unknown site, an empty or unreadable text, or a dtype that cannot hold the activations.
    """
    names = [lm.middle_site] if sites is None else [sites] if isinstance(sites, str) else list(sites)
    if store is not None:
        from strata.activations.store_plan import StorePlan
        from strata.activations.store_writing import write_store

        plan = StorePlan(
            dtype=dtype,
            n_tokens=n_tokens,
            held_out_tokens=held_out_tokens,
            split=texts.split if isinstance(texts, Texts) else "train" if held_out_tokens else "all",
            part=part,
            context_tokens=context_tokens,
            text_batch_size=text_batch_size,
            lm_dtype=lm_dtype,
            seed=seed,
        )
        write_store(lm, texts, sites=names, folder=Path(store).expanduser(), plan=plan, progress=progress)
        return open_store(store, allow_incomplete=part != "1/1")
    if held_out_tokens or part != "1/1":
        raise UserError("`held_out_tokens` and `part` are of stores. Got no store. Give store=, or leave them out.")
    tokens = token_stream(lm, texts, context_tokens=context_tokens, text_batch_size=text_batch_size)
    rows = collect(lm, tokens, sites=names, dtype=dtype, lm_dtype=lm_dtype, n_tokens=n_tokens)
    return Activations(rows, origin={"model": lm.fingerprint(), "text": tokens.describe()})
