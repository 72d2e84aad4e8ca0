"""Checkpoints of a training over ranks, by `torch.distributed.checkpoint`: written by all, read on any number of ranks.

`step-N/` is that of `strata.checkpoint`; tensors of some size lie in `tensors/` beside `state.pt`, where their names
stand in their place. A tensor that all ranks have is written once, one that is shared by latents in parts.
"""

import contextlib
import shutil
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from strata.atomic import put_folder, write_json
from strata.checkpoint import RECORD, STATE, TENSORS, Checkpoint, checksum, remove_others, unwritable, write_state
from strata.distributed.latents import LatentShard
from strata.distributed.nested import Keys, leaves, with_leaves
from strata.distributed.ranks import LostRankError, Ranks
from strata.sae.learner import Learner

_NAMED = "__tensor__"  # the key of what stands in a tensor's place
_SMALL = 64  # numbers of a tensor that stays where it is


def save_shared(
    folder: Path,
    *,
    ranks: Ranks,
    step: int,
    learners: Mapping[str, Learner],
    rows: Mapping[str, Any],
    state: Mapping[str, Any],
    identity: Mapping[str, Any],
    keep: int,
) -> None:
    """Write `folder/step-N/`, all ranks together; see `strata.checkpoint.save_checkpoint`.

    Args:
        folder: the run's `checkpoints` folder, the same for all ranks: a disk that every node sees.
        ranks: all.
        step: steps done.
        learners: this rank's, by key.
        rows: state of this rank's rows; may be empty.
        state: other plain values, of which rank 0's are kept.
        identity: what the run is.
        keep: checkpoints that stay.

    Raises:
        UserError: it cannot be written; older checkpoints are left as they were.
        LostRankError: another process died meanwhile.
    """
    tensors: dict[str, Tensor] = {}
    own = {
        "learners": {key: _emptied(one.state(), ("learners", key), tensors, one) for key, one in learners.items()},
        "rows": {str(ranks.rank): _emptied(dict(rows), ("rows", ranks.rank), tensors)},
    }
    parts = ranks.gathered_objects(own)
    merged = {name: {key: one for part in reversed(parts) for key, one in part[name].items()} for name in own}
    unfinished = folder / f".unfinished-{step}"
    try:
        _together(ranks, lambda: _make(unfinished), only_first=True, folder=folder)
        _together(ranks, lambda: _write_tensors(unfinished / TENSORS, tensors), only_first=False, folder=folder)
        content = {**state, **merged, "ranks": ranks.size}
        _together(
            ranks,
            lambda: _finish(unfinished, folder / f"step-{step}", step=step, state=content, identity=identity),
            only_first=True,
            folder=folder,
        )
    except BaseException:
        if ranks.is_first:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if ranks.is_first:
        with contextlib.suppress(OSError):
            remove_others(folder, step=step, keep=keep)


def restored(
    found: Checkpoint, learners: Mapping[str, Learner], ranks: Ranks
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """States of this rank's learners, and of its rows: empty where these were on another number of ranks.

    Args:
        found: a checkpoint, of ranks or of one process.
        learners: this rank's, by key.
        ranks: those that go on.
    """
    wanted: dict[str, Any] = {key: found.state["learners"][key] for key in learners}
    rows: Any = found.state["rows"]
    if "ranks" in found.state:
        rows = rows.get(str(ranks.rank), {})
    if found.state.get("ranks", 1) != ranks.size:
        rows = {}
    if found.tensors is None:
        return {key: _own_part(state, learners[key]) for key, state in wanted.items()}, rows
    targets: dict[str, Tensor] = {}
    sizes = _sizes(found.tensors)
    for key, state in wanted.items():
        targets |= _targets(state, learners[key], sizes)
    targets |= _targets(rows, None, sizes)
    _read_tensors(found.tensors, targets, alone=ranks.size == 1)
    filled = {key: _filled(state, targets) for key, state in wanted.items()}
    return filled, _filled(rows, targets)


def _emptied(state: Any, path: Keys, tensors: dict[str, Tensor], learner: Learner | None = None) -> Any:
    """The state with names in place of its larger tensors, which are put into `tensors`."""

    def kept(path: Keys, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        shard = learner if isinstance(learner, LatentShard) and learner.per_latent(path[2:]) else None
        if shard is None and value.numel() < _SMALL:
            return value.detach().cpu().clone()
        name = "/".join(str(part) for part in path)
        tensors[name] = value.detach() if shard is None else _sharded(value, shard.d_sae)
        return {_NAMED: name}

    return with_leaves(state, kept, path=path)


def _filled(state: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state with its tensors in place of their names."""

    def tensor(path: Keys, value: Any) -> Any:
        found: Any = tensors[value[_NAMED]] if _is_name(value) else value
        return found.to_local() if hasattr(found, "to_local") else found

    return with_leaves(state, tensor, is_leaf=_is_name)


def _targets(state: Any, learner: Learner | None, sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    """By name, memory for the tensors that are named in a state."""
    device = torch.device("cpu") if learner is None else learner.device
    found: dict[str, Tensor] = {}
    for path, value in leaves(state, is_leaf=_is_name):
        if _is_name(value):
            name = value[_NAMED]
            size, dtype = sizes[name].size, sizes[name].properties.dtype
            if isinstance(learner, LatentShard) and learner.per_latent(path):
                part = torch.empty(learner.n_own, *size[1:], dtype=dtype, device=device)
                found[name] = _sharded(part, learner.d_sae)
            else:
                found[name] = torch.empty(size, dtype=dtype, device=device)
    return found


def _own_part(state: Any, learner: Learner) -> Any:
    """Of a whole state what a rank has: all, or its latents."""
    if not isinstance(learner, LatentShard):
        return state
    own = slice(learner.first, learner.first + learner.n_own)
    return with_leaves(
        state, lambda path, one: one[own] if isinstance(one, Tensor) and learner.per_latent(path) else one
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, dict) and _NAMED in value


def _sharded(own: Tensor, n_latents: int) -> Any:
    """A rank's latents as its part of a whole tensor."""
    from torch.distributed.tensor import DTensor, Shard

    shape = torch.Size([n_latents, *own.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    mesh = _mesh(own.device.type)
    return DTensor.from_local(own.detach(), mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


@cache
def _mesh(device_type: str) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device_type, (dist.get_world_size(),))


def _make(unfinished: Path) -> None:
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)


def _write_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    from torch.distributed.checkpoint import state_dict_saver
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    try:
        state_dict_saver.save(dict(tensors), storage_writer=FileSystemWriter(folder))
    except CheckpointException as error:
        causes = [wrapped[0] for wrapped in error.failures.values()]
        raise next((one for one in causes if isinstance(one, OSError)), None) or RuntimeError(str(causes)) from error


def _read_tensors(folder: Path, targets: dict[str, Tensor], *, alone: bool) -> None:
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is .*single process", category=UserWarning)
        state_dict_loader.load(dict(targets), storage_reader=FileSystemReader(folder), no_dist=alone)


def _sizes(folder: Path) -> dict[str, Any]:
    """By name what is known of each tensor: `size`, `properties.dtype`."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    return dict(FileSystemReader(folder).read_metadata().state_dict_metadata)


def _finish(unfinished: Path, final: Path, *, step: int, state: Any, identity: Any) -> None:
    """The other files, and the checkpoint's name."""
    n_bytes, crc = write_state(unfinished / STATE, state)
    files = sorted((unfinished / TENSORS).iterdir())
    written = {path.name: [path.stat().st_size, f"{checksum(path):08x}"] for path in files}
    record = {"step": step, "bytes": n_bytes, "crc32": f"{crc:08x}", "tensors": written, "identity": dict(identity)}
    write_json(unfinished / RECORD, record)
    put_folder(unfinished, final)


def _together(ranks: Ranks, work: Callable[[], None], *, only_first: bool, folder: Path) -> None:
    """Do it on all ranks or the first, and go on only if it was done everywhere.

    Raises:
        UserError: it failed on one of them.
        LostRankError: a process died meanwhile.
    """
    failure: OSError | None = None
    if ranks.is_first or not only_first:
        try:
            work()
        except OSError as error:
            failure = error
        except RuntimeError as error:
            raise LostRankError(f"A checkpoint could not be written together: {error} --resume goes on.") from error
    number = ranks.largest(0 if failure is None else failure.errno or 5)
    if number:
        raise unwritable(folder, failure or OSError(number, "another process could not write")) from failure
