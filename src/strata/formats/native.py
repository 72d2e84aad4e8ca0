"""The folders of Strata's own SAEs: SAELens' format, and sparsify's for TopK transcoders, which SAELens lacks."""

from pathlib import Path

from strata.errors import UserError
from strata.formats import saelens, sparsify
from strata.formats.folder import read_json, settle
from strata.sae.gates import TopK
from strata.sae.model import SAE, Transcoder


def saelens_has(sae: SAE) -> bool:
    """Whether SAELens has this architecture."""
    return not (isinstance(sae, Transcoder) and isinstance(sae.gate, TopK))


def recognises(folder: Path) -> bool:
    """Whether the folder looks like one of these."""
    return saelens.recognises(folder) or sparsify.recognises(folder)


def save(sae: SAE, folder: Path) -> None:
    """Write the SAE's folder, whole or not at all; in a folder that exists only the SAE's files are replaced.

    Raises:
        UserError: the folder cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"An SAE is saved in a folder. {folder} is a file. Give another path.")
    if saelens_has(sae):
        saelens.save(sae, folder, replaced=(sparsify.WEIGHTS,))
    else:
        sparsify.write(sae, folder, replaced=(saelens.WEIGHTS,))


def load(folder: Path) -> SAE:
    """Read an SAE or transcoder from a folder that `save`, SAELens or sparsify wrote.

    Raises:
        UserError: a file is missing or damaged, or of an unknown architecture.
    """
    settle(folder, saelens.CONFIG)
    if not sparsify.recognises(folder):
        return saelens.load(folder)
    # With both libraries' weights in it, one replaces the other: cfg.json, renamed last, says which counts.
    if saelens.recognises(folder) and "architecture" in read_json(folder / saelens.CONFIG):
        return saelens.load(folder)
    return sparsify.load(folder)
