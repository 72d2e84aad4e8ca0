"""From the tensors of any format to an SAE and back: what other libraries do before or after the gate is folded in.

Every library computes gate((x − c) W_enc + b) W_dec + b_dec with c either b_dec or 0, and decoder rows of any norm.
Strata's SAE has c = b_dec, its transcoder c = 0, both rows of unit norm; the foldings here keep the function.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from strata.errors import UserError
from strata.sae.gates import GATES, Gate, Gated, JumpReLU, ReLU
from strata.sae.model import SAE, Transcoder

_LATENTS_AT_ONCE = 8192
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Form:
    """What the tensors of a file mean.

    Attributes:
        gate: SAELens' name of the nonlinearity: "standard", "topk", "jumprelu", "gated".
        centred: whether b_dec is subtracted from the input.
        is_transcoder: whether the output is another site's activations.
        skip: whether there is a skip connection.
        k: of "topk"; 0 for the others.
        selects_by_norm: whether pre-activations are multiplied by their decoder row's norm before the gate, and the
            decoder rows divided by it.
    """

    gate: str
    centred: bool
    is_transcoder: bool = False
    skip: bool = False
    k: int = 0
    selects_by_norm: bool = False

    def tensors(self) -> tuple[str, ...]:
        """The names of the tensors."""
        own = GATES[self.gate].tensors
        bias = () if "b_gate" in own else ("b_enc",)
        return ("W_enc", *bias, "W_dec", "b_dec", *own, *(("W_skip",) if self.skip else ()))


def assemble(tensors: dict[str, Tensor], form: Form, *, metadata: dict[str, Any], source: Path) -> SAE:
    """The SAE or transcoder that computes the same function of raw activations.

    Decoder rows get unit norm, but for a TopK SAE that selects by its bare pre-activations: which are the k largest
    would change, so its rows stay as they are.

    Args:
        tensors: SAELens' names and shapes: W_enc [d_in d_sae], b_enc [d_sae] (b_gate for "gated"), W_dec [d_sae d_out],
            b_dec [d_out], W_skip [d_out d_in] if there is one, and the gate's.
        form: what they mean.
        metadata: of the SAE.
        source: the file, for errors.

    Raises:
        UserError: a tensor is missing, unknown, of another shape or kind than the others demand, or k is impossible.
    """
    _check(tensors, form, source)
    dtype, bias = tensors["W_enc"].dtype, "b_gate" if form.gate == "gated" else "b_enc"
    weights = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    if form.centred == form.is_transcoder:
        shift = _through_encoder(weights["b_dec"], weights["W_enc"])
        _add_to_pre(weights, bias, -shift if form.centred else shift)
    _fold_norms(weights, form)
    gate = GATES[form.gate].of(weights, k=form.k)
    # The layout in which encoding reads it, as a trained SAE has it: [d_sae d_in], transposed.
    W_enc = weights["W_enc"].t().contiguous().t()
    rest: dict[str, Any] = {
        "b_enc": weights[bias], "W_dec": weights["W_dec"].contiguous(), "b_dec": weights["b_dec"], "gate": gate,
        "metadata": metadata,
    }  # fmt: skip
    if form.is_transcoder:
        return Transcoder(W_enc=W_enc, W_skip=weights.get("W_skip"), **rest)
    return SAE(W_enc=W_enc, **rest)


def as_jumprelu(sae: SAE) -> SAE:
    """The same function with a JumpReLU gate; the SAE itself if it has one.

    A Gated SAE fires where u W_enc > −b_gate, with the value relu(e^r (u W_enc) + b_mag): that is JumpReLU on
    pre = u (W_enc e^r) + b_mag with the threshold b_mag − e^r b_gate (Rajamanoharan et al. 2024a).

    Raises:
        UserError: a TopK gate, whose threshold differs from row to row.
    """
    gate = sae.gate
    if isinstance(gate, JumpReLU):
        return sae
    if isinstance(gate, Gated):
        gain = gate.r_mag.exp()
        threshold = (gate.b_mag - gain * gate.b_gate).relu()
        return _with_gate(sae, JumpReLU(threshold), W_enc=sae.W_enc * gain, b_enc=gate.b_mag)
    if isinstance(gate, ReLU):
        return _with_gate(sae, JumpReLU(torch.zeros_like(sae.b_enc)), W_enc=sae.W_enc, b_enc=sae.b_enc)
    others = "'sparsify'" if isinstance(sae, Transcoder) else "'saelens', 'sparsify' or 'dictionary_learning'"
    raise UserError(
        "A TopK gate has no thresholds, so that this format cannot hold it. Got architecture 'topk'."
        f" Give format {others}."
    )


def uncentred_bias(sae: SAE) -> Float[Tensor, " d_sae"]:
    """The bias of the form in which b_dec is not subtracted from the input: x W_enc + this."""
    if isinstance(sae, Transcoder):
        return sae.b_enc.detach()
    return (sae.b_enc - _through_encoder(sae.b_dec, sae.W_enc)).to(sae.dtype).detach()


def as_dtype(sae: SAE, dtype: torch.dtype) -> SAE:
    """A copy with weights of another kind of number.

    Raises:
        UserError: a weight is too large for it.
    """
    if sae.dtype == dtype:
        return sae
    other = copy.deepcopy(sae).to(dtype)
    too_large = [name for name, tensor in other.state_dict().items() if not bool(tensor.isfinite().all())]
    if too_large:
        name = str(dtype).removeprefix("torch.")
        raise UserError(f"`dtype` must hold every weight. {', '.join(too_large)} is too large for {name}. Give bf16.")
    return other


def _with_gate(sae: SAE, gate: Gate, *, W_enc: Tensor, b_enc: Tensor) -> SAE:
    weights: dict[str, Any] = {
        "W_enc": W_enc.detach(), "b_enc": b_enc.detach(), "W_dec": sae.W_dec.detach(), "b_dec": sae.b_dec.detach(),
        "gate": gate, "metadata": sae.metadata,
    }  # fmt: skip
    if isinstance(sae, Transcoder):
        return Transcoder(W_skip=None if sae.W_skip is None else sae.W_skip.detach(), **weights)
    return SAE(**weights)


def _through_encoder(x: Float[Tensor, " d_in"], W_enc: Float[Tensor, "d_in d_sae"]) -> Float[Tensor, " d_sae"]:
    """`x` W_enc in float64: the sum cancels. In blocks: the whole encoder in float64 may not fit."""
    x = x.detach().double()
    return torch.cat([x @ block.detach().double() for block in torch.split(W_enc, _LATENTS_AT_ONCE, dim=1)])


def _add_to_pre(weights: dict[str, Tensor], bias: str, shift: Float[Tensor, " d_sae"]) -> None:
    """Add to what the encoder's product gives, in every path that it takes."""
    weights[bias] = (weights[bias] + shift).to(weights[bias].dtype)
    if "r_mag" in weights:
        weights["b_mag"] = (weights["b_mag"] + weights["r_mag"].double().exp() * shift).to(weights["b_mag"].dtype)


def _fold_norms(weights: dict[str, Tensor], form: Form) -> None:
    """Unit decoder rows; every bias and threshold takes the row's norm (r_mag, a ratio, does not)."""
    if form.gate == "topk" and not form.selects_by_norm:
        return
    dtype = weights["W_dec"].dtype
    norms = cast(Tensor, torch.linalg.vector_norm(weights["W_dec"].float(), dim=1))
    tolerance = 1e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-5
    if not form.selects_by_norm:
        if bool(((norms - 1).abs() <= tolerance).all()):
            return  # bit by bit what was saved
        norms = norms.where(norms > 0, torch.ones_like(norms))  # a row of zeros stays one
    for name in ("W_enc", "b_enc", "threshold", "b_gate", "b_mag"):
        if name in weights:
            weights[name] = (weights[name] * norms).to(dtype)
    divisor = norms.where(norms > 0, torch.ones_like(norms)).unsqueeze(1)
    weights["W_dec"] = (weights["W_dec"] / divisor).to(dtype)


def _check(tensors: dict[str, Tensor], form: Form, source: Path) -> None:
    wanted = form.tensors()
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise UserError(f"{source} must hold the tensors {', '.join(wanted)}. Missing: {', '.join(missing)}.")
    unknown = [name for name in tensors if name not in wanted]
    if unknown:
        raise UserError(
            f"{source} must hold the tensors {', '.join(wanted)} only. Got also {', '.join(unknown)}, which would"
            " change what it computes. Open it with the library that wrote it."
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{source} must hold floating-point tensors. {name} is {kind}. Write the SAE again.")
    _check_shapes(tensors, source)
    if form.gate == "topk" and not 1 <= form.k <= tensors["W_dec"].shape[0]:
        d_sae = tensors["W_dec"].shape[0]
        raise UserError(f"k must be in [1, d_sae]. {source.parent} has k={form.k} with d_sae={d_sae}. Mend its k.")


def _check_shapes(tensors: dict[str, Tensor], source: Path) -> None:
    if any(tensors[name].ndim != 2 for name in ("W_enc", "W_dec")):
        raise UserError(f"{source} must hold matrices W_enc and W_dec. They are not. Write the SAE again.")
    (d_in, d_sae), d_out = tensors["W_enc"].shape, tensors["W_dec"].shape[1]
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,), "W_skip": (d_out, d_in)}
    for name, tensor in tensors.items():
        wanted = shapes.get(name, (d_sae,))
        if tuple(tensor.shape) != wanted:
            raise UserError(
                f"{source}: {name} must have the shape {list(wanted)} beside W_enc {[d_in, d_sae]} and W_dec"
                f" {list(tensors['W_dec'].shape)}. It has {list(tensor.shape)}. Write the SAE again."
            )
