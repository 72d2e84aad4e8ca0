"""scaling.json: a sweep's table as it grows, and the fit to it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from strata.activations.store import Store
from strata.atomic import as_json, read_object, write_json
from strata.config.scaling import ScalingConfig
from strata.errors import UserError
from strata.machine.versions import versions
from strata.out_folder import begin_folder

RECORD = "scaling.json"
_LIBRARIES = ("strata-sae", "torch", "numpy", "scipy")
_FIXED = ("site", "d_in", "batch_size", "architecture", "held_out_rows", "order_seed", "store", "model", "text")


def begun(config: ScalingConfig, store: Store, *, n_held_out: int) -> dict[str, Any]:
    """The record of a sweep without points.

    Args:
        config: of the sweep.
        store: with its one site.
        n_held_out: rows that the loss is measured on.
    """
    described = store.describe()
    return as_json(
        {
            "config": vars(config),
            "site": store.sites[0],
            "d_in": store.d_in(store.sites[0]),
            "batch_size": config.batch_size,
            "architecture": config.architecture,
            "held_out_rows": n_held_out,
            "order_seed": config.seeds[0],
            **{key: described[key] for key in ("store", "model", "text")},
            "points": [],
            "trainings": [],
            "fit": None,
            "versions": versions(_LIBRARIES),
        }
    )


def read_record(folder: Path) -> dict[str, Any]:
    """The scaling.json of a folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / RECORD
    try:
        found = read_object(path)
    except FileNotFoundError as error:
        raise UserError(f"`out` must be the folder of a sweep. There is no {path}. Run the sweep first.") from error
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    if any(key not in found for key in (*_FIXED, "points", "trainings")):
        raise _damaged(path)
    return found


def check_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """That a sweep goes on with the same rows and measure; widths, k, tokens and seeds may have become more.

    Raises:
        UserError: something else changed.
    """
    changed = [key for key in _FIXED if before[key] != now[key]]
    if changed:
        raise UserError(
            f"`resume` needs the rows and settings of the sweep before. Changed: {', '.join(changed)}. Start another"
            " with --out."
        )


def start_folder(folder: Path, record: Mapping[str, Any]) -> None:
    """A folder with nothing but a first scaling.json; what stood there is gone.

    Raises:
        UserError: it cannot be written.
    """
    begin_folder(folder, record=RECORD, content=_dated(record))


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write scaling.json, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_json(folder / RECORD, _dated(record))
    except OSError as error:
        raise UserError(
            f"`out` must be a folder that can be written. {folder}: {error.strerror or error}. Make room, then go on"
            " with --resume."
        ) from error


def _dated(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record, "date": datetime.now(UTC).isoformat(timespec="seconds")}


def _damaged(path: Path) -> UserError:
    return UserError(f"`out` must be the folder of a sweep. {path} is damaged. Start another with --out.")
