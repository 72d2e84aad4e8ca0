"""Contenders by name: the peers, Strata, and the settings in which they run."""

import contextlib
import importlib.metadata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch

from strata.bench.contender import Contender, Given
from strata.bench.own import Strata
from strata.bench.peers import DictionaryLearning, SAELens, Sparsify
from strata.config.train import RevivalMethod
from strata.errors import UserError, did_you_mean
from strata.lm.precision import fast_dtype


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How a contender is made.

    Attributes:
        make: its class, called with what is `Given`.
        distribution: the package that it needs; "" is this one.
        settings: keywords of its own.
        timed_on: kinds of device on which it is timed unless others are asked for: as the peer is by default, and where
            its settings are meant to make it faster.
    """

    make: Any
    distribution: str = ""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    timed_on: tuple[str, ...] = ()


_EVERYWHERE = ("cpu", "bf16 cpu", "cuda")
_LENS, _SPARSIFY, _DICTIONARY = "sae-lens", "eai-sparsify", "dictionary-learning"
_REVIVED = {"decay_share": 0.3, "window_share": 0.25}

CONTENDERS: dict[str, Entry] = {
    "strata": Entry(make=Strata, timed_on=_EVERYWHERE),
    "strata-fp32": Entry(make=Strata, settings={"score_dtype": torch.float32}),
    **{f"strata-{method}": Entry(make=Strata, settings={"revival": method}) for method in get_args(RevivalMethod)},
    "saelens": Entry(make=SAELens, distribution=_LENS, timed_on=_EVERYWHERE),
    "saelens-sparse": Entry(make=SAELens, distribution=_LENS, settings={"sparse": True}, timed_on=_EVERYWHERE),
    "saelens-autocast": Entry(
        make=SAELens, distribution=_LENS, settings={"autocast": True}, timed_on=("bf16 cpu", "cuda")
    ),
    "saelens-scaled": Entry(make=SAELens, distribution=_LENS, settings={"scaled": True}),
    "saelens-decay": Entry(make=SAELens, distribution=_LENS, settings={"decay_share": 0.3}),
    "saelens-revival": Entry(make=SAELens, distribution=_LENS, settings=_REVIVED),
    "sparsify": Entry(make=Sparsify, distribution=_SPARSIFY, timed_on=_EVERYWHERE),
    "sparsify-adam": Entry(make=Sparsify, distribution=_SPARSIFY, settings={"optimizer": "adam"}),
    "sparsify-auxk": Entry(
        make=Sparsify, distribution=_SPARSIFY, settings={"auxk_alpha": 1 / 32, "window_share": 0.25}
    ),
    "dictionary_learning": Entry(make=DictionaryLearning, distribution=_DICTIONARY, timed_on=_EVERYWHERE),
    "dictionary_learning-autocast": Entry(
        make=DictionaryLearning, distribution=_DICTIONARY, settings={"autocast": True}, timed_on=("cuda",)
    ),
    "dictionary_learning-revival": Entry(make=DictionaryLearning, distribution=_DICTIONARY, settings=_REVIVED),
}
"""By name; `family` of a name is the contender with its defaults."""


OURS = "strata"


def family(name: str) -> str:
    """The contender of which a name is a variant: "saelens" of "saelens-sparse"."""
    return name.partition("-")[0]


def entry(name: str) -> Entry:
    """How a contender is made.

    Raises:
        UserError: no such contender, or its package is not installed.
    """
    if name not in CONTENDERS:
        raise UserError(f"`contenders` must be known ones. Got {name!r}.{did_you_mean(name, CONTENDERS)}")
    found = CONTENDERS[name]
    if not installed(name):
        raise UserError(
            f"`contenders` must be installed. {name} needs {found.distribution}. `pip install {found.distribution}`"
            f" brings it, or leave {name} out."
        )
    return found


def make(name: str, given: Given) -> Contender:
    """A contender.

    Raises:
        UserError: as `entry`.
    """
    found = entry(name)
    return found.make(given, **found.settings)


def installed(name: str) -> bool:
    """Whether a known contender's package is here."""
    return CONTENDERS[name].distribution in ("", *versions())


def versions() -> dict[str, str]:
    """Installed peers' packages and their versions."""
    return installed_versions(sorted({one.distribution for one in CONTENDERS.values()} - {""}))


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found: dict[str, str] = {}
    for distribution in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[distribution] = importlib.metadata.version(distribution)
    return found


def chosen(names: Sequence[str], device: torch.device) -> list[str]:
    """The contenders to time: those named, "installed" in full.

    Raises:
        UserError: one is unknown or not installed.
    """
    kind = "bf16 cpu" if device.type == "cpu" and fast_dtype(device) == torch.bfloat16 else device.type
    usual = [name for name, one in CONTENDERS.items() if kind in one.timed_on and installed(name)]
    wanted = [one for name in names for one in (usual if name == "installed" else [name])]
    for name in wanted:
        entry(name)
    return list(dict.fromkeys(wanted))
