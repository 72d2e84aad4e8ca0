"""sparsify's folder format (EleutherAI): cfg.json and sae.safetensors, TopK SAEs and TopK transcoders.

sparsify subtracts b_dec from the input of an SAE (`transcode` false) and not from a transcoder's; a skip connection
reads the input as it is in both. It knows transcoders between sites of one width only.
"""

from pathlib import Path
from typing import Any

from strata.errors import UserError
from strata.formats.folder import json_file, read_json, read_tensors, require_keys, settle, tensors_file, write_files
from strata.formats.weights import Form, assemble
from strata.sae.gates import TopK
from strata.sae.model import SAE, Transcoder

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
FILES = f"{CONFIG} with {WEIGHTS}"
LOADING = 'from sparsify import SparseCoder\n\nsae = SparseCoder.load_from_disk("{folder}")'
HUB_LIBRARY = "sparsify"
IS_NATIVE, IS_FP32_ONLY = True, False
_NAMES = {"encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec", "W_skip": "W_skip"}


def recognises(folder: Path) -> bool:
    """Whether the folder looks like one of this format."""
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def save(sae: SAE, folder: Path) -> None:
    """Write the folder; files of the same name in it are replaced.

    Raises:
        UserError: another gate than TopK, two sites of different width, or the folder cannot be written.
    """
    if sae.d_in != sae.d_out:
        raise UserError(
            f"sparsify has transcoders between sites of one width only. Got d_in={sae.d_in} and d_out={sae.d_out}."
            " The folder that `save` writes holds it."
        )
    write(sae, folder)


def write(sae: SAE, folder: Path, *, replaced: tuple[str, ...] = ()) -> None:
    """`save`, for two sites of different width too: such a folder has `d_out` in cfg.json, and only Strata opens it.

    Raises:
        UserError: another gate than TopK, or the folder cannot be written.
    """
    if not isinstance(sae.gate, TopK):
        others = "'saelens'" if isinstance(sae, Transcoder) else "'saelens' or 'dictionary_learning'"
        raise UserError(
            f"sparsify has TopK SAEs only. Got architecture {sae.gate.architecture!r}. Give format {others}."
        )
    tensors = {
        "encoder.weight": sae.W_enc.t(), "encoder.bias": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec,
    }  # fmt: skip
    skip = sae.W_skip if isinstance(sae, Transcoder) else None
    if skip is not None:
        tensors["W_skip"] = skip
    config = {
        "activation": "topk",
        "expansion_factor": max(1, sae.d_sae // sae.d_in),
        "normalize_decoder": True,
        "num_latents": sae.d_sae,
        "k": sae.gate.k,
        "multi_topk": False,
        "skip_connection": skip is not None,
        "transcode": isinstance(sae, Transcoder),
        "d_in": sae.d_in,
        **({"d_out": sae.d_out} if sae.d_out != sae.d_in else {}),
        "metadata": sae.metadata,
    }
    write_files(folder, {WEIGHTS: tensors_file(tensors), CONFIG: json_file(config)}, replaced=replaced)


def load(folder: Path) -> SAE:
    """Read an SAE or transcoder from a folder in this format, also one that sparsify wrote.

    An SAE with a skip connection becomes a transcoder from its site to itself.

    Raises:
        UserError: a missing or damaged file, or a gate other than TopK.
    """
    settle(folder, CONFIG)
    config = read_json(folder / CONFIG)
    require_keys(config, ("d_in", "k"), folder / CONFIG)
    _check(config, folder)
    read = read_tensors(folder / WEIGHTS)
    if "encoder.weight" not in read or read["encoder.weight"].ndim != 2:
        raise UserError(f"{folder / WEIGHTS} must hold the matrix encoder.weight. It does not. Copy it again.")
    tensors = {_NAMES.get(name, name): tensor for name, tensor in read.items() if name != "encoder.weight"}
    tensors["W_enc"] = read["encoder.weight"].t()
    if tensors["W_enc"].shape[0] != config["d_in"]:
        raise UserError(
            f"{folder / CONFIG} must agree with the weights on d_in. It says {config['d_in']}, they have"
            f" {tensors['W_enc'].shape[0]}. Copy the whole folder again."
        )
    transcodes = bool(config.get("transcode", False))
    skip = "W_skip" in tensors
    form = Form("topk", centred=not transcodes, is_transcoder=transcodes or skip, skip=skip, k=config["k"])
    metadata = config.get("metadata") or {"training_architecture": "topk", "k": config["k"]}
    return assemble(tensors, form, metadata=metadata, source=folder / WEIGHTS)


def _check(config: dict[str, Any], folder: Path) -> None:
    if config.get("activation", "topk") != "topk" or config.get("signed", False):
        what = "signed TopK" if config.get("signed", False) else repr(config["activation"])
        raise UserError(f"Of sparsify's gates only 'topk' can be read. {folder} has {what}. Open it with sparsify.")
    if isinstance(config["k"], bool) or not isinstance(config["k"], int):
        raise UserError(f"`k` must be a whole number. {folder / CONFIG} has {config['k']!r}. Mend it.")
