"""How good SAEs are on text that they never saw: the numbers of ``evaluation.json``."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from strata.activations.harvest import collect
from strata.errors import UserError
from strata.evaluate.language_loss import UNDEFINED, language_losses
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenBatch
from strata.sae import metrics
from strata.sae.model import SAE
from strata.sae.normalization import Normalization

# Rows of several sites are kept on the CPU at once, as fp32, up to so many bytes.
_ROWS_BYTES = 2**30
_CHUNK_ROWS = 8192


def evaluate_saes(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    batches: Sequence[TokenBatch],
    *,
    dead: Mapping[str, Mapping[str, Any]] | None = None,
    lm_dtype: str = "auto",
) -> dict[str, Any]:
    """Evaluate SAEs on held-out text: reconstruction, sparsity, and the language model's loss with each SAE in it.

    Rows are the tokens that are neither special nor pad. Attention sinks are told from the held-out rows themselves
    (`Normalization`: farther from the median row than ten times the median distance), counted, and left out of every
    number of reconstruction and sparsity but ``fvu_with_sinks``; in the language model's runs they are replaced like
    any other row (see `language_losses`).

    Means and variances are over all rows together, so the numbers do not depend on the batching. For that the rows of
    a site are held in memory, on the CPU, as fp32; sites are taken in groups whose rows fit into 1 GB together (one
    site at least), each group costing one forward pass without logits per batch. The losses take 1 + 2·n_sites passes.

    Args:
        lm: the language model.
        saes: site → SAE.
        batches: held-out text, in memory.
        dead: site → training's record, with ``dead_share`` (share of latents that had not fired for the window when
            training ended) and ``dead_window_rows`` (the window, in rows).
        lm_dtype: precision of the language model's forward: "auto", "fp32" or "bf16".

    Returns:
        ``n_rows``; ``n_tokens`` (attended ones, special tokens included); ``context_tokens``, the longest sequence;
        ``sites``: for each, in the order of ``saes``, a number for each of the functions in `strata.sae.metrics`, and
        ``silent_share``, the share of latents that fired on none of these rows (rare features are among them;
        ``dead_share`` is what training counts, over its longer window), ``n_sink_rows``, ``fvu_with_sinks``. A number
        is None where it is undefined: the ``ce_*`` ones of a model without next-token loss, the bias of a
        reconstruction that is zero, ``dead_*`` without a record.

    Raises:
        UserError: no SAE, a text without rows, rows that are not finite or all equal.
    """
    if not saes:
        raise UserError("`saes` must hold at least one SAE. Got none. Give {site: sae}.")
    n_rows = sum(int(batch.is_row.sum()) for batch in batches)
    sites: dict[str, dict[str, Any]] = {}
    for group in _site_groups(saes, n_rows):
        rows = collect(lm, batches, sites=group, lm_dtype=lm_dtype)
        for site in group:
            sites[site] = reconstruction_quality(saes[site], rows.pop(site), site=site)
    losses = language_losses(lm, saes, batches, lm_dtype=lm_dtype)
    for site, numbers in sites.items():
        record = (dead or {}).get(site, {})
        numbers |= {key: record.get(key) for key in ("dead_share", "dead_window_rows")}
        numbers |= UNDEFINED if losses is None else losses[site].summary()
    return {
        "n_rows": n_rows,
        "n_tokens": sum(int(batch.attention_mask.sum()) for batch in batches),
        "context_tokens": max(batch.input_ids.shape[1] for batch in batches),
        "sites": sites,
    }


@torch.inference_mode()
def reconstruction_quality(sae: SAE, x: Float[Tensor, "rows d_in"], *, site: str = "the activations") -> dict[str, Any]:
    """The part of an SAE's evaluation that needs no language model, on rows of its site.

    Args:
        sae: the SAE.
        x: held-out rows in the model's scale; taken to the SAE's device a few thousand at a time.
        site: whose rows these are, for errors.

    Returns:
        ``explained_variance fvu mse cosine l0 l2_ratio relative_reconstruction_bias silent_share`` without attention
        sinks; ``n_sink_rows`` and ``fvu_with_sinks`` with them. None where a number is undefined.

    Raises:
        UserError: fewer than two rows, not finite, or all equal.
    """
    x = x.float()
    kept = ~Normalization.estimate(x, site=site).is_sink(x)
    x_hat, fired, l0 = _reconstruct(sae, x, kept)
    fvu_with_sinks = metrics.fvu(x, x_hat)
    n_sink_rows = len(x) - int(kept.sum())
    if n_sink_rows:
        x, x_hat = x[kept], x_hat[kept]
    families = (
        metrics.explained_variance,
        metrics.fvu,
        metrics.mse,
        metrics.cosine,
        metrics.l2_ratio,
        metrics.relative_reconstruction_bias,
    )
    return {
        **{function.__name__: _number(function(x, x_hat)) for function in families},
        "l0": l0,
        "silent_share": 1 - fired.float().mean().item(),
        "n_sink_rows": n_sink_rows,
        "fvu_with_sinks": _number(fvu_with_sinks),
    }


def _reconstruct(
    sae: SAE, x: Float[Tensor, "rows d_in"], kept: Bool[Tensor, " rows"]
) -> tuple[Float[Tensor, "rows d_in"], Bool[Tensor, " d_sae"], float]:
    """The reconstruction of all rows, and, over the kept ones, which latents fired and the mean L0."""
    x_hat = torch.empty_like(x)
    fired = torch.zeros(sae.d_sae, dtype=torch.bool)
    n_active = 0.0
    for start in range(0, len(x), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        code = sae.encode_sparse(x[part].to(sae.device))
        x_hat[part] = sae.decode(code).to(x.device, x.dtype)
        values, indices = code.values.to(x.device)[kept[part]], code.indices.to(x.device)[kept[part]]
        if len(values):
            fired[indices[values > 0].cpu()] = True
            n_active += metrics.l0(values).item() * len(values)
    return x_hat, fired, n_active / int(kept.sum())


def _site_groups(saes: Mapping[str, SAE], n_rows: int) -> Iterator[list[str]]:
    """The sites in order, as many at a time as have rows that fit into memory together."""
    group: list[str] = []
    n_bytes = 0
    for site, sae in saes.items():
        size = 4 * n_rows * sae.d_in
        if group and n_bytes + size > _ROWS_BYTES:
            yield group
            group, n_bytes = [], 0
        group.append(site)
        n_bytes += size
    yield group


def _number(value: Float[Tensor, ""]) -> float | None:
    """What JSON can hold: None for NaN and infinity."""
    number = value.item()
    return number if math.isfinite(number) else None
