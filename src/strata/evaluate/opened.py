"""A language model loaded for its evaluation: the suites that were trained on it, text and tasks to measure on."""

import hashlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from strata.amounts import counted
from strata.config.evaluate import EvaluateConfig
from strata.errors import UserError, did_you_mean
from strata.evaluate.held_out_text import held_out_batches
from strata.evaluate.language_loss import predicts_next_token
from strata.evaluate.run_model import check_weights, language_model_of
from strata.evaluate.run_suites import Suite
from strata.evaluate.runs import Run
from strata.evaluate.tasks.base import TaskPairs
from strata.evaluate.tasks.registry import TASKS, make_task, tasks_for
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenBatch
from strata.log import say


@dataclass(frozen=True)
class Opened:
    """What is measured together.

    Attributes:
        lm: the language model; its name is no other's in the evaluation.
        suites: of the runs that were trained on it, on its device.
        batches: held-out text in its tokens.
        tasks: prompts in its tokens; none for a model that has learned nothing.
    """

    lm: LanguageModel
    suites: list[Suite]
    batches: list[TokenBatch]
    tasks: list[TaskPairs]

    @property
    def random(self) -> bool:
        """Whether the model has learned nothing."""
        return self.suites[0].run.random_seed is not None

    @property
    def n_tokens(self) -> int:
        """Of the held-out text, without pads."""
        return sum(int(batch.attention_mask.sum()) for batch in self.batches)

    @property
    def n_rows(self) -> int:
        """Of the held-out text: its tokens but special ones."""
        return sum(int(batch.is_row.sum()) for batch in self.batches)

    def text_sha256(self) -> str:
        """Of the held-out tokens."""
        text = hashlib.sha256()
        for batch in self.batches:
            text.update(batch.input_ids.cpu().numpy().tobytes())
        return text.hexdigest()


def common_text(runs: Sequence[Run], config: EvaluateConfig) -> str:
    """The text on which all runs are measured.

    Raises:
        UserError: they were trained on several, or with several context lengths.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.text_key[1] != first.text_key[1]:
            said = [f"{one.folder}: {one.config['context_tokens']} tokens" for one in (first, run)]
            raise UserError(
                f"`runs` must be of one context length to be compared. Got {said[0]}; {said[1]}. Evaluate them one by"
                " one."
            )
        if config.data == "auto" and run.text_key != first.text_key:
            raise UserError(
                f"`runs` must be of one text to be compared. Got {first.folder}: {first.data}; {run.folder}:"
                f" {run.data}. Name one text for all with --data, or evaluate them one by one."
            )
    return first.data if config.data == "auto" else config.data


def check_task_names(names: Sequence[str]) -> None:
    """That there are such tasks.

    Raises:
        UserError: one is unknown.
    """
    for name in names:
        if name not in ("auto", "none", *TASKS):
            raise UserError(f"`tasks` must be tasks that there are. Got {name!r}.{did_you_mean(name, TASKS)}")


def by_model(suites: Sequence[Suite]) -> list[list[Suite]]:
    """The suites by the language model that they were trained on."""
    keys = dict.fromkeys(suite.run.model_key for suite in suites)
    return [[suite for suite in suites if suite.run.model_key == key] for key in keys]


@contextmanager
def opened(suites: list[Suite], data: str, config: EvaluateConfig, *, progress: bool = True) -> Generator[Opened]:
    """The language model of some suites, which all have the same, loaded, and the SAEs on its device for as long.

    Args:
        suites: of one model.
        data: the text.
        config: the evaluation.
        progress: say on stderr what happens.

    Raises:
        UserError: a model that cannot be loaded or is not the one that was trained on, a text without held-out
            documents, or tasks that the tokenizer cannot express.
    """
    run = suites[0].run
    lm = _language_model(suites, config)
    batches = held_out_batches(
        lm,
        data,
        n_tokens=config.n_tokens,
        context_tokens=run.config["context_tokens"],
        text_batch_size=run.text_batch_size,
    )
    if not batches:
        raise UserError(f"`data` must have held-out documents. Got {data!r}, which has none. Give more documents.")
    tasks = [] if run.random_seed is not None else _task_pairs(lm, config)
    say(f"{lm.name}: {counted(len(suites), 'suite')}; text: {data}", shown=progress)
    saes = [sae for suite in suites for sae in suite.saes.values()]
    try:
        for sae in saes:
            sae.to(lm.device)
        yield Opened(lm, suites, batches, tasks)
    finally:
        for sae in saes:
            sae.to("cpu")


def _language_model(suites: Sequence[Suite], config: EvaluateConfig) -> LanguageModel:
    run = suites[0].run
    lm = language_model_of(run, device=config.device, trust_remote_code=config.trust_remote_code)
    for suite in suites:
        check_weights(lm, suite.run)
    if run.random_seed:
        lm.name += f", seed {run.random_seed}"
    return lm


def _task_pairs(lm: LanguageModel, config: EvaluateConfig) -> list[TaskPairs]:
    """The prompts of the wanted tasks; with "auto" none of a model that predicts no next token."""
    if config.tasks == ("none",):
        return []
    if config.tasks == ("auto",):
        names = tasks_for(lm.tokenizer) if lm.tokenizer is not None and predicts_next_token(lm) else []
    else:
        names = list(config.tasks)
    return [make_task(name, lm.tokenizer, n_pairs=config.n_pairs, seed=0) for name in names]
