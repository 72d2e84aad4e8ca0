"""Explanations and their scores as the dashboard shows them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strata.interpret.explain.record import NOT_ASKED, ExplainedFeature, main_score, read_all_explanations
from strata.interpret.explain.scoring import SCORES
from strata.report.numbers import number

_OVER_BUDGET = "the limit on cost"
SPLIT = "other documents"  # than those that were explained; see strata.interpret.explain.material


class Explanations:
    """All explanations of one SAE.

    Args:
        found: interpreter → latent → feature; the table shows the first interpreter's, and another's where it has none.
    """

    def __init__(self, found: Mapping[str, Mapping[int, ExplainedFeature]]) -> None:
        self._found = found
        self._shown: dict[int, ExplainedFeature] = {}
        for features in found.values():
            for latent, feature in features.items():
                if feature.text:
                    self._shown.setdefault(latent, feature)
        self._path = main_score(self._shown.values())

    @classmethod
    def read(cls, folder: Path) -> "Explanations":
        """Those in an SAE's folder of the index; there may be none."""
        return cls(read_all_explanations(folder))

    def __len__(self) -> int:
        """How many latents have one."""
        return len(self._shown)

    @property
    def score_name(self) -> str | None:
        """Which score the table shows; None without scores."""
        return SCORES.get(self._path)

    @property
    def mean_score(self) -> float | None:
        """The mean of the table's score, without features that the limit on cost left half scored; None without any."""
        whole = [number(feature.score(self._path)) for feature in self._shown.values() if feature.is_done]
        scores = [score for score in whole if score is not None]
        return sum(scores) / len(scores) if scores else None

    @property
    def n_half_scored(self) -> int:
        """Features that the limit on cost left half scored."""
        return sum(not feature.is_done for feature in self._shown.values())

    @property
    def n_unanswered(self) -> int:
        """How often the interpreters gave no answer for a window, in all scores of the explanations that are shown."""
        return sum(sum(_failures(feature).values()) for feature in self._shown.values())

    def texts(self, d_sae: int) -> list[str | None]:
        """The explanation of each latent, None where there is none."""
        return [self._shown[latent].text if latent in self._shown else None for latent in range(d_sae)]

    def scores(self, d_sae: int) -> list[float | None]:
        """The table's score of each latent, of the explanation that the table shows."""
        shown = (self._shown.get(latent) if self._path else None for latent in range(d_sae))
        return [None if feature is None else number(feature.score(self._path)) for feature in shown]

    def content(self, latent: int) -> list[dict[str, Any]]:
        """What the page of a feature says, an entry for each interpreter that was asked.

        ``scores`` holds for each score its name, its value (None where the windows that were answered do not define
        it), how many windows were answered, and of how many; ``failures`` the reasons why others were not, with counts.
        """
        return [
            _content(features[latent], by=interpreter)
            for interpreter, features in self._found.items()
            if latent in features
        ]


def _content(feature: ExplainedFeature, *, by: str) -> dict[str, Any]:
    why = feature.failed or feature.not_scored
    return {
        "text": feature.text or None,
        "by": by,
        "scores": [scored for path in SCORES if (scored := _scored(feature, path)) is not None],
        "failures": list(_failures(feature).items()),
        "half": not feature.is_done,
        "split": SPLIT,
        "why": _reason(why) or None,
    }


def _scored(feature: ExplainedFeature, path: str) -> tuple[str, float | None, int, int] | None:
    """A score with its name and counts of windows; None of one that was not asked for, or that no answer defines."""
    value, (answered, asked) = number(feature.score(path)), feature.answered(path)
    if value is None and answered == asked:
        return None
    return SCORES[path], None if value is None else round(value, 3), answered, asked


def _failures(feature: ExplainedFeature) -> dict[str, int]:
    return {_reason(why): int(n) for why, n in feature.scores.get("failures", {}).items()}


def _reason(why: str) -> str:
    return _OVER_BUDGET if why == NOT_ASKED else why
