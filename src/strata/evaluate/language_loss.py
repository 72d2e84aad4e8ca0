"""What an SAE costs the language model: next-token loss with a site reconstructed, with it zeroed, and untouched.

Only rows are replaced, in the reconstructed and in the zeroed run alike (attention sinks are rows; special tokens and
pads keep their own activations), so that an SAE that reconstructs nothing scores exactly 0 and a perfect one exactly 1.
Softmax and sums over a chunk are fp32, sums over chunks float64. The runs are made in `strata.evaluate.suites`.

Differs: peers zero every position but splice only some; some take softmax and then its logarithm.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, pad

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
    """Means over all predictions, in nats per token, of the model with one site changed, or with several.

    Attributes:
        ce_clean: cross-entropy of the model as it is.
        ce_sae: cross-entropy with the site's rows replaced by their reconstructions.
        kl_sae: KL(clean ‖ changed) of the reconstructed run.
        ce_zero: cross-entropy with the site's rows set to zero; None where no such run was made.
        kl_zero: KL(clean ‖ changed) of the zeroed run; None likewise.
    """

    ce_clean: float
    ce_sae: float
    kl_sae: float
    ce_zero: float | None
    kl_zero: float | None

    def summary(self) -> dict[str, float | None]:
        """The losses and scores of ``evaluation.json``; a score is None where zeroing the site changes nothing."""
        ce_score = kl_score = None
        if self.ce_zero is not None and self.ce_zero != self.ce_clean:
            ce_score = metrics.ce_loss_score(ce_zero=self.ce_zero, ce_sae=self.ce_sae, ce_clean=self.ce_clean)
        if self.kl_zero:
            kl_score = metrics.kl_div_score(kl_zero=self.kl_zero, kl_sae=self.kl_sae)
        return {
            "ce_clean": self.ce_clean,
            "ce_sae": self.ce_sae,
            "ce_zero": self.ce_zero,
            "ce_loss_score": ce_score,
            "kl_div_score": kl_score,
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


class Zero:
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


@dataclass
class LossSums:
    """Cross-entropy of a changed model and KL(clean ‖ changed), summed over predictions, in nats."""

    ce: float = 0.0
    kl: float = 0.0

    def add(self, logits: Float[Tensor, "positions vocab"], clean: LogProbs, predictions: Predictions) -> None:
        """Count the predictions of one pass in.

        Args:
            logits: of the changed model, at all positions of a batch.
            clean: log-probabilities of the unchanged model, at the scored ones.
            predictions: which are scored.
        """
        for start, changed in _chunks(logits, predictions.positions):
            self.ce += cross_entropy(changed, predictions.targets[start : start + len(changed)])
            self.kl += kl_div(changed, clean[start : start + len(changed)], reduction="sum", log_target=True).item()


def flat_logits(
    lm: LanguageModel, batch: TokenBatch, *, autocast_dtype: torch.dtype | None
) -> Float[Tensor, "positions vocab"]:
    """The logits at all positions of a batch, in reading order."""
    # Without pads the mask is left out: attention takes its faster path.
    mask = None if bool(batch.attention_mask.all()) else batch.attention_mask
    autocast = nullcontext() if autocast_dtype is None else torch.autocast(lm.device.type, dtype=autocast_dtype)
    with autocast:
        return lm.logits(batch.input_ids.long(), attention_mask=mask).flatten(0, 1)


def log_probs_at(logits: Float[Tensor, "positions vocab"], positions: Int[Tensor, " predictions"]) -> LogProbs:
    """Log-softmax at some positions, in fp32."""
    found = torch.empty(len(positions), logits.shape[1], dtype=torch.float32, device=logits.device)
    for start, chunk in _chunks(logits, positions):
        found[start : start + len(chunk)] = chunk
    return found


def cross_entropy(log_probs: LogProbs, targets: Int[Tensor, " predictions"]) -> float:
    """Summed over the predictions, in nats."""
    return -log_probs.gather(1, targets.to(log_probs.device)[:, None]).sum().item()


def _chunks(
    logits: Float[Tensor, "positions vocab"], positions: Int[Tensor, " predictions"]
) -> Iterator[tuple[int, LogProbs]]:
    """Log-probabilities at some positions, in pieces, each with the number of its first prediction."""
    size = max(1, _SOFTMAX_BYTES // (4 * logits.shape[1]))
    for start in range(0, len(positions), size):
        part = positions[start : start + size].to(logits.device)
        yield start, log_softmax(logits[part].float(), dim=-1)


def pieces(batch: TokenBatch, *, vocabulary_size: int) -> Iterator[TokenBatch]:
    """The batch's sequences, so few at a time that their logits take 256 MB at most (one sequence at least)."""
    n_sequences, seq = batch.input_ids.shape
    size = max(1, _LOGITS_BYTES // (4 * vocabulary_size * seq))
    for start in range(0, n_sequences, size):
        part = slice(start, start + size)
        yield TokenBatch(batch.input_ids[part], batch.attention_mask[part], batch.is_row[part])
