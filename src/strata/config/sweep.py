"""Sweeps: several configs of the same run, how they are written on a command line, and what their SAEs are called."""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, cast, get_type_hints

from strata.config.settings import fits, instead_of, named
from strata.config.train import SAEConfig
from strata.errors import UserError

_SHARED = ("batch_size", "num_epochs", "text_batch_size")  # what decides which rows a step sees


def sweep_configs(base: SAEConfig, sweep: Sequence[str]) -> list[SAEConfig]:
    """All combinations of the swept settings, the first setting varying slowest.

    Args:
        base: what all configs have in common.
        sweep: words such as `k=16,32`; none gives the base alone.

    Raises:
        UserError: a word that is none, an unknown setting, a value that does not fit, or a combination that
            `SAEConfig` refuses.
    """
    swept = [_parse(word) for word in sweep]
    names = [name for name, _ in swept]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"`sweep` must name each setting once. Got {twice} twice. Give all its values together.")
    combinations = itertools.product(*(values for _, values in swept))
    return [replace(base, **dict(zip(names, values, strict=True))) for values in combinations]


def check_sweep(configs: Sequence[SAEConfig]) -> None:
    """That configs can be trained side by side on the same rows.

    Raises:
        UserError: none at all, two that are the same, or settings that differ and must not.
    """
    if not configs:
        raise UserError("`config` must be an SAEConfig or a list of them. Got an empty list.")
    for name in _SHARED:
        values = list(dict.fromkeys(getattr(config, name) for config in configs))
        if len(values) > 1:
            raise UserError(
                f"`SAEConfig.{name}` must be the same in all configs of a sweep, which see the same batches. Got"
                f" {', '.join(map(str, values))}. Train them in runs of their own."
            )
    names = labels(configs)
    if len(set(names)) < len(names):
        twice = next(number for number, name in enumerate(names) if name in names[:number])
        raise UserError(f"`config` must hold configs that differ. Number {twice + 1} is there twice. Leave one out.")


def labels(configs: Sequence[SAEConfig]) -> list[str]:
    """What tells the configs of a sweep apart, `k=16,seed=1`, fit for the name of a folder; empty for a single one."""
    given = [asdict(config) for config in configs]
    differing = [name for name in given[0] if any(config[name] != given[0][name] for config in given)]
    return [",".join(f"{name}={_written(config[name])}" for name in differing) for config in given]


def _written(value: Any) -> str:
    parts = cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,)
    return re.sub(r"[^\w.%+-]", "", "-".join(map(str, parts)))


def _parse(word: str) -> tuple[str, list[Any]]:
    name, equals, values = word.partition("=")
    name = name.strip().replace("-", "_")
    known = [field.name for field in fields(SAEConfig)]
    if not equals or not values.strip():
        raise UserError(f"`sweep` takes settings with their values, such as k=16,32. Got {word!r}.")
    if name not in known:
        raise UserError(f"`sweep` must name a setting of SAEConfig. Got {name!r}.{instead_of(name, known)}")
    kind = get_type_hints(SAEConfig)[name]
    found = [_value(text.strip(), name=name, kind=kind) for text in values.split(",")]
    if len(set(found)) < len(found):
        raise UserError(f"`sweep` must give each value once. Got {word!r}.")
    return name, found


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _value(text: str, *, name: str, kind: Any) -> Any:
    """The text as the first of whole number, number, truth value and text that the setting can be."""
    readings: tuple[Callable[[str], Any], ...] = (int, float, _truth, str)
    for reading in readings:
        try:
            value = reading(text)
        except (ValueError, KeyError):
            continue
        if fits(value, kind):
            return value
    raise UserError(f"`sweep` of {name} must be {named(kind)}. Got {text!r}.")
