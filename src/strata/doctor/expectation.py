"""What a run that says nothing of its own speed should have taken, where that can still be told."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from strata.config.train import SAEConfig, TrainConfig
from strata.errors import UserError


def expected_speed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The plan's seconds for a streamed run of this machine, as `predicted` in run.json; empty where it has none.

    Only for models that are at hand, the embedded one or a folder: a doctor fetches nothing.

    Args:
        record: run.json.
    """
    config = _described(record.get("config"))
    if config is None or config.activations != "stream" or not _made_here(record.get("hardware")):
        return {}
    if config.model != "demo" and not Path(config.model).is_dir():
        return {}
    from strata.lm.outline import outline
    from strata.plan.predicted import predicted
    from strata.plan.rates import known_rates

    try:
        lm = outline(config.model)
        return predicted(config, lm, known_rates(device=config.device), n_steps=record.get("n_steps"))
    except UserError:
        return {}


def _made_here(hardware: Any) -> bool:
    """Whether this machine has the processor and the device of the record, and as many threads are used as were."""
    import torch

    from strata.lm.loading import chosen_device
    from strata.machine.hardware import cpu_name, device_name

    told = mapping(hardware)
    here = (cpu_name(), device_name(chosen_device("auto")), torch.get_num_threads())
    return (told.get("cpu"), told.get("device"), told.get("n_threads")) == here


def _described(config: Any) -> TrainConfig | None:
    """The description, if this version still understands it; settings of a sweep or of groups apart."""
    told = mapping(config)
    sae = described_sae(mapping(told.get("sae")))
    if sae is None:
        return None
    try:
        own = {name: value for name, value in _known(TrainConfig, told).items() if name not in ("sae", "resume")}
        if own.get("activations", "stream") not in ("stream", "collected"):
            own["activations"] = Path(own["activations"])
        return TrainConfig(**own, sae=sae)
    except (TypeError, ValueError):
        return None


def described_sae(settings: Mapping[str, Any]) -> SAEConfig | None:
    """The SAE's description, if this version still understands it."""
    try:
        return SAEConfig(**_known(SAEConfig, settings)) if settings else None
    except (TypeError, ValueError):
        return None


def _known(description: type, given: Mapping[str, Any]) -> dict[str, Any]:
    names = {one.name for one in fields(description)}
    return {name: tuple(cast("list[Any]", value)) if isinstance(value, list) else value
            for name, value in given.items() if name in names}  # fmt: skip


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is an object of JSON, else an empty one."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
