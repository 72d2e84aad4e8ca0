"""How good SAEs are on text that they never saw: the numbers of ``evaluation.json``."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.errors import UserError
from strata.evaluate.suites import evaluate_suites
from strata.evaluate.sums import ReconstructionSums
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenBatch
from strata.sae.model import SAE
from strata.sae.normalization import Normalization

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

    `strata.evaluate.suites.evaluate_suites` of one suite, with what training knows of dead latents.

    Args:
        lm: the language model.
        saes: site → SAE.
        batches: held-out text, in memory.
        dead: site → training's record, with ``dead_share`` (share of latents that had not fired for the window when
            training ended) and ``dead_window_rows`` (the window, in rows).
        lm_dtype: precision of the language model's forward: "auto", "fp32" or "bf16".

    Returns:
        ``n_rows``, ``n_tokens``, ``context_tokens``, ``sites`` and ``all_sites`` as of `evaluate_suites`; in each of
        ``sites`` also ``dead_share`` and ``dead_window_rows``, None without a record. ``silent_share`` is the share of
        latents that fired on none of these rows (rare features are among them); ``dead_share`` is what training counts,
        over its longer window.

    Raises:
        UserError: no SAE, and as in `evaluate_suites`.
    """
    if not saes:
        raise UserError("`saes` must hold at least one SAE. Got none. Give {site: sae}.")
    found = evaluate_suites(lm, {"saes": saes}, batches, lm_dtype=lm_dtype)["saes"]
    for site, numbers in found["sites"].items():
        record = (dead or {}).get(site, {})
        numbers |= {key: record.get(key) for key in ("dead_share", "dead_window_rows")}
    return {key: found[key] for key in ("n_rows", "n_tokens", "context_tokens", "sites", "all_sites")}


@torch.inference_mode()
def reconstruction_quality(sae: SAE, x: Float[Tensor, "rows d_in"], *, site: str = "the activations") -> dict[str, Any]:
    """The part of an SAE's evaluation that needs no language model, on rows of its site.

    Attention sinks are told from all rows given: `Normalization`, farther from the median row than ten times the median
    distance.

    Args:
        sae: the SAE.
        x: held-out rows in the model's scale; taken to the SAE's device a few thousand at a time.
        site: whose rows these are, for errors.

    Returns:
        The numbers of `strata.evaluate.sums.ReconstructionSums.numbers`.

    Raises:
        UserError: fewer than two rows, not finite, or all equal.
    """
    normalization = Normalization.estimate(x, site=site)
    sums = ReconstructionSums(sae.d_sae)
    for rows in x.split(_CHUNK_ROWS):
        rows = rows.float()
        code = sae.encode_sparse(rows.to(sae.device))
        sums.add(rows, sae.decode(code), code, kept=~normalization.is_sink(rows))
    return sums.numbers(site=site)
