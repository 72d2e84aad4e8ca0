"""Feature circuits: how much of what a model does on a task a few features do, and how much is left without them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from strata.errors import UserError
from strata.evaluate.answer_margin import Edit, Prompts, answer_margins, check_circuit_input, prompts_of
from strata.evaluate.attribution import Attribution, SiteAttribution
from strata.evaluate.tasks.base import TaskPairs
from strata.lm.model import LanguageModel
from strata.sae.model import SAE
from strata.shapes import SparseCode

# m(M) − m(∅) below this share of the larger of the two (or of 1 nat) is what rounding leaves of none.
_SMALLEST_SPAN = 1e-5

Kept = dict[str, Bool[Tensor, " d_sae"]]  # site → which features are left as they are


@torch.inference_mode()
def circuit_scores(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    pairs: TaskPairs,
    attribution: Attribution,
    *,
    sizes: Sequence[int],
    with_error: bool,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Faithfulness and completeness of the circuits of the features with the largest effects.

    A circuit C of a size has that many features of every site, those of largest |effect|. They keep the values that the
    running model gives them, all other features of all sites are set to their mean at that position. m is the mean
    over pairs of logit(answer) − logit(wrong) after the clean prompt; M is the model itself, ∅ has no features left:
    faithfulness = (m(C) − m(∅))/(m(M) − m(∅)), completeness = (m(M∖C) − m(∅))/(m(M) − m(∅)), M∖C the features that are
    not in C. Good circuits have a faithfulness near 1 and a completeness near 0.

    With the error kept, all features are a faithfulness of exactly 1 (and completeness 0), no features of exactly 0
    (and 1). But what SAEs miss then does part of the work in every circuit, so bad SAEs score well; without it m(C) is
    what the features do alone. Special tokens keep their own activations.

    Source: Marks et al. 2024, "Sparse feature circuits", §3 and 4; Group-SAE (arXiv 2410.21508), which keeps errors.
    Differs: the means are over clean and corrupt prompts, so that on average they favour neither answer; peers take one
    side. Group-SAE adds 1e-7 to the denominator; here a score without meaning is None.

    Args:
        lm: a causal language model.
        saes: site → SAE, all in the model at once: those of `attribution`.
        pairs: pairs that were not used to find the circuit (see `TaskPairs.split`), of the same length.
        attribution: from `strata.evaluate.attribution.attribute`, with the effects and the means.
        sizes: features per site, each in [0, d_sae]; a site with fewer features is taken whole.
        with_error: whether x − x̂ of the running model is added back at every site; else its mean is.
        batch_size: pairs per forward pass, of which there are (2 · different sizes + 2) · n_pairs / batch_size. No
            array of [batch seq d_sae] is kept.

    Returns:
        ``m_model``, ``m_empty``, ``n_pairs``, ``with_error`` and ``circuits``, one dict per size in the given order:
        ``size``, ``m_circuit``, ``m_without`` (of M∖C), ``faithfulness``, ``completeness``. The last two are None where
        m(M) − m(∅) is about zero (1e-5 of the larger one, or of 1 nat).

    Raises:
        UserError: sizes that are none or out of range; an attribution of other sites, SAEs or lengths; what
            `attribute` raises.
    """
    check_circuit_input(lm, saes, pairs, batch_size=batch_size)
    _check(saes, pairs, attribution, sizes)

    def mean_m(kept: Kept | None) -> float:
        edits = {} if kept is None else _ablations(saes, attribution, kept, with_error=with_error)
        batches = (clean for clean, _ in prompts_of(lm, pairs, batch_size=batch_size))
        sums = (
            answer_margins(lm, clean, {site: edit(clean) for site, edit in edits.items()}).double().sum().item()
            for clean in batches
        )
        return sum(sums) / len(pairs)

    m_model, m_empty = mean_m(None), mean_m(_circuit(attribution, 0))
    span = m_model - m_empty
    counts = abs(span) > _SMALLEST_SPAN * max(1.0, abs(m_model), abs(m_empty))

    def scores(size: int) -> dict[str, Any]:
        kept = _circuit(attribution, size)
        found = {"m_circuit": mean_m(kept), "m_without": mean_m({site: ~own for site, own in kept.items()})}
        share = {key: (m - m_empty) / span if counts else None for key, m in found.items()}
        return {"size": size, **found, "faithfulness": share["m_circuit"], "completeness": share["m_without"]}

    of_size = {size: scores(size) for size in dict.fromkeys(sizes)}
    return {
        "m_model": m_model,
        "m_empty": m_empty,
        "n_pairs": len(pairs),
        "with_error": with_error,
        "circuits": [of_size[size] for size in sizes],
    }


def _circuit(attribution: Attribution, size: int) -> Kept:
    kept = {site: torch.zeros_like(found.effects, dtype=torch.bool) for site, found in attribution.sites.items()}
    for site, found in attribution.sites.items():
        kept[site][found.strongest(size)] = True
    return kept


def _ablations(
    saes: Mapping[str, SAE], attribution: Attribution, kept: Kept, *, with_error: bool
) -> dict[str, Callable[[Prompts], Edit]]:
    return {
        site: _ablation(sae, attribution.sites[site], kept[site], with_error=with_error) for site, sae in saes.items()
    }


def _ablation(
    sae: SAE, found: SiteAttribution, kept: Bool[Tensor, " d_sae"], *, with_error: bool
) -> Callable[[Prompts], Edit]:
    """Prompts → the edit that sets what is not kept to its mean; decoding is linear, so means are decoded once."""
    means = (found.mean_latents * ~kept) @ sae.W_dec  # [seq d_in]

    def ablate(x: Tensor) -> Tensor:
        code = sae.encode_sparse(x.to(sae.device, sae.dtype))
        chosen = ~kept[code.indices] if with_error else kept[code.indices]
        part = sae.decode(SparseCode(code.values * chosen, code.indices, code.d_sae))
        if with_error:  # the ablated features leave, their means come; exactly x where nothing is ablated
            return x + (means - (part - sae.b_dec)).to(x)
        return (part + means + found.mean_error).to(x)

    return lambda prompts: lambda x: torch.where(prompts.is_row.to(x.device)[..., None], ablate(x), x)


def _check(saes: Mapping[str, SAE], pairs: TaskPairs, attribution: Attribution, sizes: Sequence[int]) -> None:
    if set(saes) != set(attribution.sites):
        raise UserError(
            f"`attribution` must be of the sites of `saes`, {sorted(saes)}. Got {sorted(attribution.sites)}. "
            "Give both the same SAEs."
        )
    n_positions = pairs.clean_ids.shape[1]
    for site, sae in saes.items():
        found, d_sae = attribution.sites[site].mean_latents.shape
        if found != n_positions:
            raise UserError(
                f"`pairs` must be as long as those of `attribution`, {found} tokens. Got {n_positions}. "
                "Split the pairs of one task."
            )
        if d_sae != sae.d_sae:
            raise UserError(
                f"`attribution` must be of these SAEs. Got {d_sae} features at {site!r}, whose SAE has {sae.d_sae}. "
                "Attribute again."
            )
    widest = max(sae.d_sae for sae in saes.values())
    if not sizes or not all(0 <= size <= widest for size in sizes):
        raise UserError(
            f"`sizes` must be counts of features per site, each in [0, {widest}], at least one. Got {list(sizes)}. Give"
            " e.g. (1, 4, 16)."
        )
