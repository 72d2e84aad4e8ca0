"""What a run folder holds that a report shows, read with care: any of it may be missing or half written."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from strata.atomic import as_object, read_object
from strata.config.train import SAEConfig
from strata.errors import UserError
from strata.lm.sites import depth
from strata.report.numbers import number


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The parsed files of a run folder. An empty dictionary or list stands for a file that is not there."""

    folder: Path
    run: dict[str, Any]
    """run.json."""
    metrics: list[dict[str, Any]]
    """The lines of metrics.jsonl in the order of their steps; what a resumed run logged twice counts once."""
    evaluation: dict[str, Any]
    """evaluation.json."""
    features: dict[str, Any]
    """features.json: site to list of features."""
    widths: dict[str, tuple[int, int]]
    """(d_in, d_sae) of those sites whose SAE is saved already."""

    @cached_property
    def sites(self) -> list[str]:
        """Every site that any file speaks of, by depth: of a group `layers.0-2/layers.1` and so on, not the group."""
        named = {*self.trained, *section(self.evaluation, "sites"), *self.features, *self.widths}
        layers = {name.rsplit("/", 1)[0] for name in named if "/layers." in name}
        return sorted(named - layers, key=depth)

    @cached_property
    def trained(self) -> list[str]:
        """Every site or group whose training was logged, by depth."""
        return sorted({site for line in self.metrics for site in section(line, "sites")}, key=depth)

    @property
    def last(self) -> dict[str, Any]:
        """The last logged line of metrics, or nothing."""
        return self.metrics[-1] if self.metrics else {}

    @property
    def finished(self) -> bool:
        """Whether the run says that it came to its end or, where it says nothing, whether it was evaluated."""
        status = self.run.get("status")
        return (
            re.match("trained|finish|done|complete|evaluated", str(status).lower()) is not None
            if status
            else bool(self.evaluation)
        )

    def at(self, *keys: str) -> Any:
        """The value of run.json at a path of keys, or None where any of them is missing."""
        value: Any = self.run
        for key in keys:
            value = as_object(value).get(key)
        return value

    def measured(self, site: str) -> dict[str, Any]:
        """What was measured of a site on held-out text, or else what its last training step logged."""
        held_out, logged = section(self.evaluation, "sites", site), section(self.last, "sites")
        return held_out or section(logged, site) or section(logged, site.rsplit("/layers.", 1)[0])

    def logged(self, site: str, key: str) -> list[float | None]:
        """One measurement of a site over all logged steps."""
        return [number(section(line, "sites", site).get(key)) for line in self.metrics]

    def dead_window_rows(self, site: str) -> int | None:
        """Rows without firing after which a latent of that site counts as dead: as evaluated, or else as configured."""
        window = number(self.measured(site).get("dead_window_rows"))
        if window is not None:
            return round(window)
        steps, batch = self.at("config", "sae", "dead_feature_window"), number(self.at("config", "sae", "batch_size"))
        n_steps = number(self.run.get("n_steps"))
        if steps == "auto" and n_steps is not None:
            steps = SAEConfig().window_steps(round(n_steps))
        window = number(steps)
        return None if window is None or batch is None else round(window * batch)


def read_run(folder: Path) -> RunFiles:
    """Reads what there is in a run folder.

    Raises:
        UserError: no run.json in it, or a file that is not what it should be.
    """
    if not (folder / "run.json").is_file():
        raise UserError(
            f"A run folder must hold `run.json`. Got {str(folder)!r}, which has none. "
            "Give a folder that `strata train` wrote."
        )
    return RunFiles(
        folder=folder,
        run=_read_object(folder / "run.json"),
        metrics=_read_metrics(folder / "metrics.jsonl"),
        evaluation=_read_object(folder / "evaluation.json"),
        features=_read_object(folder / "features.json"),
        widths=_read_widths(folder / "sae"),
    )


def section(value: Any, *keys: str) -> dict[str, Any]:
    """The object at a path of keys, an empty one where there is none."""
    found = as_object(value)
    return section(found.get(keys[0]), *keys[1:]) if keys else found


def _broken(path: Path, what: str) -> UserError:
    return UserError(
        f"{path.name!r} of a run folder must be {what}. Got something else in {str(path)!r}. Restore or delete it."
    )


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_object(path)
    except (ValueError, RecursionError) as error:
        raise _broken(path, "a JSON object") from error


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    written = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept: list[dict[str, Any]] = []
    for place, text in enumerate(written, 1):
        if not text.strip():
            continue
        try:
            line: Any = json.loads(text)
        except ValueError as error:
            if place == len(written):  # a run that is being written, or was killed while it wrote
                break
            raise _broken(path, "one JSON object per line") from error
        if not isinstance(line, dict):
            raise _broken(path, "one JSON object per line")
        step = number(as_object(line).get("step"))
        while step is not None and kept and (number(kept[-1].get("step")) or 0.0) >= step:
            kept.pop()  # logged before a resume went back to the last checkpoint
        kept.append(as_object(line))
    return kept


def _read_widths(folder: Path) -> dict[str, tuple[int, int]]:
    widths: dict[str, tuple[int, int]] = {}
    patterns = ("*", "*/*", "*/*/*")  # the deeper ones of sweeps and groups
    for path in [found for pattern in patterns for found in folder.glob(f"{pattern}/cfg.json")]:
        try:
            config = _read_object(path)
        except UserError:  # a checkpoint half written costs the report one number, not the page
            continue
        d_in, d_sae = number(config.get("d_in")), number(config.get("d_sae"))
        if d_in is not None and d_sae is not None:
            widths[path.parent.relative_to(folder).as_posix()] = (round(d_in), round(d_sae))
    return widths
