"""A language model as an interpreter: it explains from examples, simulates and judges from an explanation."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from strata.config.settings import require
from strata.interpret.explain.interpreter import (
    Explanation,
    Failed,
    Judged,
    JudgeTask,
    Material,
    Simulated,
    SimulationTask,
    levels,
)
from strata.interpret.prompted import answers, prompts
from strata.interpret.prompted.completer import Completer, Reply, Request
from strata.interpret.windows import Windows


class PromptedInterpreter:
    """A `strata.interpret.explain.interpreter.Interpreter` that asks a language model with Strata's own prompts.

    Explain, simulate and score after Bills et al. 2023, *Language models can explain neurons in language models*;
    detection and fuzzing after Paulo et al. 2024, *Automatically Interpreting Millions of Features in Large Language
    Models*. All prompts of a call go to the model together, whatever features they are of.

    Differs: where the model's answer is missing, garbage, or names no level, the prediction is NaN and the failure is
    told; peers write 0 or drop it.

    Args:
        model: who answers: an `Endpoint` or a `LocalModel`.
        vocabulary: the text of each token of the model whose features these are, as in ``FeatureIndex.vocabulary``.
        windows_per_prompt: windows that one prompt asks to be judged; at least 1. More are cheaper, fewer are judged
            better.

    Raises:
        UserError: `windows_per_prompt` is below 1.
    """

    def __init__(self, model: Completer, vocabulary: list[str], *, windows_per_prompt: int = 5) -> None:
        require(windows_per_prompt >= 1, "windows_per_prompt", "be at least 1", windows_per_prompt, "Give e.g. 5.")
        self._model, self._vocabulary, self._windows_per_prompt = model, vocabulary, windows_per_prompt

    @property
    def name(self) -> str:
        """The language model's."""
        return self._model.name

    def explain(self, materials: Sequence[Material]) -> list[Explanation | Failed]:
        """One sentence on each feature, from all its windows. A material without windows is Failed and asks nothing."""
        asked = [place for place, material in enumerate(materials) if len(material.windows)]
        replies = self._model.complete([self._explanation_request(materials[place]) for place in asked])
        found: list[Explanation | Failed] = [Failed("nothing to explain from") for _ in materials]
        for place, reply in zip(asked, replies, strict=True):
            text = reply if isinstance(reply, Failed) else answers.explanation_of(reply)
            key, latent = materials[place].key, materials[place].latent
            found[place] = text if isinstance(text, Failed) else Explanation(key=key, latent=latent, text=text)
        return found

    def _explanation_request(self, material: Material) -> Request:
        windows = material.windows
        shown = levels(windows.activations, max_activation=material.max_activation)
        return prompts.explain([(self._texts(windows, i), shown[i][windows.is_token[i]]) for i in range(len(windows))])

    def simulate(self, tasks: Sequence[SimulationTask]) -> list[Simulated]:
        """Expected levels at each token, one prompt for each window; NaN where there is no token or no answer."""
        places = [(task, window) for task in tasks for window in range(len(task.windows))]
        asked = [(task, window) for task, window in places if task.windows.is_token[window].any()]
        write = prompts.simulate_in_blanks if "simulate" in self._model.fills_in else prompts.simulate_in_chat
        requests: list[Request] = [write(t.explanation.text, self._texts(t.windows, w)) for t, w in asked]
        replies = {(id(t), w): reply for (t, w), reply in zip(asked, self._model.complete(requests), strict=True)}
        return [self._simulated(task, [replies.get((id(task), w)) for w in range(len(task.windows))]) for task in tasks]

    def _simulated(self, task: SimulationTask, replies: Sequence[Reply | Failed | None]) -> Simulated:
        windows = task.windows
        failures: list[Failed] = []
        predicted = np.full(windows.token_ids.shape, np.nan, dtype=np.float64)
        for window, reply in enumerate(replies):
            if reply is None:
                continue  # no token in it
            if isinstance(reply, Failed):
                failures.append(reply)
                continue
            found, reasons = self._levels(reply, windows, window)
            predicted[window, windows.is_token[window]] = found
            if reasons:
                n_lacking = int(np.isnan(found).sum())
                failures.append(Failed(f"no level for {n_lacking} of {len(found)} tokens: {', '.join(reasons)}"))
        return Simulated(levels=predicted, failures=tuple(failures))

    def _levels(
        self, reply: Reply, windows: Windows, window: int
    ) -> tuple[Float[np.ndarray, " tokens"], tuple[str, ...]]:
        if "simulate" in self._model.fills_in:
            return answers.levels_in_blanks(reply)
        return answers.levels_in_table(reply, self._texts(windows, window))

    def judge(self, tasks: Sequence[JudgeTask]) -> list[Judged]:
        """Probabilities of yes for each window, several windows in a prompt; NaN where there is no answer."""
        batches = [
            (place, slice(start, min(start + self._windows_per_prompt, len(task.windows))))
            for place, task in enumerate(tasks)
            for start in range(0, len(task.windows), self._windows_per_prompt)
        ]
        replies = self._model.complete([self._judge_request(tasks[place], part) for place, part in batches])
        judged = [np.full(len(task.windows), np.nan, dtype=np.float64) for task in tasks]
        failures: list[list[Failed]] = [[] for _ in tasks]
        for (place, part), reply in zip(batches, replies, strict=True):
            n_windows = part.stop - part.start
            found = reply if isinstance(reply, Failed) else self._judgements(reply, n_windows)
            if isinstance(found, Failed):
                failures[place] += itertools.repeat(found, n_windows)
                continue
            judged[place][part] = found
            failures[place] += itertools.repeat(Failed("neither yes nor no"), int(np.isnan(found).sum()))
        return [Judged(probabilities=p, failures=tuple(f)) for p, f in zip(judged, failures, strict=True)]

    def _judge_request(self, task: JudgeTask, part: slice) -> Request:
        shown: list[tuple[list[str], Bool[np.ndarray, " tokens"] | None]] = []
        for window in range(part.start, part.stop):
            is_token = task.windows.is_token[window]
            marked = None if task.marks is None else task.marks[window][is_token]
            shown.append((self._texts(task.windows, window), marked))
        messages = prompts.judge(task.explanation.text, shown)
        write = prompts.judge_in_blanks if "judge" in self._model.fills_in else prompts.judge_in_chat
        return write(messages, n_windows=len(shown))

    def _judgements(self, reply: Reply, n_windows: int) -> Float[np.ndarray, " windows"] | Failed:
        if "judge" in self._model.fills_in:
            return answers.judgements_in_blanks(reply)
        return answers.judgements_in_chat(reply, n_windows=n_windows)

    def _texts(self, windows: Windows, window: int) -> list[str]:
        return [self._vocabulary[token_id] for token_id in windows.token_ids[window][windows.is_token[window]]]
