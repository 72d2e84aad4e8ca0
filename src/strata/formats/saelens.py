"""SAELens' folder format (version 6): cfg.json and sae_weights.safetensors. It is Strata's own format too.

`sae_lens.SAE.load_from_disk` opens a folder written here and computes the same function of raw activations:
normalisation is folded in (`normalize_activations` "none"), decoder rows have unit norm (so
`rescale_acts_by_decoder_norm` is false), `apply_b_dec_to_input` is true for SAEs and false for transcoders.
"""

from pathlib import Path
from typing import Any

import torch

from strata.errors import UserError, did_you_mean
from strata.formats.folder import json_file, read_json, read_tensors, require_keys, settle, tensors_file, write_files
from strata.formats.weights import Form, as_jumprelu, assemble
from strata.sae.gates import Gated, TopK
from strata.sae.model import SAE, Transcoder

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
FILES = f"{CONFIG} with {WEIGHTS}"
LOADING = 'from sae_lens import SAE\n\nsae = SAE.load_from_disk("{folder}")'
HUB_LIBRARY = "saelens"
IS_NATIVE, IS_FP32_ONLY = True, False
_FORMAT_VERSION = "6.0.0"  # of the format written here: SAELens reads the nested metadata from 6.0.0 on
_DTYPES = ("float32", "float64", "float16", "bfloat16")

# SAELens' name: (name of the gate, transcoder, with skip connection).
_ARCHITECTURES = {
    "standard": ("standard", False, False),
    "topk": ("topk", False, False),
    "jumprelu": ("jumprelu", False, False),
    "gated": ("gated", False, False),
    "transcoder": ("standard", True, False),
    "skip_transcoder": ("standard", True, True),
    "jumprelu_transcoder": ("jumprelu", True, False),
    "jumprelu_skip_transcoder": ("jumprelu", True, True),
}

# Before version 6 these stood at the top level of cfg.json; afterwards under "metadata".
_ONCE_AT_THE_TOP = (
    "model_name", "model_class_name", "hook_name", "hook_head_index", "context_size", "prepend_bos", "dataset_path",
    "seqpos_slice", "neuronpedia_id",
)  # fmt: skip


def recognises(folder: Path) -> bool:
    """Whether the folder looks like one of this format."""
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def save(sae: SAE, folder: Path, *, replaced: tuple[str, ...] = ()) -> None:
    """Write the folder; files of the same name in it are replaced.

    Args:
        sae: its `metadata` goes under cfg.json's `metadata`. A Gated transcoder, which SAELens lacks, is written as the
            JumpReLU transcoder that it equals.
        folder: made with its parents if missing.
        replaced: names of files that the new ones stand for.

    Raises:
        UserError: a TopK transcoder, which SAELens lacks; or the folder cannot be written.
    """
    if isinstance(sae, Transcoder) and isinstance(sae.gate, TopK):
        raise UserError("SAELens has no TopK transcoder. Got architecture 'topk' with a target site. Give 'sparsify'.")
    if isinstance(sae, Transcoder) and isinstance(sae.gate, Gated):
        sae = as_jumprelu(sae)
    skip = isinstance(sae, Transcoder) and sae.W_skip is not None
    names = Form(sae.gate.architecture, centred=True, skip=skip).tensors()
    tensors = {name: getattr(sae.gate if name in sae.gate.tensors else sae, name) for name in names}
    files = {WEIGHTS: tensors_file(tensors), CONFIG: json_file(_config(sae, skip=skip))}
    write_files(folder, files, replaced=replaced)


def _config(sae: SAE, *, skip: bool) -> dict[str, Any]:
    is_transcoder = isinstance(sae, Transcoder)
    form = (sae.gate.architecture, is_transcoder, skip)
    name = next(name for name, known in _ARCHITECTURES.items() if known == form)
    head_wise = str(sae.metadata.get("hook_name", "")).endswith("_z")  # SAELens joins the heads of such a site
    return {
        **sae.gate.description(),
        "architecture": name,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        **({"d_out": sae.d_out} if is_transcoder else {}),
        "dtype": str(sae.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": not is_transcoder,
        **({"rescale_acts_by_decoder_norm": False} if isinstance(sae.gate, TopK) else {}),
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if head_wise else "none",
        "metadata": {
            "sae_lens_version": _FORMAT_VERSION,
            "sae_lens_training_version": None,
            "model_from_pretrained_kwargs": {},
            "prepend_bos": False,
            **sae.metadata,
        },
    }


def load(folder: Path) -> SAE:
    """Read an SAE or transcoder from a folder in this format, also one that SAELens wrote.

    Raises:
        UserError: a missing or damaged file, an unknown architecture, or settings under which the tensors mean
            something that cannot be folded into them.
    """
    settle(folder, CONFIG)
    config = _current(read_json(folder / CONFIG))
    require_keys(config, ("architecture", "d_in", "d_sae", "dtype"), folder / CONFIG)
    tensors = read_tensors(folder / WEIGHTS)
    form = _form(config, folder)
    dtype = getattr(torch, str(config["dtype"]).removeprefix("torch."))
    scale = tensors.pop("scaling_factor", None)  # of SAELens before version 6
    if scale is not None and not bool((scale == 1).all()):
        raise UserError(f"`scaling_factor` must be 1. {folder} has another. Fold it with the library that wrote it.")
    sae = assemble(
        {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()},
        form,
        metadata=config.get("metadata") or {},
        source=folder / WEIGHTS,
    )
    wanted = (config["d_in"], config["d_sae"], config.get("d_out", sae.d_out) if form.is_transcoder else sae.d_out)
    if (sae.d_in, sae.d_sae, sae.d_out) != wanted:
        raise UserError(
            f"{folder / CONFIG} must agree with the weights on d_in, d_sae and d_out. It says {wanted}, they have"
            f" {(sae.d_in, sae.d_sae, sae.d_out)}. Copy the whole folder again."
        )
    return sae


def _current(config: dict[str, Any]) -> dict[str, Any]:
    """A description in the words of version 6, from one of any version."""
    renamed = {
        "hook_point": "hook_name",
        "hook_point_head_index": "hook_head_index",
        "activation_fn_str": "activation_fn",
    }
    config = {renamed.get(key, key): value for key, value in config.items()}
    if config.get("activation_fn") == "topk" and config.get("architecture", "standard") == "standard":
        config |= {"architecture": "topk", "k": (config.get("activation_fn_kwargs") or {}).get("k")}
    if isinstance(config.get("normalize_activations"), bool):
        config["normalize_activations"] = "expected_average_only_in" if config["normalize_activations"] else "none"
    if "d_sae" in config and "hook_name" in config:  # flat: of a version that had no other architecture to state
        config.setdefault("architecture", "standard")
    flat = {key: config[key] for key in _ONCE_AT_THE_TOP if key in config}
    return config | {"metadata": flat | (config.get("metadata") or {})}


def _form(config: dict[str, Any], folder: Path) -> Form:
    """What the description says that the tensors mean."""
    name = str(config["architecture"])
    if name not in _ARCHITECTURES:
        raise UserError(
            f"`architecture` must be one that can be read. {folder} is {name!r}.{did_you_mean(name, _ARCHITECTURES)}"
        )
    if str(config["dtype"]).removeprefix("torch.") not in _DTYPES:
        raise UserError(f"`dtype` must be one of {', '.join(_DTYPES)}. {folder} has {config['dtype']!r}. Mend it.")
    # SAELens folds "expected_average_only_in" when training ends: nothing is left to do.
    if config.get("normalize_activations") not in (None, "none", "expected_average_only_in"):
        raise UserError(
            f'`normalize_activations` must be folded into the weights ("none"). {folder} has'
            f" {config['normalize_activations']!r}. Fold it with the library that wrote it."
        )
    if config.get("activation_fn", "relu") not in ("relu", "topk"):
        raise UserError(f"`activation_fn` must be relu or topk. {folder} has {config['activation_fn']!r}.")
    gate, is_transcoder, skip = _ARCHITECTURES[name]
    k = config.get("k", 0)
    if gate == "topk" and (isinstance(k, bool) or not isinstance(k, int)):
        raise UserError(f"`k` must be a whole number. {folder / CONFIG} has {k!r}. Mend it.")
    return Form(
        gate,
        centred=bool(config.get("apply_b_dec_to_input", not is_transcoder)),
        is_transcoder=is_transcoder,
        skip=skip,
        k=k if gate == "topk" else 0,
        selects_by_norm=gate == "topk" and bool(config.get("rescale_acts_by_decoder_norm", False)),
    )
