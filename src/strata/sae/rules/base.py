"""A learning rule: how an SAE with a certain gate is trained. What it looks at, its loss, and its gradients by hand.

A step is one dense product, the encoder's, and arithmetic on the entries that it finds (`kernels.entries`). No
autograd; `kernels.reference` says the same densely and judges it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from strata.config.train import SAEConfig
from strata.kernels.entries import DenseEntries, Entries, SparseEntries
from strata.kernels.gradient import Gradient, Part, RowGradient, total
from strata.sae.gates import Gate

Params = dict[str, Tensor]
PerEntry = Float[Tensor, "..."]

RECENT_ROWS = 8192  # from which thresholds of a finished SAE are taken; L0 of so many rows is known within 0.5 %


@dataclass(frozen=True)
class Batch:
    """Normalised rows of a step.

    Attributes:
        inputs: what the encoder multiplies, z − b_dec (a transcoder: z of the input site), [rows d_in].
        target: what code W_dec shall be, z − b_dec (a transcoder: of the target site, without the skip), [rows d_out].
        keep: 1 for a row that counts, 0 for an attention sink, [rows].
        n_kept: how many count, at least 1; of a piece of a batch, how many count in the whole.
        lengths: of each row how far it lies from the site's median row, over the usual distance.
    """

    inputs: Float[Tensor, "rows d_in"]
    target: Float[Tensor, "rows d_out"]
    keep: Float[Tensor, " rows"]
    n_kept: Float[Tensor, ""]
    lengths: Float[Tensor, " rows"]

    def slices(self, n_rows: int) -> "list[Batch]":
        """The batch in pieces of at most n_rows, which know how many rows count in the whole of it."""
        tensors = (self.inputs, self.target, self.keep, self.lengths)
        pieces = zip(*(torch.split(tensor, n_rows) for tensor in tensors), strict=True)
        return [Batch(inputs, target, keep, self.n_kept, lengths) for inputs, target, keep, lengths in pieces]

    @property
    def share(self) -> Float[Tensor, ""]:
        """What one squared error contributes to the loss: 1/(n_kept·d_out)."""
        return 1 / (self.n_kept * self.target.shape[1])


@dataclass(frozen=True)
class Outcome:
    """What a step found out.

    Attributes:
        entries: what it looked at.
        values: their values in the code.
        residual: target − code W_dec, 0 for rows that do not count, [rows d_out].
        loss: mean over the rows that count of ‖residual‖²/d_out.
        penalty: what the rule adds to it.
        d_rows: slope · d_rows is ∂(loss + penalty)/∂ẑ, [rows d_out]: b_dec's and the skip's gradients on the decoder's
            side. The residual itself, of most rules.
        slope: see d_rows.
        d_scores: sum over rows of ∂(loss + penalty)/∂(inputs W_encᵀ), [d_sae], for b_dec on the encoder's side.
        gradients: of W_enc, W_dec and the rule's own tensors; the two matrices' as what fired (`RowGradient`), where
            entries are listed.
    """

    entries: Entries
    values: PerEntry
    residual: Float[Tensor, "rows d_out"]
    loss: Float[Tensor, ""]
    penalty: Float[Tensor, ""]
    d_rows: Float[Tensor, "rows d_out"]
    slope: Float[Tensor, ""]
    d_scores: Float[Tensor, " d_sae"]
    gradients: dict[str, Gradient]


def joined(outcomes: list[Outcome]) -> Outcome:
    """The outcome of a batch from those of its pieces, in their order: every sum is taken in that order, so that it is
    the same bit for bit wherever the pieces were computed.
    """
    if len(outcomes) == 1:
        return outcomes[0]
    residual = torch.cat([one.residual for one in outcomes])
    same = all(one.d_rows is one.residual for one in outcomes)
    return Outcome(
        entries=_joined_entries([one.entries for one in outcomes]),
        values=torch.cat([one.values for one in outcomes]),
        residual=residual,
        loss=_added([one.loss for one in outcomes]),
        penalty=_added([one.penalty for one in outcomes]),
        d_rows=residual if same else torch.cat([one.d_rows for one in outcomes]),
        slope=outcomes[0].slope,
        d_scores=_added([one.d_scores for one in outcomes]),
        gradients={name: total([one.gradients[name] for one in outcomes]) for name in outcomes[0].gradients},
    )


def _joined_entries(pieces: list[Entries]) -> Entries:
    n_rows, d_sae = sum(one.n_rows for one in pieces), pieces[0].d_sae
    listed = [one for one in pieces if isinstance(one, SparseEntries)]
    if not listed:
        return DenseEntries(n_rows, d_sae, n_listed=sum(one.n_listed for one in pieces))
    firsts = accumulate((one.n_rows for one in listed), initial=0)
    rows = [one.rows + first for one, first in zip(listed, firsts, strict=False)]
    latents = torch.cat([one.latents for one in listed])
    return replace(listed[0], rows=torch.cat(rows), latents=latents, n_rows=n_rows)


def _added(tensors: list[Tensor]) -> Tensor:
    found = tensors[0]
    for one in tensors[1:]:
        found = found + one
    return found


class Rule(ABC):
    """How an SAE with a certain gate is trained; abstract.

    Args:
        config: of the SAE.
        d_sae: its latents.

    Attributes:
        bias: name of the tensor that is added to the scores before they are compared.
        n_recent_rows: how many of the last rows `finished` wants to see.
        makes_transcoders: whether it trains transcoders too.
        rates: of each own tensor, how many times as fast as the encoder it learns.
    """

    bias = "b_enc"
    rates: ClassVar[Mapping[str, float]] = {"b_enc": 10.0}
    n_recent_rows = 0
    makes_transcoders = True

    def __init__(self, config: SAEConfig, *, d_sae: int) -> None:
        self.config, self.k, self.d_sae = config, config.k, d_sae

    def own_tensors(self, start: Float[Tensor, ""]) -> Params:
        """The tensors beside W_enc, W_dec and b_dec at the start of training, [d_sae] each.

        Args:
            start: the score above which as many entries lie as k asks for, on a sample of the rows; above 0.
        """
        return {"b_enc": torch.zeros(self.d_sae, device=start.device)}

    def scaled(self, own: Params, factor: float | Tensor) -> Params:
        """The own tensors when all scores become `factor` times as large, and the code with them."""
        return {name: tensor * factor for name, tensor in own.items()}

    @abstractmethod
    def look(self, batch: Batch, params: Params, *, score_dtype: torch.dtype) -> tuple[PerEntry, Entries]:
        """The entries that matter in this step, and their pre-activations."""

    @abstractmethod
    def values(self, pre: PerEntry, entries: Entries, params: Params) -> PerEntry:
        """The code at the entries."""

    def step(self, batch: Batch, params: Params, *, score_dtype: torch.dtype) -> Outcome:
        """Loss and gradients of one batch."""
        pre, entries = self.look(batch, params, score_dtype=score_dtype)
        values = self.values(pre, entries, params) * entries.per_row(batch.keep)
        residual, dots = entries.residual(values, params["W_dec"], batch.target, batch.keep)
        return self.outcome(pre, values, (residual, dots), entries, batch=batch, params=params)

    def outcome(
        self,
        pre: PerEntry,
        values: PerEntry,
        left: tuple[Float[Tensor, "rows d_out"], PerEntry],
        entries: Entries,
        *,
        batch: Batch,
        params: Params,
    ) -> Outcome:
        """Loss and gradients of one batch whose code is known.

        Args:
            pre: pre-activations of the entries.
            values: their values in the code.
            left: the residual and its product with each entry's decoder row, as `entries.residual` gives them.
            entries: the list.
            batch: the rows.
            params: the weights.
        """
        residual, dots = left
        slope = -2 * batch.share  # of the loss, along the residual
        d_pre, own, penalty = self.backward(pre, values, dots * slope, entries, batch=batch, params=params)
        d_scores = entries.sum_by_latent(d_pre)
        return Outcome(
            entries=entries,
            values=values,
            residual=residual,
            loss=sum_of_squares(residual) * batch.share,
            penalty=penalty,
            d_rows=residual,
            slope=slope,
            d_scores=d_scores,
            gradients={
                "W_enc": weight_gradient(entries, d_pre, batch.inputs),
                self.bias: d_scores,
                "W_dec": weight_gradient(entries, values * slope, residual),
                **own,
            },
        )

    def backward(
        self, pre: PerEntry, values: PerEntry, d_values: PerEntry, entries: Entries, *, batch: Batch, params: Params
    ) -> tuple[PerEntry, Params, Float[Tensor, ""]]:
        """From the loss's gradient with respect to the code to that with respect to the pre-activations.

        Returns:
            ∂(loss + penalty)/∂pre, gradients of the own tensors but the bias, and the penalty.
        """
        return d_values * (values > 0), {}, torch.zeros_like(batch.n_kept)

    def after_step(self, outcome: Outcome, batch: Batch) -> None:
        """Note what the step found out, without waiting for the device."""
        return

    @abstractmethod
    def finished(self, params: Params, recent: Batch | None) -> tuple[Gate, Tensor]:
        """The gate for use, in normalised units, and the SAE's encoder bias.

        Args:
            params: the weights.
            recent: the last rows of the training, at most `n_recent_rows`; None where there are none yet.
        """

    @property
    def n_searched_per_row(self) -> float:
        """Entries that `finished` lists for each recent row, about; the memory of a training is counted by it."""
        return 0.0

    def from_gate(self, gate: Gate, b_enc: Tensor) -> Params | None:
        """The own tensors of a finished SAE in normalised units, for a warm start; None if its gate cannot be this
        rule's.
        """
        return {"b_enc": b_enc}

    def state(self) -> dict[str, Any]:
        """What must be in a checkpoint beside the tensors."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        return

    def description(self) -> dict[str, Any]:
        """What the finished SAE's metadata say of its training."""
        return {"training_architecture": self.config.architecture, "k": self.k}


def sum_of_squares(residual: Float[Tensor, "rows d_out"]) -> Float[Tensor, ""]:
    """Σ residual², in one pass."""
    flat = residual.view(-1)
    return torch.dot(flat, flat)


def weight_gradient(entries: Entries, amounts: PerEntry, inputs: Float[Tensor, "rows _"]) -> Gradient:
    """Σ over a latent's entries of amount · inputs[row]: as what fired, or as a matrix where everything does."""
    if isinstance(entries, SparseEntries):
        return RowGradient([Part(entries, amounts, inputs)])
    return entries.weight_gradient(amounts, inputs)


def all_entries(batch: Batch, params: Params, bias: str) -> tuple[Float[Tensor, "rows d_sae"], DenseEntries]:
    """Every pre-activation of a batch."""
    pre = torch.addmm(params[bias], batch.inputs, params["W_enc"].t())
    return pre, DenseEntries(*pre.shape)
