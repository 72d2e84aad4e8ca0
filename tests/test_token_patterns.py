"""Token patterns on planted features: found exactly, scored right, and said as they are used."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.interpret.explain.interpreter import Explanation, JudgeTask, Pattern, SimulationTask
from strata.interpret.explain.pieces import Pieces
from strata.interpret.explain.scoring import score
from strata.interpret.explain.trial import Trial
from strata.interpret.patterns.interpreter import TokenPatterns
from strata.interpret.patterns.n_grams import NGrams
from strata.interpret.patterns.wording import Wording
from strata.interpret.site_index import SiteIndex
from test_explain import PlantedIndex, cut, material_of


@pytest.fixture
def index(tmp_path: Path) -> PlantedIndex:
    return PlantedIndex(tmp_path / "index")


def patterns_of(index: PlantedIndex, site: SiteIndex | None = None) -> TokenPatterns:
    pieces = cut(index)
    sites = {"layers.0": site or index.site}
    return TokenPatterns(sites, pieces=pieces, n_grams=NGrams.count(pieces), wording=Wording(index.vocabulary))


def explained(index: PlantedIndex, latent: int) -> Explanation:
    [found] = patterns_of(index).explain([material_of(index, latent).explaining])
    assert isinstance(found, Explanation)
    return found


def scores(index: PlantedIndex, explanation: Explanation, latent: int) -> dict[str, Any]:
    [found] = score(
        patterns_of(index), [explanation], [Trial.of(material_of(index, latent), seed=0)],
        scorers=("simulation", "detection", "fuzzing"),
    )  # fmt: skip
    return found


def test_a_token_is_found_and_scores_one(index: PlantedIndex) -> None:
    found = explained(index, 0)
    assert found.patterns == (Pattern((7,), 10.0),)
    assert found.text == 'fires on " t7" (level 10)'
    own = scores(index, found, 0)
    assert [own["simulation"][part]["correlation"] for part in ("top", "random", "all")] == pytest.approx([1, 1, 1])
    assert own["simulation"]["all"]["squared"] == pytest.approx(1)
    assert (own["detection"]["balanced_accuracy"], own["detection"]["auroc"]) == (1.0, 1.0)
    assert (own["fuzzing"]["balanced_accuracy"], own["fuzzing"]["auroc"]) == (1.0, 1.0)


def test_a_token_behind_another_is_found_and_scores_one(index: PlantedIndex) -> None:
    found = explained(index, 1)
    assert found.patterns == (Pattern((3, 5), 10.0),)
    assert found.text == 'fires on " t5" after " t3" (level 10)'
    own = scores(index, found, 1)
    correlation = own["simulation"]["all"]["correlation"]
    assert correlation is not None and correlation > 0.9  # less than 1 where the first token is left of the window


def test_nothing_is_invented_for_a_feature_that_fires_at_random(index: PlantedIndex) -> None:
    found = explained(index, 2)
    own = scores(index, found, 2)
    correlation = own["simulation"]["all"]["correlation"]
    assert correlation is None or abs(correlation) < 0.15
    assert "different tokens" in found.text


def test_shuffled_explanations_score_lower(index: PlantedIndex) -> None:
    own = scores(index, explained(index, 0), 0)
    other = scores(index, explained(index, 1), 0)
    mine, theirs = own["simulation"]["all"]["correlation"], other["simulation"]["all"]["correlation"]
    assert mine is not None and theirs is not None
    assert mine > theirs + 0.8
    assert other["fuzzing"]["auroc"] < 0.7


def places_of(pieces: Pieces, n_gram: tuple[int, ...]) -> list[int]:
    """Where an n-gram ends, slowly: in documents to explain from, within a piece, at an encoded token."""
    found: list[int] = []
    for start, length, is_test in zip(pieces.starts.tolist(), pieces.lengths.tolist(), pieces.is_test, strict=True):
        ids = pieces.token_ids[start : start + length].tolist()
        ends = [end for end in range(len(n_gram), length + 1) if tuple(ids[end - len(n_gram) : end]) == n_gram]
        found += [start + end - 1 for end in ends if pieces.is_row[start + end - 1] and not is_test]
    return found


def test_n_grams_are_counted_as_by_hand(index: PlantedIndex) -> None:
    pieces = cut(index)
    n_grams = NGrams.count(pieces)
    for n_gram in [(7,), (3, 5), (5, 3), (1, 2, 3), (4, 4, 4)]:
        places = places_of(pieces, n_gram)
        assert places
        numbers = n_grams.numbers[len(n_gram) - 1]
        [number] = set(numbers[places].tolist())
        assert n_grams.n_places[len(n_gram) - 1][number] == len(places) == (numbers == number).sum()
        assert n_grams.is_whole[len(n_gram) - 1][number]


@pytest.mark.parametrize("seed", range(4))
def test_levels_are_means_where_no_longer_pattern_matches(tmp_path: Path, seed: int) -> None:
    """A feature with exceptions of exceptions: 2 is weak, behind 1 strong, behind 4 1 silent."""
    index = PlantedIndex(tmp_path / "index", seed=seed)
    random = np.random.default_rng(seed)
    for n_gram in ((4, 1, 2), (1, 2)):
        for row, column in zip(random.integers(160, size=150), random.integers(1, 40, size=150), strict=True):
            index.token_ids[row, column : column + len(n_gram)] = n_gram
    ids = index.token_ids.reshape(-1)
    behind, before = np.roll(ids, 1), np.roll(ids, 2)
    level = np.where(ids == 2, 3.0, 0.0)
    level = np.where((ids == 2) & (behind == 1), 9.0, level)
    level = np.where((ids == 2) & (behind == 1) & (before == 4), 1.0, level)
    level = level * random.uniform(0.9, 1.1, ids.size) * index.is_row.reshape(-1) * (random.random(ids.size) < 0.95)
    index.site._activations[0] = level
    pieces, material = cut(index), material_of(index, 0).explaining
    [found] = patterns_of(index).explain([material])
    assert isinstance(found, Explanation)
    assert {(2,), (1, 2), (4, 1, 2)} <= {pattern.token_ids for pattern in found.patterns}
    chosen = {pattern.token_ids: set(places_of(pieces, pattern.token_ids)) for pattern in found.patterns}
    for pattern in found.patterns:
        longer = [
            p for p in chosen if len(p) > len(pattern.token_ids) and p[-len(pattern.token_ids) :] == pattern.token_ids
        ]
        own = sorted(chosen[pattern.token_ids].difference(*(chosen[p] for p in longer)))
        assert pattern.level == pytest.approx(10 * level[own].mean() / material.max_activation, abs=0.051)


def test_the_simulator_uses_what_the_text_says(index: PlantedIndex) -> None:
    patterns = (Pattern((2,), 3.0), Pattern((1, 2), 9.0), Pattern((4, 1, 2), 0.5))
    said = Explanation("layers.0", 0, "as said", patterns)
    windows = material_of(index, 0).windows
    [found] = patterns_of(index).simulate([SimulationTask(said, windows)])
    n_seen = 0
    for row, column in itertools.product(range(len(windows)), range(windows.token_ids.shape[1])):
        left = tuple(windows.token_ids[row, max(column - 2, 0) : column + 1].tolist())
        wanted = 0.5 if left == (4, 1, 2) else 9.0 if left[-2:] == (1, 2) else 3.0 if left[-1] == 2 else 0.0
        wanted = wanted if windows.is_token[row, column] else 0.0
        assert found.levels[row, column] == wanted
        n_seen += wanted > 0
    assert n_seen > 20


def test_judgements_are_yes_from_one_level_up(index: PlantedIndex) -> None:
    windows = material_of(index, 0).windows
    has_7 = (windows.token_ids == 7).any(1)
    for level, yes in ((1.0, False), (1.1, True)):
        said = Explanation("layers.0", 0, "", (Pattern((7,), level),))
        [found] = patterns_of(index).judge([JudgeTask(said, windows)])
        np.testing.assert_array_equal(found.probabilities > 0.5, has_7 & yes)
    said = Explanation("layers.0", 0, "", (Pattern((7,), 10.0),))
    marks = np.zeros(windows.token_ids.shape, bool)
    marks[:, 3] = True
    [found] = patterns_of(index).judge([JudgeTask(said, windows, marks)])
    np.testing.assert_array_equal(found.probabilities > 0.5, windows.token_ids[:, 3] == 7)


def test_text_shows_whitespace_and_bytes_that_are_no_text() -> None:
    wording = Wording(["\n\t", ' "a"', "\N{REPLACEMENT CHARACTER}", "", "x"])
    patterns = [Pattern((0,), 4.0), Pattern((1, 4), 4.0), Pattern((2,), 4.0), Pattern((2, 4, 3), 4.0)]
    assert wording.text(patterns, share=0.9, n_kinds=4) == (
        'fires on "\\n\\t", "x" after " \\"a\\"", token 2, token 3 after token 2 token 4 (level 4)'
    )
    two = [Pattern((0,), 4.0), Pattern((4,), 0.3)]
    assert wording.text(two, share=0.2, n_kinds=9) == (
        'fires on "\\n\\t" (4), "x" (0.3); that predicts 20% of it, which is spread over 9 different tokens'
    )
    assert (
        wording.text([], share=0.0, n_kinds=1)
        == "no token and no short context predicts it; it fires on 1 different token"
    )
