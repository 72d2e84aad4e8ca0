"""Files of a folder in which several processes write: each made whole, and by one of them only."""

import contextlib
import os
import secrets
from collections.abc import Callable, Generator
from pathlib import Path

from safetensors import SafetensorError

from strata.atomic import sync_file, sync_folder
from strata.errors import UserError


def replace_whole(unfinished: Path, target: Path) -> None:
    """Give a written file its name, once its content is on the disk, and the permissions that the folder has."""
    _settle(unfinished)
    unfinished.replace(target)
    sync_folder(target.parent)


def write_first(target: Path, write: Callable[[Path], object]) -> bool:
    """Make a file whole unless it exists; a link, unlike a rename, fails where another process was first.

    Args:
        target: the file.
        write: writes the content to the path that it is given.

    Returns:
        Whether it was this process that made it.
    """
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.unfinished")
    try:
        write(unfinished)
        _settle(unfinished)
        try:
            os.link(unfinished, target)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: first come still, but not whole at once
            with contextlib.suppress(FileExistsError), target.open("xb") as file:
                file.write(unfinished.read_bytes())
                return True
            return False
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(target.parent)
    return True


def _settle(path: Path) -> None:
    # safetensors makes files that only their owner can read: processes of other users are to share a store too
    path.chmod(path.parent.stat().st_mode & 0o666)
    sync_file(path)


@contextlib.contextmanager
def writing_to(folder: Path) -> Generator[None, None, None]:
    """What the disk refuses becomes a sentence that names the folder.

    Raises:
        UserError: it cannot be written, or is full.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"`out` must be a folder that can be written, with room enough. {folder}: {reason}. Finished shards stay:"
            " mend it and give the same command again, or give another path."
        ) from error


@contextlib.contextmanager
def only_writer(folder: Path, name: str, *, what: str) -> Generator[None, None, None]:
    """Hold a name in a folder, so that no second process does. The system frees it however the process ends.

    Args:
        folder: where.
        name: of the thing that is written.
        what: the same for people, as the subject of a sentence.

    Raises:
        UserError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nothing keeps two processes from writing the same shards, which are equal
        yield
        return
    with writing_to(folder):
        file = (folder / f".{name}.lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{what} is being written by another process. Wait for it, or give another part or path."
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
