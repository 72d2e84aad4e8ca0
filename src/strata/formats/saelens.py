"""SAELens' folder format (version 6): cfg.json and sae_weights.safetensors. It is Strata's own format too.

`sae_lens.SAE.load_from_disk` opens a folder written here and computes the same function of raw activations:
normalisation is folded in (`normalize_activations` "none"), decoder rows have unit norm (so
`rescale_acts_by_decoder_norm` is false), `apply_b_dec_to_input` is true.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from strata.errors import UserError
from strata.sae.gates import make_gate
from strata.sae.model import SAE

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_FORMAT_VERSION = "6.0.0"  # of the format written here: SAELens reads the nested metadata from 6.0.0 on
_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")


def save(sae: SAE, folder: Path) -> None:
    """Write the folder; files of the same name in it are replaced.

    Args:
        sae: any SAE whose gate SAELens knows; its `metadata` goes under cfg.json's `metadata`.
        folder: made with its parents if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: getattr(sae, name).detach().cpu().contiguous() for name in _TENSORS}
    save_file(tensors, str(folder / WEIGHTS))
    (folder / CONFIG).write_text(json.dumps(_config(sae), indent=2) + "\n", encoding="utf-8")


def _config(sae: SAE) -> dict[str, Any]:
    return {
        **sae.gate.description(),
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(sae.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "rescale_acts_by_decoder_norm": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": _FORMAT_VERSION,
            "sae_lens_training_version": None,
            "model_from_pretrained_kwargs": {},
            "prepend_bos": False,
            **sae.metadata,
        },
    }


def load(folder: Path) -> SAE:
    """Read a TopK SAE from a folder in this format, also one that SAELens wrote.

    Raises:
        UserError: a missing or damaged file, another architecture, or settings under which the tensors mean something
            else.
    """
    config = _read_config(folder)
    tensors = _read_tensors(folder)
    _check(config, folder)
    dtype = getattr(torch, str(config["dtype"]).removeprefix("torch."))
    weights = {name: tensors[name].to(dtype) for name in _TENSORS}
    if not config.get("apply_b_dec_to_input", True):
        # pre = x W_enc + b_enc  =  (x − b_dec) W_enc + (b_enc + b_dec W_enc)
        weights["b_enc"] = weights["b_enc"] + weights["b_dec"] @ weights["W_enc"]
    if config.get("rescale_acts_by_decoder_norm"):
        norms = weights["W_dec"].norm(dim=1)
        weights = {
            "W_enc": weights["W_enc"] * norms, "b_enc": weights["b_enc"] * norms,
            "W_dec": weights["W_dec"] / norms.unsqueeze(1), "b_dec": weights["b_dec"],
        }  # fmt: skip
    return SAE(**weights, gate=make_gate(config["architecture"], k=config["k"]), metadata=config.get("metadata"))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"An SAE's folder must hold {CONFIG}. {folder} holds none. Is it a folder that `save` wrote?"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must be JSON. It is not: {error}. Write the SAE again.") from error
    missing = [key for key in ("architecture", "d_in", "d_sae", "dtype") if key not in config]
    if missing:
        raise UserError(f"{path} must state {', '.join(missing)}. It does not. Write the SAE again.")
    return config


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS
    try:
        tensors = load_file(str(path))
    except FileNotFoundError as error:
        raise UserError(f"An SAE's folder must hold {WEIGHTS}. {folder} holds none. Copy the whole folder.") from error
    except SafetensorError as error:
        raise UserError(f"{path} must be a whole safetensors file. It is damaged: {error}. Copy it again.") from error
    missing = [name for name in _TENSORS if name not in tensors]
    if missing:
        raise UserError(f"{path} must hold the tensors {', '.join(_TENSORS)}. Missing: {', '.join(missing)}.")
    return tensors


def _check(config: dict[str, Any], folder: Path) -> None:
    if config["architecture"] != "topk":
        raise UserError(
            f'Only "topk" SAEs can be read. {folder} is {config["architecture"]!r}. Open it with its own library.'
        )
    if config.get("normalize_activations", "none") not in ("none", "expected_average_only_in"):
        raise UserError(
            f'`normalize_activations` must be folded into the weights ("none"). {folder} has'
            f" {config['normalize_activations']!r}. Fold it with the library that wrote it."
        )
