"""What `strata explain` found, for a notebook and for a terminal."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata.interpret.explain.record import ExplainedFeature, file_name, main_score, read_explanations_file
from strata.interpret.explain.scoring import SCORES
from strata.interpret.explain.summary import table
from strata.visible_text import visible

_N_SHOWN = 5  # best features, and as many drawn at random
_LONGEST_TEXT = 90  # characters of an explanation in a line


@dataclass(frozen=True, repr=False)
class Explained:
    """What `strata explain` found.

    Attributes:
        folder: of the index, in which the explanations are.
        interpreter: whose they are.
        source: where it was asked, see `strata.interpret.explain.record.file_name`.
        latents: of each SAE, by key, the latents that were asked for.
        summary: as in explanations-summary.json, of this interpreter: ``seconds`` (without the index), ``stopped``
            (by the limit on cost), ``account`` (requests, tokens, cost; empty with patterns), and in ``saes`` by key
            ``n_latents``, ``n_live``, ``n_wanted`` (asked for now), ``settings`` and, over all features that are in the
            file, what `strata.interpret.explain.summary.summarize` gives.
    """

    folder: Path
    interpreter: str
    source: str
    latents: Mapping[str, Sequence[int]]
    summary: Mapping[str, Any]

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def path(self, key: str) -> Path:
        """The file of an SAE's explanations."""
        return self.folder / key / file_name(self.interpreter, source=self.source)

    def features(self, key: str) -> list[ExplainedFeature]:
        """The features of an SAE that were asked for, those whose explanations hold best first.

        Best by the first of `strata.interpret.explain.scoring.MAIN_SCORES` that was asked for; features without it
        come last.

        Args:
            key: of the SAE in the index.
        """
        there = read_explanations_file(self.path(key))
        found = [there[latent] for latent in self.latents.get(key, ()) if latent in there]
        path = main_score(found)
        if not path:
            return found
        scores = {one.latent: one.score(path) for one in found}
        return sorted(found, key=lambda one: -2.0 if (score := scores[one.latent]) is None else score, reverse=True)

    def lines(self) -> list[str]:
        """For a terminal: counts and scores of each SAE, some of its explanations, and where all of them are."""
        lines = [f"{visible(self.interpreter)}, {self.summary['seconds']:.1f} s"]
        for key, numbers in self.summary["saes"].items():
            lines += [*table(key, numbers), *self._examples(key), f"  all of them: {self.path(key)}"]
        account = self.summary["account"]
        if account:
            lines.append(f"{account['n_requests']:,} requests, {account['n_cached']:,} of them answered before,"
                         f" cost {account['cost'] + account['cost_of_timeouts']:.4f}")  # fmt: skip
        if self.summary["stopped"]:
            lines.append("stopped at --max-cost: the same command with a larger one goes on")
        if self.folder.name == "index":  # of a run
            lines.append(f"as pages: strata dashboard {self.folder.parent}")
        return lines

    def _examples(self, key: str) -> list[str]:
        """The best features and some of the others."""
        told = [feature for feature in self.features(key) if feature.text]
        path, best, rest = main_score(told), told[:_N_SHOWN], told[_N_SHOWN:]
        drawn = random.Random(0).sample(rest, min(_N_SHOWN, len(rest)))
        of_what = f" by {SCORES[path]}" if path else ""
        lines = [f"  best{of_what}"] if best else []
        lines += [_line(feature, path) for feature in best]
        return [*lines, *(["  drawn at random from the others"] if drawn else []), *(_line(one, path) for one in drawn)]


def _line(feature: ExplainedFeature, path: str) -> str:
    text = visible(feature.text)
    text = text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
    score = feature.score(path) if path else None
    return f"  {feature.latent:>8}  {'     ' if score is None else f'{score:5.2f}'}  {text}"
