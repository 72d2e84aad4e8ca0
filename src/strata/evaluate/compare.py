"""Runs side by side: their suites, baselines, shared features, tasks, on the same held-out text."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from strata.evaluate.baselines import fit_pca
from strata.evaluate.bench import Bench, check_task_names, common_text, open_benches
from strata.evaluate.circuit_curves import circuit_curves
from strata.evaluate.lm_eval_suites import check_lm_eval, clean_lm_eval, lm_eval_suites
from strata.evaluate.overlap import shared_share
from strata.evaluate.parts import Parts, stamps
from strata.evaluate.run_costs import cost_of
from strata.evaluate.runs import Run, Suite, open_run, open_suites
from strata.evaluate.suites import evaluate_suites
from strata.evaluate.tasks.base import TaskPairs
from strata.evaluate.tasks.scores import task_scores
from strata.evaluate_config import EvaluateConfig
from strata.lm.model import LanguageModel
from strata.log import say
from strata.sae.model import SAE

_MEANS = (
    *("explained_variance", "fvu", "l0", "dead_share", "silent_share", "ce_loss_score", "kl_div_score"),
    *("ce_sae", "delta_ce_percent"),
)
_RELATIVE = ("ce_loss_score", "kl_div_score", "delta_ce_percent")

Suites = Mapping[str, Mapping[str, SAE]]


def compare_runs(config: EvaluateConfig, *, keep: Path | None = None, progress: bool = True) -> dict[str, Any]:
    """Evaluate all suites of SAEs of all runs on held-out documents of their text.

    The runs have to be of one text, read with one context length: numbers of different text say nothing side by side.
    They may be of different language models; each is loaded once, and all its suites share its unchanged and
    zero-ablated passes. A run on random weights (`strata.lm.random_weights`) is compared in reconstruction and
    sparsity: its cross-entropies are told, but what is relative to them is None, and it does no tasks, since a model
    that predicts by chance has nothing to lose.

    What took long is kept as it is found (`Parts`): the suites of a language model, a task, its circuits, a suite's
    results of lm-eval. Tasks of lm-eval are first run on the models themselves, since only then it is known whether
    their data can be had.

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
        UserError: what cannot be evaluated, before anything is.
    """
    check_task_names(config.tasks)
    check_lm_eval(config)
    runs = [open_run(Path(run)) for run in config.runs]
    data = common_text(runs, config)
    suites = open_suites(runs, progress=progress)
    benches = open_benches(suites, data, config, progress=progress)
    parts = Parts(keep, of=_identity(config, runs, benches), progress=progress)
    for bench in _harnessed(benches, config):
        clean_lm_eval(bench.lm, config, parts=parts, progress=progress)
    found = [_of_bench(bench, data, config, parts=parts, progress=progress) for bench in benches]
    described = {name: suite for one in found for name, suite in one["suites"].items()}
    common = [site for site in suites[0].saes if all(site in suite.saes for suite in suites)]
    for suite in described.values():
        suite["means"] = _means(suite["sites"], common)
    counts = {b.lm.name: {"n_rows": _n_rows(b), "n_tokens": b.n_tokens} for b in benches}
    return {
        "text": {"data": data, "context_tokens": runs[0].config["context_tokens"], "models": counts},
        "mean_sites": common,
        "suites": described,
        "overlap": overlaps(suites, progress=progress),
        **{key: [item for one in found for item in one[key]] for key in ("tasks", "circuits", "lm_eval")},
    }


def _of_bench(bench: Bench, data: str, config: EvaluateConfig, *, parts: Parts, progress: bool) -> dict[str, Any]:
    """What is found with one language model: ``suites``, ``tasks``, ``circuits``, ``lm_eval``."""
    pca = _pca_suites(bench, data, config, progress=progress) if config.pca else {}
    of_runs = {suite.name: suite.saes for suite in bench.suites}
    saes = {**of_runs, **pca}
    return {
        "suites": _described(bench, pca, _measured(bench, saes, config, parts=parts, progress=progress)),
        "tasks": [_task(bench.lm, pairs, saes, parts=parts, progress=progress) for pairs in bench.tasks],
        "circuits": [
            curve
            for pairs in (bench.tasks if config.circuits else [])
            for curve in _circuits(bench.lm, pairs, of_runs, parts=parts, progress=progress)
        ],
        "lm_eval": [
            lm_eval_suites(one.lm, saes, config, parts=parts, progress=progress) for one in _harnessed([bench], config)
        ],
    }


def _harnessed(benches: Sequence[Bench], config: EvaluateConfig) -> list[Bench]:
    """Those on whose models tasks of lm-eval are run: not on those that have learned nothing."""
    return [bench for bench in benches if config.lm_eval and not bench.random]


def _identity(config: EvaluateConfig, runs: Sequence[Run], benches: Sequence[Bench]) -> Any:
    """What the numbers depend on: the settings, the files of the runs and of own tasks, the held-out tokens, Strata."""
    settings = asdict(config) | {"overwrite": None, "out": None}
    files = [path for run in runs for path in (run.folder / "run.json", run.folder / "sae")]
    own = [Path(name) for name in config.lm_eval if Path(name).is_file()]
    own += [] if config.lm_eval_path == "none" else [Path(config.lm_eval_path)]
    text = hashlib.sha256()
    for batch in (batch for bench in benches for batch in bench.batches):
        text.update(batch.input_ids.cpu().numpy().tobytes())
    return [version("strata-sae"), settings, stamps([*files, *own]), text.hexdigest()]


def overlaps(suites: Sequence[Suite], *, progress: bool = True) -> list[dict[str, Any]]:
    """The share of features that suites have in common, for those pairs of which it can be asked.

    These are suites of the same language model whose settings are all the same but the seed, and whose groups are the
    same; or whose settings are all the same, one of them layer-wise and the other in groups.

    Returns:
        For each pair ``a``, ``b``, ``differ`` ("seed" or "groups"), ``sites`` (site → `shared_share`), ``mean``.
    """
    found = []
    for a, b in itertools.combinations(suites, 2):
        sites = [site for site in a.saes if site in b.saes]
        differ = _difference(a, b)
        if differ is None or not sites:
            continue
        say(f"features in common: {a.name} and {b.name}", shown=progress)
        shares = {site: shared_share(a.saes[site], b.saes[site]) for site in sites}
        mean = sum(shares.values()) / len(shares)
        found.append({"a": a.name, "b": b.name, "differ": differ, "sites": shares, "mean": mean})
    return found


def _difference(a: Suite, b: Suite) -> str | None:
    """In what alone two suites differ; None where that is nothing to compare features by."""
    if (a.run.model_key, a.run.random_weights) != (b.run.model_key, b.run.random_weights):
        return None
    unlike = {key for key in a.settings.keys() | b.settings.keys() if a.settings.get(key) != b.settings.get(key)}
    same_groups = a.groups == b.groups or (a.is_layer_wise and b.is_layer_wise)
    if unlike == {"seed"} and same_groups:
        return "seed"
    return "groups" if not unlike and a.is_layer_wise != b.is_layer_wise else None


def _pca_suites(bench: Bench, data: str, config: EvaluateConfig, *, progress: bool) -> dict[str, dict[str, SAE]]:
    """Principal components at all sites, one suite for each k among the SAEs."""
    sites = list(dict.fromkeys(site for suite in bench.suites for site in suite.saes))
    ks = sorted({suite.k for suite in bench.suites})
    say(f"fitting principal components at {len(sites)} site(s)", shown=progress)
    run = bench.suites[0].run
    fitted = fit_pca(
        bench.lm,
        data,
        sites=sites,
        ks=ks,
        context_tokens=run.config["context_tokens"],
        text_batch_size=run.text_batch_size,
        lm_dtype=config.lm_dtype,
    )
    of_model = f" of {bench.lm.name}" if bench.random else ""
    return {f"PCA, {k} components{of_model}": fitted[k] for k in ks}


def _measured(
    bench: Bench, saes: Suites, config: EvaluateConfig, *, parts: Parts, progress: bool
) -> dict[str, dict[str, Any]]:
    """`evaluate_suites`, without what a model that learned nothing cannot lose."""

    def measure() -> dict[str, dict[str, Any]]:
        say(f"evaluating {len(saes)} suite(s) on {bench.n_tokens} held-out tokens", shown=progress)
        return evaluate_suites(bench.lm, saes, bench.batches, lm_dtype=config.lm_dtype)

    measured = parts.of("suites", bench.lm.name, make=measure)
    if bench.random:
        for result in measured.values():
            for numbers in (*result["sites"].values(), result["all_sites"]):
                numbers |= dict.fromkeys(_RELATIVE)
    return measured


def _described(bench: Bench, pca: Suites, measured: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What is said of each suite of a language model, but for the means."""
    for suite in bench.suites:
        for site, numbers in measured[suite.name]["sites"].items():
            numbers |= suite.dead(site)
    about = {suite.name: _about(suite, bench) for suite in bench.suites}
    about |= {name: _about_pca(one) for name, one in pca.items()}
    model = {"model": bench.lm.name, "random_weights": bench.random}
    return {
        name: {**model, **about[name], **{key: numbers[key] for key in ("sites", "all_sites")}}
        for name, numbers in measured.items()
    }


def _about(suite: Suite, bench: Bench) -> dict[str, Any]:
    beside = [other for other in bench.suites if other.run is suite.run]
    return {
        "kind": "sae",
        "run": str(suite.run.folder),
        "settings": suite.settings,
        "groups": suite.groups,
        "d_sae": [d_sae for _, d_sae in suite.widths],
        "cost": cost_of(suite, bench.lm, beside=beside),
    }


def _about_pca(saes: Mapping[str, SAE]) -> dict[str, Any]:
    k = next(iter(saes.values())).metadata["k"]
    return {
        "kind": "pca",
        "run": None,
        "settings": {"k": k},
        "groups": [[site] for site in saes],
        "d_sae": None,
        "cost": None,
    }


def _task(lm: LanguageModel, pairs: TaskPairs, suites: Suites, *, parts: Parts, progress: bool) -> dict[str, Any]:
    """Scores of the model as it is, and with each suite in place of all its sites.

    With the SAEs' errors added back the model computes what it computes without SAEs (`strata.lm.attach`): there is no
    third number to tell.
    """

    def scores() -> dict[str, Any]:
        say(f"task {pairs.name}: {len(pairs)} pairs", shown=progress)
        of_suites = {name: task_scores(lm, pairs, saes) for name, saes in suites.items()}
        return {"task": pairs.name, "model": lm.name, "clean": task_scores(lm, pairs), "suites": of_suites}

    return parts.of("task", lm.name, pairs.name, make=scores)


def _circuits(
    lm: LanguageModel, pairs: TaskPairs, suites: Suites, *, parts: Parts, progress: bool
) -> list[dict[str, Any]]:
    return parts.of(
        *("circuits", lm.name, pairs.name), make=lambda: circuit_curves(lm, pairs, suites, progress=progress)
    )


def _means(sites: Mapping[str, Mapping[str, Any]], common: Sequence[str]) -> dict[str, float | None]:
    """Means over the common sites, or all; None of what is unknown at one of them."""
    numbers = [sites[site] for site in (common or sites)]
    means: dict[str, float | None] = {}
    for key in _MEANS:
        known = [one[key] for one in numbers if one.get(key) is not None]
        means[key] = sum(known) / len(known) if len(known) == len(numbers) else None
    return means


def _n_rows(bench: Bench) -> int:
    return sum(int(batch.is_row.sum()) for batch in bench.batches)
