"""What suites of one language model are asked beside their reconstruction. A new evaluation is a function and a row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from strata.amounts import counted
from strata.config.evaluate import EvaluateConfig
from strata.evaluate.circuit_curves import circuit_curves
from strata.evaluate.lm_eval_suites import lm_eval_suites
from strata.evaluate.opened import Opened
from strata.evaluate.overlap import overlaps
from strata.evaluate.parts import Parts
from strata.evaluate.suites import SAEsBySuite
from strata.evaluate.tasks.base import TaskPairs
from strata.evaluate.tasks.scores import task_scores
from strata.log import say


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an evaluation is of.

    Attributes:
        opened: the language model, its runs' suites, held-out text and tasks.
        baselines: by name, suites that were fitted on the same language model.
        config: the evaluation as described.
        parts: what was found before, and where this goes.
        progress: say on stderr what happens.
    """

    opened: Opened
    baselines: SAEsBySuite
    config: EvaluateConfig
    parts: Parts
    progress: bool

    @property
    def trained(self) -> SAEsBySuite:
        """The runs' suites by name."""
        return {suite.name: suite.saes for suite in self.opened.suites}

    @property
    def suites(self) -> SAEsBySuite:
        """Those and the baselines."""
        return {**self.trained, **self.baselines}

    @property
    def with_harness(self) -> bool:
        """Whether tasks of lm-eval are wanted of this language model."""
        return bool(self.config.lm_eval) and not self.opened.random


def _overlap(asked: Asked) -> list[Any]:
    return overlaps(asked.opened.suites, progress=asked.progress)


def _tasks(asked: Asked) -> list[Any]:
    """Scores of the model as it is, and with each suite in place of all its sites.

    With the SAEs' errors added back the model computes what it computes without SAEs (`strata.lm.attach`): there is no
    third number to tell.
    """
    lm = asked.opened.lm

    def scores(pairs: TaskPairs) -> dict[str, Any]:
        say(f"task {pairs.name}: {counted(len(pairs), 'pair')}", shown=asked.progress)
        of_suites = {name: task_scores(lm, pairs, saes) for name, saes in asked.suites.items()}
        return {"task": pairs.name, "model": lm.name, "clean": task_scores(lm, pairs), "suites": of_suites}

    return [asked.parts.of("task", pairs.name, make=lambda pairs=pairs: scores(pairs)) for pairs in asked.opened.tasks]


def _circuits(asked: Asked) -> list[Any]:
    method = asked.config.circuits
    if method == "none":
        return []

    def curves(pairs: TaskPairs) -> list[dict[str, Any]]:
        return circuit_curves(asked.opened.lm, pairs, asked.trained, method=method, progress=asked.progress)

    of_tasks = [
        asked.parts.of("circuits", pairs.name, make=lambda pairs=pairs: curves(pairs)) for pairs in asked.opened.tasks
    ]
    return [curve for of_task in of_tasks for curve in of_task]


def _lm_eval(asked: Asked) -> list[Any]:
    if not asked.with_harness:
        return []
    return [lm_eval_suites(asked.opened.lm, asked.suites, asked.config, parts=asked.parts, progress=asked.progress)]


EVALUATIONS: dict[str, Callable[[Asked], list[Any]]] = {
    "overlap": _overlap,
    "tasks": _tasks,
    "circuits": _circuits,
    "lm_eval": _lm_eval,
}
"""By its name in evaluation.json each evaluation: what it finds of the suites of one language model, JSON-able."""
