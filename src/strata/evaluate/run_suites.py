"""The SAEs of runs in suites: those that stand in the language model together, one for each site."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from strata.evaluate.places import Place, places_of, swept_settings
from strata.evaluate.runs import Run
from strata.evaluate.suites import by_suite
from strata.lm.sites import depth
from strata.sae.model import SAE


@dataclass(frozen=True, kw_only=True)
class Suite:
    """SAEs of one run that stand in the model together, one for each site.

    Attributes:
        name: what tables and plots call it.
        run: where it comes from.
        settings: of its SAEs; a sweep's own values in place of the run's.
        saes: site → SAE.
        keys: site → what it was trained as; sites of a group have the same.
        n_suites: how many suites the run trained side by side.
    """

    name: str
    run: Run
    settings: dict[str, Any]
    saes: dict[str, SAE]
    keys: dict[str, str]
    n_suites: int = 1

    @cached_property
    def groups(self) -> list[list[str]]:
        """The sites that share an SAE, by the order of the first."""
        return [
            [site for site, key in self.keys.items() if key == shared] for shared in dict.fromkeys(self.keys.values())
        ]

    @property
    def is_layer_wise(self) -> bool:
        """Whether every site has an SAE of its own."""
        return len(self.groups) == len(self.saes)

    @property
    def widths(self) -> list[tuple[int, int]]:
        """(d_in, d_sae) of each SAE that was trained."""
        return [(self.saes[group[0]].d_in, self.saes[group[0]].d_sae) for group in self.groups]

    @property
    def k(self) -> int:
        """The wanted number of active latents."""
        return self.settings["k"]

    def dead(self, site: str) -> dict[str, Any]:
        """What training said of dead latents: ``dead_share``, ``dead_window_rows``; of a group, for all its sites."""
        known = self.run.record.get("dead", {}).get(self.keys[site], {})
        return {key: known.get(key) for key in ("dead_share", "dead_window_rows")}


def open_suites(runs: Sequence[Run], *, progress: bool = True) -> list[Suite]:
    """All suites of all runs, under names that differ.

    Each combination of a sweep's settings is a suite. Where a run trained a site several times with the same settings
    (in groups of different sizes), groups are taken in the order of training, each into the first suite that has none
    of its sites yet. Transcoders are left out, and a line says so.

    Raises:
        UserError: a run without a single SAE.
    """
    names = _names([run.folder for run in runs])
    return [suite for run, name in zip(runs, names, strict=True) for suite in _suites_of(run, name, progress=progress)]


def _suites_of(run: Run, name: str, *, progress: bool) -> list[Suite]:
    order = {key: number for number, key in enumerate(run.record.get("dead", {}))}
    places = places_of(run, progress=progress)
    trained = sorted(places, key=lambda one: (order.get(one.trained_as, len(order)), one.trained_as, depth(one.site)))
    labels = dict.fromkeys(place.label for place in trained)
    packed = {label: _packed([place for place in trained if place.label == label]) for label in labels}
    return [
        Suite(
            name="/".join(filter(None, (name, label, str(number) if len(parts) > 1 else ""))),
            run=run,
            settings=run.config["sae"] | swept_settings(label),
            saes={place.site: sae for place, sae in part},
            keys={place.site: place.trained_as for place, _ in part},
            n_suites=sum(map(len, packed.values())),
        )
        for label, parts in packed.items()
        for number, part in enumerate(parts, 1)
    ]


def _packed(places: Sequence[Place]) -> list[list[tuple[Place, SAE]]]:
    """SAEs of the same settings as suites, see `by_suite`, each in the order of its sites."""
    by_key = {place.key: place for place in places}
    suites = by_suite({place.key: place.load() for place in places})
    return [
        sorted(((by_key[key], sae) for key, sae in suite.items()), key=lambda one: depth(one[0].site))
        for suite in suites
    ]


def _names(folders: Sequence[Path]) -> list[str]:
    """Short names: the folders' own, with as many parents as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
