"""What `strata plan` does: reckon a command's price without loading weights, and say it in tables."""

import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from strata.activations.store_layout import read_manifest
from strata.atomic import as_json, write_json
from strata.config.collect import CollectConfig
from strata.config.evaluate import EvaluateConfig
from strata.config.groups import GroupsConfig
from strata.config.plan import PlanOptions
from strata.config.train import TrainConfig
from strata.costs.step import Rates
from strata.errors import UserError
from strata.lm.model import LanguageModel
from strata.log import say
from strata.plan import collecting, evaluating, grouping, training
from strata.plan.calibration import calibrate
from strata.plan.rates import known_rates
from strata.plan.tables import wrapped

Plannable = TrainConfig | CollectConfig | GroupsConfig | EvaluateConfig
"""What can be planned."""

_PLANS: dict[type[Plannable], tuple[str, Callable[..., tuple[dict[str, Any], list[str]]]]] = {
    TrainConfig: ("train", training.plan_training),
    CollectConfig: ("collect", collecting.plan_collecting),
    GroupsConfig: ("groups", grouping.plan_grouping),
    EvaluateConfig: ("evaluate", evaluating.plan_evaluating),
}  # the command and how it is planned


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
    _, planned = _PLANS[type(of)]
    numbers, lines = planned(of, options, rates)
    if options.json != "none":
        _write(Path(options.json), {"machine": asdict(rates), "options": asdict(options), **numbers})
        say(f"all numbers: {options.json}", shown=progress)
    return [*lines, *_closing(of, options, rates)]


@dataclass(frozen=True, kw_only=True)
class Forward:
    """The language model's forward that a command would run, which `--calibrate` measures.

    Attributes:
        model: its name.
        context_tokens: length of its sequences.
        text_batch_size: how many of them at once.
        lm_dtype: its precision.
    """

    model: str
    context_tokens: int
    text_batch_size: int
    lm_dtype: str

    @classmethod
    def of(cls, of: Plannable) -> "Forward":
        """That of a described command; of several runs that are evaluated, the first one's.

        Raises:
            UserError: no such run or store.
        """
        if isinstance(of, EvaluateConfig):
            run = evaluating.run_record(Path(of.runs[0]))["config"]
            batch = run["sae"].get("text_batch_size", 32)
            return cls(model=run["model"], context_tokens=run["context_tokens"], text_batch_size=batch,
                       lm_dtype=of.lm_dtype)  # fmt: skip
        batch = of.sae.text_batch_size if isinstance(of, TrainConfig) else of.text_batch_size
        model, context_tokens = of.model, of.context_tokens
        store = _store(of)
        if store != "none":
            manifest = read_manifest(Path(store))
            model = str(manifest.model["name"]) if model == "auto" else model
            context_tokens = manifest.text["context_tokens"]
        return cls(model="demo" if model == "auto" else model, context_tokens=context_tokens, text_batch_size=batch,
                   lm_dtype=of.lm_dtype)  # fmt: skip


def _store(of: Plannable) -> str:
    """The store whose rows a command would read."""
    given = str(getattr(of, "activations", "none"))
    return "none" if given in ("stream", "collected") else given


def _rates(of: Plannable, options: PlanOptions, *, progress: bool) -> Rates:
    if not options.calibrate:
        return known_rates(options.hardware, device=of.device)
    forward = Forward.of(of)
    return calibrate(
        _loaded(forward.model, of, progress=progress),
        context_tokens=forward.context_tokens,
        text_batch_size=forward.text_batch_size,
        lm_dtype=forward.lm_dtype,
        device=of.device,
        progress=progress,
    )


def _loaded(name: str, of: Plannable, *, progress: bool) -> LanguageModel | None:
    """The language model whose forward is measured; None, and a line that says why, where it cannot be loaded."""
    try:
        return LanguageModel(name, device=of.device, trust_remote_code=of.trust_remote_code)
    except UserError as error:
        say(f"its forward is not measured, since it could not be loaded: {error}", shown=progress)
        return None


def _closing(of: Plannable, options: PlanOptions, rates: Rates) -> list[str]:
    """What was assumed, and how to measure it where that is on this machine."""
    if rates.kind == "measured":
        return []
    lines = ["", *wrapped(f"~ assumes {rates.name}: {rates.source}.")]
    if options.hardware == "this":
        measures = "measures some seconds on this machine; then seconds are no longer assumed."
        lines += wrapped(f"`{_calibrating(of)}` {measures}")
    return lines


def _calibrating(of: Plannable) -> str:
    """The command that measures this machine and the forward that was described."""
    words = [_PLANS[type(of)][0]]
    if isinstance(of, EvaluateConfig):
        words += map(str, of.runs)
    else:
        store, forward = _store(of), Forward.of(of)
        words += ["--model", forward.model] if store == "none" else ["--activations", store]
        if store == "none" and of.context_tokens != type(of)().context_tokens:
            words += ["--context-tokens", str(of.context_tokens)]
    for name in ("lm_dtype", "device"):
        value = getattr(of, name)
        words += [] if value == "auto" else [f"--{name.replace('_', '-')}", value]
    return shlex.join(["strata", "plan", *words, "--calibrate"])


def _write(path: Path, numbers: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, as_json(numbers))
    except OSError as error:
        raise UserError(
            f"`json` must be a file that can be written. {path}: {error.strerror or error}. Give another path."
        ) from error
