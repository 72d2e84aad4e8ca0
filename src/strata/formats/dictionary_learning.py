"""dictionary_learning's folder format (saprmarks, adamkarvonen): ae.pt, a pickled state dict, and config.json.

Only tensors are read from the pickle (`weights_only`); no code in it is run. BatchTopK and Matryoshka SAEs are read
with the threshold that they use outside training; one below 0, which was never estimated, lets all through.
"""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from strata.errors import UserError, did_you_mean
from strata.formats.folder import json_file, plain, read_json, settle, write_files
from strata.formats.weights import Form, assemble, uncentred_bias
from strata.sae.gates import Gate, Gated, JumpReLU, ReLU, TopK
from strata.sae.model import SAE, Transcoder

CONFIG, WEIGHTS = "config.json", "ae.pt"
FILES = WEIGHTS
LOADING = (
    'from dictionary_learning.utils import load_dictionary\n\nsae, config = load_dictionary("{folder}", device="cpu")'
)
HUB_LIBRARY = "strata"
IS_NATIVE, IS_FP32_ONLY = False, True

# Its class: (gate, whether b_dec is subtracted from the input, name of the training).
_CLASSES = {
    "AutoEncoder": ("standard", True, "relu"),
    "AutoEncoderNew": ("standard", False, "relu"),
    "AutoEncoderTopK": ("topk", True, "topk"),
    "BatchTopKSAE": ("jumprelu", True, "batchtopk"),
    "MatryoshkaBatchTopKSAE": ("jumprelu", True, "matryoshka"),
    "JumpReluAutoEncoder": ("jumprelu", False, "jumprelu"),
    "GatedAutoEncoder": ("gated", True, "gated"),
}
_NAMES = {
    "encoder.bias": "b_enc", "bias": "b_dec", "decoder.bias": "b_dec", "decoder_bias": "b_dec", "gate_bias": "b_gate",
    "mag_bias": "b_mag",
}  # fmt: skip
_OF_TRAINING = ("k", "group_sizes")


def recognises(folder: Path) -> bool:
    """Whether the folder looks like one of this format."""
    return (folder / WEIGHTS).is_file()


def save(sae: SAE, folder: Path) -> None:
    """Write the folder; files of the same name in it are replaced.

    JumpReLU SAEs with one threshold for all latents, which is what BatchTopK and Matryoshka ones become, are written as
    its BatchTopKSAE; others as JumpReluAutoEncoder, which does not subtract b_dec, so that its sums cancel more.

    Raises:
        UserError: a transcoder, which this library lacks; or the folder cannot be written.
    """
    if isinstance(sae, Transcoder):
        other = "sparsify" if isinstance(sae.gate, TopK) else "saelens"
        raise UserError(f"dictionary_learning has no transcoders. Got one. Give format {other!r}.")
    name, state = _state(sae)
    path = re.search(r"(?:blocks|layers|h)\.(\d+)", str(sae.metadata.get("hook_name") or sae.metadata.get("site")))
    trainer = {
        "dict_class": name,
        "activation_dim": sae.d_in,
        "dict_size": sae.d_sae,
        **({"k": int(state["k"])} if "k" in state else {}),
        "layer": int(path[1]) if path else None,
        "lm_name": sae.metadata.get("hf_model_name") or sae.metadata.get("model_name"),
        "submodule_name": sae.metadata.get("site"),
    }
    buffer = {"ctx_len": sae.metadata.get("context_size")}
    config = {"trainer": trainer, "buffer": buffer, "metadata": sae.metadata}
    write_files(folder, {WEIGHTS: lambda at: _write(state, at), CONFIG: json_file(config)})


def _write(state: dict[str, Tensor], path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(str(error)) from error


def _state(sae: SAE) -> tuple[str, dict[str, Tensor]]:
    """The class and its state dict."""
    linear = {"encoder.weight": sae.W_enc.t(), "decoder.weight": sae.W_dec.t()}
    gate: Gate = sae.gate
    if isinstance(gate, TopK):
        biases = {"encoder.bias": sae.b_enc, "b_dec": sae.b_dec}
        name, state = "AutoEncoderTopK", linear | biases | _selection(gate.k, torch.tensor(-1.0))
    elif isinstance(gate, Gated):
        own = {"r_mag": gate.r_mag, "gate_bias": gate.b_gate, "mag_bias": gate.b_mag}
        name, state = "GatedAutoEncoder", linear | own | {"decoder_bias": sae.b_dec}
    elif isinstance(gate, JumpReLU):
        name, state = _jumprelu_state(sae, gate, linear)
    else:
        assert isinstance(gate, ReLU), gate
        name, state = "AutoEncoder", linear | {"encoder.bias": sae.b_enc, "bias": sae.b_dec}
    return name, {key: plain(tensor).clone() for key, tensor in state.items()}


def _jumprelu_state(sae: SAE, gate: JumpReLU, linear: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    threshold = gate.threshold.relu()
    k = sae.metadata.get("k")
    if isinstance(k, int) and k >= 1 and bool((threshold == threshold[0]).all()):
        biases = {"encoder.bias": sae.b_enc, "b_dec": sae.b_dec}
        return "BatchTopKSAE", linear | biases | _selection(k, threshold[0])
    return "JumpReluAutoEncoder", {
        "W_enc": sae.W_enc, "b_enc": uncentred_bias(sae), "W_dec": sae.W_dec, "b_dec": sae.b_dec,
        "threshold": threshold,
    }  # fmt: skip


def _selection(k: int, threshold: Tensor) -> dict[str, Tensor]:
    return {"k": torch.tensor(k, dtype=torch.int32), "threshold": threshold.float()}


def load(folder: Path) -> SAE:
    """Read an SAE from a folder in this format.

    Raises:
        UserError: a missing or damaged file, a pickle that holds more than tensors, or an unknown class.
    """
    settle(folder, CONFIG)
    state = _read_state(folder / WEIGHTS)
    config = read_json(folder / CONFIG)
    trainer: dict[str, Any] = config["trainer"] if isinstance(config.get("trainer"), dict) else {}
    name = trainer.get("dict_class")
    if name not in _CLASSES:
        raise UserError(
            f"`trainer.dict_class` must be one that can be read. {folder / CONFIG} has {name!r}."
            f"{did_you_mean(str(name), _CLASSES)}"
        )
    gate, centred, training = _CLASSES[name]
    k = int(state["k"]) if "k" in state else trainer.get("k", 0)
    if gate == "topk" and not isinstance(k, int):
        raise UserError(f"`trainer.k` must be a whole number. {folder / CONFIG} has {k!r}. Mend it.")
    form = Form(gate, centred=centred, k=k if gate == "topk" else 0)
    known = {"training_architecture": training, **({"k": k} if k else {}), **_origin(trainer, config)}
    return assemble(_renamed(state, form), form, metadata=config.get("metadata") or known, source=folder / WEIGHTS)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that torch did not write; these are refused
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"An SAE's folder must hold {WEIGHTS}. {path.parent} holds none. Copy the whole.") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} must hold tensors only, since anything else in a pickle is code. It does not, or is damaged, and"
            " nothing of it was run. Ask its author for a file of tensors."
        ) from error
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise UserError(f"{path} must be a whole file of tensors. It is damaged: {error}. Copy it again.") from error
    kind = type(content).__name__
    state = cast(dict[str, Any], content) if isinstance(content, dict) else None
    if state is None or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path} must hold a state dict. It holds {kind}. Is it of this library?")
    return state


def _renamed(state: dict[str, Tensor], form: Form) -> dict[str, Tensor]:
    """SAELens' names and shapes."""
    tensors = {_NAMES.get(name, name): tensor for name, tensor in state.items() if name not in _OF_TRAINING}
    for theirs, ours in (("encoder.weight", "W_enc"), ("decoder.weight", "W_dec")):
        if theirs in tensors:
            tensors[ours] = tensors.pop(theirs).t()
    if form.gate == "topk":
        tensors.pop("threshold", None)  # an estimate that its encoder uses on request only
    elif "threshold" in tensors and tensors["threshold"].ndim == 0 and "W_dec" in tensors:
        tensors["threshold"] = tensors["threshold"].expand(tensors["W_dec"].shape[0]).clone()
    return tensors


def _origin(trainer: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What its description tells of the model and the site, in SAELens' words."""
    model, layer = trainer.get("lm_name"), trainer.get("layer")
    found: dict[str, Any] = {"dictionary_learning": trainer}
    if isinstance(model, str):
        found |= {"model_name": model.split("/")[-1], "hf_model_name": model}
    if isinstance(layer, int) and str(trainer.get("submodule_name")).startswith("resid_post"):
        found |= {"site": f"layers.{layer}", "hook_name": f"blocks.{layer}.hook_resid_post"}
    buffer = config.get("buffer")
    if isinstance(buffer, dict) and isinstance(buffer.get("ctx_len"), int):
        found["context_size"] = buffer["ctx_len"]
    return found
