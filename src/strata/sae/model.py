"""The sparse autoencoder as it is used: weights in the language model's own scale, encode and decode."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from strata.errors import UserError
from strata.kernels.entries import SparseEntries
from strata.sae.described import SAEDescription
from strata.sae.gates import Gate, Gated, TopK
from strata.shapes import SparseCode


class SAE(nn.Module):
    """A sparse autoencoder on raw activations: code = gate((x − b_dec) W_enc + b_enc), x̂ = code W_dec + b_dec.

    The normalisation of training is folded into the biases (`strata.sae.folding`), so that nothing but these tensors is
    needed. Decoder rows have unit norm. Parameters do not require gradients; to fine-tune use ``strata.Trainer(config,
    init=sae)``.

    Attributes:
        W_enc: [d_in d_sae].
        b_enc: [d_sae].
        W_dec: [d_sae d_in], rows are feature directions.
        b_dec: [d_in].
        gate: the nonlinearity.
        metadata: where the SAE comes from (model, site, run), JSON-able; saved with it.
    """

    def __init__(
        self,
        *,
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_out"],
        b_dec: Float[Tensor, " d_out"],
        gate: Gate,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.W_enc = nn.Parameter(W_enc, requires_grad=False)
        self.b_enc = nn.Parameter(b_enc, requires_grad=False)
        self.W_dec = nn.Parameter(W_dec, requires_grad=False)
        self.b_dec = nn.Parameter(b_dec, requires_grad=False)
        self.gate = gate
        self.metadata = dict(metadata or {})

    def extra_repr(self) -> str:
        """What `print(sae)` says beside the gate."""
        site = self.metadata.get("site")
        return f"d_in={self.d_in}, d_sae={self.d_sae}" + (f", site={site!r}" if site else "")

    @property
    def d_in(self) -> int:
        """Width of the activations that are read."""
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        """Width of the activations that are reconstructed: d_in, but for a transcoder."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and of what encode and decode return."""
        return self.W_enc.dtype

    @cached_property
    def cfg(self) -> SAEDescription:
        """What SAEBench reads: names and sizes, from the weights and the metadata. Made when first asked for; then it
        is the caller's to extend, and only its dtype and device follow the SAE.
        """
        return SAEDescription.of(
            self.metadata,
            d_in=self.d_in,
            d_sae=self.d_sae,
            architecture=self.gate.architecture,
            dtype=self.dtype,
            device=self.device,
        )

    @property
    def b_mag(self) -> Float[Tensor, " d_sae"]:
        """The bias of a Gated SAE's values, by the name under which SAEBench looks for it.

        Raises:
            AttributeError: another gate has none.
        """
        if isinstance(self.gate, Gated):
            return self.gate.b_mag
        raise AttributeError("b_mag")

    def encode(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_sae"]:
        """Latents of x, dense, of any leading shape; differentiable with respect to x."""
        self._check_width(x, self.d_in, "Activations")
        if isinstance(self.gate, TopK) and not self._needs_gradient(x):
            return self.encode_sparse(x).dense()
        return self.gate.dense(self._shifted(x.to(self.dtype)) @ self.W_enc + self.b_enc)

    @torch.no_grad()
    def encode_sparse(self, x: Float[Tensor, "*rows d_in"]) -> SparseCode:
        """The same latents as (values, indices), [*rows k] each, without holding [rows d_sae]; no gradient.

        k is the gate's for TopK and as many as the fullest of these rows has for the other gates.
        """
        self._check_width(x, self.d_in, "Activations")
        flat = self._shifted(x.reshape(-1, self.d_in).to(self.dtype))
        code = self.gate.select(flat, self.W_enc.t().contiguous(), self.b_enc)
        shape = (*x.shape[:-1], code.values.shape[-1])
        return SparseCode(code.values.view(shape), code.indices.view(shape), code.d_sae)

    def decode(self, latents: Float[Tensor, "*rows d_sae"] | SparseCode) -> Float[Tensor, "*rows d_out"]:
        """Reconstruction from dense latents or from a sparse code."""
        if isinstance(latents, SparseCode):
            self._check_width(latents, self.d_sae, "A code")
            k = latents.values.shape[-1]
            entries = SparseEntries.of_topk(latents.indices.reshape(-1, k), self.d_sae)
            flat = entries.decode(latents.values.reshape(-1), self.W_dec)
            return flat.view(*latents.values.shape[:-1], self.d_out) + self.b_dec
        self._check_width(latents, self.d_sae, "Latents")
        return latents @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """Reconstruction of x."""
        return self.decode(self.encode(x) if self._needs_gradient(x) else self.encode_sparse(x))

    def save(self, folder: str | Path) -> None:
        """Write the SAE as a folder that SAELens opens (see strata.formats.native)."""
        from strata.formats import native

        native.save(self, Path(folder))

    @staticmethod
    def load(folder: str | Path) -> "SAE":
        """Read an SAE or transcoder from a folder that `save` or SAELens wrote (see strata.formats.native).

        Raises:
            UserError: the folder or a file in it is missing, damaged, or of an unknown architecture.
        """
        from strata.formats import native

        return native.load(Path(folder))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SAE":
        """What `to`, `half`, `cuda` and the like do to every tensor."""
        super()._apply(fn, recurse)
        if isinstance(described := self.__dict__.get("cfg"), SAEDescription):
            described.follow(dtype=self.dtype, device=self.device)
        return self

    def _shifted(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_in"]:
        """What the encoder multiplies."""
        return x - self.b_dec

    def _needs_gradient(self, x: Tensor) -> bool:
        return torch.is_grad_enabled() and (x.requires_grad or self.W_enc.requires_grad)

    def _check_width(self, given: Tensor | SparseCode, width: int, what: str) -> None:
        found = given.d_sae if isinstance(given, SparseCode) else given.shape[-1]
        if found != width:
            raise UserError(
                f"{what} must have {width} entries in the last dimension for an SAE with d_in={self.d_in} and"
                f" d_sae={self.d_sae}. Got {found}. Was the SAE trained at another site or model?"
            )


class Transcoder(SAE):
    """An SAE that predicts the activations of another site: code = gate(x W_enc + b_enc), ŷ = code W_dec + b_dec + x
    W_skipᵀ (Dunefsky et al. 2024; the skip connection: Paulo et al. 2025).

    Attributes:
        W_skip: [d_out d_in], or None without skip connection.
    """

    def __init__(self, *, W_skip: Float[Tensor, "d_out d_in"] | None = None, **weights: Any) -> None:
        super().__init__(**weights)
        self.W_skip = None if W_skip is None else nn.Parameter(W_skip, requires_grad=False)

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """Prediction of the target site's activations from x."""
        y = super().forward(x)
        return y if self.W_skip is None else y + x.to(self.dtype) @ self.W_skip.t()

    def _shifted(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_in"]:
        return x
