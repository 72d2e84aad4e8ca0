"""Finished runs as they are evaluated: what a run's folder says, and the suites of SAEs that lie in it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from strata.errors import UserError
from strata.evaluate.suites import by_suite
from strata.formats import native
from strata.lm.sites import depth
from strata.log import say
from strata.sae.model import SAE, Transcoder


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
        folder: where it is.
        record: its run.json.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The description that was trained."""
        return self.record["config"]

    @property
    def data(self) -> str:
        """The text's name."""
        return self.config["data"]

    @property
    def text_batch_size(self) -> int:
        """Packed sequences per forward of its language model."""
        return self.config["sae"]["text_batch_size"]

    @property
    def random_seed(self) -> int | None:
        """Of the weights of a language model that had learned nothing (`strata.lm.random_weights`); None of others."""
        return self.config["sae"].get("seed", 0) if self.config.get("random_weights", False) else None

    @property
    def model_key(self) -> tuple[str, int | None]:
        """What two runs of the same language model have in common: its name and `random_seed`."""
        return self.config["model"], self.random_seed

    @property
    def text_key(self) -> tuple[str, int]:
        """What two runs of the same text have in common: fingerprint (else name) and context length."""
        fingerprint = self.record.get("text", {}).get("texts", {}).get("fingerprint", "unknown")
        return (self.data if fingerprint == "unknown" else fingerprint), self.config["context_tokens"]

    @property
    def rows_key(self) -> tuple[Any, ...]:
        """What two runs on the same rows have in common: text, number of rows, and whence they came."""
        return *self.text_key, self.record.get("n_rows"), self.config.get("activations", "stream")

    @property
    def hardware(self) -> str | None:
        """Where its seconds were measured, in words; None where its record does not tell."""
        told = self.record.get("hardware")
        if not told:
            return None
        device, cpu = told.get("device"), f"{told.get('cpu')}, {told.get('n_threads')} of {told.get('n_cores')} cores"
        return cpu if device == "cpu" else f"{device} ({cpu})"


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


@dataclass(frozen=True)
class FoundSAE:
    """An SAE in a run's folder.

    Attributes:
        path: its folder below sae/, ``layers.3`` or ``layers.0-2/layers.1``.
        key: what it was trained as, ``layers.3`` or ``layers.0-2``.
        label: which settings of a sweep it has.
        site: where it reads.
        sae: itself.
    """

    path: str
    key: str
    label: str
    site: str
    sae: SAE


def open_run(folder: Path) -> Run:
    """A finished run.

    Raises:
        UserError: no folder of a run, or one without SAEs.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise UserError(f"`runs` must be folders of runs. {folder} holds no run.json. Give e.g. runs/demo-stdlib.")
    record: Any = None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = {"model", "data", "context_tokens", "sae"} <= record["config"].keys()
        known = known and {"k", "text_batch_size"} <= record["config"]["sae"].keys()
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise UserError(f"`runs` must have a whole run.json. {path} is damaged. Train the run again.")
    if not (folder / "sae").is_dir():
        status = record.get("status", "unknown")
        raise UserError(
            f"`runs` must be finished. {folder} holds no SAEs (status: {status}). Go on with strata train --resume."
        )
    return Run(folder, record)


def open_suites(runs: Sequence[Run], *, progress: bool = True) -> list[Suite]:
    """All suites of all runs, under names that differ.

    Each combination of a sweep's settings is a suite. Where a run trained a site several times with the same settings
    (in groups of different sizes), groups are taken in the order of training, each into the first suite that has none
    of its sites yet. Transcoders are left out, and a line says so.

    Raises:
        UserError: a run without a single SAE.
    """
    suites = []
    for run, name in zip(runs, _names([run.folder for run in runs]), strict=True):
        found = saes_of(run, progress=progress)
        packed = [(label, part) for label in dict.fromkeys(f.label for f in found) for part in _pack(found, label)]
        n_parts = {label: sum(other == label for other, _ in packed) for label, _ in packed}
        numbers = dict.fromkeys(n_parts, 0)
        for label, part in packed:
            numbers[label] += 1
            number = str(numbers[label]) if n_parts[label] > 1 else ""
            suite = Suite(
                name="/".join(filter(None, (name, label, number))),
                run=run,
                settings=run.config["sae"] | _swept(label),
                saes={one.site: one.sae for one in part},
                keys={one.site: one.key for one in part},
                n_suites=len(packed),
            )
            suites.append(suite)
    return suites


def saes_of(run: Run, *, progress: bool) -> list[FoundSAE]:
    """The run's SAEs in the order of their training, transcoders left out.

    Raises:
        UserError: there is none.
    """
    root = run.folder / "sae"
    places = [path for path in sorted(root.rglob("*")) if path.is_dir() and native.recognises(path)]
    found, n_transcoders = [], 0
    for place in places:
        sae = native.load(place)
        if isinstance(sae, Transcoder):
            n_transcoders += 1
            continue
        parts = list(place.relative_to(root).parts)
        site = sae.metadata["site"] = sae.metadata.get("site") or parts[0]
        path, label = "/".join(parts), next((part for part in parts if "=" in part), "")
        found.append(FoundSAE(path, path.removesuffix(f"/{site}"), label, site, sae))
    if n_transcoders:
        say(f"{run.folder}: {n_transcoders} transcoder(s) left out; `strata evaluate` is for SAEs", shown=progress)
    if not found:
        raise UserError(
            f"`runs` must hold SAEs. {run.folder} holds {n_transcoders} transcoder(s) and no SAE. Leave it out."
        )
    order = {key: place for place, key in enumerate(run.record.get("dead", {}))}
    return sorted(found, key=lambda one: (order.get(one.key, len(order)), one.key, depth(one.site)))


def _pack(found: Sequence[FoundSAE], label: str) -> list[list[FoundSAE]]:
    """The SAEs of a label as suites, see `by_suite`, each in the order of its sites."""
    of_label = {one.path: one for one in found if one.label == label}
    suites = by_suite({path: one.sae for path, one in of_label.items()})
    return [sorted((of_label[path] for path in suite), key=lambda one: depth(one.site)) for suite in suites]


def _names(folders: Sequence[Path]) -> list[str]:
    """Short names: the folders' own, with as many parents as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _swept(label: str) -> dict[str, Any]:
    """The settings that a sweep's label names, `k=16,seed=1`, read as JSON where they are."""
    found = {}
    for word in filter(None, label.split(",")):
        name, _, value = word.partition("=")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = {"True": True, "False": False}.get(value, value)
    return found
