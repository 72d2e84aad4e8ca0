"""A run's folder and its run.json: what may be written where, and what a run says of itself."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from strata.activations.source import RowSource
from strata.atomic import as_json, put_folder, write_json
from strata.config.train import TrainConfig
from strata.distributed.ranks import ALONE, Ranks
from strata.errors import UserError
from strata.formats import group
from strata.machine.hardware import hardware
from strata.machine.versions import versions
from strata.out_folder import new_folder
from strata.sae.group import GroupSAE
from strata.sae.model import SAE

_RECORDED_LIBRARIES = ("strata-sae", "torch", "transformers", "tokenizers", "safetensors", "numpy")
_MAKE_ROOM = "Make room, then go on with --resume; checkpoints are as they were."
# Settings that do not change what is trained.
_NOT_COMPARED = (
    *("resume", "overwrite", "report", "log_every_steps", "checkpoint_every", "keep_checkpoints", "keep_buffer"),
    *("held_out_every", "held_out_rows", "held_out_tokens", "loggers", "out", "parallel"),
)


def check_folder(folder: Path, config: TrainConfig) -> None:
    """That the run's folder may be used: one that exists is left alone unless the description says what to do with it.

    Raises:
        UserError: it may not.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"`out` must be a folder. {folder} is a file. Give another path.")
    occupied = folder.is_dir() and not _is_free(folder)
    if config.resume and not (folder / "run.json").exists():
        raise UserError(f"`resume` needs the folder of a run. {folder} holds none. Leave resume out to start one.")
    if occupied and not (config.resume or config.overwrite):
        raise UserError(
            f"`out` must be a new folder. {folder} exists already. Give another with --out, go on with --resume, or"
            f" replace it with --overwrite."
        )
    if occupied and config.overwrite and not (folder / "run.json").exists():
        raise UserError(
            f"`overwrite` deletes folders of runs only. {folder} holds no run.json. Give another path with --out."
        )


def begun(config: TrainConfig, source: RowSource, device: torch.device) -> dict[str, Any]:
    """What run.json says of a run that begins.

    Args:
        config: the run, with all that was "auto" resolved.
        source: of its rows.
        device: where it is trained.
    """
    recorded = versions(_RECORDED_LIBRARIES)
    return {
        "status": "training",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "strata_version": recorded["strata-sae"],
        "config": as_json(asdict(config)),
        **source.describe(),
        "versions": recorded,
        "hardware": hardware(device),
    }


def read_record(folder: Path) -> dict[str, Any]:
    """The run.json of a run before.

    Raises:
        UserError: it is damaged.
    """
    try:
        record: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        known = "status" in record and isinstance(record["config"], dict)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        record, known = {}, False
    if not known:
        raise UserError(
            f"`resume` needs the record of the run before. {folder / 'run.json'} is damaged. Start another with --out."
        )
    return record


def make_folder(folder: Path, record: dict[str, Any]) -> None:
    """A folder with nothing but its run.json; a run that is overwritten goes now that the new one is known to begin.

    Raises:
        UserError: it cannot be made.
    """
    try:
        if folder.exists() and _is_free(folder):  # it may be a mount, which cannot be renamed
            write_json(folder / "run.json", record)
            return
    except OSError as error:
        raise _unwritable(folder, error, "Give another path.") from error
    with new_folder(folder) as unfinished:
        write_json(unfinished / "run.json", record)


def _is_free(folder: Path) -> bool:
    """Whether there is nothing in the folder but what a process left that was killed when it had just made it."""
    return all(path.name == ".run.json.unfinished" for path in folder.iterdir())


def check_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    """A run is resumed with the same settings, model and text, or not at all.

    Raises:
        UserError: something changed.
    """
    old, new = ({k: v for k, v in r["config"].items() if k not in _NOT_COMPARED} for r in (before, now))
    changed = [key for key in new if old.get(key) != new[key]]
    changed += [key for key in ("model", "text") if before.get(key) != as_json(now[key])]
    if changed:
        raise UserError(
            f"`resume` needs the settings, model and text of the run before. Changed: {', '.join(changed)}. Give those"
            " of before, or start another run with --out."
        )


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write run.json.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_json(folder / "run.json", record)
    except OSError as error:
        raise _unwritable(folder, error, _MAKE_ROOM) from error


def load_saes(folder: Path, keys: Iterable[str]) -> dict[str, SAE | GroupSAE]:
    """What `save_saes` wrote, by key.

    Raises:
        UserError: a folder is missing or damaged.
    """
    folders = {key: folder / "sae" / key for key in keys}
    return {key: GroupSAE.load(path) if group.recognises(path) else SAE.load(path) for key, path in folders.items()}


def save_saes(folder: Path, saes: Mapping[str, SAE | GroupSAE], *, ranks: Ranks = ALONE) -> None:
    """Write `sae/<key>/` for all keys, all of them or none.

    Args:
        folder: of the run.
        saes: those that this process writes.
        ranks: the processes that write together, each its own.

    Raises:
        UserError: they cannot be written; checkpoints are as they were.
    """
    unfinished = folder / ".sae.unfinished"
    try:
        if ranks.is_first:
            shutil.rmtree(unfinished, ignore_errors=True)
        ranks.wait_for_all()
        for key, sae in saes.items():
            sae.save(unfinished / key)
        ranks.wait_for_all()
        if ranks.is_first:
            put_folder(unfinished, folder / "sae")
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise _unwritable(folder, error, _MAKE_ROOM) from error


def _unwritable(folder: Path, error: OSError, way_out: str) -> UserError:
    return UserError(f"`out` must be a folder that can be written. {folder}: {error.strerror or error}. {way_out}")
