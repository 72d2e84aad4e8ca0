"""Explaining the features of a run, and scoring the explanations: what `strata explain` does."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from strata.atomic import write_json
from strata.errors import UserError
from strata.explain_config import ExplainConfig
from strata.interpret.building import index_run
from strata.interpret.explain.choice import Choice
from strata.interpret.explain.interpreter import Explanation, Failed, Interpreter
from strata.interpret.explain.material import Amounts, FeatureMaterial, gather
from strata.interpret.explain.pieces import Pieces
from strata.interpret.explain.record import ExplainedFeature, ExplanationsFile, read_explanations
from strata.interpret.explain.scoring import FeatureScores, Trial, score
from strata.interpret.explain.summary import summarize, table
from strata.interpret.index import FeatureIndex
from strata.interpret.site_index import SiteIndex
from strata.log import say

SUMMARY = "explanations-summary.json"
_FEATURES_AT_ONCE = 128


@dataclass(frozen=True, repr=False)
class Explained:
    """What `strata explain` found.

    Attributes:
        folder: of the index, in which the explanations are.
        interpreter: whose they are.
        summary: as in explanations-summary.json, of this interpreter: ``seconds`` (without the index), ``stopped``
            (by the limit on cost), ``account`` (requests, tokens, cost; empty with patterns), and in ``saes`` by key
            ``n_latents``, ``n_live``, ``n_wanted``, ``settings`` and what `strata.interpret.explain.summary.summarize`
            gives.
    """

    folder: Path
    interpreter: str
    summary: Mapping[str, Any]

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def features(self, key: str) -> list[ExplainedFeature]:
        """The features of an SAE that were explained, those whose explanations hold best first.

        Args:
            key: of the SAE in the index.
        """
        found = read_explanations(self.folder / key, interpreter=self.interpreter).values()
        return sorted(found, key=lambda one: -(one.score("simulation.all.correlation") or 0.0))

    def lines(self) -> list[str]:
        """For a terminal."""
        lines = [f"{self.interpreter}, {self.summary['seconds']:.1f} s"]
        for key, numbers in self.summary["saes"].items():
            lines += table(key, numbers)
        account = self.summary["account"]
        if account:
            lines.append(f"{account['n_requests']:,} requests, {account['n_cached']:,} of them answered before,"
                         f" cost {account['cost'] + account['cost_of_timeouts']:.4f}")  # fmt: skip
        if self.summary["stopped"]:
            lines.append("stopped at --max-cost: the same command with a larger one goes on")
        return [*lines, f"explanations: {self.folder}"]


def explain_run(config: ExplainConfig, *, progress: bool = True) -> Explained:
    """Explain the live features of a run and score the explanations on documents that the explainer did not see.

    The documents of the index are dealt to explaining and to scoring by a seeded hash of their number. What was
    explained before with the same settings is not asked again. For the shuffled baseline, each explanation is put to
    the windows of another feature: the next of a random order of up to 128 features that are explained together.

    Args:
        config: what is asked.
        progress: say on stderr what happens.

    Raises:
        UserError: no run, no live feature, fewer than two documents, an interpreter that cannot be asked.
    """
    index = index_run(config, progress=progress)
    return explain_index(index, config, progress=progress)


def explain(index: FeatureIndex, *, progress: bool = True, **settings: Any) -> Explained:
    """Explain features of an index, for notebooks: `explain_index` with the settings of `ExplainConfig` as arguments.

    Args:
        index: what `strata.build_index` made, or `FeatureIndex.open`.
        progress: say on stderr what happens.
        **settings: e.g. ``latents=(3, 14)``, ``interpreter="http"``, ``model=...``.

    Raises:
        UserError: as `explain_run`, and an unknown setting.
    """
    return explain_index(index, ExplainConfig(run=index.folder.parent, **settings), progress=progress)


def explain_index(index: FeatureIndex, config: ExplainConfig, *, progress: bool = True) -> Explained:
    """As `explain_run`, of an index that is open.

    Raises:
        UserError: as there.
    """
    started = time.perf_counter()
    keys = _keys(index, config)
    pieces = Pieces.cut(
        index.token_ids,
        documents=index.documents,
        is_token=index.is_token,
        is_row=index.is_row,
        window_tokens=config.window_tokens,
        seed=config.seed,
    )
    sites = {key: index[key] for key in keys}
    choice = Choice(config, vocabulary=index.vocabulary, sites=sites, pieces=pieces, progress=progress)
    shuffles = _shuffles(config, choice)
    saes, stopped = {}, False
    for key, site in sites.items():
        latents = _latents(site, config)
        wanted = set(latents)
        settings = _settings(index, key, config, shuffles=shuffles)
        file = ExplanationsFile(site.folder, interpreter=choice.interpreter.name, settings=settings)
        work = _Work(site, pieces, choice.interpreter, config, shuffles, index.vocabulary)
        stopped = _explain_site(work, latents, file, progress=progress)
        features = [feature for latent, feature in sorted(file.features.items()) if latent in wanted]
        saes[key] = {
            "n_latents": site.d_sae,
            "n_live": int((site.n_fired >= config.least_firings).sum()),
            "n_wanted": len(latents),
            "settings": settings,
            **summarize(features, seed=config.seed),
        }
        if stopped:
            break
    summary = {"seconds": time.perf_counter() - started, "stopped": stopped,
               "account": choice.account(), "saes": saes}  # fmt: skip
    _keep(index.folder / SUMMARY, choice.interpreter.name, summary)
    return Explained(index.folder, choice.interpreter.name, summary)


@dataclass(frozen=True)
class _Work:
    site: SiteIndex
    pieces: Pieces
    interpreter: Interpreter
    config: ExplainConfig
    shuffles: bool
    vocabulary: Sequence[str]


def _explain_site(work: _Work, latents: Sequence[int], file: ExplanationsFile, *, progress: bool) -> bool:
    """Explain those features of an SAE that are not in the file; whether the limit on cost ended it."""
    there = file.features
    left = [latent for latent in latents if latent not in there]
    n_before = len(latents) - len(left)
    if n_before:
        say(f"{work.site.key}: {n_before:,} features were explained before", shown=progress)
    said = time.monotonic()
    for start in range(0, len(left), _FEATURES_AT_ONCE):
        found = _explain(work, left[start : start + _FEATURES_AT_ONCE])
        file.add(found)
        if any(not feature.is_done for feature in found):
            return True
        if time.monotonic() - said > 5:
            said = time.monotonic()
            say(f"{work.site.key}: {n_before + start + len(found):,} of {len(latents):,} features", shown=progress)
    return False


def _explain(work: _Work, latents: Sequence[int]) -> list[ExplainedFeature]:
    """Explain and score features together."""
    amounts = Amounts(n_explained=work.config.n_explained, n_top=work.config.n_top,
                      n_random=work.config.n_random, n_silent=work.config.n_silent)  # fmt: skip
    seed = work.config.seed
    gathered = {n: gather(work.site, n, pieces=work.pieces, amounts=amounts, seed=seed) for n in latents}
    materials = {latent: found for latent, found in gathered.items() if not isinstance(found, str)}
    answers = work.interpreter.explain([material.explaining for material in materials.values()])
    explained = dict(zip(materials, answers, strict=True))
    scored = [n for n, answer in explained.items() if isinstance(answer, Explanation) and not materials[n].not_scored]
    trials = {latent: Trial.of(materials[latent], seed=seed) for latent in scored}
    own = _scores(work, explained, trials, scored, scored)
    shuffled: dict[int, FeatureScores] = {}
    if work.shuffles and len(scored) > 1:
        order = np.random.default_rng((seed, *latents[:1])).permutation(scored).tolist()
        shuffled = _scores(work, explained, trials, [*order[1:], order[0]], order)
    answered = {**{n: Failed(why) for n, why in gathered.items() if isinstance(why, str)}, **explained}
    return [
        _feature(n, answered[n], work, material=materials.get(n), own=own.get(n), shuffled=shuffled.get(n))
        for n in latents
    ]


def _scores(
    work: _Work,
    explained: Mapping[int, Explanation | Failed],
    trials: Mapping[int, Trial],
    whose: Sequence[int],
    where: Sequence[int],
) -> dict[int, FeatureScores]:
    """Scores of the explanations of some features on the windows of others, by the latter."""
    explanations = [one for latent in whose if isinstance(one := explained[latent], Explanation)]
    put_to = [trials[latent] for latent in where]
    found = score(work.interpreter, explanations, put_to, scorers=work.config.scorers)
    return dict(zip(where, found, strict=True))


def _feature(
    latent: int,
    answer: Explanation | Failed,
    work: _Work,
    *,
    material: FeatureMaterial | None,
    own: FeatureScores | None,
    shuffled: FeatureScores | None,
) -> ExplainedFeature:
    explanation = answer if isinstance(answer, Explanation) else None
    patterns = explanation.patterns if explanation else ()
    return ExplainedFeature(
        latent=latent,
        text=explanation.text if explanation else "",
        interpreter=work.interpreter.name,
        patterns=tuple(
            {
                "tokens": [work.vocabulary[token] for token in pattern.token_ids],
                "token_ids": list(pattern.token_ids),
                "level": pattern.level,
            }
            for pattern in patterns
        ),
        n_fired=int(work.site.n_fired[latent]),
        scores=own.as_json() if own else {},
        shuffled=shuffled.as_json() if shuffled else {},
        failed=answer.reason if isinstance(answer, Failed) else "",
        not_scored=material.not_scored if material and explanation else "",
    )


def _keys(index: FeatureIndex, config: ExplainConfig) -> list[str]:
    """The SAEs that are asked for."""
    if config.sites == ("all",):
        return index.keys
    return list(dict.fromkeys(index[site].key for site in config.sites))


def _latents(site: SiteIndex, config: ExplainConfig) -> list[int]:
    """The latents that are asked for: those named, or live ones.

    Raises:
        UserError: none is live, or one that is named does not exist.
    """
    if config.latents:
        if max(config.latents) >= site.d_sae:
            raise UserError(
                f"`latents` must be below {site.d_sae} for {site.key}. Got {max(config.latents)}. Give others."
            )
        return list(dict.fromkeys(config.latents))
    live = np.flatnonzero(site.n_fired >= config.least_firings)
    if not len(live):
        raise UserError(
            f"At least one feature of {site.key} must fire {config.least_firings} times. None does. Raise n_tokens, or"
            " lower least_firings."
        )
    return _some(live, config).tolist()


def _some(live: Int[np.ndarray, " live"], config: ExplainConfig) -> Int[np.ndarray, " wanted"]:
    if config.n_features == "all" or config.n_features >= len(live):
        return live
    return np.sort(np.random.default_rng(config.seed).choice(live, config.n_features, replace=False))


def _shuffles(config: ExplainConfig, choice: Choice) -> bool:
    return choice.is_free if config.shuffled == "auto" else config.shuffled == "yes"


def _settings(index: FeatureIndex, key: str, config: ExplainConfig, *, shuffles: bool) -> dict[str, Any]:
    """What the explanations and scores of an SAE's features depend on."""
    stated = index.record["stated"]
    text = {**{name: value for name, value in stated.items() if name != "saes"}, "sae": stated["saes"][key]}
    own = ("window_tokens", "n_explained", "n_top", "n_random", "n_silent", "seed", "interpreter", "scorers")
    asked = {"http": ("base_url", "model", "simulation"), "local": ("model",)}.get(config.interpreter, ())
    return {"index": text, "shuffled": shuffles,
            **{name: getattr(config, name) for name in (*own, *asked)}}  # fmt: skip


def _keep(path: Path, interpreter: str, summary: Mapping[str, Any]) -> None:
    """Put a summary beside those of other interpreters."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["interpreters"]
    except (OSError, ValueError, KeyError, TypeError):
        before = {}
    try:
        write_json(path, {"interpreters": {**before, interpreter: summary}})
    except OSError as error:
        raise UserError(f"The index must be one that can be written. {path}: {error.strerror}. Make room.") from error
