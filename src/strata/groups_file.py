"""Groups on disk: the folder that `strata groups` writes, and the files that `strata train --groups` takes."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strata.atomic import put_folder, write_json
from strata.errors import UserError

RECORD = "groups.json"


def read_record(folder: Path) -> dict[str, Any]:
    """What groups_run wrote.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / RECORD if folder.is_dir() else folder
    content = _read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("groups"), list):
        raise UserError(f"`groups` must be what `strata groups` wrote. {path} is not. Give its folder or its {RECORD}.")
    return content


def read_groups(path: str | Path) -> list[list[str]]:
    """Groups of sites from a file, for training.

    Args:
        path: the folder that `strata groups` wrote, its groups.json, or a JSON file with a list of lists of layers'
            numbers or sites' names, e.g. [[0, 1, 2], ["layers.3"]].

    Raises:
        UserError: nothing is there, or it is something else. Whether the layers exist is for the training to say.
    """
    given = Path(path).expanduser()
    content = _read_json(given / RECORD if given.is_dir() else given)
    groups = content.get("groups") if isinstance(content, dict) else content
    if not isinstance(groups, list) or not groups or not all(isinstance(g, list) and g for g in groups):
        raise UserError(
            f"`groups` must be a list of lists of layers, or the folder that `strata groups` wrote. {given} holds"
            " neither. Write for example [[0, 1, 2], [3, 4]]."
        )
    return [[_site(layer, given) for layer in group] for group in groups]


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """That groups may be written there: a folder that exists is replaced only if told to, and only if it holds groups.

    Raises:
        UserError: they may not.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"`out` must be a folder. {folder} is a file. Give another path.")
    occupied = folder.is_dir() and any(folder.iterdir())
    if occupied and not overwrite:
        raise UserError(f"`out` must be a new folder. {folder} exists already. Give another, or --overwrite.")
    if occupied and not (folder / RECORD).is_file():
        raise UserError(f"`overwrite` replaces groups only. {folder} holds no {RECORD}. Give another path with --out.")


def write_groups(folder: Path, record: Mapping[str, Any]) -> None:
    """Write groups.json into a new folder, or one in the place of what stands there; all of it or nothing.

    Raises:
        UserError: it cannot be written.
    """
    unfinished = folder.with_name(f".unfinished-{folder.name}")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write_json(unfinished / RECORD, record)
        put_folder(unfinished, folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise UserError(
            f"`out` must be a folder that can be written. {folder}: {error.strerror}. Give another."
        ) from error


def _site(layer: object, path: Path) -> str:
    if isinstance(layer, str):
        return layer
    if isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0:
        return f"layers.{layer}"
    raise UserError(f'`groups` must name layers by number or site. Got {layer!r} in {path}. Write 3 or "layers.3".')


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"`groups` must be a file or folder with groups. {path} is not there. Give another.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"`groups` must be a JSON file. {path} cannot be read as one. Give another.") from error
