"""The folder formats by name. A new one is a module with what `Format` asks for, and a row here."""

from pathlib import Path
from typing import Literal, Protocol

from strata.errors import UserError
from strata.formats import dictionary_learning, gemma_scope, saelens, sparsify
from strata.lm.sites import depth
from strata.sae.model import SAE


class Format(Protocol):
    """What a format is: a module with these functions and constants."""

    @property
    def FILES(self) -> str:
        """By which files its folders are known, for people."""
        ...

    @property
    def LOADING(self) -> str:
        """The Python that opens a folder of it, with ``{folder}`` in place of the folder."""
        ...

    @property
    def HUB_LIBRARY(self) -> str:
        """The library that the Hugging Face Hub names for it."""
        ...

    @property
    def IS_NATIVE(self) -> bool:
        """Whether `strata.SAE.load` opens it too."""
        ...

    @property
    def IS_FP32_ONLY(self) -> bool:
        """Whether it holds weights in fp32 only."""
        ...

    def save(self, sae: SAE, folder: Path) -> None:
        """Write the folder; UserError where the format cannot hold the SAE."""
        ...

    def load(self, folder: Path) -> SAE:
        """Read the folder; UserError where it is damaged."""
        ...

    def recognises(self, folder: Path) -> bool:
        """Whether the folder looks like one of this format, by the names of its files."""
        ...


FormatName = Literal["saelens", "sparsify", "dictionary_learning", "gemma_scope"]
FORMATS: dict[str, Format] = {
    "saelens": saelens,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
    "gemma_scope": gemma_scope,
}


def format_of(folder: Path) -> str:
    """The format that a folder looks like.

    Raises:
        UserError: none.
    """
    names = [name for name, known in FORMATS.items() if known.recognises(folder)]
    if not names:
        *others, last = (known.FILES for known in FORMATS.values())
        raise UserError(
            f"{folder} must be the folder of an SAE. It holds none of {', '.join(others)} and {last}. Give the folder"
            " that holds these."
        )
    return names[0]


def sae_folders(root: Path) -> dict[str, Path]:
    """The SAEs' folders in a folder, by their path in it; "" if it is one itself. Layer 2 stands before layer 10.

    Raises:
        UserError: there is no such folder, or it holds no SAE.
    """
    if not root.is_dir():
        raise UserError(f"There must be a folder to read SAEs from. {root} is none. Check the path.")
    if any(known.recognises(root) for known in FORMATS.values()):
        return {"": root}
    # A hidden folder is one whose writing was cut short.
    inner = [path for path in root.rglob("*") if path.is_dir() and not _hidden(path.relative_to(root))]
    found = [path for path in inner if any(known.recognises(path) for known in FORMATS.values())]
    if not found:
        format_of(root)
    return {path.relative_to(root).as_posix(): path for path in sorted(found, key=lambda path: depth(path.as_posix()))}


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
