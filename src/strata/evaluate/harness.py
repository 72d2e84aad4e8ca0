"""EleutherAI's lm-evaluation-harness on a language model with SAEs in it, for any of its tasks."""

import copy
import difflib
import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from strata.errors import MissingExtraError, UserError
from strata.lm.attach import Attachable
from strata.lm.model import LanguageModel

_KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")  # the configs hold functions


def run_lm_eval(
    lm: LanguageModel,
    saes: Mapping[str, Attachable] | None,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    include_path: str | Path | None = None,
) -> dict[str, Any]:
    """Run tasks of the harness on the model, with SAEs in it or without.

    An SAE replaces every token but special ones (see `replaced_tokens`), in scoring and in generation with a KV cache.
    The harness seeds the global random generators, each time with the same numbers; the model's tokenizer is copied,
    because the harness would give it a pad token.

    Differs: SAELens' and other integrations replace BOS and other special tokens too, on which SAEs are not trained.

    Args:
        lm: a causal language model with its tokenizer.
        saes: site → SAE; None or none for the model as it is.
        tasks: names of tasks, groups or tags (``"lambada_openai"``), or paths of a task's YAML file.
        limit: at most so many documents of each task; None for all.
        batch_size: sequences per forward pass. Results do not depend on it, but for rounding.
        include_path: a folder with tasks of your own. If it has all that are wanted, the harness' own list (more than
            ten thousand, which takes it some 15 s to read) is left out.

    Returns:
        What the harness reports, in its words, JSON-able: ``results`` (task → ``"metric,filter"`` → value),
        ``versions``, ``n-shot``, ``n-samples``, ``higher_is_better`` and, with groups of tasks, ``groups``.

    Raises:
        MissingExtraError: lm-eval is not installed.
        UserError: no task, an unknown one, or one whose data cannot be had; a model without tokenizer or that is not
            causal; a number that is not at least 1; SAEs that do not fit, as in `attach`.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    _check(lm, names, limit=limit, batch_size=batch_size, include_path=include_path)
    simple_evaluate, TaskManager, HFLM = _library()
    with replaced_tokens(lm, saes or {}):
        manager = _manager(TaskManager, names, include_path)
        try:
            results = simple_evaluate(
                model=_wrapped(HFLM, lm, batch_size=batch_size),
                tasks=names,
                limit=limit,
                task_manager=manager,
                log_samples=False,
            )
        except OSError as error:
            raise UserError(
                f"`tasks` must be ones whose data can be had. Got {', '.join(names)}: {error}. Is there a network?"
            ) from error
    assert results is not None, "only ranks other than the first get nothing"
    return {name: results[name] for name in _KEPT if name in results}


@contextmanager
def replaced_tokens(lm: LanguageModel, saes: Mapping[str, Attachable]) -> Generator[None, None, None]:
    """The model with SAEs at every token that is no special one, whatever passes follow: each has its own mask.

    Special tokens keep the model's own activations, as in training and evaluation, where they are never rows. Pads need
    no mask: those behind a text are seen by no token before them, and the attention mask hides those in front.

    Args:
        lm: the model; its passes may be made by anyone, also `generate` with a KV cache.
        saes: site → SAE.
    """
    special = torch.tensor(sorted(lm.special_token_ids), dtype=torch.long)
    with lm.attach(saes) as run:

        def follow(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            run.mask = ~torch.isin(ids, special.to(ids.device)) if isinstance(ids, Tensor) else None

        handle = lm.model.register_forward_pre_hook(follow, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def harness_table(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The numbers of `run_lm_eval` as rows: task, metric, filter, value, stderr, higher_is_better.

    Args:
        results: what `run_lm_eval` returned.

    Returns:
        In the order of the report. ``stderr`` is None where the harness has none (also in place of its ``"N/A"``),
        ``higher_is_better`` where it does not say, ``filter`` is ``"none"`` where a task has none of its own.
    """
    rows: list[dict[str, Any]] = []
    for task, numbers in results["results"].items():
        better = results.get("higher_is_better", {}).get(task, {})
        for key, value in numbers.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = numbers.get(f"{metric}_stderr,{chosen}")
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "filter": chosen,
                    "value": float(value),
                    "stderr": float(stderr) if isinstance(stderr, int | float) else None,
                    "higher_is_better": better.get(metric),
                }
            )
    return rows


def _check(
    lm: LanguageModel,
    names: list[str],
    *,
    limit: int | None,
    batch_size: int,
    include_path: str | Path | None,
) -> None:
    if not names:
        raise UserError("`tasks` must name at least one task of lm-eval. Got none. `lm-eval ls tasks` lists them.")
    if lm.tokenizer is None:
        raise UserError("`tokenizer` must be given for tasks of text. Got a model without one. Load it by its name.")
    if not lm.model.can_generate():
        raise UserError(f"`model` must be a causal language model for lm-eval. Got {lm.model_class}. Take another.")
    for name, number in (("limit", limit), ("batch_size", batch_size)):
        if number is not None and number < 1:
            raise UserError(f"`{name}` must be at least 1. Got {number}. Leave it out for the default.")
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(
            f"`include_path` must be a folder with YAML files of tasks. {include_path} is none. Give another, or"
            " leave it out."
        )


def _library() -> tuple[Any, Any, Any]:
    """`simple_evaluate`, `TaskManager` and `HFLM` of lm-eval."""
    try:
        names = ("lm_eval", "lm_eval.tasks", "lm_eval.models.huggingface")
        harness, tasks, models = (import_module(name) for name in names)
    except ImportError as error:
        library = (error.name or "lm_eval").partition(".")[0]
        raise MissingExtraError(library, extra="lm-eval", purpose="Running tasks of lm-eval") from error
    return harness.simple_evaluate, tasks.TaskManager, models.HFLM


def _manager(TaskManager: Any, names: list[str], include_path: str | Path | None) -> Any:
    """The harness' index of tasks, with all that are wanted in it.

    Raises:
        UserError: one of them is in no index and no file.
    """

    def missing(manager: Any) -> list[str]:
        return [name for name in names if name not in manager.task_index and not Path(name).is_file()]

    if include_path is not None:
        manager = TaskManager(include_path=str(include_path), include_defaults=False)
        if not missing(manager):
            return manager
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    if unknown := missing(manager):
        known: list[str] = list(manager.all_tasks)
        near = ", ".join(repr(name) for name in difflib.get_close_matches(unknown[0], known))
        raise UserError(
            f"`tasks` must be names of lm-eval's tasks, groups or tags, or YAML files. Got {unknown[0]!r}."
            f" {f'Did you mean {near}?' if near else '`lm-eval ls tasks` lists them.'}"
        )
    return manager


def _wrapped(HFLM: Any, lm: LanguageModel, *, batch_size: int) -> Any:
    """The model as the harness takes it: itself, so that what is attached to it stays attached."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns that of a loaded model it takes no settings of loading
    try:
        return HFLM(
            pretrained=lm.model,
            backend="causal",
            tokenizer=copy.deepcopy(lm.tokenizer),
            max_length=lm.max_positions,
            batch_size=batch_size,
        )
    finally:
        log.setLevel(level)
