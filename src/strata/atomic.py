"""Files and folders that are there whole or not at all, whenever the process dies."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, cast


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, bring it to disk, and only then give it its name.

    Raises:
        OSError: it cannot be written; a file that had the name is as it was.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; what JSON does not know is written as text.

    Raises:
        OSError: it cannot be written.
    """
    write_whole(path, json.dumps(content, indent=1, default=str) + "\n")


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or no object.
    """
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict):
        return cast(dict[str, Any], content)
    raise ValueError(f"it holds {type(content).__name__}, no object")


def as_object(value: Any) -> dict[str, Any]:
    """The value if it is an object of JSON, else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def as_json(value: Any) -> Any:
    """The value as JSON gives it back; what JSON does not know is text."""
    return json.loads(json.dumps(value, default=str))


def put_folder(unfinished: Path, target: Path) -> None:
    """Give a folder that is written its name; one that has the name already makes way first.

    Raises:
        OSError: it cannot be renamed.
    """
    for path in unfinished.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)
    sync_folder(unfinished)
    replaced = target.with_name(f".replaced-{target.name}")
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        target.rename(replaced)
    unfinished.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder: its name goes first, so that nobody ever meets half of it under that name.

    What cannot be deleted is left, under a hidden name.
    """
    if folder.exists():
        removed = folder.with_name(f".removed-{folder.name}")
        shutil.rmtree(removed, ignore_errors=True)
        folder.rename(removed)
    remove_leftovers(folder.parent)


def remove_leftovers(folder: Path) -> None:
    """Delete what a process that was killed had begun to delete, replace or write in a folder."""
    for kind in (".removed-*", ".replaced-*", ".unfinished-*"):
        for path in folder.glob(kind):
            shutil.rmtree(path, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk.

    Raises:
        OSError: the folder is not there.
    """
    if os.name != "nt":  # folders cannot be opened there
        sync_file(folder)


def sync_file(path: Path) -> None:
    """Have a file's content on disk.

    Raises:
        OSError: it is not there, or the disk fails.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
