"""Reading and writing the files of an SAE's folder: written whole or not at all, read without running code in them."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from strata.atomic import put_folder, read_object, sync_file, sync_folder
from strata.errors import UserError

Writer = Callable[[Path], object]


def tensors_file(tensors: Mapping[str, Tensor]) -> Writer:
    """What writes a safetensors file of these."""
    return lambda path: safetensors.torch.save_file({name: plain(one) for name, one in tensors.items()}, str(path))


def json_file(content: Mapping[str, Any]) -> Writer:
    """What writes a JSON file of this."""
    text = json.dumps(content, indent=2) + "\n"
    return lambda path: path.write_text(text, encoding="utf-8")


def plain(tensor: Tensor) -> Tensor:
    """The tensor as a file holds it: on the CPU, without gradient, contiguous."""
    return tensor.detach().cpu().contiguous()


def write_files(folder: Path, files: Mapping[str, Writer], *, replaced: Iterable[str] = ()) -> None:
    """Write files of a folder, so that a process that dies meanwhile leaves nothing, what was there, or all of it.

    A new folder is built beside its place and renamed. In a folder that exists each file is written under a temporary
    name, and all are renamed when all of them are on disk; other files in it stay. Death between two of these renames
    leaves the last temporary file alone, which is how `settle` knows that it counts.

    Args:
        folder: made with its parents if missing.
        files: by name, in the order in which they are written and renamed.
        replaced: names of files that the new ones stand for, removed at the end.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        if folder.exists():
            _replace(folder, files)
            for name in replaced:
                (folder / name).unlink(missing_ok=True)
            sync_folder(folder)
        else:
            _create(folder, files)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"An SAE's folder must be one that can be written. {folder}: {reason}. Choose one.") from error


def _create(folder: Path, files: Mapping[str, Writer]) -> None:
    unfinished = folder.parent / f".{folder.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        for name, write in files.items():
            write(unfinished / name)
        put_folder(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _replace(folder: Path, files: Mapping[str, Writer]) -> None:
    names = list(files)
    settle(folder, names[-1])
    _drop(folder, names)
    try:
        for name, write in files.items():
            write(folder / _temporary(name))
            sync_file(folder / _temporary(name))
        sync_folder(folder)
    except BaseException:
        _drop(folder, names)
        raise
    for name in names:
        with suppress(FileNotFoundError):  # a reader has settled it meanwhile
            (folder / _temporary(name)).replace(folder / name)


def settle(folder: Path, last: str) -> None:
    """Finish the replacing of files that a process did not live to finish; nothing where there is none.

    Args:
        folder: of the files.
        last: the one that is renamed last.

    Raises:
        UserError: the folder cannot be written.
    """
    if {path.name for path in folder.glob(".*.unfinished") if path.is_file()} != {_temporary(last)}:
        return
    try:
        (folder / _temporary(last)).replace(folder / last)
    except FileNotFoundError:
        return  # its writer has done it meanwhile
    except OSError as error:
        raise UserError(
            f"The last save to {folder} was cut short and must be finished. It cannot be written: {error.strerror}."
            f" Rename {_temporary(last)} to {last} in it."
        ) from error


def _drop(folder: Path, names: list[str]) -> None:
    """Remove temporary files, the last first: alone it would count."""
    for name in reversed(names):
        (folder / _temporary(name)).unlink(missing_ok=True)


def _temporary(name: str) -> str:
    return f".{name}.unfinished"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of an SAE's folder.

    Raises:
        UserError: the file is missing or holds something else.
    """
    try:
        return read_object(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        inside = sorted(one.parent for one in path.parent.glob(f"sae/**/{path.name}"))
        way_out = f"Its SAEs are {inside[0]} and so on: give one." if inside else "Is it the folder of an SAE?"
        raise UserError(f"An SAE's folder must hold {path.name}. {path.parent} holds none. {way_out}") from error
    except OSError as error:
        raise UserError(f"{path} must be readable. It is not: {error.strerror}. Change its permissions.") from error
    except ValueError as error:
        raise UserError(f"{path} must be a JSON object. It is not: {error}. Write the SAE again.") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return safetensors.torch.load_file(str(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"An SAE's folder must hold {path.name}. {path.parent} holds none. Copy the whole folder."
        ) from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} must be a whole safetensors file. It is damaged: {error}. Copy it again.") from error


def require_keys(config: Mapping[str, Any], keys: Iterable[str], path: Path) -> None:
    """That a description states what cannot be guessed.

    Raises:
        UserError: it does not.
    """
    missing = [key for key in keys if key not in config]
    if missing:
        raise UserError(f"{path} must state {', '.join(missing)}. It does not. Write the SAE again.")
