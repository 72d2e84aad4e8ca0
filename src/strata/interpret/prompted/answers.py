"""What an answer says: a sentence, a level at each token, a yes or no for each window; or that it says nothing."""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from strata.amounts import counted
from strata.interpret.explain.interpreter import Failed
from strata.interpret.prompted.completer import Reply
from strata.interpret.prompted.prompts import LEVELS, NO, YES, shown_token

_LONGEST_EXPLANATION = 600  # characters; a sentence is shorter
_JUDGEMENT = re.compile(r"^\W*(\d+)\s*[:.)\t -]\s*(0|1|yes|no)\W*$", re.IGNORECASE)
_BARE_JUDGEMENT = re.compile(r"^\W*(0|1|yes|no)\W*$", re.IGNORECASE)


def explanation_of(reply: Reply) -> str | Failed:
    """The sentence, on one line and without quotes around it.

    Returns:
        Failed where the answer is empty, cut off while the model was still thinking, has no words, or is far longer
        than a sentence.
    """
    text = reply.text
    if "<think>" in text and "</think>" not in text:
        return Failed("cut off before the answer")
    text = " ".join(text.rpartition("</think>")[2].split()).strip("\"'“”` ")
    text = "".join(character for character in text if unicodedata.category(character) != "Cc")  # what moves a cursor
    if not text:
        return Failed("empty answer")
    n_letters = sum(character.isalpha() for character in text)
    if n_letters < 3 or n_letters < 0.4 * len(text.replace(" ", "")) or "\ufffd" in text:
        return Failed("no words in the answer")
    if len(text) > _LONGEST_EXPLANATION:
        return Failed(f"an answer of {len(text):,} characters is no sentence")
    return text


def expected_level(probabilities: Mapping[str, float]) -> float:
    """Σ i·P[i] / Σ P[i] over the levels that the model named (Bills et al. 2023); NaN where it named none.

    Differs: the authors' code divides by zero where none was named.

    Args:
        probabilities: level as text → probability; need not sum to 1.
    """
    named = [(int(choice), p) for choice, p in probabilities.items() if choice in LEVELS]
    total = math.fsum(p for _, p in named)
    return math.fsum(level * p for level, p in named) / total if total > 0 else math.nan


def yes_probability(probabilities: Mapping[str, float]) -> float:
    """P(yes) / (P(yes) + P(no)); NaN where neither is named."""
    yes, no = probabilities.get(YES, 0.0), probabilities.get(NO, 0.0)
    return yes / (yes + no) if yes + no > 0 else math.nan


def levels_in_blanks(reply: Reply) -> tuple[Float[np.ndarray, " tokens"], tuple[str, ...]]:
    """Levels at each blank, NaN where no digit is among the returned, and why there are NaNs."""
    levels = np.array([expected_level(blank) for blank in reply.blanks], dtype=np.float64)
    return levels, ("digits absent",) if np.isnan(levels).any() else ()


def levels_in_table(reply: Reply, tokens: Sequence[str]) -> tuple[Float[np.ndarray, " tokens"], tuple[str, ...]]:
    """Levels from a table that the model wrote: the expected value where it told probabilities, else what it wrote.

    Line i of those with a tab has to be token i (spaces around it aside) and a number of 0 to 10. A token whose line is
    another or has no such number is NaN, never 0.

    Args:
        reply: of the chat.
        tokens: their texts.

    Returns:
        levels, and the different reasons for the NaNs among them.
    """
    levels = np.full(len(tokens), np.nan)
    reasons: list[str] = []
    lines = [(start, line) for start, line in _lines(reply.text) if "\t" in line]
    for place, token in enumerate(tokens):
        if place >= len(lines):
            reasons.append("line missing")
            continue
        start, line = lines[place]
        shown, _, number = line.rpartition("\t")
        if shown.strip() != shown_token(token).strip():
            reasons.append("another token")
        elif number.strip() not in LEVELS:
            reasons.append("no number")
        else:
            at = start + len(line) - len(number.lstrip())
            found = _probabilities_at(reply, at, number.strip())
            levels[place] = expected_level(found) if isinstance(found, Mapping) else math.nan
            if np.isnan(levels[place]):
                reasons.append(found if isinstance(found, str) else "digits absent")
    return levels, tuple(dict.fromkeys(reasons))


def judgements_in_blanks(reply: Reply) -> Float[np.ndarray, " windows"]:
    """Probabilities of yes at each blank, NaN where neither answer is among the returned."""
    return np.array([yes_probability(blank) for blank in reply.blanks], dtype=np.float64)


def judgements_in_chat(reply: Reply, *, n_windows: int) -> Float[np.ndarray, " windows"] | Failed:
    """Probabilities of yes: from the model's where it told them, else 0 or 1.

    Accepted are numbered lines in order, or bare answers one on each line.

    Returns:
        Failed where there are not as many answers as windows.
    """
    lines = [(start, line) for start, line in _lines(reply.text) if line.strip()]
    matched = [(start, match) for start, line in lines if (match := _JUDGEMENT.match(line))]
    if matched and [int(match[1]) for _, match in matched] != list(range(1, n_windows + 1)):
        said = counted(len(matched), "answer")
        return Failed(f"{said}, or not in order, for {counted(n_windows, 'window')}")
    if not matched:
        matched = [(start, match) for start, line in lines if (match := _BARE_JUDGEMENT.match(line))]
        if len(matched) != n_windows or len(lines) != n_windows:
            return Failed(f"{counted(len(matched), 'answer')} for {counted(n_windows, 'window')}")
    probabilities = np.full(n_windows, np.nan)
    for place, (start, match) in enumerate(matched):
        word = match[match.lastindex or 0]
        written = {"yes": YES, "no": NO}.get(word.lower(), word)
        found = _probabilities_at(reply, start + match.start(match.lastindex or 0), word)
        told = yes_probability(found) if isinstance(found, Mapping) else math.nan
        probabilities[place] = float(written == YES) if math.isnan(told) else told
    return probabilities


def _lines(text: str) -> list[tuple[int, str]]:
    """The lines behind what the model thought, each with its first character's place."""
    thought, end, answer = text.rpartition("</think>")
    lines: list[tuple[int, str]] = []
    start = len(thought) + len(end)
    for line in answer.split("\n"):
        lines.append((start, line))
        start += len(line) + 1
    return lines


def _probabilities_at(reply: Reply, at: int, written: str) -> Mapping[str, float] | str:
    """What the model held likely where it wrote a text; 1 for this text where it told no probabilities.

    Args:
        reply: of the chat.
        at: the character at which the text begins.
        written: the text.

    Returns:
        The probabilities, or why they cannot be told.
    """
    if not reply.tokens:
        return {written: 1.0}
    byte = len(reply.text[:at].encode())
    token = next((t for t in reversed(reply.tokens) if t.start <= byte), None)
    if token is None or token.text.strip() != written:
        return "a number of several tokens"
    return token.probabilities
