"""Gates: the nonlinearity that turns pre-activations into a sparse code. A new gate is a class here and a row in
GATES.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.errors import UserError, did_you_mean
from strata.kernels import pytorch as kernels
from strata.shapes import SparseCode


@dataclass(frozen=True)
class TopK:
    """ReLU of the k largest pre-activations of a row (Gao et al. 2024, section 2.2).

    Attributes:
        k: entries kept per row. Rows with fewer than k positive pre-activations have zeros among them.
    """

    k: int
    architecture = "topk"

    def select(
        self,
        z: Float[Tensor, "rows d_in"],
        W_enc: Float[Tensor, "d_sae d_in"],
        bias: Float[Tensor, " d_sae"],
        *,
        score_dtype: torch.dtype = torch.float32,
    ) -> SparseCode:
        """The code of z without gradient and without an array of [rows d_sae].

        Args:
            z: inputs, fp32.
            W_enc: the encoder, a row per latent.
            bias: its bias, the decoder's folded in.
            score_dtype: precision in which the winners are chosen; their values are always fp32.
        """
        pre, indices = kernels.select_topk(z, W_enc, bias, self.k, score_dtype=score_dtype)
        return SparseCode(pre.relu(), indices, len(W_enc))

    def dense(self, pre: Float[Tensor, "*rows d_sae"]) -> Float[Tensor, "*rows d_sae"]:
        """The gate on all pre-activations at once, differentiable."""
        top = pre.topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())

    def description(self) -> dict[str, Any]:
        """What a file format needs to know beside the tensors."""
        return {"architecture": self.architecture, "k": self.k}


GATES = {"topk": TopK}


def make_gate(architecture: str, *, k: int) -> TopK:
    """The gate of this name.

    Raises:
        UserError: no gate is called that.
    """
    if architecture not in GATES:
        raise UserError(f"`SAEConfig.architecture` is unknown: {architecture!r}.{did_you_mean(architecture, GATES)}")
    return GATES[architecture](k)
