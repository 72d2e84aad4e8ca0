"""What `strata plan` does: reckon a command's price without loading weights, and say it in tables."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from strata.atomic import as_json, write_json
from strata.collect_config import CollectConfig
from strata.config import TrainConfig
from strata.costs.step import Rates
from strata.errors import UserError
from strata.evaluate_config import EvaluateConfig
from strata.groups_config import GroupsConfig
from strata.lm.model import LanguageModel
from strata.log import say
from strata.machine.calibration import calibrate
from strata.machine.rates import known_rates
from strata.plan import collecting, evaluating, grouping, training
from strata.plan.tables import wrapped
from strata.plan_config import PlanOptions

Plannable = TrainConfig | CollectConfig | GroupsConfig | EvaluateConfig
"""What can be planned."""


def plan(of: Plannable, options: PlanOptions, *, progress: bool = True) -> list[str]:
    """The price of a command.

    Args:
        of: what the command would be told.
        options: how it is reckoned.
        progress: say on stderr what happens.

    Returns:
        Lines of text.

    Raises:
        UserError: whatever in the description cannot be done, or a file that cannot be written.
    """
    rates = _rates(of, options, progress=progress)
    planned: Callable[..., tuple[dict[str, Any], list[str]]]
    if isinstance(of, TrainConfig):
        planned = training.plan_training
    elif isinstance(of, CollectConfig):
        planned = collecting.plan_collecting
    elif isinstance(of, GroupsConfig):
        planned = grouping.plan_grouping
    else:
        planned = evaluating.plan_evaluating
    numbers, lines = planned(of, options, rates)
    if options.json != "none":
        _write(Path(options.json), {"machine": asdict(rates), "options": asdict(options), **numbers})
        say(f"all numbers: {options.json}", shown=progress)
    return [*lines, *_closing(rates)]


def _rates(of: Plannable, options: PlanOptions, *, progress: bool) -> Rates:
    device = getattr(of, "device", "auto")
    if not options.calibrate:
        return known_rates(options.hardware, device=device)
    return calibrate(
        _loaded(of, progress=progress), config=of if isinstance(of, TrainConfig) else None, progress=progress
    )


def _loaded(of: Plannable, *, progress: bool) -> LanguageModel | None:
    """The language model whose forward is measured; None, and a line that says why, where it cannot be loaded."""
    name = getattr(of, "model", "auto")
    if name == "auto":
        return None
    try:
        return LanguageModel(name, device=getattr(of, "device", "auto"),
                             trust_remote_code=getattr(of, "trust_remote_code", False))  # fmt: skip
    except UserError as error:
        say(f"its forward is not measured, since it could not be loaded: {error}", shown=progress)
        return None


def _closing(rates: Rates) -> list[str]:
    if rates.kind == "measured":
        return []
    return [
        "",
        *wrapped(f"~ assumes {rates.name}: {rates.source}."),
        "`strata plan --calibrate` measures some seconds on this machine; then seconds are no longer assumed.",
    ]


def _write(path: Path, numbers: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, as_json(numbers))
    except OSError as error:
        raise UserError(
            f"`json` must be a file that can be written. {path}: {error.strerror or error}. Give another path."
        ) from error
