"""Explanations that need no language model: the tokens, alone or behind others, that predict where a feature fires."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from strata.interpret.explain.interpreter import (
    HIGHEST_LEVEL,
    Explanation,
    Failed,
    Judged,
    JudgeTask,
    Material,
    Pattern,
    Simulated,
    SimulationTask,
)
from strata.interpret.explain.pieces import Pieces
from strata.interpret.explain.record import OWN
from strata.interpret.patterns.n_grams import LONGEST, NGrams
from strata.interpret.patterns.wording import Wording
from strata.interpret.site_index import SiteIndex

MOST_PATTERNS = 10
LEAST_FIRINGS = 3  # at one pattern
LEAST_SHARE = 0.01  # of the squared level that a further pattern has to predict
YES_LEVEL = 1.0  # predicted levels above it count as firing when windows are judged
_CANDIDATES = 96  # of each length


class TokenPatterns:
    """The interpreter "token patterns": what it explains from are all firings in the documents to explain from, not the
    windows alone.

    An explanation is at most ten patterns: a token, or a token behind one or two given ones. Each predicts the mean
    level at all places that match it, firing or not; where several match, the longest counts; where none does, 0 is
    predicted. Patterns are chosen one by one, each time the one by which the squared error falls most, every place
    being predicted from the others (leave-one-out, so that a pattern with few places earns little). The simulator knows
    what the text says and no more: the same patterns, with levels rounded as they are printed.

    Levels are tenths of the largest activation and not rounded down. Differs: Bills et al. 2023 round them down, for
    language models to read, which makes all that is below a tenth of the largest 0.

    Args:
        sites: the SAEs of an index, by key.
        pieces: the text of that index.
        n_grams: of these pieces.
        wording: how tokens are written.
    """

    name = OWN

    def __init__(self, sites: Mapping[str, SiteIndex], *, pieces: Pieces, n_grams: NGrams, wording: Wording) -> None:
        self._sites, self._pieces, self._n_grams, self._wording = sites, pieces, n_grams, wording

    def explain(self, materials: Sequence[Material]) -> list[Explanation | Failed]:
        """An explanation of each feature. None fails: of one that no pattern predicts, the explanation says so."""
        return [self._explain(material) for material in materials]

    def _explain(self, material: Material) -> Explanation:
        fired = self._sites[material.key].firings(material.latent)
        tokens = np.asarray(fired.tokens)
        inside = self._n_grams.numbers[0][tokens] >= 0
        tokens, values = tokens[inside], np.asarray(fired.values, np.float64)[inside]
        levels = np.minimum(HIGHEST_LEVEL * values / material.max_activation, HIGHEST_LEVEL)
        candidates = Candidates.of(tokens, levels, n_grams=self._n_grams)
        patterns, share = _choose(candidates, total=float((levels**2).sum()), token_ids=self._pieces.token_ids)
        n_kinds = len(np.unique(self._pieces.token_ids[tokens]))
        text = self._wording.text(patterns, share=share, n_kinds=n_kinds)
        return Explanation(material.key, material.latent, text, patterns)

    def simulate(self, tasks: Sequence[SimulationTask]) -> list[Simulated]:
        """The levels that the explanations' patterns predict."""
        return [Simulated(_levels(task.explanation, task.windows.token_ids, task.windows.is_token)) for task in tasks]

    def judge(self, tasks: Sequence[JudgeTask]) -> list[Judged]:
        """Answers from predicted levels.

        Of an unmarked window with the largest predicted level m, p = m / (m + 1). Of a marked one with mean predicted
        level m at marks and u elsewhere, p = m / (m + u + 1). So p is above one half where the window, or the marks
        against the rest, are predicted more than one level: fixed beforehand, the same for all features.
        """
        return [Judged(_probabilities(task)) for task in tasks]


def _probabilities(task: JudgeTask) -> Float[np.ndarray, " windows"]:
    windows = task.windows
    levels = _levels(task.explanation, windows.token_ids, windows.is_token)
    if task.marks is None:
        m = levels.max(1, initial=0.0)
        return m / (m + YES_LEVEL)
    m = _mean(levels, task.marks & windows.is_token)
    return m / (m + _mean(levels, ~task.marks & windows.is_token) + YES_LEVEL)


def _mean(levels: Float[np.ndarray, "windows tokens"], where: Bool[np.ndarray, "windows tokens"]) -> np.ndarray:
    """Each window's mean over some tokens; 0 over none."""
    return (levels * where).sum(1) / np.maximum(where.sum(1), 1)


def _levels(
    explanation: Explanation, token_ids: Int[np.ndarray, "windows tokens"], is_token: Bool[np.ndarray, "windows tokens"]
) -> Float[np.ndarray, "windows tokens"]:
    """What the patterns predict at each token of windows, none of which sees what is left of its window."""
    levels = np.zeros(token_ids.shape)
    ids = np.where(is_token, token_ids, -1)
    for pattern in sorted(explanation.patterns, key=lambda one: len(one.token_ids)):
        n_left = len(pattern.token_ids) - 1
        matches = np.ones((len(ids), max(ids.shape[1] - n_left, 0)), bool)
        for place, token in enumerate(pattern.token_ids):
            matches &= ids[:, place : place + matches.shape[1]] == token
        levels[:, n_left:][matches] = pattern.level
    return levels


@dataclass(frozen=True)
class Candidates:
    """N-grams at which a feature fires.

    Attributes:
        n_tokens: how long each is.
        place: the number of a token at which each ends.
        shorter: for each the candidates that are its last one, two ... tokens, itself among them at its own length;
            -1 where that is none.
        n: places in the documents to explain from at which each occurs.
        level: the sum of the levels there.
        squared: the sum of their squares.
    """

    n_tokens: Int[np.ndarray, " candidates"]
    place: Int[np.ndarray, " candidates"]
    shorter: Int[np.ndarray, "candidates lengths"]
    n: Float[np.ndarray, " candidates"]
    level: Float[np.ndarray, " candidates"]
    squared: Float[np.ndarray, " candidates"]

    @staticmethod
    def of(
        tokens: Int[np.ndarray, " firings"], levels: Float[np.ndarray, " firings"], *, n_grams: NGrams
    ) -> "Candidates":
        """The most promising n-grams of each length, from a feature's firings.

        Args:
            tokens: the firings' token numbers, in the documents to explain from.
            levels: their levels.
            n_grams: of those documents.
        """
        order = np.argsort(n_grams.numbers[-1][tokens])
        tokens, sums = tokens[order], np.stack([levels[order], levels[order] ** 2, np.ones(len(order))])
        parts: list[tuple[np.ndarray, ...]] = []
        n_before, shorter_of = 0, np.full((len(tokens), LONGEST), -1)
        for place, (numbers, n_places, is_whole) in enumerate(
            zip(n_grams.numbers, n_grams.n_places, n_grams.is_whole, strict=True)
        ):
            number = numbers[tokens]
            begins = np.flatnonzero(np.diff(number, prepend=-1))
            level, squared, n_fired = np.add.reduceat(sums, begins, axis=1) if len(begins) else np.zeros((3, 0))
            n = n_places[number[begins]].astype(np.float64)
            promise = _predicted(n, level, squared)
            promise[(n_fired < LEAST_FIRINGS) | ~is_whole[number[begins]]] = -np.inf
            kept = np.argsort(-promise, kind="stable")[:_CANDIDATES]
            kept = kept[promise[kept] > 0]
            of_group = np.full(len(begins), -1)
            of_group[kept] = n_before + np.arange(len(kept))
            shorter_of[:, place] = np.repeat(of_group, np.diff(begins, append=len(tokens)))
            parts.append((np.full(len(kept), place + 1), begins[kept], n[kept], level[kept], squared[kept]))
            n_before += len(kept)
        n_tokens, at, n, level, squared = (np.concatenate(column) for column in zip(*parts, strict=True))
        shorter = np.where(np.arange(LONGEST) < n_tokens[:, None], shorter_of[at], -1)
        return Candidates(n_tokens, tokens[at], shorter, n, level, squared)


def _choose(
    candidates: Candidates, *, total: float, token_ids: Int[np.ndarray, " tokens"]
) -> tuple[tuple[Pattern, ...], float]:
    """Patterns in the order in which they were chosen, and the share of the squared level that they predict."""
    own = np.stack([candidates.n, candidates.level, candidates.squared])  # without the places of longer chosen ones
    n_candidates = own.shape[1]
    nearest = np.full(n_candidates, -1)  # the longest chosen one that holds for all of a candidate's places
    is_chosen = np.zeros(n_candidates, bool)
    chosen: list[int] = []
    predicted = 0.0
    while n_candidates and len(chosen) < MOST_PATTERNS:
        gains = _predicted(*own)
        inside = np.flatnonzero(nearest >= 0)
        around = own[:, nearest[inside]]
        gains[inside] += _predicted(*(around - own[:, inside])) - _predicted(*around)
        gains[is_chosen] = -np.inf
        best = int(gains.argmax())
        if not gains[best] > LEAST_SHARE * total:
            break
        predicted += float(gains[best])
        is_chosen[best] = True
        chosen.append(best)
        length = int(candidates.n_tokens[best])
        for shorter in candidates.shorter[best, : length - 1][::-1]:
            if shorter >= 0:
                own[:, shorter] -= own[:, best]
                if is_chosen[shorter]:
                    break  # those shorter still have lost these places to it before
        below = (candidates.shorter[:, length - 1] == best) & (candidates.n_tokens > length)
        below &= (nearest < 0) | (candidates.n_tokens[nearest] < length)
        nearest[below] = best
    ends = candidates.place[chosen]
    patterns = tuple(
        Pattern(
            tuple(token_ids[end + 1 - candidates.n_tokens[one] : end + 1].tolist()),
            round(float(own[1, one] / own[0, one]), 1) if own[0, one] > 0 else 0.0,
        )
        for one, end in zip(chosen, ends.tolist(), strict=True)
    )
    return patterns, predicted / total if total else 0.0


def _predicted(n: np.ndarray, level: np.ndarray, squared: np.ndarray) -> np.ndarray:
    """By how much the squared error falls when places get the mean of the others of them instead of 0.

    With mean m, a place's error without itself is n / (n - 1) times that with it.

    Args:
        n: how many places.
        level: the sum of their levels.
        squared: the sum of the squares.
    """
    alone = np.maximum(squared - level**2 / np.maximum(n, 1), 0.0)
    return np.where(n > 1, squared - alone * (n / np.maximum(n - 1, 1)) ** 2, 0.0)
