"""Gates: the nonlinearity that turns pre-activations into a sparse code, as a trained SAE has it.

How a gate is trained stands in `sae/rules/`: BatchTopK and Matryoshka SAEs become JumpReLU ones when they are finished.
A new gate is a class here and a row in GATES, by which files are read.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from strata.kernels import select
from strata.kernels.entries import SparseEntries
from strata.shapes import SparseCode

PerLatent = Float[Tensor, " d_sae"]


class Gate(nn.Module):
    """A nonlinearity with its own tensors, if any; abstract.

    Attributes:
        architecture: SAELens' name of it.
        tensors: names of the gate's own tensors, [d_sae] each, in SAELens' words.
    """

    architecture: str
    tensors: tuple[str, ...] = ()

    @abstractmethod
    def dense(self, pre: Float[Tensor, "*rows d_sae"]) -> Float[Tensor, "*rows d_sae"]:
        """The code of all pre-activations at once, differentiable."""

    @abstractmethod
    def select(self, u: Float[Tensor, "rows d_in"], W_enc: Float[Tensor, "d_sae d_in"], b_enc: PerLatent) -> SparseCode:
        """The code of u W_encᵀ + b_enc, without gradient and without an array of [rows d_sae]; padded with zeros to
        the longest row.
        """

    def scaled(self, factor: float) -> "Gate":
        """The gate for pre-activations and codes that are `factor` (above 0) times as large. Copies."""
        return self

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], *, k: int) -> "Gate":
        """The gate that a file holds: its `tensors` by name, and k of a gate that has one."""
        return cls()

    def description(self) -> dict[str, Any]:
        """What a file format needs to know beside the tensors."""
        return {"architecture": self.architecture}


class TopK(Gate):
    """ReLU of the k largest pre-activations of a row (Gao et al. 2024, section 2.2).

    Args:
        k: entries kept per row. Rows with fewer than k positive pre-activations have zeros among them.
    """

    architecture = "topk"

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def extra_repr(self) -> str:
        """What `print` says of it."""
        return f"k={self.k}"

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], *, k: int) -> "TopK":
        """From k alone."""
        return cls(k)

    def dense(self, pre: Float[Tensor, "*rows d_sae"]) -> Float[Tensor, "*rows d_sae"]:
        """The code of all pre-activations at once, differentiable."""
        top = pre.topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())

    def select(self, u: Float[Tensor, "rows d_in"], W_enc: Float[Tensor, "d_sae d_in"], b_enc: PerLatent) -> SparseCode:
        """The code of u W_encᵀ + b_enc with k entries per row."""
        pre, indices = select.select_topk(u, W_enc, b_enc, self.k, score_dtype=u.dtype)
        return SparseCode(pre.relu(), indices, len(W_enc))

    def description(self) -> dict[str, Any]:
        """The name and k."""
        return {"architecture": self.architecture, "k": self.k}


class ReLU(Gate):
    """max(pre, 0): the gate of SAELens' "standard" SAEs (Bricken et al. 2023)."""

    architecture = "standard"

    def floor(self) -> PerLatent | float:
        """What a pre-activation must be above for its latent to fire."""
        return 0.0

    def dense(self, pre: Float[Tensor, "*rows d_sae"]) -> Float[Tensor, "*rows d_sae"]:
        """The code of all pre-activations at once, differentiable."""
        return pre.relu()

    def values(self, pre: Float[Tensor, " entries"], latents: Int[Tensor, " entries"]) -> Float[Tensor, " entries"]:
        """The values of entries above the floor."""
        return pre

    def select(self, u: Float[Tensor, "rows d_in"], W_enc: Float[Tensor, "d_sae d_in"], b_enc: PerLatent) -> SparseCode:
        """The code of u W_encᵀ + b_enc: the entries above the floor."""
        pre, entries = select.select_above(u, W_enc, b_enc, self.floor(), score_dtype=u.dtype)
        return padded(self.values(pre, entries.latents), entries)


class JumpReLU(ReLU):
    """pre where it is above its latent's threshold, else 0 (Rajamanoharan et al. 2024b).

    Args:
        threshold: [d_sae], ≥ 0, in the units of the pre-activations.
    """

    architecture = "jumprelu"
    tensors = ("threshold",)

    def __init__(self, threshold: PerLatent) -> None:
        super().__init__()
        self.threshold = nn.Parameter(threshold, requires_grad=False)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], *, k: int) -> "JumpReLU":
        """From its thresholds."""
        return cls(tensors["threshold"])

    def floor(self) -> PerLatent:
        """The threshold; 0 where it is below."""
        return self.threshold.relu()

    def dense(self, pre: Float[Tensor, "*rows d_sae"]) -> Float[Tensor, "*rows d_sae"]:
        """The code of all pre-activations at once, differentiable with respect to pre."""
        return pre * (pre > self.floor())

    def scaled(self, factor: float) -> "JumpReLU":
        """Thresholds grow with the pre-activations."""
        return JumpReLU(self.threshold * factor)


class Gated(ReLU):
    """Latents fire where pre > 0, with the value relu(exp(r_mag)·(pre − b_gate) + b_mag) (Rajamanoharan et al. 2024a).

    The SAE's `b_enc` is `b_gate`: pre is the gate's own pre-activation.

    Args:
        r_mag: [d_sae], logarithm of the magnitude path's gain.
        b_mag: [d_sae], its bias.
        b_gate: [d_sae], the same as the SAE's `b_enc`.
    """

    architecture = "gated"
    tensors = ("r_mag", "b_mag", "b_gate")

    def __init__(self, *, r_mag: PerLatent, b_mag: PerLatent, b_gate: PerLatent) -> None:
        super().__init__()
        self.r_mag = nn.Parameter(r_mag, requires_grad=False)
        self.b_mag = nn.Parameter(b_mag, requires_grad=False)
        self.b_gate = nn.Parameter(b_gate, requires_grad=False)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], *, k: int) -> "Gated":
        """From its three; `b_gate` is copied, for the SAE has it too."""
        return cls(r_mag=tensors["r_mag"], b_mag=tensors["b_mag"], b_gate=tensors["b_gate"].clone())

    def dense(self, pre: Float[Tensor, "*rows d_sae"]) -> Float[Tensor, "*rows d_sae"]:
        """The code of all pre-activations at once, differentiable with respect to pre."""
        return (pre > 0) * (self.r_mag.exp() * (pre - self.b_gate) + self.b_mag).relu()

    def scaled(self, factor: float) -> "Gated":
        """Biases grow with the pre-activations, the gain stays."""
        return Gated(r_mag=self.r_mag.clone(), b_mag=self.b_mag * factor, b_gate=self.b_gate * factor)

    def values(self, pre: Float[Tensor, " entries"], latents: Int[Tensor, " entries"]) -> Float[Tensor, " entries"]:
        """The magnitudes of entries above the gate's floor; some of them are 0."""
        return (self.r_mag[latents].exp() * (pre - self.b_gate[latents]) + self.b_mag[latents]).relu_()


GATES: dict[str, type[Gate]] = {gate.architecture: gate for gate in (TopK, ReLU, JumpReLU, Gated)}


def padded(values: Float[Tensor, " entries"], entries: SparseEntries) -> SparseCode:
    """A list of entries as a code with as many places per row as the longest one needs; 0 in those that are unused."""
    counts = torch.bincount(entries.rows, minlength=entries.n_rows)
    width = max(1, int(counts.max())) if entries.n_rows else 1
    places = torch.arange(len(entries.rows), device=values.device) - (counts.cumsum(0) - counts)[entries.rows]
    where = entries.rows * width + places
    shape = (entries.n_rows, width)
    code = values.new_zeros(shape)
    indices = torch.zeros(shape, dtype=torch.int64, device=values.device)
    code.view(-1)[where] = values
    indices.view(-1)[where] = entries.latents
    return SparseCode(code, indices, entries.d_sae)
