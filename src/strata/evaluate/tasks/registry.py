"""All tasks by name, and how pairs of equal length are made from their draws."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from random import Random
from typing import Any

import torch

from strata.errors import UserError, did_you_mean
from strata.evaluate.tasks.base import IdPair, Task, TaskPairs
from strata.evaluate.tasks.english import ENGLISH_TASKS
from strata.evaluate.tasks.induction import INDUCTION
from strata.evaluate.tasks.python import PYTHON_TASKS

# The commonest length is that of so many draws.
_SAMPLE = 128
# A task is exhausted when so many draws one after another give no new pair.
_PATIENCE = 2048
# What a task must give, in one length, to be listed for a tokenizer.
_LEAST_PAIRS = 16

TASKS: dict[str, Task] = {
    **ENGLISH_TASKS,
    **PYTHON_TASKS,
    "induction": INDUCTION,
}
"""Every task by its name."""


def make_task(name: str, tokenizer: Any, *, n_pairs: int, seed: int) -> TaskPairs:
    """Pairs of a task in a tokenizer's tokens, the same for the same seed.

    Pairs that the tokenizer cannot express are left out, and of the others all but those of the commonest length (of
    128 draws). No prompt occurs twice, in whichever role, so the parts of `TaskPairs.split` share none. Every prompt
    starts with the special token that starts a packed sequence, if the tokenizer has one.

    Args:
        name: one of `TASKS`.
        tokenizer: a Hugging Face tokenizer, the model's own.
        n_pairs: how many, at least 1.
        seed: of the draws.

    Raises:
        UserError: an unknown task, no tokenizer, one that cannot express the task, n_pairs below 1 or more than the
            task has.
    """
    if name not in TASKS:
        raise UserError(f"`task` must be the name of a task. Got {name!r}.{did_you_mean(name, TASKS)}")
    if n_pairs < 1:
        raise UserError(f"`n_pairs` must be at least 1. Got {n_pairs}. Leave it out for the default.")
    if tokenizer is None:
        raise UserError(f"The task {name!r} needs a tokenizer. Got None. Give the model its own.")
    task = TASKS[name]
    # A text as seed, so that the tasks do not share their draws; its hash is the same in every Python.
    draws = task.draw(tokenizer, Random(f"{name} {seed}"))
    sample = [pair for pair in islice(draws, _SAMPLE) if pair is not None]
    if not sample:
        others = tasks_for(tokenizer)
        raise UserError(
            f"The task {name!r} needs a tokenizer that has {task.needs} as single tokens. Got one that splits them. "
            f"It can express: {', '.join(others) or 'none of the tasks'}."
        )
    length = Counter(len(pair.clean) for pair in sample).most_common(1)[0][0]
    pairs = list(islice(_distinct(chain(sample, draws), length), n_pairs))
    if len(pairs) < n_pairs:
        raise UserError(
            f"`n_pairs` must be at most {len(pairs)}, what the task {name!r} gave in this tokenizer. Got {n_pairs}. "
            "Ask for fewer."
        )
    return TaskPairs(
        name,
        clean_ids=torch.tensor([pair.clean for pair in pairs]),
        corrupt_ids=torch.tensor([pair.corrupt for pair in pairs]),
        answer_ids=torch.tensor([pair.answer for pair in pairs]),
        wrong_ids=torch.tensor([pair.wrong for pair in pairs]),
    )


def tasks_for(tokenizer: Any) -> list[str]:
    """The tasks that a tokenizer can express, in the order of `TASKS`: English ones need the words as single tokens.

    What a model makes of them is another matter: see `strata.evaluate.tasks.scores.task_scores`.
    """
    return [name for name, task in TASKS.items() if _expressible(task, tokenizer)]


def _expressible(task: Task, tokenizer: Any) -> bool:
    seen: set[IdPair] = set()
    lengths: Counter[int] = Counter()
    for pair in islice(task.draw(tokenizer, Random(0)), _SAMPLE):
        if pair is not None and pair not in seen:
            seen.add(pair)
            lengths[len(pair.clean)] += 1
            if lengths[len(pair.clean)] == _LEAST_PAIRS:
                return True
    return False


def _distinct(pairs: Iterable[IdPair | None], length: int) -> Iterator[IdPair]:
    """Those of one length whose prompts none before had, until it seems that there are no more."""
    seen: set[tuple[int, ...]] = set()
    n_in_vain = 0
    for pair in pairs:
        if pair is not None and len(pair.clean) == length and seen.isdisjoint((pair.clean, pair.corrupt)):
            seen |= {pair.clean, pair.corrupt}
            n_in_vain = 0
            yield pair
        else:
            n_in_vain += 1
            if n_in_vain == _PATIENCE:
                return
