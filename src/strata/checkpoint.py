"""Checkpoints of a run: written whole or not at all, checked when read, the last few kept."""

import contextlib
import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from strata.atomic import put_folder, remove_folder, remove_leftovers, write_json
from strata.errors import UserError
from strata.log import say

STATE, RECORD = "state.pt", "checkpoint.json"
TENSORS = "tensors"  # folder of those that several processes wrote: `strata.distributed.checkpoint`
_READ_BYTES = 2**22


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint held.

    Attributes:
        step: steps done.
        state: nested dicts of tensors and plain values.
        identity: what the run was, as given to `save_checkpoint`.
        tensors: where several processes wrote it, the folder of the tensors that the state names.
    """

    step: int
    state: dict[str, Any]
    identity: dict[str, Any]
    tensors: Path | None = None


def save_checkpoint(
    folder: Path, *, step: int, state: dict[str, Any], identity: dict[str, Any] | None = None, keep: int = 2
) -> None:
    """Write `folder/step-N/` (temporary name, fsync, rename), then remove all but the last `keep` checkpoints.

    In it are `state.pt` and `checkpoint.json` with its size and CRC-32. Checkpoints of later steps, which a run leaves
    behind when it went back because they were damaged, are removed too.

    Args:
        folder: the run's `checkpoints` folder.
        step: steps done.
        state: nested dicts of tensors and plain values.
        identity: what the run is, JSON-able: given back by `load_checkpoint`.
        keep: checkpoints that stay, this one among them.

    Raises:
        UserError: the folder cannot be written or the disk is full; older checkpoints are left as they were.
    """
    unfinished = folder / f".unfinished-{step}"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        n_bytes, crc = write_state(unfinished / STATE, state)
        record = {"step": step, "bytes": n_bytes, "crc32": f"{crc:08x}", "identity": identity or {}}
        write_json(unfinished / RECORD, record)
        put_folder(unfinished, folder / f"step-{step}")
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise unwritable(folder, error) from error
    with contextlib.suppress(OSError):  # one too many is better than a run that ends
        remove_others(folder, step=step, keep=keep)


def unwritable(folder: Path, error: OSError) -> UserError:
    """What is said where a checkpoint cannot be written."""
    return UserError(
        f"A checkpoint must fit into the run folder. {folder}: {error.strerror or error}. Checkpoints written before"
        f" are as they were: make room, or let the folder be written, then resume."
    )


def load_checkpoint(folder: Path, *, device: torch.device | str = "cpu") -> Checkpoint:
    """The newest checkpoint that is whole; damaged ones that are newer are named on stderr.

    Reads tensors and plain values only: no code in the file is run.

    Args:
        folder: the run's `checkpoints` folder.
        device: where the tensors are put.

    Raises:
        UserError: there is none, or all are damaged.
    """
    steps = checkpoint_steps(folder)
    if not steps:
        raise UserError(f"`resume` needs a checkpoint. {folder} holds none. Start again with overwrite.")
    for step in steps:
        path = folder / f"step-{step}"
        found, reason = _read(path, device)
        if found is not None:
            return found
        say(f"the checkpoint {path} is damaged and passed over: {reason}")
    named = ", ".join(f"step-{step}" for step in steps)
    raise UserError(
        f"`resume` needs a checkpoint that is whole. All in {folder} are damaged: {named}. Start again with overwrite."
    )


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of which the folder holds a checkpoint, whole or not, the newest first."""
    names = [path.name.removeprefix("step-") for path in folder.glob("step-*")]
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


class _Checked:
    """A file that knows the CRC-32 and the number of the bytes written to it, and the error that stopped it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.checksum = self.n_bytes = 0
        self.error: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        try:
            written = self._file.write(content)
        except OSError as error:  # torch.save hides it behind errors of its own
            self.error = error
            raise
        self.checksum = zlib.crc32(content, self.checksum)
        self.n_bytes += written
        return written

    def flush(self) -> None:
        self._file.flush()


def write_state(path: Path, state: dict[str, Any]) -> tuple[int, int]:
    """Write a state to disk for good; gives the number of bytes and their CRC-32."""
    with path.open("wb") as file:
        checked = _Checked(file)
        try:
            torch.save(state, checked)  # pyright: ignore[reportArgumentType] - write and flush are all that it uses
        except (OSError, RuntimeError) as error:
            raise checked.error or error from None
    return checked.n_bytes, checked.checksum


def remove_others(folder: Path, *, step: int, keep: int) -> None:
    """Remove all checkpoints but a step's and those before it, `keep` together."""
    steps = checkpoint_steps(folder)
    kept = [s for s in steps if s <= step][:keep]
    for other in steps:
        if other not in kept:
            remove_folder(folder / f"step-{other}")
    remove_leftovers(folder)


def _read(path: Path, device: torch.device | str) -> tuple[Checkpoint | None, str]:
    """The checkpoint, or None and what is wrong with it."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        n_bytes, crc, step = int(record["bytes"]), int(record["crc32"], 16), int(record["step"])
        identity = dict(record["identity"])
        tensors = {str(name): (int(size), int(own, 16)) for name, (size, own) in record.get("tensors", {}).items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"{RECORD}: {type(error).__name__}"
    try:
        if (found := (path / STATE).stat().st_size) != n_bytes:
            return None, f"{STATE} has {found} bytes instead of {n_bytes}"
        if checksum(path / STATE) != crc:
            return None, f"{STATE} does not match its checksum"
        for name, (size, own) in tensors.items():
            one = path / TENSORS / name
            if one.stat().st_size != size or checksum(one) != own:
                return None, f"{TENSORS}/{name} does not match its checksum"
        state = torch.load(path / STATE, map_location=device, weights_only=True)
        return Checkpoint(step, state, identity, path / TENSORS if tensors else None), ""
    except Exception as error:  # noqa: BLE001 - torch.load raises many kinds
        return None, f"{STATE}: {type(error).__name__}"


def checksum(path: Path) -> int:
    """The CRC-32 of a file."""
    found = 0
    with path.open("rb") as file:
        while part := file.read(_READ_BYTES):
            found = zlib.crc32(part, found)
    return found
