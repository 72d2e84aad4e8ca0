"""The whole way of a run: train, evaluate on held-out text, write the report."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strata.activations.harvest import collect
from strata.atomic import write_json
from strata.config.train import TrainConfig
from strata.distributed.ranks import ALONE, Ranks, joined_ranks
from strata.errors import UserError
from strata.evaluate.language_loss import UNDEFINED
from strata.evaluate.quality import prediction_quality
from strata.evaluate.suites import by_suite, evaluate_suites
from strata.interpret.examples import feature_examples
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenBatch
from strata.log import say
from strata.report.groups import write_groups_report
from strata.report.page import write_report
from strata.run import train_run
from strata.run_rows import RunRows
from strata.sae.group import per_layer
from strata.sae.model import SAE
from strata.train import Trained


def train_and_report(config: TrainConfig, *, progress: bool = True, ranks: Ranks = ALONE) -> Path:
    """Train as described; unless `config.report` is off also evaluate, pick example features and write the page.

    Args:
        config: the run.
        progress: say on stderr what happens.
        ranks: the processes that train together; the first evaluates and writes, the others are done then.

    Returns:
        report/index.html, or the run folder when no report was wanted.
    """
    folder = config.folder()
    rows, trained = train_run(config, progress=progress, ranks=ranks)
    if not config.report or not ranks.is_first:
        return folder
    start = time.perf_counter()
    say("evaluating on held-out text", shown=progress)
    found = _model_and_text(rows, progress=progress)
    if found is not None:
        lm, batches = found
        write_json(folder / "evaluation.json", evaluation_of(lm, trained, batches, lm_dtype=config.lm_dtype))
        features: dict[str, Any] = {}
        for saes in by_suite(per_layer(trained.saes)):
            examples = feature_examples(
                lm, _named_by_site(saes), batches, seed=config.sae.seed, lm_dtype=config.lm_dtype, folder=folder
            )
            features |= {key: examples[_site(sae)] for key, sae in saes.items()}
        write_json(folder / "features.json", features)
    if (folder / "groups").is_dir():  # layers were measured for this run
        write_groups_report(folder / "groups")
    page = write_report(folder)
    say(f"evaluated in {time.perf_counter() - start:.0f} s", shown=progress)
    return page


def train_with_ranks(config: TrainConfig) -> list[Path]:
    """`train_and_report` with the other processes of a distributed start, where there are any.

    Returns:
        What it gives, of the first process; of the others nothing.
    """
    with joined_ranks() as ranks:
        made = train_and_report(config, ranks=ranks)
    return [made] if ranks.is_first else []


def evaluation_of(
    lm: LanguageModel, trained: Trained, batches: list[TokenBatch], *, lm_dtype: str = "auto"
) -> dict[str, Any]:
    """What `evaluate_suites` says of all that a run trained, by key; of groups by group and layer.

    SAEs at the same site, as of a sweep, are of different suites, `all_sites` is then that of the first. Transcoders
    are measured by how well they predict their target; the language model's losses are undefined (None) for them.
    """
    saes = per_layer(trained.saes)
    suites = {str(number): suite for number, suite in enumerate(by_suite(_without_targets(saes)))}
    found = evaluate_suites(lm, {name: _named_by_site(suite) for name, suite in suites.items()}, batches,
                            lm_dtype=lm_dtype) if suites else {}  # fmt: skip
    sites = {key: found[name]["sites"][_site(sae)] for name, suite in suites.items() for key, sae in suite.items()}
    for key, sae in saes.items():
        target = _target(sae)
        if target is not None:
            rows = collect(lm, batches, sites=list(dict.fromkeys((_site(sae), target))), lm_dtype=lm_dtype)
            quality = prediction_quality(sae, rows[_site(sae)], rows[target], site=target)
            sites[key] = {**quality, **UNDEFINED}
    of_training = {
        layer: {**trained.dead[key], "n_trained_rows": trained.layer_rows[key].get(_site(sae))}
        for key, one in trained.saes.items()
        for layer, sae in per_layer({key: one}).items()
    }
    counts = {
        "n_rows": sum(int(batch.is_row.sum()) for batch in batches),
        "n_tokens": sum(int(batch.attention_mask.sum()) for batch in batches),
        "context_tokens": max(batch.input_ids.shape[1] for batch in batches),
    }
    together = next((one["all_sites"] for one in found.values()), dict(UNDEFINED))
    return {**counts, "sites": {key: sites[key] | of_training[key] for key in saes}, "all_sites": together}


def _model_and_text(rows: RunRows, *, progress: bool) -> tuple[LanguageModel, list[TokenBatch]] | None:
    """The language model and held-out text of a run; None, and a line that says why, where there is none.

    Of a store they may be gone: that costs the evaluation, not the run.
    """
    config = rows.config
    try:
        lm = rows.language_model
        batches = rows.held_out_text(config.held_out_tokens)
    except UserError as error:
        if config.activations in ("stream", "collected"):
            raise
        say(f"no evaluation, since the store's model or text is not at hand: {error}", shown=progress)
        return None
    if not batches:
        say("the text has no held-out document: no evaluation", shown=progress)
        return None
    return lm, batches


def _without_targets(saes: Mapping[str, SAE]) -> dict[str, SAE]:
    return {key: sae for key, sae in saes.items() if _target(sae) is None}


def _named_by_site(saes: Mapping[str, SAE]) -> dict[str, SAE]:
    return {_site(sae): sae for sae in saes.values()}


def _site(sae: SAE) -> str:
    return sae.metadata["site"]


def _target(sae: SAE) -> str | None:
    return sae.metadata.get("target_site")
