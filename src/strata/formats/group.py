"""The folder of a group's SAE: `group.json` and `group.safetensors` hold encoder and decoder once, biases and
thresholds for each layer; beside them lies one SAELens folder per layer, which any library opens as it is.
"""

from pathlib import Path
from typing import Any

from strata.errors import UserError
from strata.formats import native
from strata.formats.folder import json_file, read_json, read_tensors, require_keys, settle, tensors_file, write_files
from strata.formats.weights import Form, assemble
from strata.sae.group import GroupSAE
from strata.sae.model import SAE

CONFIG, WEIGHTS = "group.json", "group.safetensors"
_VERSION = 1
_SHARED = ("W_enc", "W_dec")


def recognises(folder: Path) -> bool:
    """Whether the folder looks like one of a group of several layers."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def save(group: GroupSAE, folder: Path) -> None:
    """Write the group's folder and those of its layers in it; a group of one layer is the folder of its SAE.

    Raises:
        UserError: the folder cannot be written.
    """
    first = group.at(group.sites[0])
    if len(group.sites) == 1:
        return native.save(first, folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"A group is saved in a folder. {folder} is a file. Give another path.")
    form = Form(first.gate.architecture, centred=True)
    tensors = {name: getattr(first, name) for name in _SHARED}
    for site in group.sites:
        tensors |= {f"{name}.{site}": _own(group.at(site), name) for name in form.tensors() if name not in _SHARED}
    config: dict[str, Any] = {
        "format": "strata group",
        "version": _VERSION,
        "sites": group.sites,
        "d_in": group.d_in,
        "d_sae": group.d_sae,
        "dtype": str(first.dtype).removeprefix("torch."),
        **first.gate.description(),
        "metadata": {site: group.at(site).metadata for site in group.sites},
    }
    write_files(folder, {WEIGHTS: tensors_file(tensors), CONFIG: json_file(config)})
    for site in group.sites:
        native.save(group.at(site), folder / site)
    return None


def load(folder: Path) -> GroupSAE:
    """Read a group's folder; that of an ordinary SAE is a group of one layer.

    Raises:
        UserError: a file is missing or damaged, or of a newer version.
    """
    if native.recognises(folder):
        sae = native.load(folder)
        return GroupSAE({sae.metadata.get("site", folder.name): sae})
    settle(folder, CONFIG)
    config = read_json(folder / CONFIG)
    require_keys(config, ("version", "sites", "architecture", "d_in", "d_sae"), folder / CONFIG)
    if config["version"] != _VERSION:
        raise UserError(
            f"{folder / CONFIG} must be of version {_VERSION}. It is of version {config['version']}. Take a newer"
            f" Strata."
        )
    tensors = read_tensors(folder / WEIGHTS)
    form = Form(config["architecture"], centred=True, k=config.get("k", 0))
    saes: dict[str, SAE] = {}
    for site in config["sites"]:
        names = {name: name if name in _SHARED else f"{name}.{site}" for name in form.tensors()}
        lacking = [name for name in names.values() if name not in tensors]
        if lacking:
            raise UserError(f"{folder / WEIGHTS} must hold {lacking[0]}. It does not. Copy the whole folder again.")
        own = {name: tensors[stored] for name, stored in names.items()}
        saes[site] = assemble(own, form, metadata=config.get("metadata", {}).get(site, {}), source=folder / WEIGHTS)
    return GroupSAE(saes)


def _own(sae: SAE, name: str) -> Any:
    return getattr(sae.gate if name in sae.gate.tensors else sae, name)
