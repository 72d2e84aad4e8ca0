"""Groups on disk: the folder that `strata groups` writes, and the files that `strata train --groups` takes."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from strata.atomic import write_json
from strata.errors import UserError
from strata.out_folder import check_free, new_folder

RECORD = "groups.json"
_RUN = "run.json"


def read_record(folder: Path) -> dict[str, Any]:
    """What `strata groups` wrote.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / RECORD if folder.is_dir() else folder
    content = _object(_read_json(path))
    if not isinstance(content.get("groups"), list):
        raise UserError(f"`groups` must be what `strata groups` wrote. {path} is not. Give its folder or its {RECORD}.")
    return content


def read_groups(given: str | Path) -> list[list[str]]:
    """Groups of sites, for training.

    Args:
        given: a JSON list of lists of layers' numbers or residual sites' names, e.g. '[[0, 1, 2], ["layers.3"]]'; a
            file with one; the folder that `strata groups` wrote, or its groups.json; or the folder of a run that was
            trained in groups.

    Raises:
        UserError: nothing is there, or it is something else. Whether the layers exist is for the training to say.
    """
    text = str(given)
    if text.lstrip().startswith("["):
        content, where = _parsed(text, text), text
    else:
        where = _file(Path(given).expanduser())
        content = _read_json(where)
        if isinstance(content, dict):
            content = _object(content).get("groups")
        if where.name == _RUN:
            if not isinstance(content, dict):
                raise UserError(
                    f"`groups` must be of a run that was trained in groups. {where.parent} was not. Give another."
                )
            content = list(_object(content).values())
    groups = _lists(content)
    if not groups:
        raise UserError(
            f"`groups` must be a list of lists of layers, or the folder that `strata groups` wrote. {where} holds"
            " neither. Write for example [[0, 1, 2], [3, 4]]."
        )
    return [[_site(layer, where) for layer in group] for group in groups]


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """That groups may be written there: a folder that exists is replaced only if told to, and only if it holds groups.

    Raises:
        UserError: they may not.
    """
    check_free(folder, record=RECORD, what="groups", overwrite=overwrite)


def write_groups(folder: Path, record: Mapping[str, Any]) -> None:
    """Write groups.json into a new folder, or one in the place of what stands there; all of it or nothing.

    Raises:
        UserError: it cannot be written.
    """
    with new_folder(folder) as unfinished:
        write_json(unfinished / RECORD, record)


def _object(content: Any) -> dict[str, Any]:
    """What JSON's object holds; nothing of anything else."""
    return cast("dict[str, Any]", content) if isinstance(content, dict) else {}


def _lists(content: Any) -> list[list[Any]]:
    """A list of lists, none of them empty; nothing of anything else."""
    found = cast("list[Any]", content) if isinstance(content, list) else []
    lists = [cast("list[Any]", one) for one in found if isinstance(one, list)]
    return lists if len(lists) == len(found) and all(lists) else []


def _file(path: Path) -> Path:
    """Of a folder the file in it that names the groups."""
    if not path.is_dir():
        return path
    return next((path / name for name in (RECORD, _RUN) if (path / name).is_file()), path / RECORD)


def _site(layer: object, where: str | Path) -> str:
    if isinstance(layer, str) and re.fullmatch(r"layers\.\d+", layer):
        return layer
    if isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0:
        return f"layers.{layer}"
    raise UserError(f'`groups` must name layers by number or site. Got {layer!r} in {where}. Write 3 or "layers.3".')


def _read_json(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"`groups` must be a file or folder with groups. {path} is not there. Give another.") from error
    except (OSError, ValueError) as error:
        raise _not_json(str(path)) from error
    return _parsed(text, str(path))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _not_json(where) from error


def _not_json(where: str) -> UserError:
    return UserError(f"`groups` must be JSON. {where} cannot be read as such. Write for example [[0, 1, 2], [3, 4]].")
