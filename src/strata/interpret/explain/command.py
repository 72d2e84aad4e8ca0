"""Explaining the features of a run, and scoring the explanations: what `strata explain` does."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Int

from strata.config.explain import ExplainConfig
from strata.errors import UserError
from strata.evaluate.places import named_places, places_of
from strata.evaluate.runs import open_run
from strata.interpret.explain.explained import Explained
from strata.interpret.explain.features import Work, explain_features
from strata.interpret.explain.interpreters import INTERPRETERS, Features
from strata.interpret.explain.pieces import Pieces
from strata.interpret.explain.record import NOT_ASKED, ExplainedFeature, ExplanationsFile
from strata.interpret.explain.summary import keep_summary, summarize
from strata.interpret.index import FeatureIndex
from strata.interpret.prompted.account import Account
from strata.interpret.run_index import chosen_keys, index_run
from strata.interpret.site_index import SiteIndex
from strata.visible_text import visible


def explain_run(config: ExplainConfig, *, progress: bool = True) -> Explained:
    """Explain the live features of a run and score the explanations on documents that the explainer did not see.

    The documents of the index are dealt to explaining and to scoring by a seeded hash of their number. What was
    explained before with the same settings is not asked again. For the shuffled baseline, each explanation is put to
    the windows of another feature: the next of a random order of up to 128 features that are explained together.

    Args:
        config: what is asked.
        progress: say on stderr what happens.

    Raises:
        UserError: no run, no live feature, fewer than two documents, an interpreter that cannot be asked, latents of
            several SAEs.
    """
    INTERPRETERS[config.interpreter].check(config)
    if config.latents:
        _require_one_sae([place.key for place in named_places(places_of(open_run(config.run)), config.sites)])
    return _explained(index_run(config, progress=progress), config, progress=progress)


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
    INTERPRETERS[config.interpreter].check(config)
    return _explained(index, config, progress=progress)


def _explained(index: FeatureIndex, config: ExplainConfig, *, progress: bool) -> Explained:
    started = time.perf_counter()
    keys = chosen_keys(index, config.sites)
    if config.latents:
        _require_one_sae(keys)
    sites = {key: index[key] for key in keys}
    latents = {key: _latents(site, config) for key, site in sites.items()}
    pieces = Pieces.cut(
        index.token_ids,
        documents=index.documents,
        is_token=index.is_token,
        is_row=index.is_row,
        window_tokens=config.window_tokens,
        seed=config.seed,
    )
    features = Features(sites=sites, pieces=pieces, vocabulary=index.vocabulary)
    kind, saes, stopped = INTERPRETERS[config.interpreter], dict[str, Any](), False
    source = kind.source(config)
    with kind.open(config, features, progress) as opened:
        name = opened.interpreter.name
        for key, site in sites.items():
            settings = _settings(index, key, config)
            file = ExplanationsFile(site.folder, interpreter=name, source=source, settings=settings)
            work = Work(site, pieces, opened.interpreter, config, _shuffles(config), index.vocabulary)
            stopped = explain_features(work, latents[key], file, progress=progress)
            asked = (feature for latent, feature in file.features.items() if latent in latents[key])
            _require_answers(opened.account, asked, who=f"{name} ({source})")
            saes[key] = {
                "n_latents": site.d_sae,
                "n_live": int((site.n_fired >= config.least_firings).sum()),
                "n_wanted": len(latents[key]),
                "settings": settings,
                **summarize([feature for _, feature in sorted(file.features.items())], seed=config.seed),
            }
            if stopped:
                break
    account = asdict(opened.account) if opened.account else {}
    summary = {"seconds": time.perf_counter() - started, "stopped": stopped, "account": account, "saes": saes}
    keep_summary(index.folder, f"{name} ({source})" if source else name, summary, keys=index.keys)
    return Explained(index.folder, name, source, latents, summary)


def _require_answers(account: Account | None, features: Iterable[ExplainedFeature], *, who: str) -> None:
    """That who was asked has answered at all, so that a wrong address does not end as a table of failures.

    Raises:
        UserError: no request was answered, and not for want of money.
    """
    reasons = Counter(feature.failed for feature in features if feature.failed not in ("", NOT_ASKED))
    if account is None or account.n_answered or account.n_cached or not reasons:
        return
    (reason, _), *_ = reasons.most_common(1)
    raise UserError(
        f"The interpreting model must answer. {visible(who)} answered none of {account.n_failed:,} requests:"
        f" {visible(reason)}. Check its name and address, or raise timeout_seconds or n_retries."
    )


def _require_one_sae(keys: Sequence[str]) -> None:
    if len(keys) > 1:
        raise UserError(
            f"`latents` must come with one SAE, since every SAE has its own. There are {len(keys)}:"
            f" {', '.join(keys[:8])}{', …' if len(keys) > 8 else ''}. Give e.g. --sites {keys[0]}."
        )


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


def _shuffles(config: ExplainConfig) -> bool:
    return INTERPRETERS[config.interpreter].shuffles if config.shuffled == "auto" else config.shuffled == "yes"


def _settings(index: FeatureIndex, key: str, config: ExplainConfig) -> dict[str, Any]:
    """What the explanations and scores of an SAE's features depend on."""
    stated = index.record["stated"]
    text = {**{name: value for name, value in stated.items() if name != "saes"}, "sae": stated["saes"][key]}
    own = ("window_tokens", "n_top", "n_random", "n_silent", "seed", "interpreter", "scorers")
    asked = INTERPRETERS[config.interpreter].settings
    return {"index": text, "shuffled": _shuffles(config),
            **{name: getattr(config, name) for name in (*own, *asked)}}  # fmt: skip
