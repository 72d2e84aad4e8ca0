"""Suites of SAEs on the same held-out text: one clean pass of the language model, and what each change needs of it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.activations.harvest import forward_dtype, harvest
from strata.errors import UserError
from strata.evaluate.language_loss import (
    UNDEFINED,
    LanguageLoss,
    LogProbs,
    LossSums,
    Predictions,
    Zero,
    cross_entropy,
    flat_logits,
    log_probs_at,
    pieces,
    predicts_next_token,
)
from strata.evaluate.sums import SiteSums
from strata.lm.attach import Attachable, Attachment
from strata.lm.model import LanguageModel
from strata.lm.partial import block_outputs, first_needed_block, starting_at
from strata.lm.tokens import TokenBatch
from strata.sae.model import SAE
from strata.shapes import SparseCode

_FIRST_ROWS = 4096  # of each site, from which attention sinks are told
_CHUNK_ROWS = 8192  # encoded at a time where no language model runs beside

SAEsBySuite = Mapping[str, Mapping[str, SAE]]
"""Suite → site → SAE."""


def by_suite(saes: Mapping[str, SAE]) -> list[dict[str, SAE]]:
    """SAEs of a training in suites that hold each site at most once, as few as there are SAEs at a site.

    Layers of a group stay together: their keys are the group's name, a slash and the site (`per_layer`). Each goes into
    the first suite that has none of its sites yet.

    Args:
        saes: by key, in the order of training; each names its site in its metadata.
    """
    trained: dict[str, dict[str, SAE]] = {}
    for key, sae in saes.items():
        trained.setdefault(key.removesuffix(f"/{sae.metadata['site']}"), {})[key] = sae
    suites: list[dict[str, SAE]] = []
    for group in trained.values():
        free = next((suite for suite in suites if not _sites(suite) & _sites(group)), None)
        if free is None:
            suites.append(free := {})
        free |= group
    return suites


def _sites(saes: Mapping[str, SAE]) -> set[str]:
    return {sae.metadata["site"] for sae in saes.values()}


@torch.inference_mode()
def evaluate_suites(
    lm: LanguageModel, suites: SAEsBySuite, batches: Sequence[TokenBatch], *, lm_dtype: str = "auto"
) -> dict[str, dict[str, Any]]:
    """Evaluate several suites of SAEs on the same held-out text.

    Rows are the tokens that are neither special nor pad. For each batch the language model runs once as it is; once per
    site with the site's rows zeroed, for all suites together; once per suite and site with that site's rows replaced by
    their reconstructions; and once per suite with all its SAEs in it (of a suite with one SAE that is the same run).
    All but the first start at the first block that the change can reach, with what that block received in the first
    run; a change elsewhere than in the blocks, and a model that cannot be started there, takes the whole model. See
    `strata.evaluate.language_loss` for what is replaced and scored.

    The numbers of reconstruction come from the activations and codes of those same runs, summed in float64 as they
    come: they are over all rows together, and no batch is kept. Attention sinks are told from the first rows (4096 at
    least, where there are as many; until then rows wait: `Normalization`, then frozen), counted, and left out of every
    number of reconstruction and sparsity but ``fvu_with_sinks``; in the language model's runs they are replaced like
    any other row.

    Differs: peers run the whole model for every site and once more for the reconstruction; their means of batches
    depend on the batching.

    Args:
        lm: the language model.
        suites: name → site → SAE.
        batches: held-out text, in memory. One whose logits would take over 256 MB is run in pieces.
        lm_dtype: precision of the forward, the same in all runs: "auto", "fp32" or "bf16".

    Returns:
        Name → ``n_rows``; ``n_tokens`` (attended ones, special tokens included); ``context_tokens``, the longest
        sequence; ``sites``: for each, in the suite's order, the numbers of `ReconstructionSums.numbers` and of
        `LanguageLoss.summary`; ``all_sites``: the latter, with all SAEs in the model at once.

        A number is None where it is undefined: the losses of a model without next-token loss (see
        `predicts_next_token`; only as much of it runs as the sites need) or of a text in which no row has a token
        before it. The zeroed run of ``all_sites`` is that of its last residual site, since nothing before it passes a
        residual stream of zeros (but through special tokens amid the text, which keep their own activations: there it
        is an approximation); where a site lies behind it or none is residual, its ``ce_zero`` and scores are None.

    Raises:
        UserError: no suite, a suite without SAEs, an unknown site or an SAE of another width, a text without rows, rows
            that are not finite or all equal.
    """
    _check(lm, suites, batches)
    if predicts_next_token(lm) and any(len(Predictions.of(batch).targets) for batch in batches):
        rows, losses = _run(lm, suites, batches, lm_dtype)
    else:
        rows, losses = _rows_only(lm, suites, batches, lm_dtype), None
    return {name: _result(lm, name, list(saes), rows, losses) | _counts(batches) for name, saes in suites.items()}


@dataclass
class _Losses:
    """Losses of all runs, summed over all predictions: of a suite's site, of a whole suite, of a zeroed site."""

    n_predictions: int = 0
    ce_clean: float = 0.0
    spliced: dict[tuple[str, str | None], LossSums] = field(default_factory=dict[tuple[str, str | None], LossSums])
    zeroed: dict[str, LossSums] = field(default_factory=dict[str, LossSums])

    def summary(self, spliced: LossSums, zeroed: LossSums | None) -> dict[str, float | None]:
        """The losses of a run, per prediction, against the zeroed one's."""
        n = self.n_predictions
        return LanguageLoss(
            ce_clean=self.ce_clean / n,
            ce_sae=spliced.ce / n,
            kl_sae=spliced.kl / n,
            ce_zero=None if zeroed is None else zeroed.ce / n,
            kl_zero=None if zeroed is None else zeroed.kl / n,
        ).summary()


@dataclass(frozen=True)
class _Clean:
    """A piece of text and the unchanged model's pass over it."""

    batch: TokenBatch
    predictions: Predictions
    log_probs: LogProbs
    outputs: Mapping[int, Tensor]  # number of a block → its output [batch seq d_model]
    autocast_dtype: torch.dtype | None

    def change(
        self, lm: LanguageModel, attached: Mapping[str, Attachable], *, start: int, into: LossSums
    ) -> Attachment:
        """Run the model with sites changed from block `start` on (0: all of it) and count its losses in."""
        with ExitStack() as stack:
            if start:
                stack.enter_context(starting_at(lm, start, self.outputs[start - 1]))
            run = stack.enter_context(lm.attach(attached, mask=self.batch.is_row))
            logits = flat_logits(lm, self.batch, autocast_dtype=self.autocast_dtype)
        into.add(logits, self.log_probs, self.predictions)
        return run


def _run(
    lm: LanguageModel, suites: SAEsBySuite, batches: Sequence[TokenBatch], lm_dtype: str
) -> tuple[dict[str, SiteSums], _Losses]:
    """All passes over all batches."""
    rows = _site_rows(suites)
    losses = _Losses(zeroed={site: LossSums() for site in rows})
    losses.spliced = {(name, site): LossSums() for name, saes in suites.items() for site in (*saes, None)}
    starts = {site: first_needed_block(lm, site) for site in rows}
    for clean in _clean_passes(lm, batches, starts, losses, autocast_dtype=forward_dtype(lm, lm_dtype)):
        kept = clean.batch.is_row.reshape(-1).nonzero().squeeze(1)
        for site, start in starts.items():
            here = {name: saes[site] for name, saes in suites.items() if site in saes}
            nothing = Zero(next(iter(here.values())).d_in)
            clean.change(lm, {site: nothing}, start=start, into=losses.zeroed[site])
            codes: dict[str, SparseCode] = {}
            x = None
            for name, sae in here.items():
                run = clean.change(lm, {site: sae}, start=start, into=losses.spliced[name, site])
                codes[name] = _code_of(run.codes[site], kept)
                x = _rows_of(run.inputs[site], kept) if x is None else x
            assert x is not None, "a site belongs to a suite"
            rows[site].add(x, codes)
        for name, saes in suites.items():
            if len(saes) > 1:
                start = min(starts[site] for site in saes)
                clean.change(lm, saes, start=start, into=losses.spliced[name, None])
    return rows, losses


def _clean_passes(
    lm: LanguageModel,
    batches: Sequence[TokenBatch],
    starts: Mapping[str, int],
    losses: _Losses,
    *,
    autocast_dtype: torch.dtype | None,
) -> Iterator[_Clean]:
    """The unchanged model's pass over each piece of text, its losses counted in."""
    wanted = sorted({start - 1 for start in starts.values() if start})
    for batch in (piece for whole in batches for piece in pieces(whole, vocabulary_size=lm.vocabulary_size)):
        predictions = Predictions.of(batch)
        with block_outputs(lm, wanted) as outputs:
            log_probs = log_probs_at(flat_logits(lm, batch, autocast_dtype=autocast_dtype), predictions.positions)
        losses.ce_clean += cross_entropy(log_probs, predictions.targets)
        losses.n_predictions += len(predictions.targets)
        yield _Clean(batch, predictions, log_probs, outputs, autocast_dtype)


def _rows_only(
    lm: LanguageModel, suites: SAEsBySuite, batches: Sequence[TokenBatch], lm_dtype: str
) -> dict[str, SiteSums]:
    """One pass over all batches that ends at the last site."""
    rows = _site_rows(suites)
    autocast_dtype = forward_dtype(lm, lm_dtype)
    for batch in batches:
        for site, found in harvest(lm, batch, list(rows), autocast_dtype=autocast_dtype).items():
            for x in torch.split(found, _CHUNK_ROWS):
                here = {name: saes[site] for name, saes in suites.items() if site in saes}
                codes = {name: sae.encode_sparse(x.to(sae.device, torch.float32)) for name, sae in here.items()}
                rows[site].add(x, codes)
    return rows


def _site_rows(suites: SAEsBySuite) -> dict[str, SiteSums]:
    """Every site of a suite, in the order of the suites."""
    sites = dict.fromkeys(site for saes in suites.values() for site in saes)
    return {
        site: SiteSums(
            site, {name: saes[site] for name, saes in suites.items() if site in saes}, n_first_rows=_FIRST_ROWS
        )
        for site in sites
    }


def _result(
    lm: LanguageModel, name: str, sites: list[str], rows: Mapping[str, SiteSums], losses: _Losses | None
) -> dict[str, Any]:
    if losses is None:
        return {"sites": {site: rows[site].numbers(name) | UNDEFINED for site in sites}, "all_sites": dict(UNDEFINED)}
    summaries = {site: losses.summary(losses.spliced[name, site], losses.zeroed[site]) for site in sites}
    if len(sites) == 1:
        together = summaries[sites[0]]
    else:
        last = _last_residual(lm, sites)
        together = losses.summary(losses.spliced[name, None], None if last is None else losses.zeroed[last])
    return {"sites": {site: rows[site].numbers(name) | summaries[site] for site in sites}, "all_sites": dict(together)}


def _last_residual(lm: LanguageModel, sites: list[str]) -> str | None:
    """The residual site behind all others; None where there is none."""
    residual = [site for site in sites if site in lm.sites]
    if not residual:
        return None
    last = max(residual, key=lm.sites.index)
    earlier = [lm.site(name).path for name in lm.sites[: lm.sites.index(last) + 1]]
    behind = [site for site in sites if not any(f"{lm.site(site).path}.".startswith(f"{path}.") for path in earlier)]
    return None if behind else last


def _rows_of(x: Float[Tensor, "batch seq d_in"], kept: Tensor) -> Float[Tensor, "rows d_in"]:
    return x.flatten(0, 1)[kept.to(x.device)].float()


def _code_of(code: SparseCode, kept: Tensor) -> SparseCode:
    kept = kept.to(code.values.device)
    return SparseCode(code.values.flatten(0, 1)[kept], code.indices.flatten(0, 1)[kept], code.d_sae)


def _counts(batches: Sequence[TokenBatch]) -> dict[str, int]:
    return {
        "n_rows": sum(int(batch.is_row.sum()) for batch in batches),
        "n_tokens": sum(int(batch.attention_mask.sum()) for batch in batches),
        "context_tokens": max(batch.input_ids.shape[1] for batch in batches),
    }


def _check(lm: LanguageModel, suites: SAEsBySuite, batches: Sequence[TokenBatch]) -> None:
    if not suites:
        raise UserError("`suites` must hold at least one suite. Got none. Give {name: {site: sae}}.")
    for name, saes in suites.items():
        if not saes:
            raise UserError(f"A suite must hold at least one SAE. Got none in {name!r}. Give {{site: sae}}.")
        with lm.attach(saes):  # sites and widths, before any text is run
            pass
    if not any(bool(batch.is_row.any()) for batch in batches):
        raise UserError(
            "The text must hold at least one token that is neither pad nor special. It holds none. Give more text."
        )
