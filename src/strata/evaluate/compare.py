"""Runs side by side: their suites, baselines, shared features, tasks, on the same held-out text."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from strata.activations.harvest import token_stream
from strata.amounts import counted
from strata.config.evaluate import EvaluateConfig
from strata.errors import UserError
from strata.evaluate.baselines import fit_pca
from strata.evaluate.evaluations import EVALUATIONS, Asked
from strata.evaluate.lm_eval_suites import check_lm_eval, clean_lm_eval
from strata.evaluate.opened import Opened, by_model, check_task_names, common_text, opened
from strata.evaluate.parts import Parts, stamps
from strata.evaluate.run_suites import Suite, open_suites
from strata.evaluate.runs import Run, open_run
from strata.evaluate.suite_costs import cost_of
from strata.evaluate.suites import SAEsBySuite, evaluate_suites
from strata.lm.model import LanguageModel
from strata.log import say
from strata.sae.model import SAE

_MEANS = (
    *("explained_variance", "fvu", "l0", "dead_share", "silent_share", "ce_loss_score", "kl_div_score"),
    *("ce_sae", "delta_ce_percent"),
)
_RELATIVE = ("ce_loss_score", "kl_div_score", "delta_ce_percent")


def compare_runs(config: EvaluateConfig, *, keep: Path | None = None, progress: bool = True) -> dict[str, Any]:
    """Evaluate all suites of SAEs of all runs on held-out documents of their text.

    The runs have to be of one text, read with one context length: numbers of different text say nothing side by side.
    They may be of different language models; one is loaded at a time, and all its suites share its unchanged and
    zero-ablated passes. A run on random weights (`strata.lm.random_weights`) is compared in reconstruction and
    sparsity: its cross-entropies are told, but what is relative to them is None, and it does no tasks, since a model
    that predicts by chance has nothing to lose.

    What took long is kept as it is found (`Parts`): the suites of a language model, a task, its circuits, a suite's
    results of lm-eval. Tasks of lm-eval are first run on the model itself, since only then it is known whether their
    data can be had.

    Args:
        config: the evaluation.
        keep: a file for what is found before the end, with which the same evaluation goes on; None is none.
        progress: say on stderr what happens.

    Returns:
        What evaluation.json holds: ``text`` (``data``, ``context_tokens``, and for each of ``models`` ``n_rows`` and
        ``n_tokens``); ``mean_sites``, the sites that all suites have, over which ``means`` are taken (each suite's own
        where they have none in common); ``suites``: name → ``kind`` ("sae" or "pca"), ``model``, ``random_weights``,
        ``run``, ``settings``, ``groups``, ``d_sae``, ``cost`` (`cost_of`), ``sites`` (as of `evaluate_suites`, with
        ``dead_share``), ``all_sites``, ``means``; ``overlap`` (`overlaps`); ``tasks``: for each ``task``, ``model``,
        ``clean`` and ``suites`` (`task_scores`); ``circuits`` (`circuit_curves`); ``lm_eval``: for each model that has
        learned, what `lm_eval_suites` returns. Undefined numbers are None.

    Raises:
        UserError: what cannot be evaluated; of a language model, before anything is measured on it.
    """
    check_task_names(config.tasks)
    check_lm_eval(config)
    runs = [open_run(Path(run)) for run in config.runs]
    data = common_text(runs, config)
    suites = open_suites(runs, progress=progress)
    models = by_model(suites)
    parts = Parts(keep, of=_identity(config, runs), progress=progress)
    found = [_of_model(own, data, config, alone=len(models) == 1, parts=parts, progress=progress) for own in models]
    described = {name: suite for one in found for name, suite in one["suites"].items()}
    common = [site for site in suites[0].saes if all(site in suite.saes for suite in suites)]
    for suite in described.values():
        suite["means"] = _means(suite["sites"], common)
    counts = {name: numbers for one in found for name, numbers in one["models"].items()}
    return {
        "text": {"data": data, "context_tokens": runs[0].config["context_tokens"], "models": counts},
        "mean_sites": common,
        "suites": described,
        **{key: [item for one in found for item in one[key]] for key in EVALUATIONS},
    }


def _of_model(
    suites: list[Suite], data: str, config: EvaluateConfig, *, alone: bool, parts: Parts, progress: bool
) -> dict[str, Any]:
    """What is found with one language model: ``models``, ``suites``, and by name what each of `EVALUATIONS` finds.

    Args:
        suites: of the model.
        data: the text.
        config: the evaluation.
        alone: whether there is no other model, from which its baselines were to be told.
        parts: what was found before, and where this goes.
        progress: say on stderr what happens.
    """
    with opened(suites, data, config, progress=progress) as one:
        parts = parts.within(one.lm.name, one.text_sha256())
        asked = Asked(opened=one, baselines={}, config=config, parts=parts, progress=progress)
        if asked.with_harness:
            clean_lm_eval(one.lm, config, parts=parts, progress=progress)
        pca = _pca_suites(one, config, alone=alone, progress=progress) if config.pca else {}
        _check_names(asked.trained, pca)
        asked = replace(asked, baselines=pca)
        return {
            "models": {one.lm.name: {"n_rows": one.n_rows, "n_tokens": one.n_tokens}},
            "suites": _described(one, pca, _measured(asked)),
            **{key: evaluate(asked) for key, evaluate in EVALUATIONS.items()},
        }


def _check_names(trained: SAEsBySuite, pca: SAEsBySuite) -> None:
    twice = next((name for name in trained if name in pca), None)
    if twice is not None:
        raise UserError(
            f"`runs` must not be called like a baseline. Got {twice!r}. Give the run's folder another name, or leave"
            " the baseline out with --no-pca."
        )


def _identity(config: EvaluateConfig, runs: Sequence[Run]) -> Any:
    """What the numbers depend on, but for the held-out tokens: settings, files of the runs and of own tasks, Strata."""
    settings = asdict(config) | {"overwrite": None, "out": None}
    files = [path for run in runs for path in (run.folder / "run.json", run.folder / "sae")]
    own = [Path(name) for name in config.lm_eval if Path(name).is_file()]
    own += [] if config.lm_eval_path == "none" else [Path(config.lm_eval_path)]
    return [version("strata-sae"), settings, stamps([*files, *own])]


def _pca_suites(one: Opened, config: EvaluateConfig, *, alone: bool, progress: bool) -> dict[str, dict[str, SAE]]:
    """Principal components at all sites, as many as there are of each k among the SAEs, fitted on the SAEs' own text.

    Where runs are of several texts, which have then been told to be measured on one, there are suites for each.
    """
    text_of = {suite.run.text_key: suite.run.data for suite in reversed(one.suites)}
    texts = dict.fromkeys(text_of[suite.run.text_key] for suite in one.suites)
    found: dict[str, dict[str, SAE]] = {}
    for text in texts:
        own = [suite for suite in one.suites if text_of[suite.run.text_key] == text]
        beside = ("" if alone else f" of {one.lm.name}") + (f", fitted on {text}" if len(texts) > 1 else "")
        for k, saes in _fitted(one.lm, text, own, config, progress=progress).items():
            found[f"PCA, {k} components{beside}"] = saes
    return found


def _fitted(
    lm: LanguageModel, text: str, suites: Sequence[Suite], config: EvaluateConfig, *, progress: bool
) -> dict[int, dict[str, SAE]]:
    sites = list(dict.fromkeys(site for suite in suites for site in suite.saes))
    widest = max(lm.d_in(site) for site in sites)
    run = suites[0].run
    say(f"fitting principal components at {counted(len(sites), 'site')} on {text}", shown=progress)
    try:
        tokens = token_stream(
            lm,
            text,
            context_tokens=run.config["context_tokens"],
            text_batch_size=run.text_batch_size,
            split="train",
        )
        ks = sorted({min(suite.k, widest) for suite in suites})
        return fit_pca(lm, tokens, sites=sites, ks=ks, lm_dtype=config.lm_dtype)
    except UserError as error:
        raise UserError(
            f"Principal components are fitted on the text of the runs: {error} Or leave them out with --no-pca."
        ) from error


def _measured(asked: Asked) -> dict[str, dict[str, Any]]:
    """`evaluate_suites`, without what a model that learned nothing cannot lose."""
    one = asked.opened

    def measure() -> dict[str, dict[str, Any]]:
        say(f"evaluating {counted(len(asked.suites), 'suite')} on {one.n_tokens} held-out tokens", shown=asked.progress)
        return evaluate_suites(one.lm, asked.suites, one.batches, lm_dtype=asked.config.lm_dtype)

    measured = asked.parts.of("suites", make=measure)
    if one.random:
        for result in measured.values():
            for numbers in (*result["sites"].values(), result["all_sites"]):
                numbers |= dict.fromkeys(_RELATIVE)
    return measured


def _described(one: Opened, pca: SAEsBySuite, measured: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What is said of each suite of a language model, but for the means."""
    for suite in one.suites:
        for site, numbers in measured[suite.name]["sites"].items():
            numbers |= suite.dead(site)
    about = {suite.name: _about(suite, one) for suite in one.suites}
    about |= {name: _about_pca(saes) for name, saes in pca.items()}
    model = {"model": one.lm.name, "random_weights": one.random}
    return {
        name: {**model, **about[name], **{key: numbers[key] for key in ("sites", "all_sites")}}
        for name, numbers in measured.items()
    }


def _about(suite: Suite, one: Opened) -> dict[str, Any]:
    beside = [other for other in one.suites if other.run is suite.run]
    return {
        "kind": "sae",
        "run": str(suite.run.folder),
        "settings": suite.settings,
        "groups": suite.groups,
        "d_sae": [d_sae for _, d_sae in suite.widths],
        "cost": cost_of(suite, one.lm, beside=beside),
    }


def _about_pca(saes: Mapping[str, SAE]) -> dict[str, Any]:
    k = max(sae.metadata["k"] for sae in saes.values())
    return {
        "kind": "pca",
        "run": None,
        "settings": {"k": k},
        "groups": [[site] for site in saes],
        "d_sae": None,
        "cost": None,
    }


def _means(sites: Mapping[str, Mapping[str, Any]], common: Sequence[str]) -> dict[str, float | None]:
    """Means over the common sites, or all; None of what is unknown at one of them."""
    numbers = [sites[site] for site in (common or sites)]
    means: dict[str, float | None] = {}
    for key in _MEANS:
        known = [one[key] for one in numbers if one.get(key) is not None]
        means[key] = sum(known) / len(known) if len(known) == len(numbers) else None
    return means
