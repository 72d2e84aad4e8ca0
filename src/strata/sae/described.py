"""What an SAE says of itself to SAEBench: the attributes and the names under which that looks for them."""

import re
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

_CONTEXT_TOKENS = 128  # what SAEBench itself evaluates on by default
_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


@dataclass
class SAEDescription:
    """An SAE's `cfg`. SAEBench adds attributes to it; nothing in the SAE depends on it.

    Attributes:
        model_name: of the language model; None for an SAE that was trained on bare tensors.
        d_in: width of the activations.
        d_sae: number of latents.
        hook_layer: the number of the block whose site is read; None where the site names none.
        hook_name: TransformerLens' name of the site, ``blocks.3.hook_resid_post``; else the site; None if unknown.
        architecture: SAELens' name of the gate: ``topk``, ``standard``, ``jumprelu``, ``gated``.
        dtype: of the weights, ``float32``.
        device: of the weights, ``cuda:0``.
        context_size: tokens of the sequences of training; 128 if they are unknown.
        prepend_bos: whether every sequence starts with BOS. Differs: SAEBench's own SAEs say True; Strata's sequences
            start as the tokenizer has them, which the SAELens folder states as False.
        hook_head_index: of a site that is one head; None for all others.
        normalize_activations: ``none``: the normalisation is folded into the weights.
        model_from_pretrained_kwargs: how the language model was loaded.
        dataset_path: the text that the SAE was trained on; empty if unknown.
        dataset_trust_remote_code: whether a dataset may run code of its own.
        seqpos_slice: the positions of a sequence that are read, as the arguments of `slice`.
    """

    model_name: str | None
    d_in: int
    d_sae: int
    hook_layer: int | None
    hook_name: str | None
    architecture: str
    dtype: str
    device: str
    context_size: int = _CONTEXT_TOKENS
    prepend_bos: bool = False
    hook_head_index: int | None = None
    normalize_activations: str = "none"
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[int | None, ...] = (None,)

    @classmethod
    def of(
        cls,
        metadata: dict[str, Any],
        *,
        d_in: int,
        d_sae: int,
        architecture: str,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "SAEDescription":
        """From an SAE's metadata and shapes; what the metadata does not say, or says as None, has its default."""
        hook_name = metadata.get("hook_name") or metadata.get("site")
        number = _NUMBER.search(str(hook_name))
        stated: dict[str, Any] = {
            "context_size": metadata.get("context_size"),
            "prepend_bos": metadata.get("prepend_bos"),
            "hook_head_index": metadata.get("hook_head_index"),
            "model_from_pretrained_kwargs": dict(metadata.get("model_from_pretrained_kwargs") or {}),
            "dataset_path": metadata.get("dataset_path"),
            "dataset_trust_remote_code": metadata.get("dataset_trust_remote_code"),
            "seqpos_slice": tuple(metadata.get("seqpos_slice") or ()) or None,
        }
        return cls(
            model_name=metadata.get("model_name"),
            d_in=d_in,
            d_sae=d_sae,
            hook_layer=int(number[1]) if number else None,
            hook_name=hook_name,
            architecture=architecture,
            dtype=_name(dtype),
            device=str(device),
            **{name: value for name, value in stated.items() if value is not None},
        )

    def follow(self, *, dtype: torch.dtype, device: torch.device) -> None:
        """The SAE has moved."""
        self.dtype, self.device = _name(dtype), str(device)

    def to_dict(self) -> dict[str, Any]:
        """The attributes above, JSON-able; not what others have added."""
        return asdict(self)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
