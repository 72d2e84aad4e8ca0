"""Checkpoints of a run: written whole or not at all, the last one kept."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from strata.errors import UserError

_FILE = "state.pt"


def save_checkpoint(folder: Path, *, step: int, state: dict[str, Any]) -> None:
    """Write `folder/step-N/state.pt` (temporary name, fsync, rename) and then remove older checkpoints.

    Args:
        folder: the run's `checkpoints` folder.
        step: steps done.
        state: nested dicts of tensors and plain values.
    """
    target, unfinished = folder / f"step-{step}", folder / f".unfinished-{step}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with (unfinished / _FILE).open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    unfinished.replace(target)
    for old in folder.iterdir():
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, *, device: torch.device) -> dict[str, Any]:
    """The state of the newest checkpoint. Reads tensors and plain values only: no code in the file is run.

    Raises:
        UserError: there is none, or it is damaged.
    """
    names = [path.name.removeprefix("step-") for path in folder.glob("step-*")]
    steps = sorted(int(name) for name in names if name.isdigit())
    if not steps:
        raise UserError(f"`resume` needs a checkpoint. {folder} holds none. Start again with overwrite.")
    path = folder / f"step-{steps[-1]}" / _FILE
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise UserError(
            f"The checkpoint {path} cannot be read ({type(error).__name__}). Remove it or start again."
        ) from error
