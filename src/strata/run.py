"""A training run and its folder: from a description to SAEs on disk, and the record of how they came about."""

import json
import os
import platform
import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from strata.activations.harvest import token_stream
from strata.activations.stream import Stream
from strata.config import TrainConfig
from strata.durations import Duration
from strata.errors import UserError
from strata.lm.model import LanguageModel
from strata.log import say
from strata.sae.model import SAE
from strata.train import Recording, Trained, prepare, train

_RECORDED_LIBRARIES = ("strata-sae", "torch", "transformers", "tokenizers", "safetensors", "numpy")
_NOT_COMPARED = ("resume", "overwrite", "report", "log_every_steps", "checkpoint_every", "held_out_tokens", "out")


def chosen_sites(lm: LanguageModel, sites: tuple[str, ...]) -> list[str]:
    """The sites that a description names: "all" is every layer, "middle" the middle one.

    Raises:
        UserError: an unknown site.
    """
    named = {"all": lm.sites, "middle": [lm.middle_site]}
    found = [site for name in sites for site in named.get(name, [name])]
    for site in found:
        lm.site(site)
    return list(dict.fromkeys(found))


def train_run(config: TrainConfig, *, progress: bool = True) -> tuple[LanguageModel, Trained]:
    """Train as described and leave a run folder: run.json, metrics.jsonl, sae/<site>/, checkpoints while it runs.

    Args:
        config: the run.
        progress: say on stderr what happens.

    Returns:
        The language model, for what comes next, and what was trained. A run that is resumed after its training had
        ended gives what it left.

    Raises:
        UserError: whatever in the description cannot be done; the folder of an earlier run then stays as it was.
    """
    folder = config.folder()
    _check_folder(folder, config)
    before = _read_record(folder) if config.resume else None
    lm = LanguageModel(config.model, device=config.device, trust_remote_code=config.trust_remote_code)
    sites = chosen_sites(lm, config.sites)
    say(f"{lm.name}: {len(sites)} site(s) of width {lm.d_in(sites[0])}; text: {config.data}", shown=progress)
    stream = open_stream(lm, config, sites=sites)
    record = _record(config, lm, stream)
    if before is not None:
        _check_same(before, record)
        if before["status"] == "trained":
            return lm, _load_trained(folder, before, report=config.report)
    prepared = prepare(stream, config.sae)
    record |= {"n_steps": prepared.n_steps, "n_rows": prepared.n_steps * config.sae.batch_size}
    if before is None:
        _make_folder(folder, record)
    recording = Recording(
        folder=folder,
        resume=config.resume,
        log_every_steps=config.log_every_steps,
        checkpoint_every=Duration.parse(config.checkpoint_every, setting="checkpoint_every"),
        progress=progress,
    )
    trained = train(prepared, recording)
    for site, sae in trained.saes.items():
        sae.save(folder / "sae" / site)
    seconds = {**trained.seconds, "language_model": trained.seconds["rows"]}
    _write_record(folder, (before or record) | {"status": "trained", "dead": trained.dead, "seconds": seconds})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return lm, trained


def _load_trained(folder: Path, record: dict[str, Any], *, report: bool) -> Trained:
    """What a run left whose training had ended but not its report."""
    if not report or (folder / "report" / "index.html").exists():
        raise UserError(f"`resume` needs a run that is not finished. {folder} is. Start another with --out.")
    saes = {site: SAE.load(folder / "sae" / site) for site in record["dead"]}
    return Trained(saes=saes, dead=record["dead"], n_steps=record["n_steps"], seconds=record["seconds"])


def open_stream(lm: LanguageModel, config: TrainConfig, *, sites: list[str]) -> Stream:
    """The stream of a described run: its training documents."""
    tokens = token_stream(
        lm, config.data, context_tokens=config.context_tokens, text_batch_size=config.sae.text_batch_size, split="train"
    )
    return Stream(
        lm,
        tokens,
        sites=sites,
        n_tokens=None if config.n_tokens == "all" else config.n_tokens,
        buffer_tokens=None if config.buffer_tokens == "auto" else config.buffer_tokens,
        lm_dtype=config.lm_dtype,
    )


def _check_folder(folder: Path, config: TrainConfig) -> None:
    """A folder that exists already is left alone unless the description says what to do with it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"`out` must be a folder. {folder} is a file. Give another path.")
    occupied = folder.is_dir() and any(folder.iterdir())
    if config.resume and not (folder / "run.json").exists():
        raise UserError(f"`resume` needs the folder of a run. {folder} holds none. Leave resume out to start one.")
    if occupied and not (config.resume or config.overwrite):
        raise UserError(
            f"`out` must be a new folder. {folder} exists already. Give another with --out, go on with --resume, or"
            f" replace it with"
            " --overwrite."
        )
    if occupied and config.overwrite and not (folder / "run.json").exists():
        raise UserError(
            f"`overwrite` deletes folders of runs only. {folder} holds no run.json. Give another path with --out."
        )


def _record(config: TrainConfig, lm: LanguageModel, stream: Stream) -> dict[str, Any]:
    """What run.json says of a run that begins."""
    return {
        "status": "training",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "strata_version": _version("strata-sae"),
        "config": _plain(asdict(config)),
        **stream.describe(),
        "versions": {name: _version(name) for name in _RECORDED_LIBRARIES},
        "hardware": _hardware(lm.device),
    }


def _read_record(folder: Path) -> dict[str, Any]:
    """The run.json of a run before.

    Raises:
        UserError: it is damaged.
    """
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict) or "status" not in record:
        raise UserError(
            f"`resume` needs the record of the run before. {folder / 'run.json'} is damaged. Start another with --out."
        )
    return record


def _make_folder(folder: Path, record: dict[str, Any]) -> None:
    """An empty folder with its run.json; a run that is overwritten goes now that the new one is known to begin."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        _write_record(folder, record)
    except OSError as error:
        raise UserError(
            f"`out` must be a folder that can be written. {folder}: {error.strerror}. Give another path."
        ) from error


def _check_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    """A run is resumed with the same settings, model and text, or not at all."""
    old, new = ({k: v for k, v in r["config"].items() if k not in _NOT_COMPARED} for r in (before, now))
    changed = [key for key in new if old.get(key) != new[key]]
    changed += [key for key in ("model", "text") if before.get(key) != _plain(now[key])]
    if changed:
        raise UserError(
            f"`resume` needs the settings, model and text of the run before. Changed: {', '.join(changed)}."
        )


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    unfinished = folder / ".run.json.unfinished"
    unfinished.write_text(json.dumps(_plain(record), indent=2) + "\n", encoding="utf-8")
    unfinished.replace(folder / "run.json")


def _plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    return json.loads(json.dumps(value, default=str))


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _hardware(device: torch.device) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": _cpu_name(),
        "n_cores": os.cpu_count(),
        "n_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
