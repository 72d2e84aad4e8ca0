"""The folder that a program writes, `out`: replaced on request only, and there whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from strata.atomic import put_folder
from strata.errors import UserError

_OF_RUNS = "run.json"


def check_free(folder: Path, *, record: str, what: str, overwrite: bool) -> None:
    """A folder that exists is replaced only if told to, and only if it is what it is to be replaced by; never a run's.

    Args:
        folder: that is to be written.
        record: the file by which such a folder is known.
        what: such folders, as people call them, e.g. "dashboards".
        overwrite: whether it may be replaced.

    Raises:
        UserError: it may not be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"`out` must be a folder. {folder} is a file. Give another path.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"`out` must be a new folder. {folder} exists already. Give another with --out, or replace it with"
            f" --overwrite."
        )
    if not (folder / record).is_file() or (folder / _OF_RUNS).exists():
        why = f"is a run's, with a {_OF_RUNS}" if (folder / record).is_file() else f"holds no {record}"
        raise UserError(f"`overwrite` replaces {what} only. {folder} {why}. Give another path with --out.")


def unfinished_beside(folder: Path) -> Path:
    """Where what is to become a folder lies until it is whole."""
    return folder.with_name(f".unfinished-{folder.name}")


@contextmanager
def new_folder(folder: Path, *, at: Path | None = None) -> Iterator[Path]:
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
        raise UserError(
            f"`out` must be a folder that can be written. {folder}: {error.strerror or error}. Give another path."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
