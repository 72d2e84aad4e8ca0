"""What an SAE costs the language model: next-token loss with a site reconstructed, with it zeroed, and untouched."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, pad

from strata.activations.harvest import forward_dtype
from strata.lm.attach import Attachable
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenBatch
from strata.sae import metrics
from strata.shapes import SparseCode

# Logits of one forward, as fp32. Beside them live the clean run's log-probabilities, which are as large.
_LOGITS_BYTES = 256 * 2**20
# The softmax of so many bytes of logits at a time: its temporary arrays stay small.
_SOFTMAX_BYTES = 16 * 2**20

UNDEFINED: dict[str, float | None] = dict.fromkeys(
    ("ce_clean", "ce_sae", "ce_zero", "ce_loss_score", "kl_div_score", "delta_ce_percent")
)
"""What `LanguageLoss.summary` would say of a model without next-token loss."""

LogProbs = Float[Tensor, "predictions vocab"]


@dataclass(frozen=True)
class LanguageLoss:
    """Means over all predictions, in nats per token, of the model with one site changed.

    Attributes:
        ce_clean: cross-entropy of the model as it is.
        ce_sae: cross-entropy with the site's rows replaced by their reconstructions.
        ce_zero: cross-entropy with the site's rows set to zero.
        kl_sae: KL(clean ‖ changed) of the reconstructed run.
        kl_zero: KL(clean ‖ changed) of the zeroed run.
    """

    ce_clean: float
    ce_sae: float
    ce_zero: float
    kl_sae: float
    kl_zero: float

    def summary(self) -> dict[str, float | None]:
        """The losses and scores of ``evaluation.json``; a score is None where zeroing the site changes nothing."""
        ce_counts, kl_counts = self.ce_zero != self.ce_clean, self.kl_zero != 0
        losses = {"ce_zero": self.ce_zero, "ce_sae": self.ce_sae, "ce_clean": self.ce_clean}
        return {
            "ce_clean": self.ce_clean,
            "ce_sae": self.ce_sae,
            "ce_zero": self.ce_zero,
            "ce_loss_score": metrics.ce_loss_score(**losses) if ce_counts else None,
            "kl_div_score": metrics.kl_div_score(kl_zero=self.kl_zero, kl_sae=self.kl_sae) if kl_counts else None,
            "delta_ce_percent": metrics.delta_ce_percent(ce_sae=self.ce_sae, ce_clean=self.ce_clean),
        }


@dataclass(frozen=True)
class Predictions:
    """Which positions of a batch are scored, and what they should predict.

    Attributes:
        positions: numbers in the flattened [batch seq] of the positions whose *next* token is a row (neither special
            nor pad) and that are no pads themselves. A BOS predicts the token behind it; nobody is asked for a BOS.
        targets: those next tokens.
    """

    positions: Int[Tensor, " predictions"]
    targets: Int[Tensor, " predictions"]

    @classmethod
    def of(cls, batch: TokenBatch) -> "Predictions":
        """The predictions that a batch asks for."""
        scored = batch.is_row[:, 1:] & batch.attention_mask[:, :-1]
        positions = pad(scored, (0, 1)).reshape(-1).nonzero().squeeze(1)
        return cls(positions, batch.input_ids[:, 1:][scored].long())


class _Zero:
    """What stands at a site in the zero-ablated run."""

    def __init__(self, d_in: int) -> None:
        self.d_in = d_in

    def encode(self, x: Tensor) -> Tensor:
        """One latent that never fires."""
        return x.new_zeros(*x.shape[:-1], 1)

    def encode_sparse(self, x: Tensor) -> SparseCode:
        """The same as a code."""
        values = x.new_zeros(*x.shape[:-1], 1)
        return SparseCode(values, values.long(), 1)

    def decode(self, latents: SparseCode) -> Tensor:
        """Zero, whatever the code."""
        return latents.values.new_zeros(*latents.values.shape[:-1], self.d_in)


def predicts_next_token(lm: LanguageModel) -> bool:
    """Whether the next-token loss means anything for this model.

    Decided from its class: one without a language-model head (``BertModel``) has no loss, and one that was trained to
    fill masks (``BertForMaskedLM``, ``BertForPreTraining``) sees the token that it would have to predict.
    """
    trained_on_masks = any(word in lm.model_class for word in ("MaskedLM", "ForPreTraining"))
    return lm.model.get_output_embeddings() is not None and not trained_on_masks


@torch.inference_mode()
def language_losses(
    lm: LanguageModel, saes: Mapping[str, Attachable], batches: Sequence[TokenBatch], *, lm_dtype: str = "auto"
) -> dict[str, LanguageLoss] | None:
    """The language model's loss with each site changed by itself: 1 + 2·n_sites forward passes per batch.

    Only rows are replaced, in the reconstructed and in the zeroed run alike (attention sinks are rows; special tokens
    and pads keep their own activations), so that an SAE that reconstructs nothing scores exactly 0 and a perfect one
    exactly 1. The model runs in ``lm_dtype``, the same in all runs; softmax and sums are fp32.

    Differs: peers zero every position but splice only some; some take softmax and then its logarithm.

    Args:
        lm: the language model.
        saes: site → SAE.
        batches: held-out text. A batch whose logits would take over 256 MB is run in pieces, so memory does not grow
            with the vocabulary.
        lm_dtype: precision of the forward: "auto", "fp32" or "bf16".

    Returns:
        Site → means over all predictions (see `Predictions`); None for a model without next-token loss (see
        `predicts_next_token`) and for a text in which no row has a token before it.
    """
    if not predicts_next_token(lm):
        return None
    changes: dict[tuple[str, str], Attachable] = {(site, "sae"): sae for site, sae in saes.items()}
    changes |= {(site, "zero"): _Zero(sae.d_in) for site, sae in saes.items()}
    ce_clean, n_predictions = 0.0, 0
    sums = dict.fromkeys(changes, (0.0, 0.0))
    autocast_dtype = forward_dtype(lm, lm_dtype)
    for batch in (piece for whole in batches for piece in _pieces(whole, lm.vocabulary_size)):
        predictions = Predictions.of(batch)
        clean = _log_probs(_logits(lm, batch, autocast_dtype), predictions.positions)
        ce_clean -= _at_targets(clean, predictions.targets)
        n_predictions += len(predictions.targets)
        for change, stand_in in changes.items():
            with lm.attach({change[0]: stand_in}, mask=batch.is_row):
                logits = _logits(lm, batch, autocast_dtype)
            ce, kl = _compare(logits, clean, predictions)
            sums[change] = (sums[change][0] + ce, sums[change][1] + kl)
    if n_predictions == 0:
        return None
    mean = {change: (ce / n_predictions, kl / n_predictions) for change, (ce, kl) in sums.items()}
    return {
        site: LanguageLoss(
            ce_clean=ce_clean / n_predictions,
            ce_sae=mean[site, "sae"][0],
            ce_zero=mean[site, "zero"][0],
            kl_sae=mean[site, "sae"][1],
            kl_zero=mean[site, "zero"][1],
        )
        for site in saes
    }


def _logits(
    lm: LanguageModel, batch: TokenBatch, autocast_dtype: torch.dtype | None
) -> Float[Tensor, "positions vocab"]:
    # Without pads the mask is left out: attention takes its faster path.
    mask = None if bool(batch.attention_mask.all()) else batch.attention_mask
    autocast = nullcontext() if autocast_dtype is None else torch.autocast(lm.device.type, dtype=autocast_dtype)
    with autocast:
        return lm.logits(batch.input_ids.long(), attention_mask=mask).flatten(0, 1)


def _log_probs(logits: Float[Tensor, "positions vocab"], positions: Int[Tensor, " predictions"]) -> LogProbs:
    found = torch.empty(len(positions), logits.shape[1], dtype=torch.float32, device=logits.device)
    for start, chunk in _chunks(logits, positions):
        found[start : start + len(chunk)] = chunk
    return found


def _compare(
    logits: Float[Tensor, "positions vocab"], clean: LogProbs, predictions: Predictions
) -> tuple[float, float]:
    """Cross-entropy of the changed run and KL(clean ‖ changed), both summed over the predictions, in nats."""
    ce = kl = 0.0
    for start, changed in _chunks(logits, predictions.positions):
        ce -= _at_targets(changed, predictions.targets[start : start + len(changed)])
        kl += kl_div(changed, clean[start : start + len(changed)], reduction="sum", log_target=True).item()
    return ce, kl


def _at_targets(log_probs: LogProbs, targets: Int[Tensor, " predictions"]) -> float:
    return log_probs.gather(1, targets.to(log_probs.device)[:, None]).sum().item()


def _chunks(
    logits: Float[Tensor, "positions vocab"], positions: Int[Tensor, " predictions"]
) -> Iterator[tuple[int, LogProbs]]:
    """Log-probabilities at some positions, in pieces, each with the number of its first prediction."""
    size = max(1, _SOFTMAX_BYTES // (4 * logits.shape[1]))
    for start in range(0, len(positions), size):
        part = positions[start : start + size].to(logits.device)
        yield start, log_softmax(logits[part].float(), dim=-1)


def _pieces(batch: TokenBatch, vocabulary_size: int) -> Iterator[TokenBatch]:
    """The batch's sequences, so few at a time that their logits stay within bounds (one sequence at least)."""
    n_sequences, seq = batch.input_ids.shape
    size = max(1, _LOGITS_BYTES // (4 * vocabulary_size * seq))
    for start in range(0, n_sequences, size):
        part = slice(start, start + size)
        yield TokenBatch(batch.input_ids[part], batch.attention_mask[part], batch.is_row[part])
