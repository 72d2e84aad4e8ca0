"""Explanations and their scores as the dashboard shows them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strata.interpret.explain.record import ExplainedFeature, read_all_explanations
from strata.report.numbers import number

# Path in the record, and what people read; the first that a file has is the one in the table of features.
_SCORES = {
    "simulation.all.correlation": "simulation, correlation",
    "simulation.top.correlation": "on its strongest texts",
    "simulation.random.correlation": "on random texts",
    "detection.balanced_accuracy": "detection, balanced accuracy",
    "detection.auroc": "detection, AUROC",
    "fuzzing.balanced_accuracy": "fuzzing, balanced accuracy",
    "fuzzing.auroc": "fuzzing, AUROC",
}
_IN_TABLE = ("simulation.all.correlation", "detection.balanced_accuracy", "fuzzing.balanced_accuracy")
SPLIT = "other documents"  # than those that were explained; see strata.interpret.explain.material


class Explanations:
    """All explanations of one SAE.

    Args:
        found: interpreter → latent → feature; the table shows the first interpreter's, and another's where it has none.
    """

    def __init__(self, found: Mapping[str, Mapping[int, ExplainedFeature]]) -> None:
        self._found = found
        told = [f for features in found.values() for f in features.values() if f.text]
        self._latents = {feature.latent for feature in told}
        paths = (path for path in _IN_TABLE if any(feature.score(path) is not None for feature in told))
        self._path = next(paths, "")

    @classmethod
    def read(cls, folder: Path) -> "Explanations":
        """Those in an SAE's folder of the index; there may be none."""
        return cls(read_all_explanations(folder))

    def __len__(self) -> int:
        """How many latents have one."""
        return len(self._latents)

    @property
    def score_name(self) -> str | None:
        """Which score the table shows; None without scores."""
        return _SCORES.get(self._path)

    def texts(self, d_sae: int) -> list[str | None]:
        """The explanation of each latent, None where there is none."""
        return [next((feature.text for feature in self._of(latent) if feature.text), None) for latent in range(d_sae)]

    def scores(self, d_sae: int) -> list[float | None]:
        """The table's score of each latent, of the explanation that the table shows."""
        if not self._path:
            return [None] * d_sae
        shown = (next((f for f in self._of(latent) if f.text), None) for latent in range(d_sae))
        return [None if f is None else number(f.score(self._path)) for f in shown]

    def content(self, latent: int) -> list[dict[str, Any]]:
        """What the page of a feature says, an entry for each interpreter that was asked."""
        return [_content(feature) for feature in self._of(latent)]

    def _of(self, latent: int) -> list[ExplainedFeature]:
        return [features[latent] for features in self._found.values() if latent in features]


def _content(feature: ExplainedFeature) -> dict[str, Any]:
    scores = [(name, number(feature.score(path))) for path, name in _SCORES.items()]
    return {
        "text": feature.text or None,
        "by": feature.interpreter,
        "scores": [(name, round(value, 3)) for name, value in scores if value is not None],
        "split": SPLIT,
        "why": feature.failed or feature.not_scored or None,
    }
