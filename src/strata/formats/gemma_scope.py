"""Gemma Scope's folder format (Lieberum et al. 2024): params.npz with the arrays of a JumpReLU SAE or transcoder.

b_dec is not subtracted from the input. What params.npz has no place for, metadata and whether it is a transcoder,
stands beside it in strata.json; without that file, arrays with d_out = d_in are read as an SAE: the same function.
"""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from strata.errors import UserError
from strata.formats.folder import json_file, plain, read_json, settle, write_files
from strata.formats.weights import Form, as_jumprelu, assemble, uncentred_bias
from strata.sae.model import SAE, Transcoder

WEIGHTS, BESIDE = "params.npz", "strata.json"
FILES = WEIGHTS
LOADING = f'import numpy as np\n\nparams = np.load("{{folder}}/{WEIGHTS}")'
HUB_LIBRARY = "strata"
IS_NATIVE, IS_FP32_ONLY = False, True


def recognises(folder: Path) -> bool:
    """Whether the folder looks like one of this format."""
    return (folder / WEIGHTS).is_file()


def save(sae: SAE, folder: Path) -> None:
    """Write the folder, in fp32; files of the same name in it are replaced.

    ReLU and Gated SAEs are written as the JumpReLU ones that they equal.

    Raises:
        UserError: a TopK SAE or a skip connection, which this format lacks; or the folder cannot be written.
    """
    sae = as_jumprelu(sae)
    if isinstance(sae, Transcoder) and sae.W_skip is not None:
        raise UserError("Gemma Scope has no place for a skip connection. Got a transcoder with one. Give 'saelens'.")
    tensors = {
        "W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_enc": uncentred_bias(sae), "b_dec": sae.b_dec,
        "threshold": sae.gate.get_parameter("threshold"),
    }  # fmt: skip
    arrays = {name: plain(tensor).float().numpy() for name, tensor in tensors.items()}
    beside = {"transcoder": isinstance(sae, Transcoder), "metadata": sae.metadata}
    write_files(folder, {WEIGHTS: lambda path: _write(arrays, path), BESIDE: json_file(beside)})


def _write(arrays: dict[str, np.ndarray], path: Path) -> None:
    with path.open("wb") as file:  # by name, NumPy would append .npz
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def load(folder: Path) -> SAE:
    """Read an SAE or transcoder from a folder in this format.

    Raises:
        UserError: a missing or damaged file, or arrays of Python objects, which could run code.
    """
    settle(folder, BESIDE)
    path = folder / WEIGHTS
    tensors = _read(path)
    beside = read_json(folder / BESIDE) if (folder / BESIDE).exists() else {}
    widths = [tensors[name].shape[-1 if name == "W_dec" else 0] for name in ("W_enc", "W_dec") if name in tensors]
    is_transcoder = bool(beside.get("transcoder", len(set(widths)) > 1))
    metadata = beside.get("metadata") or {"training_architecture": "jumprelu"}
    form = Form("jumprelu", centred=False, is_transcoder=is_transcoder)
    return assemble(tensors, form, metadata=metadata, source=path)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise UserError(f"{path} must be a zip file of arrays. It is a single array. Copy it again.")
            # Early releases write w_enc for W_enc.
            found: dict[str, np.ndarray] = {
                "W_" + name[2:] if name.startswith("w_") else name: arrays[name] for name in arrays.files
            }
            return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.items()}
    except FileNotFoundError as error:
        raise UserError(f"An SAE's folder must hold {WEIGHTS}. {path.parent} holds none. Copy the whole.") from error
    except (ValueError, TypeError) as error:  # also of arrays of objects
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} must hold plain arrays, since anything else is a pickle and could run code. It does not: {error}."
            " Nothing of it was run. Ask its author for plain arrays."
        ) from error
    except (zipfile.BadZipFile, OSError, EOFError, KeyError) as error:
        raise UserError(f"{path} must be a whole file of arrays. It is damaged: {error}. Copy it again.") from error
