"""Explanations on disk: a line for each feature, in a file for each interpreter, beside its SAE's part of the index."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata.atomic import as_json, write_whole
from strata.errors import UserError

OWN = "token patterns"  # the interpreter whose file has no name in it
FORMAT_VERSION = 1
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
        scores: as `strata.interpret.explain.scoring.FeatureScores.as_json` gives them; empty without.
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


class ExplanationsFile:
    """The explanations of one SAE by one interpreter, written as they come.

    The first line says who explained and with what settings; every other line is a feature. A file of other settings is
    begun anew; one of the same is gone on with, and a line that was not finished is dropped.

    Args:
        folder: of the SAE in the index.
        interpreter: its name.
        settings: all that the explanations and scores depend on but the feature; JSON-able.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, folder: Path, *, interpreter: str, settings: Mapping[str, Any]) -> None:
        self._path = folder / file_name(interpreter)
        self._header = as_json({"format": FORMAT_VERSION, "interpreter": interpreter, "settings": settings})
        header, features = _lines(self._path)
        self._kept = {f.latent: f for f in features if f.is_done and not f.failed} if header == self._header else {}
        self._write_whole(self._kept.values())

    @property
    def features(self) -> dict[int, ExplainedFeature]:
        """What is there, by latent. When a file is gone on with, features that failed or that the limit on cost left
        open are not there: they are asked for again.
        """
        return dict(self._kept)

    def add(self, features: Sequence[ExplainedFeature]) -> None:
        """Write features, whole lines at once.

        Raises:
            UserError: the file cannot be written.
        """
        try:
            with self._path.open("ab") as file:
                file.write("".join(_line(vars(feature)) for feature in features).encode())
        except OSError as error:
            raise self._unwritable(error) from error
        self._kept |= {feature.latent: feature for feature in features}

    def _write_whole(self, features: Iterable[ExplainedFeature]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, _line(self._header) + "".join(_line(vars(feature)) for feature in features))
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"The index must be one that can be written. {self._path}: {error.strerror}. Make room.")


def read_explanations(folder: str | Path, *, interpreter: str = OWN) -> dict[int, ExplainedFeature]:
    """The explanations of an SAE by one interpreter.

    Args:
        folder: of the SAE in the index, e.g. ``RUN/index/layers.3``.
        interpreter: its name.

    Returns:
        By latent, failed ones among them; empty where there are none.
    """
    return {feature.latent: feature for feature in _lines(Path(folder) / file_name(interpreter))[1]}


def read_all_explanations(folder: str | Path) -> dict[str, dict[int, ExplainedFeature]]:
    """The explanations of an SAE by every interpreter, the one that was asked last first.

    Args:
        folder: of the SAE in the index.

    Returns:
        Interpreter → latent → feature.
    """
    paths = sorted(Path(folder).glob("explanations*.jsonl"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    found = ((path, *_lines(path)) for path in paths)
    return {
        header["interpreter"]: {feature.latent: feature for feature in features}
        for _, header, features in found
        if header
    }


def file_name(interpreter: str) -> str:
    """The name of an interpreter's file."""
    if interpreter == OWN:
        return "explanations.jsonl"
    return f"explanations-{re.sub('[^A-Za-z0-9._-]+', '-', interpreter).strip('-.')}.jsonl"


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, allow_nan=False) + "\n"


def _lines(path: Path) -> tuple[Any, list[ExplainedFeature]]:
    """The header, and the features whose lines are whole; nothing of a file that is none of ours."""
    try:
        whole = path.read_bytes().split(b"\n")[:-1]
        header = json.loads(whole[0])
        if header["format"] != FORMAT_VERSION:
            return None, []
        return header, [_feature(json.loads(line)) for line in whole[1:]]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None, []


def _feature(found: dict[str, Any]) -> ExplainedFeature:
    return ExplainedFeature(**{**found, "patterns": tuple(found["patterns"])})
