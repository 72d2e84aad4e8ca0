"""Explanations on disk: a line for each feature, in a file for each interpreter, beside its SAE's part of the index."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from strata.atomic import as_json, write_whole
from strata.errors import UserError
from strata.interpret.explain.scoring import MAIN_SCORES
from strata.log import say

OWN = "token patterns"  # the interpreter whose file has no name in it
FORMAT_VERSION = 1
Parsed = TypeVar("Parsed")
NOT_ASKED = "budget"  # the reason of a failure that is none of the interpreter's


@dataclass(frozen=True, kw_only=True)
class ExplainedFeature:
    """A feature with its explanation and how well that holds.

    Attributes:
        latent: its number.
        text: the explanation; empty where there is none.
        interpreter: whose it is.
        patterns: what the text says, of an interpreter that needs no language model: ``tokens`` (texts), ``token_ids``
            and ``level`` of each.
        n_fired: how often the feature fires on the text of the index.
        scores: as `strata.interpret.explain.scoring.score` gives them; empty without.
        shuffled: the same of another feature's explanation on this one's windows; empty without.
        failed: why there is no explanation; empty where there is one.
        not_scored: why there are no scores; empty where there are.
    """

    latent: int
    text: str
    interpreter: str
    patterns: tuple[Mapping[str, Any], ...] = ()
    n_fired: int = 0
    scores: Mapping[str, Any]
    shuffled: Mapping[str, Any]
    failed: str = ""
    not_scored: str = ""

    @property
    def is_done(self) -> bool:
        """False where the limit on cost left something open."""
        open_ = (self.failed, *self.scores.get("failures", ()), *self.shuffled.get("failures", ()))
        return NOT_ASKED not in open_

    def score(self, path: str, *, shuffled: bool = False) -> float | None:
        """One of the scores.

        Args:
            path: its place, e.g. ``"simulation.all.correlation"``, ``"detection.auroc"``.
            shuffled: that of another feature's explanation.

        Returns:
            None where it is not defined or was not asked for.
        """
        found: Any = self.shuffled if shuffled else self.scores
        for name in path.split("."):
            found = found.get(name) if found else None
        return found

    def answered(self, path: str) -> tuple[int, int]:
        """How many of the windows of a score were answered, and how many there were.

        In simulation a window is answered where all its tokens have a level.

        Args:
            path: of the score, as in `score`.

        Returns:
            (answered, all); (0, 0) where the score was not asked for.
        """
        found: Any = self.scores
        for name in path.split(".")[:-1]:
            found = found.get(name) if found else None
        if not found:
            return 0, 0
        n = found.get("n", found.get("n_windows", 0))
        return n - found["n_failed"], n


def main_score(features: Iterable[ExplainedFeature]) -> str:
    """The path of the score by which features are ranked: the first of `MAIN_SCORES` that any has; empty for none."""
    there = list(features)
    return next((path for path in MAIN_SCORES if any(one.score(path) is not None for one in there)), "")


class ExplanationsFile:
    """The explanations of one SAE by one interpreter, written as they come.

    The first line says who explained and with what settings; every other line is a feature, and of two of one feature
    the last counts. A file of the same settings is gone on with. One of other settings is kept as ``.before`` and begun
    anew; one whose first line cannot be read is kept as ``.damaged``. Damaged lines are left out and counted.

    Args:
        folder: of the SAE in the index.
        interpreter: its name.
        source: where it is asked, see `file_name`.
        settings: all that the explanations and scores depend on but the feature; JSON-able.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, folder: Path, *, interpreter: str, source: str = "", settings: Mapping[str, Any]) -> None:
        self.path = folder / file_name(interpreter, source=source)
        self._header = as_json(
            {"format": FORMAT_VERSION, "interpreter": interpreter, "source": source, "settings": settings}
        )
        before = _read(self.path)
        self._kept = before.features if before.header == self._header else {}
        try:
            if before.header is None and before.is_there:
                _move(self.path, ".damaged", "its first line cannot be read")
            elif before.header != self._header and before.features:
                _move(self.path, ".before", "explained before with other settings: begun anew")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, _line(self._header) + "".join(_line(vars(one)) for one in self._kept.values()))
        except OSError as error:
            raise self._unwritable(error) from error

    @property
    def features(self) -> dict[int, ExplainedFeature]:
        """What is there, by latent, failed ones among them."""
        return dict(self._kept)

    @property
    def finished(self) -> frozenset[int]:
        """The latents that need not be asked for again: those that did not fail and that the limit on cost did not
        leave open.
        """
        return frozenset(latent for latent, one in self._kept.items() if one.is_done and not one.failed)

    def add(self, features: Sequence[ExplainedFeature]) -> None:
        """Write features, whole lines at once.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            with self.path.open("ab") as file:
                file.write("".join(_line(vars(feature)) for feature in features).encode())
        except OSError as error:
            raise self._unwritable(error) from error
        self._kept |= {feature.latent: feature for feature in features}

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"The index must be one that can be written. {self.path}: {error.strerror}. Make room.")


def read_explanations(folder: str | Path, *, interpreter: str = OWN) -> dict[int, ExplainedFeature]:
    """The explanations of an SAE by one interpreter.

    Args:
        folder: of the SAE in the index, e.g. ``RUN/index/layers.3``.
        interpreter: as `read_all_explanations` names it.

    Returns:
        By latent, failed ones among them; empty where there are none.
    """
    return read_all_explanations(folder).get(interpreter, {})


def read_all_explanations(folder: str | Path) -> dict[str, dict[int, ExplainedFeature]]:
    """The explanations of an SAE by every interpreter, the one that was asked last first.

    Args:
        folder: of the SAE in the index.

    Returns:
        Interpreter → latent → feature. Where two have the same name, the second has its source behind it, e.g.
        ``"model-8b (local)"``; a language model never has the name of the token patterns.
    """
    paths = sorted(Path(folder).glob("explanations*.jsonl"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    found: dict[str, dict[int, ExplainedFeature]] = {}
    for path in paths:
        file = _read(path)
        if file.header is not None:
            name, source = file.header["interpreter"], file.header.get("source", "")
            is_free = name not in found and (name != OWN or not source)
            found[name if is_free else f"{name} ({source or path.name})"] = file.features
    return found


def read_explanations_file(path: Path) -> dict[int, ExplainedFeature]:
    """The explanations in one file, by latent; empty where there is none, or where its first line cannot be read."""
    return _read(path).features


def file_name(interpreter: str, *, source: str = "") -> str:
    """The name of an interpreter's file; two interpreters never share one.

    Args:
        interpreter: its name.
        source: where it is asked: ``"http https://host/v1"``, ``"local"``; empty of what needs no language model.
    """
    if (interpreter, source) == (OWN, ""):
        return "explanations.jsonl"
    mark = hashlib.sha256(json.dumps([interpreter, source]).encode()).hexdigest()[:8]
    return f"explanations-{re.sub('[^A-Za-z0-9._-]+', '-', interpreter).strip('-.')[:80]}-{mark}.jsonl"


@dataclass(frozen=True)
class _Read:
    """What a file holds: its first line, None where that cannot be read; its features."""

    is_there: bool
    header: Any
    features: dict[int, ExplainedFeature]


def _read(path: Path) -> _Read:
    """A file as far as it can be read. The last line, if a kill tore it, is no line."""
    try:
        first, *rest = path.read_bytes().split(b"\n")[:-1] or [b""]
    except FileNotFoundError:
        return _Read(False, None, {})
    except OSError:
        return _Read(True, None, {})
    header = _parsed(first, _header)
    if header is None or header["format"] != FORMAT_VERSION:
        return _Read(True, header, {})
    found = [_parsed(line, _feature) for line in rest]
    n_damaged = sum(one is None for one in found)
    if n_damaged:
        say(f"{path}: {n_damaged:,} of {len(found):,} lines are damaged and left out")
    return _Read(True, header, {one.latent: one for one in found if one is not None})


def _parsed(line: bytes, read: Callable[[Any], Parsed]) -> Parsed | None:
    try:
        return read(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _header(found: Any) -> dict[str, Any]:
    if not isinstance(found["interpreter"], str) or "format" not in found or "settings" not in found:
        raise ValueError
    return found


def _feature(found: Any) -> ExplainedFeature:
    kinds = {"latent": int, "text": str, "interpreter": str, "patterns": list, "scores": dict, "shuffled": dict}
    if not all(isinstance(found[name], kind) for name, kind in kinds.items()):
        raise ValueError
    fields: dict[str, Any] = {**found, "patterns": tuple(found["patterns"])}
    return ExplainedFeature(**fields)


def _move(path: Path, suffix: str, why: str) -> None:
    """Get a file out of the way, and say so."""
    kept = path.with_name(path.name + suffix)
    path.replace(kept)
    say(f"{path}: {why}; the former file is kept as {kept.name}")


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, allow_nan=False) + "\n"
