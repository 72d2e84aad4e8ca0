"""Suites by the language model that they were trained on, the model loaded, with text and tasks to measure on."""

from collections.abc import Sequence
from dataclasses import dataclass

from strata.errors import UserError, did_you_mean
from strata.evaluate.held_out_text import held_out_batches
from strata.evaluate.language_loss import predicts_next_token
from strata.evaluate.runs import Run, Suite
from strata.evaluate.tasks.base import TaskPairs
from strata.evaluate.tasks.registry import TASKS, make_task, tasks_for
from strata.evaluate_config import EvaluateConfig
from strata.lm.model import LanguageModel
from strata.lm.random_weights import with_random_weights
from strata.lm.tokens import TokenBatch
from strata.log import say


@dataclass(frozen=True)
class Bench:
    """What is measured together.

    Attributes:
        lm: the language model.
        suites: of the runs that were trained on it.
        batches: held-out text in its tokens.
        tasks: prompts in its tokens; none for a model that has learned nothing.
        random: whether it is such a model.
    """

    lm: LanguageModel
    suites: list[Suite]
    batches: list[TokenBatch]
    tasks: list[TaskPairs]
    random: bool

    @property
    def n_tokens(self) -> int:
        """Of the held-out text, without pads."""
        return sum(int(batch.attention_mask.sum()) for batch in self.batches)


def common_text(runs: Sequence[Run], config: EvaluateConfig) -> str:
    """The text on which all runs are measured.

    Raises:
        UserError: they were trained on several, or with several context lengths.
    """
    first = runs[0]
    for run in runs[1:]:
        same_text = run.text_key[0] == first.text_key[0] or config.data != "auto"
        if not same_text or run.text_key[1] != first.text_key[1]:
            said = [
                f"{one.folder}: {one.data}, {one.config['context_tokens']} tokens of context" for one in (first, run)
            ]
            raise UserError(
                f"`runs` must be of one text and context length to be compared. Got {said[0]}; {said[1]}. Evaluate them"
                f" one by one, or name one text for all with --data."
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


def open_benches(suites: Sequence[Suite], data: str, config: EvaluateConfig, *, progress: bool = True) -> list[Bench]:
    """The suites by their language models, each model loaded once, its SAEs beside it.

    Args:
        suites: of all runs.
        data: the text.
        config: the evaluation.
        progress: say on stderr what happens.

    Raises:
        UserError: a model that cannot be loaded or is not the one that was trained on, a text without held-out
            documents, or tasks that the tokenizer cannot express.
    """
    benches = []
    for model, random in dict.fromkeys((suite.run.model_key, suite.run.random_weights) for suite in suites):
        own = [suite for suite in suites if (suite.run.model_key, suite.run.random_weights) == (model, random)]
        run = own[0].run
        lm = LanguageModel(run.config["model"], device=config.device, trust_remote_code=config.trust_remote_code)
        lm = with_random_weights(lm) if random else lm
        _check_model(lm, run)
        batches = held_out_batches(
            lm,
            data,
            n_tokens=config.n_tokens,
            context_tokens=run.config["context_tokens"],
            text_batch_size=run.text_batch_size,
        )
        if not batches:
            raise UserError(f"`data` must have held-out documents. Got {data!r}, which has none. Give more documents.")
        for sae in (sae for suite in own for sae in suite.saes.values()):
            sae.to(lm.device)
        say(f"{lm.name}: {len(own)} suite(s); text: {data}", shown=progress)
        benches.append(Bench(lm, own, batches, [] if random else _task_pairs(lm, config), random))
    return benches


def _check_model(lm: LanguageModel, run: Run) -> None:
    trained_on = run.record.get("model", {}).get("weights_sha256")
    if trained_on not in (None, lm.fingerprint()["weights_sha256"]):
        raise UserError(
            f"`runs` must be evaluated on the model that they were trained on. The weights of {run.config['model']!r}"
            f" are no longer those of {run.folder}. Put the model back, or train again."
        )


def _task_pairs(lm: LanguageModel, config: EvaluateConfig) -> list[TaskPairs]:
    """The prompts of the wanted tasks; with "auto" none of a model that predicts no next token."""
    if config.tasks == ("none",):
        return []
    if config.tasks == ("auto",):
        names = tasks_for(lm.tokenizer) if lm.tokenizer is not None and predicts_next_token(lm) else []
    else:
        names = list(config.tasks)
    return [make_task(name, lm.tokenizer, n_pairs=config.n_pairs, seed=0) for name in names]
