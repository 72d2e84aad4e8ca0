"""How fast this machine is: measured once and kept in a small file, or assumed until then."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from strata.atomic import read_object, write_json
from strata.cache import cache_folder
from strata.costs.step import Rates, StepSeconds
from strata.errors import UserError, did_you_mean
from strata.lm.loading import chosen_device
from strata.lm.model import LanguageModel
from strata.machine.hardware import cpu_name, device_bytes, device_name, memory_bytes

_VERSION = 1
_GB = 1e9
# Assumed where nothing is measured: how much of what the data sheet names is reached.
_SHARE_OF_PEAK, _SHARE_OF_BANDWIDTH = 0.4, 0.6
_LAUNCH_SECONDS = 6e-4  # of the some hundred kernels of a step


def _accelerator(name: str, *, tera_flops: float, tera_bytes: float, gigabytes: float) -> Rates:
    """Rates from a data sheet: dense bf16 and memory bandwidth.

    Args:
        name: of the product.
        tera_flops: bf16, dense, per second.
        tera_bytes: of its memory, per second.
        gigabytes: of its memory.
    """
    product, byte = 1e-12 / (_SHARE_OF_PEAK * tera_flops), 1e-12 / (_SHARE_OF_BANDWIDTH * tera_bytes)
    step = StepSeconds(
        product_flops=product, n_scores=4 * byte, sparse_flops=2 * byte, n_weights=44 * byte, n_numbers=20 * byte,
        revival_flops=4 * product, n_steps=_LAUNCH_SECONDS,
    )  # fmt: skip
    return Rates(
        name=name,
        kind="assumed",
        source=f"data sheet, {tera_flops:g} TFLOP/s bf16 and {tera_bytes:g} TB/s, of which {_SHARE_OF_PEAK:.0%} and"
        f" {_SHARE_OF_BANDWIDTH:.0%} are assumed to be reached; disk 2 GB/s, 96 GB of RAM",
        step=step,
        forward_flops_per_second=_SHARE_OF_PEAK * tera_flops * 1e12,
        copy_bytes_per_second=_SHARE_OF_BANDWIDTH * tera_bytes * 1e12,
        disk_read_bytes_per_second=2 * _GB,
        disk_write_bytes_per_second=1.5 * _GB,
        tokenised_per_second=1e6,
        memory_bytes=96 * _GB,
        device_bytes=gigabytes * _GB,
    )


def _processor(name: str, *, n_cores: int, gigabytes: float) -> Rates:
    """Rates of a CPU of today: 50 GFLOP/s of fp32 products and 5 GB/s of scattered memory traffic per core."""
    product, byte = 1 / (50e9 * n_cores), 1 / (5e9 * min(n_cores, 8))
    step = StepSeconds(
        product_flops=product, n_scores=4 * byte, sparse_flops=2 * byte / 4, n_weights=44 * byte, n_numbers=20 * byte,
        revival_flops=2 * product, n_steps=2e-3,
    )  # fmt: skip
    return Rates(
        name=name,
        kind="assumed",
        source=f"{n_cores} cores at 50 GFLOP/s (fp32) and 5 GB/s each, disk 0.8 GB/s",
        step=step,
        forward_flops_per_second=0.6 * 50e9 * n_cores,
        copy_bytes_per_second=8e9 * min(n_cores, 8),
        disk_read_bytes_per_second=0.8 * _GB,
        disk_write_bytes_per_second=0.5 * _GB,
        tokenised_per_second=3e5,
        memory_bytes=gigabytes * _GB,
    )


HARDWARE: dict[str, Rates] = {
    "h200": _accelerator("one H200", tera_flops=989.0, tera_bytes=4.8, gigabytes=141.0),
    "h100": _accelerator("one H100 (SXM)", tera_flops=989.0, tera_bytes=3.35, gigabytes=80.0),
    "a100-80gb": _accelerator("one A100 (80 GB, SXM)", tera_flops=312.0, tera_bytes=2.04, gigabytes=80.0),
    "rtx-4090": _accelerator("one RTX 4090", tera_flops=165.0, tera_bytes=1.01, gigabytes=24.0),
    "laptop": _processor("a laptop with 8 cores", n_cores=8, gigabytes=16.0),
    "cpu-2-cores": _processor("2 cores of a server", n_cores=2, gigabytes=16.0),
}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured on a machine.

    Attributes:
        rates: how fast it is.
        forwards: by model, precision and context (see `forward_key`) the seconds per token of a truncated forward, by
            the number of blocks.
        checks: of each step that was timed: its shape, the measured seconds and those of the fitted rates.
    """

    rates: Rates
    forwards: Mapping[str, Mapping[int, float]] = field(default_factory=dict[str, Mapping[int, float]])
    checks: tuple[Mapping[str, Any], ...] = ()


def known_rates(hardware: str = "this", *, device: str = "auto") -> Rates:
    """How fast a machine is.

    Args:
        hardware: "this" is the machine that this runs on: as measured, or else assumed for its kind; or a name in
            `HARDWARE`.
        device: of this machine.

    Raises:
        UserError: an unknown name.
    """
    if hardware != "this":
        if hardware not in HARDWARE:
            known = ["this", *HARDWARE]
            raise UserError(
                f"`hardware` must be one of {', '.join(known)}. Got {hardware!r}.{did_you_mean(hardware, known)}"
            )
        return HARDWARE[hardware]
    where = chosen_device(device)
    found = read_calibration(where)
    return _assumed(where) if found is None else found.rates


def measured_forward(key: str, *, n_blocks: int, device: str = "auto") -> float | None:
    """Seconds per token of a truncated forward that was measured here: at this number of blocks, or on the line through
    two others.

    Args:
        key: see `forward_key`.
        n_blocks: that are run.
        device: of this machine.
    """
    found = read_calibration(chosen_device(device))
    points = sorted((found.forwards.get(key) or {}).items()) if found else []
    known = dict(points)
    if n_blocks in known:
        return known[n_blocks]
    if len(points) < 2:
        return None
    (first, start), (last, end) = points[0], points[-1]
    return max(0.0, start + (end - start) * (n_blocks - first) / (last - first))


def forward_key(lm: LanguageModel, *, context_tokens: int, lm_dtype: str) -> str:
    """Under which a model's forwards are kept: its configuration, but for its name and dtype, and how it is run."""
    config = lm.model.config.to_dict()
    dropped = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures")
    text = json.dumps({key: value for key, value in config.items() if key not in dropped}, sort_keys=True, default=str)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}/{context_tokens}/{lm_dtype}"


def calibration_file() -> Path:
    """Where measurements are kept: $STRATA_CACHE/machine.json, else the user's cache folder."""
    return cache_folder() / "machine.json"


def read_calibration(device: torch.device) -> Calibration | None:
    """What was measured on this machine with these versions; None if nothing was, or the file is not to be read."""
    one = _machines().get(_machine_key(device))
    try:
        return None if one is None else _from_json(one)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def keep_calibration(found: Calibration, device: torch.device) -> Path:
    """Add what was measured to the file, beside other machines' (it may lie on a shared disk); gives the file.

    Raises:
        UserError: it cannot be written.
    """
    path = calibration_file()
    machines = _machines() | {_machine_key(device): asdict(found)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"version": _VERSION, "machines": machines})
    except OSError as error:
        raise UserError(
            f"The calibration is kept in {path}, which cannot be written ({error.strerror}). Set STRATA_CACHE to a"
            f" folder that can."
        ) from error
    return path


def machine_name(device: torch.device) -> str:
    """In words."""
    cores = f"{cpu_name()}, {torch.get_num_threads()} threads"
    return cores if device.type == "cpu" else f"{device_name(device)} ({cores})"


def _machines() -> dict[str, Any]:
    """What the file holds, by machine; nothing where there is none that can be read."""
    try:
        content = read_object(calibration_file())
    except (OSError, ValueError):
        return {}
    of_this_version = content.get("version") == _VERSION and isinstance(content.get("machines"), dict)
    return content["machines"] if of_this_version else {}


def _machine_key(device: torch.device) -> str:
    return f"{machine_name(device)}; torch {torch.__version__}; strata {version('strata-sae')}"


def _from_json(content: dict[str, Any]) -> Calibration:
    rates = dict(content["rates"])
    step = StepSeconds(**rates.pop("step"))
    forwards = {key: {int(n): float(s) for n, s in points.items()} for key, points in content["forwards"].items()}
    return Calibration(rates=Rates(step=step, **rates), forwards=forwards, checks=tuple(content["checks"]))


def _assumed(device: torch.device) -> Rates:
    """For a machine that was never measured: its accelerator if that is a listed one, else by its number of cores."""
    if device.type == "cpu":
        rates = _processor(machine_name(device), n_cores=torch.get_num_threads(), gigabytes=16.0)
        return replace(rates, memory_bytes=memory_bytes() or rates.memory_bytes)
    return replace(
        accelerator_like(device_name(device)),
        name=machine_name(device),
        memory_bytes=memory_bytes() or 96 * _GB,
        device_bytes=device_bytes(device),
    )


def accelerator_like(name: str) -> Rates:
    """What is assumed of an accelerator by its product name: that of the data sheet, or of an A100 where it is not
    listed, which is then said.
    """
    words = re.split(r"[^a-z0-9]+", name.lower())
    products = {"h200": "h200", "h100": "h100", "a100": "a100-80gb", "4090": "rtx-4090"}
    found = next((HARDWARE[key] for product, key in products.items() if product in words), None)
    if found is not None:
        return found
    stand_in = HARDWARE["a100-80gb"]
    return replace(stand_in, source=f"{name} is not listed and taken for {stand_in.name}: {stand_in.source}")
