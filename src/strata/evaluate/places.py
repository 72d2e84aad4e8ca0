"""Which SAEs lie in a run's folder and at which sites, without reading their weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata.amounts import counted
from strata.errors import UserError, did_you_mean
from strata.evaluate.runs import Run
from strata.formats import native
from strata.formats.folder import read_json
from strata.lm.sites import depth
from strata.log import say
from strata.sae.model import SAE

_CONFIG = "cfg.json"


@dataclass(frozen=True)
class Place:
    """An SAE on disk.

    Attributes:
        key: its folder below the run's sae/: ``layers.3``, ``layers.0-2/layers.1``, ``layers.3/k=16``. Its name in the
            run's index, too.
        site: where it reads.
        folder: the whole path.
    """

    key: str
    site: str
    folder: Path

    @property
    def trained_as(self) -> str:
        """Its name in the training: of a group's layer that of the group, ``layers.0-2``."""
        return self.key.removesuffix(f"/{self.site}")

    @property
    def label(self) -> str:
        """Which settings of a sweep it has, ``k=16,seed=1``; empty where nothing was swept."""
        return next((part for part in self.key.split("/") if "=" in part), "")

    def load(self) -> SAE:
        """The SAE, on the CPU; its metadata name its site.

        Raises:
            UserError: it is damaged.
        """
        sae = native.load(self.folder)
        sae.metadata["site"] = self.site
        return sae


def places_of(run: Run, *, progress: bool = False) -> list[Place]:
    """All SAEs of a run in the order of their sites; transcoders are none.

    Args:
        run: whose.
        progress: say on stderr how many transcoders were left out.

    Raises:
        UserError: there is none, or a description that cannot be read.
    """
    root = run.folder / "sae"
    folders = [folder for folder in sorted(root.rglob("*")) if folder.is_dir() and native.recognises(folder)]
    described = {folder: read_json(folder / _CONFIG) for folder in folders}
    found = {folder: about for folder, about in described.items() if not _is_transcoder(about)}
    n_transcoders = len(described) - len(found)
    if n_transcoders:
        say(f"{run.folder}: {counted(n_transcoders, 'transcoder')} left out; this command is for SAEs", shown=progress)
    if not found:
        raise UserError(
            f"A run must hold SAEs. {run.folder} holds {counted(n_transcoders, 'transcoder')} and no SAE. Give"
            " another, or train one."
        )
    places = [_place(folder.relative_to(root).as_posix(), folder, about) for folder, about in found.items()]
    return sorted(places, key=lambda place: (depth(place.site), place.key))


def _place(key: str, folder: Path, about: dict[str, Any]) -> Place:
    metadata: dict[str, Any] = about.get("metadata") or {}
    return Place(key, metadata.get("site") or key.partition("/")[0], folder)


def named_places(places: Sequence[Place], names: Sequence[str]) -> list[Place]:
    """Those of these keys, or at these sites.

    Args:
        places: of a run.
        names: keys or sites (all SAEs there); "all" is every one.

    Raises:
        UserError: there is no such SAE.
    """
    for name in names:
        if name != "all" and not any(name in (place.key, place.site) for place in places):
            known = dict.fromkeys(known for place in places for known in (place.key, place.site))
            raise UserError(f"`sites` must be of the run. Got {name!r}.{did_you_mean(name, known)}")
    return [place for place in places if {"all", place.key, place.site} & set(names)]


def chosen_place(places: Sequence[Place], *, site: str, key: str) -> Place:
    """The one that is meant.

    Args:
        places: of a run.
        site: its name.
        key: of the SAE there; "auto" where the site has but one.

    Raises:
        UserError: no such site, none of that key there, or several where none was named.
    """
    sites = list(dict.fromkeys(place.site for place in places))
    if site not in sites:
        raise UserError(f"`site` must be one that the run has an SAE of. Got {site!r}.{did_you_mean(site, sites)}")
    having = {place.key: place for place in places if place.site == site}
    if key == "auto" and len(having) == 1:
        return next(iter(having.values()))
    if key not in having:
        given = "none of them" if key == "auto" else repr(key)
        raise UserError(
            f"`sae` must name one of the {len(having)} SAEs that the run has at {site}. Got {given}."
            f"{did_you_mean(key, having)}"
        )
    return having[key]


def swept_settings(label: str) -> dict[str, Any]:
    """The settings that a sweep's label names, ``k=16,seed=1``, read as JSON where they are."""
    found: dict[str, Any] = {}
    for word in filter(None, label.split(",")):
        name, _, value = word.partition("=")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = {"True": True, "False": False}.get(value, value)
    return found


def _is_transcoder(about: dict[str, Any]) -> bool:
    """Of a cfg.json by SAELens' or sparsify's names."""
    return "transcoder" in str(about.get("architecture", "")) or bool(
        about.get("transcode") or about.get("skip_connection")
    )
