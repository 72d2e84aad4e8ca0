"""The folder that a program writes, `out`: replaced on request only, and there whole or not at all."""

import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from strata.atomic import put_folder, write_json
from strata.errors import UserError

_OF_RUNS = "run.json"


def check_free(folder: Path, *, record: str, what: str, overwrite: bool, resume: bool | None = None) -> None:
    """A folder that exists is replaced or gone on with only if told to, and only if it is what it is to be replaced by.

    Args:
        folder: that is to be written.
        record: the file by which such a folder is known.
        what: such folders, as people call them, e.g. "dashboards".
        overwrite: whether it may be replaced.
        resume: whether to go on with it; None is of what cannot be gone on with.

    Raises:
        UserError: it may not be used.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"`out` must be a folder. {folder} is a file. Give another path.")
    is_such = (folder / record).is_file()
    if resume and not is_such:
        raise UserError(f"`resume` needs a folder of {what}. {folder} holds no {record}. Leave resume out.")
    if resume or not folder.exists() or _is_free(folder, record=record):
        return
    if not overwrite:
        on = "" if resume is None else " go on with --resume,"
        raise UserError(
            f"`out` must be a new folder. {folder} exists already. Give another with --out,{on} or replace it with"
            f" --overwrite."
        )
    is_runs = record != _OF_RUNS and (folder / _OF_RUNS).exists()
    if not is_such or is_runs:
        why = f"is a run's, with a {_OF_RUNS}" if is_such else f"holds no {record}"
        raise UserError(f"`overwrite` replaces {what} only. {folder} {why}. Give another path with --out.")


def begin_folder(folder: Path, *, record: str, content: Mapping[str, Any]) -> None:
    """A folder with nothing but its record; one that is replaced goes now that the new one is known to begin.

    Args:
        folder: as `check_free` let it pass.
        record: name of the file.
        content: of the file, JSON-able.

    Raises:
        UserError: it cannot be written.
    """
    try:
        if folder.exists() and _is_free(folder, record=record):  # it may be a mount, which cannot be renamed
            write_json(folder / record, content)
            return
    except OSError as error:
        raise _unwritable(folder, error) from error
    with new_folder(folder) as unfinished:
        write_json(unfinished / record, content)


def unfinished_beside(folder: Path) -> Path:
    """Where what is to become a folder lies until it is whole."""
    return folder.with_name(f".unfinished-{folder.name}")


@contextmanager
def new_folder(folder: Path, *, at: Path | None = None) -> Generator[Path, None, None]:
    """An empty folder to write into; when the block ends it gets its name, in place of one that has it already.

    When the block fails, what was written is gone and the folder that had the name is as it was.

    Args:
        folder: its name.
        at: where it lies until then, on the same disk; None is `unfinished_beside`.

    Raises:
        UserError: it cannot be written.
    """
    unfinished = unfinished_beside(folder) if at is None else at
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        put_folder(unfinished, folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _is_free(folder: Path, *, record: str) -> bool:
    """Whether there is nothing in it but what a process left that was killed when it had just made the folder."""
    return all(path.name == f".{record}.unfinished" for path in folder.iterdir())


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"`out` must be a folder that can be written. {folder}: {error.strerror or error}. Give another path."
    )
