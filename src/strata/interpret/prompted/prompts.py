"""Our prompts, and tokens as they show them, with nothing that could be mistaken for the frame.

What is the same for all features stands first, so that servers keep it from one prompt to the next.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from strata.interpret.explain.interpreter import HIGHEST_LEVEL
from strata.interpret.prompted.completer import Blanks, Chat, Message

MARKS = ("⟦", "⟧")  # around tokens that are said to make a feature fire; rare in any text, code included
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\ufffd": "\\ufffd"})
_MARK_ESCAPES = str.maketrans({mark: "\\" + mark for mark in MARKS})
LEVELS = tuple(str(level) for level in range(HIGHEST_LEVEL + 1))
NO, YES = "0", "1"
_FEW = 0.2  # below this share of tokens that fire, they are listed again (Bills et al. 2023)
_LONGEST_EXPLANATION_TOKENS = 120
_TOKENS_OF_A_JUDGEMENT = 8  # a number, a tab, an answer, a line's end, and some room

_EXPLAIN = """\
A feature is a number that a language model computes at every token it reads. Below are windows of text in which one \
feature is active. Each line is a token, a tab, and the feature's level there, from 0 (silent) to 10 (its largest). \
Find what the tokens with high levels have in common, or what stands before them, that the silent tokens lack. Then \
say in one short sentence what the feature responds to. Be as specific as the windows allow. Do not list tokens one \
by one, do not speak of levels, and write nothing but the sentence."""
_EXAMPLE_TOKENS = ("They", " met", " on", " Friday", ",", " not", " on", " Sunday", ".")
_EXAMPLE_LEVELS = np.array([0, 0, 0, 9, 0, 0, 0, 10, 0])
_EXAMPLE_EXPLANATION = "Names of the days of the week."
_N_EXAMPLE_BLANKS = 4

_SIMULATE = """\
A feature is a number that a language model computes at every token it reads. You are given what one feature responds \
to, and the tokens of a text, one on each line. Predict the feature's level at each token, a whole number from 0 \
(silent) to 10 (its largest). Most tokens of most texts have level 0. Write every token again on a line of its own, \
exactly and in order, then a tab, then its level, and nothing else."""
_FILLED_IN = 'A "?" stands where a level is not known yet.'

_DETECT = """\
A feature is a number that a language model computes at every token it reads. You are given what one feature responds \
to, and numbered windows of text, one on each line. For each window, decide whether the feature responds to anything \
in it. Answer with one line for each window, in order: its number, a tab, then 1 for yes or 0 for no. Write nothing \
else."""
_DETECT_EXAMPLE = ("1: Bread is baked in the morning.\n2: They met on Friday, not on Sunday.", "1\t0\n2\t1")
_FUZZ = f"""\
A feature is a number that a language model computes at every token it reads. You are given what one feature responds \
to, and numbered windows of text, one on each line, in which some tokens stand between {MARKS[0]} and {MARKS[1]}. For \
each window, decide whether the tokens between the marks are those that the feature responds to. Answer with one line \
for each window, in order: its number, a tab, then 1 for yes or 0 for no. Write nothing else."""
_FUZZ_EXAMPLE = (
    (
        f"1: They {MARKS[0]}met{MARKS[1]} on Friday, not on Sunday.\n"
        f"2: They met on{MARKS[0]} Friday{MARKS[1]}, not on{MARKS[0]} Sunday{MARKS[1]}."
    ),
    "1\t0\n2\t1",
)


def explain(windows: Sequence[tuple[Sequence[str], Int[np.ndarray, " tokens"]]]) -> Chat:
    """What does the feature respond to?

    Args:
        windows: tokens and their levels, strongest first.
    """
    example = _windows_with_levels([(_EXAMPLE_TOKENS, _EXAMPLE_LEVELS)])
    return Chat(
        _turns(_EXPLAIN, example, _EXAMPLE_EXPLANATION, task=_windows_with_levels(windows)),
        max_tokens=_LONGEST_EXPLANATION_TOKENS,
    )


def _windows_with_levels(windows: Sequence[tuple[Sequence[str], Int[np.ndarray, " tokens"]]]) -> str:
    parts = [f"Window {number}\n{table(tokens, levels)}" for number, (tokens, levels) in enumerate(windows, 1)]
    n_tokens = sum(len(tokens) for tokens, _ in windows)
    firing = [
        (token, level) for tokens, levels in windows for token, level in zip(tokens, levels, strict=True) if level > 0
    ]
    if 0 < len(firing) < _FEW * n_tokens:
        again = table([token for token, _ in firing], np.array([level for _, level in firing]))
        parts.append(f"Only the tokens above 0, again\n{again}")
    return "\n\n".join(parts)


def simulate_in_chat(explanation: str, tokens: Sequence[str]) -> Chat:
    """Levels of the tokens, written by the model as a table."""
    example = table(_EXAMPLE_TOKENS, _EXAMPLE_LEVELS)
    n_bytes = sum(len(shown_token(token).encode()) for token in tokens)
    return Chat(
        _turns(
            _SIMULATE,
            _tokens_to_predict(_EXAMPLE_EXPLANATION, _EXAMPLE_TOKENS),
            example,
            task=_tokens_to_predict(explanation, tokens),
        ),
        max_tokens=n_bytes + 4 * len(tokens) + 16,  # no tokenizer has more tokens than bytes
        choices=LEVELS,
    )


def simulate_in_blanks(explanation: str, tokens: Sequence[str]) -> Blanks:
    """Levels of the tokens, each read from the model's probabilities behind the token, all at once."""
    shown = [*("?" for _ in range(_N_EXAMPLE_BLANKS)), *map(str, _EXAMPLE_LEVELS[_N_EXAMPLE_BLANKS:])]
    example = "\n".join(f"{token}\t{level}" for token, level in zip(_EXAMPLE_TOKENS, shown, strict=True))
    return Blanks(
        _turns(
            f"{_SIMULATE} {_FILLED_IN}",
            _tokens_to_predict(_EXAMPLE_EXPLANATION, _EXAMPLE_TOKENS),
            example,
            task=_tokens_to_predict(explanation, tokens),
        ),
        pieces=_lines([shown_token(token) for token in tokens]),
        choices=LEVELS,
    )


def _tokens_to_predict(explanation: str, tokens: Sequence[str]) -> str:
    return f"The feature responds to: {explanation}\n\nTokens\n" + "\n".join(map(shown_token, tokens))


def judge(
    explanation: str, windows: Sequence[tuple[Sequence[str], Bool[np.ndarray, " tokens"] | None]]
) -> tuple[Message, ...]:
    """Does the feature respond to anything in each window, or to the marked tokens? A conversation to be answered.

    Args:
        explanation: of the feature.
        windows: tokens and which of them are marked; None in all of them for detection.
    """
    detects = all(marked is None for _, marked in windows)
    instruction, (example, answer) = (_DETECT, _DETECT_EXAMPLE) if detects else (_FUZZ, _FUZZ_EXAMPLE)
    lines = "\n".join(f"{n}: {running_text(tokens, marked)}" for n, (tokens, marked) in enumerate(windows, 1))
    return _turns(
        instruction,
        _windows_to_judge(_EXAMPLE_EXPLANATION, example),
        answer,
        task=_windows_to_judge(explanation, lines),
    )


def judge_in_chat(messages: tuple[Message, ...], *, n_windows: int) -> Chat:
    """The judgements, written by the model."""
    return Chat(messages, max_tokens=_TOKENS_OF_A_JUDGEMENT * n_windows + 8, choices=(NO, YES))


def judge_in_blanks(messages: tuple[Message, ...], *, n_windows: int) -> Blanks:
    """The judgements, read from the model's probabilities of no and yes, all at once."""
    return Blanks(messages, pieces=_lines([str(number) for number in range(1, n_windows + 1)]), choices=(NO, YES))


def _windows_to_judge(explanation: str, lines: str) -> str:
    return f"The feature responds to: {explanation}\n\nWindows\n{lines}"


def _lines(starts: Sequence[str]) -> tuple[str, ...]:
    return tuple(("" if i == 0 else "\n") + start + "\t" for i, start in enumerate(starts))


def _turns(instruction: str, example: str, answer: str, *, task: str) -> tuple[Message, ...]:
    """An instruction, one solved example, the task. Without a system's turn, which some chat templates refuse."""
    return (
        Message("user", f"{instruction}\n\n{example}"),
        Message("assistant", answer),
        Message("user", task),
    )


def shown_token(text: str) -> str:
    r"""A token's text on one line without tabs: ``\n``, ``\t``, ``\r``, ``\\`` as in Python; a byte that is no text by
    itself is ``\ufffd``. Different texts stay different.
    """
    return text.translate(_ESCAPES)


def running_text(tokens: Sequence[str], marked: Bool[np.ndarray, " tokens"] | None = None) -> str:
    """Tokens one after the other, on one line.

    Args:
        tokens: their texts.
        marked: tokens to be put between marks, each run of them once; brackets of the text's own that look like marks
            get a backslash. None marks nothing.
    """
    shown = [shown_token(token) for token in tokens]
    if marked is None:
        return "".join(shown)
    opening, closing = MARKS
    parts: list[str] = []
    for i, (text, is_marked) in enumerate(zip(shown, marked, strict=True)):
        before = opening if is_marked and (i == 0 or not marked[i - 1]) else ""
        after = closing if is_marked and (i + 1 == len(shown) or not marked[i + 1]) else ""
        parts.append(before + text.translate(_MARK_ESCAPES) + after)
    return "".join(parts)


def table(tokens: Sequence[str], levels: Int[np.ndarray, " tokens"]) -> str:
    """A line for each token: the token, a tab, its level."""
    return "\n".join(f"{shown_token(token)}\t{level}" for token, level in zip(tokens, levels, strict=True))
