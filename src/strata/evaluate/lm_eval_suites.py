"""Tasks of the lm-evaluation-harness on the model itself and on the model with each suite in all its sites."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strata.config.evaluate import EvaluateConfig
from strata.errors import MissingExtraError, UserError
from strata.evaluate.harness import run_lm_eval
from strata.evaluate.parts import Parts
from strata.lm.model import LanguageModel
from strata.log import say
from strata.sae.model import SAE


def check_lm_eval(config: EvaluateConfig) -> None:
    """That tasks of the harness, if any are wanted, can be run at all. It imports nothing.

    Raises:
        MissingExtraError: the extra is not installed.
        UserError: `lm_eval_path` is no folder.
    """
    if not config.lm_eval:
        return
    for library in ("lm_eval", "accelerate"):
        if importlib.util.find_spec(library) is None:
            raise MissingExtraError(library, extra="lm-eval", purpose="Running tasks of lm-eval")
    if config.lm_eval_path != "none" and not Path(config.lm_eval_path).is_dir():
        raise UserError(
            f"`lm_eval_path` must be a folder with YAML files of tasks. {config.lm_eval_path} is none. Give another, or"
            " leave it out."
        )


def clean_lm_eval(lm: LanguageModel, config: EvaluateConfig, *, parts: Parts, progress: bool = True) -> dict[str, Any]:
    """What the harness says of the model as it is.

    Args:
        lm: a causal language model with its tokenizer.
        config: the evaluation: the tasks and how much of them.
        parts: what was found before, and where this goes.
        progress: say on stderr what happens.

    Returns:
        As of `run_lm_eval`.

    Raises:
        MissingExtraError: a library of the extra is missing.
        UserError: an unknown task, one whose data cannot be had, or a model that cannot be asked.
    """
    return _results(lm, None, None, config, parts=parts, progress=progress)


def lm_eval_suites(
    lm: LanguageModel,
    suites: Mapping[str, Mapping[str, SAE]],
    config: EvaluateConfig,
    *,
    parts: Parts,
    progress: bool = True,
) -> dict[str, Any]:
    """What the harness says of the model, and of the model with each suite's SAEs in place of all its sites.

    The model runs in the precision that it was loaded in: `lm_dtype` is of the passes over held-out text.

    Args:
        lm: a causal language model with its tokenizer.
        suites: name → site → SAE.
        config: the evaluation: the tasks and how much of them.
        parts: what was found before, and where this goes: a part for each suite.
        progress: say on stderr what happens.

    Returns:
        ``model``; ``limit``, the documents per task or None; ``clean`` and ``suites`` (by name), as of `run_lm_eval`.

    Raises:
        MissingExtraError: a library of the extra is missing.
        UserError: an unknown task, one whose data cannot be had, or a model that cannot be asked.
    """
    return {
        "model": lm.name,
        "limit": _limit(config),
        "clean": clean_lm_eval(lm, config, parts=parts, progress=progress),
        "suites": {
            name: _results(lm, name, saes, config, parts=parts, progress=progress) for name, saes in suites.items()
        },
    }


def _results(
    lm: LanguageModel,
    name: str | None,
    saes: Mapping[str, SAE] | None,
    config: EvaluateConfig,
    *,
    parts: Parts,
    progress: bool,
) -> dict[str, Any]:
    def run() -> dict[str, Any]:
        say(f"lm-eval of {lm.name}{f' with {name}' if name else ''}: {', '.join(config.lm_eval)}", shown=progress)
        folder = None if config.lm_eval_path == "none" else config.lm_eval_path
        return run_lm_eval(lm, saes, config.lm_eval, limit=_limit(config), include_path=folder)

    return parts.of("lm_eval", lm.name, name, make=run)


def _limit(config: EvaluateConfig) -> int | None:
    return None if config.lm_eval_limit == "all" else config.lm_eval_limit
