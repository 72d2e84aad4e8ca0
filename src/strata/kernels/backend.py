"""Which kernels do the work on a device: C++ on a CPU, Triton on CUDA, PyTorch wherever neither can."""

import functools
import os
from types import ModuleType
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.errors import UserError
from strata.kernels.operands import (
    AdamRows,
    Bias,
    ByLatent,
    LatentStarts,
    PerEntry,
    Places,
    Rows,
    RowStarts,
    Weight,
    WholeRows,
)

_CHOICES = ("auto", "pytorch", "native", "triton")


@runtime_checkable
class Kernels(Protocol):
    """What a module of kernels can do. All floating-point tensors are fp32 and contiguous, all numbers of rows and
    latents int64. Entries are listed in the order of their rows; `starts[row]` is the first one's place.

    The dense oracle (`reference`) judges every implementation through the steps that use it.
    """

    def topk(
        self, z: Rows, W_enc: Weight, bias: Bias, k: int, *, score_dtype: torch.dtype
    ) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
        """The k largest pre-activations z·W_encᵀ + bias of every row, in no particular order, and their latents,
        without holding [rows d_sae].

        With `score_dtype` below fp32 (bf16, int8) the winners are found by scores of that precision and computed again
        in fp32.
        """
        ...

    def product(self, z: Rows, W_enc: Weight, bias: Bias, *, score_dtype: torch.dtype) -> None:
        """The scores that `topk` would look at, looked at by nobody: the floor of a step, for measurements."""
        ...

    def above(
        self, z: Rows, W_enc: Weight, bias: Bias, floor: Float[Tensor, "..."], *, score_dtype: torch.dtype
    ) -> tuple[PerEntry, Places, Places]:
        """All pre-activations above a floor, one for all latents (0-d) or one for each ([d_sae]), with their rows and
        latents, ordered by row, then latent.
        """
        ...

    def decode(
        self, values: PerEntry, latents: Places, starts: RowStarts, weight: Weight
    ) -> Float[Tensor, "rows d_in"]:
        """Σ over a row's entries of value · weight[latent]."""
        ...

    def residual(
        self,
        values: PerEntry,
        rows: Places,
        latents: Places,
        starts: RowStarts,
        weight: Weight,
        target: Rows,
        keep: Float[Tensor, " rows"],
    ) -> tuple[Rows, PerEntry]:
        """(target − decoded) · keep, and of every entry ⟨its row of that, weight[latent]⟩."""
        ...

    def dot(
        self, a: Float[Tensor, "bags d"], bags: Places, weight: Float[Tensor, "d_sae d"], latents: Places
    ) -> PerEntry:
        """⟨a[bag], weight[latent]⟩ of every entry."""
        ...

    def by_latent(self, latents: Places, d_sae: int) -> tuple[Places, LatentStarts]:
        """The entries' places in the order of their latents (those of one latent in the list's order), and where each
        latent's begin, with the end: [d_sae + 1].
        """
        ...

    def row_sums(self, listed: ByLatent) -> Float[Tensor, "d_sae d"]:
        """Σ over each latent's entries of amount · inputs[row]."""
        ...

    def adam_rows_(
        self,
        held: AdamRows,
        listed: ByLatent,
        beside: WholeRows,
        *,
        rate: Float[Tensor, ""],
        step: Int[Tensor, ""],
    ) -> None:
        """One step of Adam (β 0.9 and 0.999, ε 1e-8) on the rows of a weight that have a gradient, in one pass and in
        place: `sae.row_adam` says what it computes.

        Args:
            held: the weight and its moments.
            listed: the gradient, by latent.
            beside: whole rows of gradient that are added to it.
            rate: learning rate, 0-d on the device.
            step: number of this step, from 1 (int32, 0-d on the device).
        """
        ...


def kernels(device: torch.device) -> Kernels:
    """The kernels for tensors on a device. STRATA_KERNELS=pytorch (native, triton) names others than the fastest."""
    return cast(Kernels, _module(os.environ.get("STRATA_KERNELS", "auto"), device.type))


def score_dtype(device: torch.device) -> torch.dtype:
    """The precision in which a device selects winners in training: int8 where the C++ kernels have instructions for
    it, bf16 on CUDA devices that multiply that fast, else fp32.
    """
    if device.type == "cpu" and _module(os.environ.get("STRATA_KERNELS", "auto"), "cpu").__name__.endswith("native"):
        from strata.kernels import native

        return torch.int8 if native.has_int8() else torch.float32
    return (
        torch.bfloat16
        if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        else torch.float32
    )


@functools.cache
def _module(choice: str, device_type: str) -> ModuleType:
    from strata.kernels import pytorch

    if choice not in _CHOICES:
        raise UserError(
            f"`STRATA_KERNELS` must be one of {', '.join(_CHOICES)}. Got {choice!r}. Unset it for the fastest."
        )
    if choice == "native" or (choice == "auto" and device_type == "cpu"):
        from strata.kernels import native

        if native.available():
            return native
        if choice == "native":
            raise UserError(f"`STRATA_KERNELS`=native needs a C++ compiler. {native.why_not()} Unset it.")
    if choice == "triton" or (choice == "auto" and device_type == "cuda"):
        from strata.kernels import triton

        if triton.available():
            return triton
        if choice == "triton":
            raise UserError(
                "`STRATA_KERNELS`=triton needs the extra `triton` (pip install 'strata-sae[triton]'). Unset it."
            )
    return pytorch
