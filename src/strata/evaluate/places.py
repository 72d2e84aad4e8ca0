"""Which SAEs lie in a run's folder and at which sites, without reading their weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata.errors import UserError, did_you_mean
from strata.evaluate.runs import Run
from strata.formats import native
from strata.formats.folder import read_json
from strata.lm.sites import depth
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

    def load(self) -> SAE:
        """The SAE, on the CPU; its metadata name its site.

        Raises:
            UserError: it is damaged.
        """
        sae = native.load(self.folder)
        sae.metadata["site"] = self.site
        return sae


def places_of(run: Run) -> list[Place]:
    """All SAEs of a run in the order of their sites; transcoders are none.

    Raises:
        UserError: there is none, or a description that cannot be read.
    """
    root = run.folder / "sae"
    found = []
    for folder in sorted(root.rglob("*")):
        if not (folder.is_dir() and native.recognises(folder)):
            continue
        about = read_json(folder / _CONFIG)
        if not _is_transcoder(about):
            parts = folder.relative_to(root).parts
            site = (about.get("metadata") or {}).get("site") or parts[0]
            found.append(Place("/".join(parts), site, folder))
    if not found:
        raise UserError(f"`run` must hold SAEs. {run.folder} holds none. Give another, or train one.")
    return sorted(found, key=lambda place: (depth(place.site), place.key))


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


def swept_settings(key: str) -> dict[str, str]:
    """What a sweep's folder says, ``k=16,seed=1``; empty for others."""
    words = [word for part in key.split("/") if "=" in part for word in part.split(",")]
    return dict(word.split("=", 1) for word in words if "=" in word)


def _is_transcoder(about: dict[str, Any]) -> bool:
    """Of a cfg.json by SAELens' or sparsify's names."""
    return "transcoder" in str(about.get("architecture", "")) or bool(
        about.get("transcode") or about.get("skip_connection")
    )
