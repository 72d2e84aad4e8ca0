"""A learning rule: how an SAE with a certain gate is trained. What it looks at, its loss, and its gradients by hand.

A step is one dense product, the encoder's, and arithmetic on the entries that it finds (`kernels.entries`). No
autograd; `kernels.reference` says the same densely and judges it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.config import SAEConfig
from strata.kernels.entries import DenseEntries, Entries
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
        n_kept: how many count, at least 1.
        lengths: of each row how far it lies from the site's median row, over the usual distance.
    """

    inputs: Float[Tensor, "rows d_in"]
    target: Float[Tensor, "rows d_out"]
    keep: Float[Tensor, " rows"]
    n_kept: Float[Tensor, ""]
    lengths: Float[Tensor, " rows"]

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
        d_output: ∂(loss + penalty)/∂ẑ, [rows d_out]: b_dec's and the skip's gradients on the decoder's side.
        d_scores: sum over rows of ∂(loss + penalty)/∂(inputs W_encᵀ), [d_sae], for b_dec on the encoder's side.
        gradients: of W_enc, W_dec and the rule's own tensors.
    """

    entries: Entries
    values: PerEntry
    residual: Float[Tensor, "rows d_out"]
    loss: Float[Tensor, ""]
    penalty: Float[Tensor, ""]
    d_output: Float[Tensor, "rows d_out"]
    d_scores: Float[Tensor, " d_sae"]
    gradients: Params


class Rule(ABC):
    """How an SAE with a certain gate is trained; abstract.

    Args:
        config: of the SAE.
        d_sae: its latents.

    Attributes:
        bias: name of the tensor that is added to the scores before they are compared.
        n_recent_rows: how many of the last rows `finished` wants to see.
    """

    bias = "b_enc"
    n_recent_rows = 0

    def __init__(self, config: SAEConfig, *, d_sae: int) -> None:
        self.config, self.k, self.d_sae = config, config.k, d_sae

    def own_tensors(self, start: Float[Tensor, ""]) -> Params:
        """The tensors beside W_enc, W_dec and b_dec at the start of training, [d_sae] each.

        Args:
            start: the score above which as many entries lie as k asks for, on a sample of the rows.
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
        residual = (batch.target - entries.decode(values, params["W_dec"])) * batch.keep.unsqueeze(1)
        d_output = residual * (-2 * batch.share)
        d_values = entries.dot(d_output, params["W_dec"])
        d_pre, own, penalty = self.backward(pre, values, d_values, entries, batch=batch, params=params)
        d_scores = entries.sum_by_latent(d_pre)
        return Outcome(
            entries=entries,
            values=values,
            residual=residual,
            loss=residual.square().sum() * batch.share,
            penalty=penalty,
            d_output=d_output,
            d_scores=d_scores,
            gradients={
                "W_enc": entries.weight_gradient(d_pre, batch.inputs),
                self.bias: d_scores,
                "W_dec": entries.weight_gradient(values, d_output),
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


def all_entries(batch: Batch, params: Params, bias: str) -> tuple[Float[Tensor, "rows d_sae"], DenseEntries]:
    """Every pre-activation of a batch."""
    pre = torch.addmm(params[bias], batch.inputs, params["W_enc"].t())
    return pre, DenseEntries(*pre.shape)
