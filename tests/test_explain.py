"""Windows to explain and score from, the scores themselves, records, and the program, on a planted index."""

import json
import socket
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from loopback_server import Answer, LoopbackServer, chat_answer, task_of
from strata.config.explain import ExplainConfig
from strata.errors import UserError
from strata.interpret.explain import command, features
from strata.interpret.explain.explained import Explained
from strata.interpret.explain.interpreter import (
    Explanation,
    Failed,
    Judged,
    JudgeTask,
    Material,
    Simulated,
    SimulationTask,
)
from strata.interpret.explain.interpreters import INTERPRETERS, Features, Opened
from strata.interpret.explain.judged_scores import auroc, judged_score
from strata.interpret.explain.marks import fuzzing_marks, markable, true_marks
from strata.interpret.explain.material import Amounts, FeatureMaterial, gather
from strata.interpret.explain.pieces import Pieces
from strata.interpret.explain.record import (
    OWN,
    ExplainedFeature,
    ExplanationsFile,
    file_name,
    read_all_explanations,
    read_explanations,
)
from strata.interpret.explain.scoring import SCORERS, score
from strata.interpret.explain.simulation_scores import simulation_score
from strata.interpret.explain.summary import SUMMARY, distribution, summarize, table
from strata.interpret.explain.trial import Trial
from strata.interpret.index import FeatureIndex
from strata.interpret.prompted.cache import RequestCache
from strata.interpret.site_index import Firings, SiteIndex
from strata.interpret.windows import Windows

N_SEQS, SEQ, N_DOCUMENTS, VOCABULARY = 160, 48, 23, 12


class PlantedSite(SiteIndex):
    """Latents that fire at given places."""

    def __init__(self, key: str, activations: np.ndarray, folder: Path = Path("nowhere")) -> None:
        self.key, self.site, self.folder, self.d_sae = key, "layers.0", folder, len(activations)
        self._activations = activations  # [d_sae tokens]
        self.n_fired = (activations > 0).sum(1)

    def firings(self, latent: int) -> Firings:
        (tokens,) = self._activations[latent].nonzero()
        return Firings(tokens, self._activations[latent, tokens].astype(np.float32))


class PlantedIndex(FeatureIndex):
    """A random text, and four latents: on token 7; on 5 behind 3; at random; on nearly every token."""

    token_ids = is_token = is_row = keys = np.zeros(0)  # plain attributes, for what is a property of an index on disk

    def __init__(self, folder: Path, *, seed: int = 0, n_documents: int = N_DOCUMENTS) -> None:
        random = np.random.default_rng(seed)
        self.folder = folder
        self.token_ids = random.integers(1, VOCABULARY, (N_SEQS, SEQ)).astype(np.uint16)
        cuts = np.sort(random.choice(np.arange(1, N_SEQS * SEQ), n_documents - 1, replace=False))
        self.documents = np.searchsorted(cuts, np.arange(N_SEQS * SEQ), side="right").reshape(N_SEQS, SEQ)
        self.is_token = np.ones((N_SEQS, SEQ), bool)
        self.is_token[-1, SEQ // 2 :] = False
        self.is_row = self.is_token.copy()
        self.is_row[:, 0] = False
        self.vocabulary = [f" t{number}" for number in range(VOCABULARY)]
        self.record = {"stated": {"data": "planted", "saes": {"layers.0": "hash"}}}
        self.keys = ["layers.0"]
        ids, rows = self.token_ids.reshape(-1), self.is_row.reshape(-1)
        behind_3 = np.roll(ids, 1) == 3
        behind_3[::SEQ] = False
        planted = [ids == 7, (ids == 5) & behind_3, random.random(ids.size) < 0.02, random.random(ids.size) < 0.999]
        values = [np.full(ids.size, 2.0), np.full(ids.size, 5.0), random.uniform(1, 3, ids.size), np.ones(ids.size)]
        self.site = PlantedSite("layers.0", np.stack([v * p * rows for v, p in zip(values, planted, strict=True)]),
                                folder / "layers.0")  # fmt: skip

    def __getitem__(self, key: str) -> PlantedSite:
        return self.site


def cut(index: PlantedIndex, *, window_tokens: int = 16, seed: int = 0) -> Pieces:
    return Pieces.cut(
        index.token_ids,
        documents=index.documents,
        is_token=index.is_token,
        is_row=index.is_row,
        window_tokens=window_tokens,
        seed=seed,
    )


@pytest.fixture
def index(tmp_path: Path) -> PlantedIndex:
    return PlantedIndex(tmp_path / "index")


def material_of(index: PlantedIndex, latent: int, *, seed: int = 0) -> FeatureMaterial:
    found = gather(index.site, latent, pieces=cut(index, seed=seed), amounts=Amounts(), seed=seed)
    assert isinstance(found, FeatureMaterial)
    return found


class TwoSAEs(PlantedIndex):
    """Two SAEs at one site; the second has the latents the other way round."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.keys = ["a/layers.0", "b/layers.0"]
        activations = self.site._activations
        self._sites = {
            key: PlantedSite(key, there, folder / key)
            for key, there in zip(self.keys, (activations, activations[::-1]), strict=True)
        }
        self.record = {"stated": {"data": "planted", "saes": dict.fromkeys(self.keys, "hash")}}

    def __getitem__(self, key: str) -> PlantedSite:
        return self._sites[key]


# Windows


@pytest.mark.parametrize("seed", range(8))
def test_no_document_explains_and_scores(tmp_path: Path, seed: int) -> None:
    index = PlantedIndex(tmp_path, seed=seed)
    pieces = cut(index, seed=seed)
    for latent in range(3):
        material = material_of(index, latent, seed=seed)
        explained = set(material.explaining.windows.documents.tolist())
        assert explained
        assert not explained & set(material.windows.documents.tolist())
    sizes = np.bincount(pieces.documents, weights=pieces.lengths)
    tested = {int(d) for d in pieces.documents[pieces.is_test]}
    n_tested = sum(sizes[d] for d in tested)
    assert 0 < n_tested < sizes.sum()
    assert abs(n_tested - sizes.sum() / 2) <= sizes.max()


def test_seeds_deal_documents_differently(index: PlantedIndex) -> None:
    deals = {tuple(cut(index, seed=seed).is_test) for seed in range(5)}
    assert len(deals) == 5


def test_pieces_are_of_one_document_and_sequence_and_cover_the_text_once(index: PlantedIndex) -> None:
    pieces = cut(index)
    covered = np.zeros(N_SEQS * SEQ, int)
    for start, length, document in zip(pieces.starts, pieces.lengths, pieces.documents, strict=True):
        tokens = np.arange(start, start + length)
        covered[tokens] += 1
        assert length <= 16
        assert set(tokens // SEQ) == {start // SEQ}
        assert set(index.documents.reshape(-1)[tokens]) == {document}
    assert (covered == 1).all()


def test_windows_hold_the_text_and_the_activations(index: PlantedIndex) -> None:
    material = material_of(index, 1)
    dense = index.site._activations[1]
    for windows in (material.windows, material.explaining.windows):
        for row in range(len(windows)):
            n = int(windows.is_token[row].sum())
            places = np.arange(windows.starts[row], windows.starts[row] + n)
            np.testing.assert_array_equal(windows.token_ids[row, :n], index.token_ids.reshape(-1)[places])
            np.testing.assert_allclose(windows.activations[row, :n], dense[places])
            assert not windows.activations[row, n:].any()
    assert not material.silent.activations.any()
    assert (material.top.strengths > 0).all() and (material.random.strengths > 0).all()
    assert len(set(material.windows.starts.tolist())) == len(material.windows)
    assert not material.measured[material.windows.starts % SEQ == 0, 0].any()  # the first of a sequence is no row


def test_random_windows_reach_over_all_strengths(index: PlantedIndex) -> None:
    material = material_of(index, 2)
    assert material.top.strengths.min() >= material.random.strengths.max()
    assert (np.diff(material.top.strengths) <= 0).all()
    assert (np.diff(material.random.strengths) <= 0).all()  # one of each share
    assert material.random.strengths.min() < 1.5 < material.random.strengths.max()
    assert len(material.random) == 20


def test_what_is_scored_on_does_not_depend_on_how_much_is_explained_from(index: PlantedIndex) -> None:
    few, many = (gather(index.site, 2, pieces=cut(index), amounts=Amounts(n_explained=n), seed=0) for n in (3, 12))
    assert isinstance(few, FeatureMaterial) and isinstance(many, FeatureMaterial)
    assert (len(few.explaining.windows), len(many.explaining.windows)) == (3, 12)
    np.testing.assert_array_equal(few.windows.starts, many.windows.starts)


def test_a_feature_draws_alone(index: PlantedIndex) -> None:
    first, again, other = material_of(index, 2), material_of(index, 2), material_of(index, 2, seed=1)
    np.testing.assert_array_equal(first.windows.starts, again.windows.starts)
    assert set(first.windows.starts.tolist()) != set(other.windows.starts.tolist())


def test_one_document_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`n_tokens` must reach over at least 2 documents"):
        cut(PlantedIndex(tmp_path, n_documents=1))


def test_features_that_fire_too_rarely_say_so(index: PlantedIndex) -> None:
    pieces = cut(index)
    is_test = pieces.is_test[pieces.of_token] & pieces.is_shown[pieces.of_token]
    activations = np.zeros((2, N_SEQS * SEQ))
    activations[0, np.flatnonzero(is_test)[:40]] = 1
    activations[1, np.flatnonzero(~is_test & pieces.is_shown[pieces.of_token])[:40]] = 1
    site = PlantedSite("layers.0", activations)
    assert (
        gather(site, 0, pieces=pieces, amounts=Amounts(), seed=0) == "it fires in none of the windows to explain from"
    )
    only_explained = gather(site, 1, pieces=pieces, amounts=Amounts(), seed=0)
    assert isinstance(only_explained, FeatureMaterial)
    assert only_explained.not_scored == "it fires in 0 of the windows to score on, fewer than 5"


# Simulation


def test_correlation_is_pooled_over_windows() -> None:
    random = np.random.default_rng(0)
    a = random.random((4, 9)).astype(np.float32) * np.array([[1], [2], [5], [9]], np.float32)
    p = random.random((4, 9)) + np.array([[3], [2], [1], [0]])
    found = simulation_score(a, p, measured=np.ones(a.shape, bool), max_activation=9.0)
    pooled = np.corrcoef(a.ravel(), p.ravel())[0, 1]
    each = np.mean([np.corrcoef(a[i], p[i])[0, 1] for i in range(4)])
    assert found.correlation == pytest.approx(pooled, abs=1e-6)
    assert abs(pooled - each) > 0.1
    a, scaled = a.astype(np.float64), p * 0.9
    assert found.absolute == pytest.approx(1 - np.abs(a - scaled).mean() / np.abs(a).mean(), abs=1e-6)
    assert found.squared == pytest.approx(1 - ((a - scaled) ** 2).mean() / (a**2).mean(), abs=1e-6)


def test_failed_predictions_are_counted_and_do_not_count() -> None:
    a = np.array([[0, 1, 2, 0], [3, 0, 0, 1], [0, 0, 1, 0]], np.float32)
    p = 5.0 * a.astype(np.float64)
    p[1, 2] = p[2] = np.nan
    found = simulation_score(a, p, measured=np.ones(a.shape, bool), max_activation=2.0)
    assert (found.n_windows, found.n_failed) == (3, 2)
    assert (found.correlation, found.absolute, found.squared) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    measured = np.ones(a.shape, bool)
    measured[1, 2] = False  # where nothing was measured, nothing had to be predicted
    assert simulation_score(a, p, measured=measured, max_activation=2.0).n_failed == 1


def test_scores_that_are_not_defined_are_none() -> None:
    a, ones = np.array([[0, 1, 2]], np.float32), np.ones((1, 3), bool)
    constant = simulation_score(a, np.full((1, 3), 4.0), measured=ones, max_activation=2.0)
    assert constant.correlation is None and constant.squared is not None
    silent = simulation_score(0 * a, np.array([[0.0, 1, 2]]), measured=ones, max_activation=2.0)
    assert (silent.correlation, silent.absolute, silent.squared) == (None, None, None)
    nothing = simulation_score(a, np.full((1, 3), np.nan), measured=ones, max_activation=2.0)
    assert (nothing.correlation, nothing.n_failed) == (None, 1)
    json.dumps([vars(constant), vars(silent), vars(nothing)], allow_nan=False)


# Detection and fuzzing


@pytest.mark.parametrize("seed", range(5))
def test_auroc_counts_pairs(seed: int) -> None:
    random = np.random.default_rng(seed)
    yes, no = random.integers(0, 6, 17) / 5, random.integers(0, 5, 12) / 5  # many ties
    pairs = [1.0 if y > n else 0.5 if y == n else 0.0 for y in yes for n in no]
    assert auroc(yes, no) == pytest.approx(np.mean(pairs))


def test_balanced_accuracy_counts_classes_alike_and_failures_apart() -> None:
    is_true = np.array([True] * 6 + [False] * 2)
    p = np.array([0.9, 0.9, 0.9, 0.2, np.nan, np.nan, 0.1, 0.7])
    found = judged_score(is_true, p)
    assert found.balanced_accuracy == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert (found.n, found.n_failed) == (8, 2)
    unanswered = judged_score(is_true, np.where(is_true, p, np.nan))
    assert (unanswered.balanced_accuracy, unanswered.auroc, unanswered.n_failed) == (None, None, 4)
    assert judged_score(is_true, np.zeros(8)).balanced_accuracy == 0.5  # always no


def test_wrong_marks_are_like_right_ones_but_for_the_text(index: PlantedIndex) -> None:
    n_right = n_wrong = right_columns = wrong_columns = 0.0
    for seed in range(20):
        material = material_of(index, 0, seed=seed)
        firing = Windows.joined([material.top, material.random])
        measured = material.measured[: len(firing)]
        marks, is_right = fuzzing_marks(
            firing, measured=measured, max_activation=2.0, random=np.random.default_rng(seed)
        )
        assert is_right.sum() == (len(firing) + 1) // 2
        np.testing.assert_array_equal(marks[is_right], firing.activations[is_right] > 0)
        assert not (marks[~is_right] & ((firing.activations[~is_right] > 0) | ~measured[~is_right])).any()
        n_right, n_wrong = n_right + marks[is_right].sum(), n_wrong + marks[~is_right].sum()
        columns = np.arange(marks.shape[1])
        right_columns += (marks[is_right] * columns).sum()
        wrong_columns += (marks[~is_right] * columns).sum()
    assert n_wrong == pytest.approx(n_right, rel=0.1)
    assert wrong_columns / n_wrong == pytest.approx(right_columns / n_right, abs=0.5)


def test_windows_without_a_silent_token_are_not_asked_about_in_fuzzing(index: PlantedIndex) -> None:
    random = np.random.default_rng(0)
    site = PlantedSite("layers.0", (random.random((1, N_SEQS * SEQ)) < 0.95) * index.is_row.reshape(-1) * 2.0)
    material = gather(site, 0, pieces=cut(index), amounts=Amounts(n_top=5, n_random=5), seed=0)
    assert isinstance(material, FeatureMaterial)
    n_firing = len(material.top) + len(material.random)
    open_ = markable(material.windows[:n_firing], measured=material.measured[:n_firing])
    assert 0 < open_.sum() < n_firing
    fuzzing = Trial.of(material, seed=0).fuzzing
    assert fuzzing.marks is not None
    assert len(fuzzing.windows) == open_.sum()
    assert fuzzing.marks.any(1).all()


def test_marks_are_levels_of_one_and_more_or_the_strongest() -> None:
    activations = np.array([[0, 0.9, 1.0, 10.0], [0, 0.3, 0.5, 0]], np.float32)
    whole = np.ones(activations.shape, bool)
    two = np.zeros(2, np.int64)
    windows = Windows(np.zeros((2, 4), np.int64), activations, whole, two, two, two)
    wanted = np.array([[False, False, True, True], [False, False, True, False]])
    np.testing.assert_array_equal(true_marks(windows, max_activation=10.0), wanted)


# The scorers together, and the program


class Knowing:
    """Knows the truth, or always says the same, or fails now and then."""

    def __init__(self, kind: str = "truth", name: str = "knowing", budget: int = 1 << 30) -> None:
        self.kind, self.name, self.budget, self.asked = kind, name, budget, []

    def explain(self, materials: Sequence[Material]) -> list[Explanation | Failed]:
        self.asked += [material.latent for material in materials]
        self.budget -= len(materials)
        if self.budget < 0:
            return [Failed("budget") for _ in materials]
        return [
            Failed("garbage") if self.kind == "failing" and m.latent == 1 else Explanation(m.key, m.latent, "tokens")
            for m in materials
        ]

    def simulate(self, tasks: Sequence[SimulationTask]) -> list[Simulated]:
        if self.kind == "failing":
            return [Simulated(np.full(t.windows.token_ids.shape, np.nan), (Failed("timeout"),) * len(t.windows))
                    for t in tasks]  # fmt: skip
        scale = 1.0 if self.kind == "truth" else 0.0
        return [Simulated(scale * t.windows.activations.astype(np.float64)) for t in tasks]

    def judge(self, tasks: Sequence[JudgeTask]) -> list[Judged]:
        return [Judged(self._judged(task)) for task in tasks]

    def _judged(self, task: JudgeTask) -> np.ndarray:
        fires = task.windows.activations > 0
        if self.kind == "no":
            return np.zeros(len(task.windows))
        return (fires.any(1) if task.marks is None else (task.marks & fires).any(1)).astype(float)


ALL = ("simulation", "detection", "fuzzing")


def test_the_truth_scores_one_and_always_no_one_half(index: PlantedIndex) -> None:
    material = material_of(index, 0)
    explanation = Explanation("layers.0", 0, "seven")
    [truth] = score(Knowing(), [explanation], [Trial.of(material, seed=0)], scorers=ALL)
    simulated = truth["simulation"]
    assert simulated["all"]["correlation"] == pytest.approx(1)
    assert simulated["top"]["n_windows"] == 10 and simulated["all"]["n_windows"] == 50
    assert (truth["detection"]["balanced_accuracy"], truth["fuzzing"]["balanced_accuracy"]) == (1.0, 1.0)
    assert (truth["detection"]["n"], truth["fuzzing"]["n"]) == (50, 30)
    [no] = score(Knowing("no"), [explanation], [Trial.of(material, seed=0)], scorers=ALL)
    chance = no["detection"]["balanced_accuracy"], no["detection"]["auroc"], no["fuzzing"]["auroc"]
    assert chance == (0.5, 0.5, 0.5)
    assert no["simulation"]["all"]["correlation"] is None
    [part] = score(Knowing(), [explanation], [Trial.of(material, seed=0)], scorers=("detection",))
    assert list(part) == [*SCORERS, "failures"] and (part["simulation"], part["fuzzing"]) == (None, None)


def test_every_scorer_and_interpreter_can_be_asked_for() -> None:
    kinds = get_type_hints(ExplainConfig)
    assert get_args(get_args(kinds["scorers"])[0]) == tuple(SCORERS)
    assert get_args(kinds["interpreter"]) == tuple(INTERPRETERS)
    named = {name for kind in INTERPRETERS.values() for name in kind.settings}
    assert named <= kinds.keys()


def explain(index: PlantedIndex, interpreter: Any, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Explained:
    opened = replace(INTERPRETERS["patterns"], open=lambda *_: nullcontext(Opened(interpreter)))
    monkeypatch.setitem(INTERPRETERS, "patterns", opened)
    monkeypatch.setattr(features, "FEATURES_AT_ONCE", 2)
    config = ExplainConfig(run=Path("run"), window_tokens=16, **settings)
    return command.explain_index(index, config, progress=False)


def test_the_program_explains_scores_and_keeps(index: PlantedIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    found = explain(index, Knowing(), monkeypatch)
    numbers = found.summary["saes"]["layers.0"]
    assert (numbers["n_live"], numbers["n_features"], numbers["n_explained"]) == (4, 4, 4)
    assert numbers["scores"]["simulation.all.correlation"]["mean"] == pytest.approx(1)
    assert numbers["scores"]["detection.auroc"]["n_undefined"] == 1  # the last latent is silent in no window
    # The oracle sees the windows and not the explanation, so that another's is as good.
    assert numbers["shuffled"]["simulation.all.squared"]["mean"] == numbers["scores"]["simulation.all.squared"]["mean"]
    there = read_explanations(index.site.folder, interpreter="knowing")
    assert sorted(there) == [0, 1, 2, 3]
    assert there[0].score("simulation.all.correlation") == pytest.approx(1)
    assert there[0].n_fired == index.site.n_fired[0]
    kept = json.loads((index.folder / SUMMARY).read_text(encoding="utf-8"))
    assert kept["interpreters"]["knowing"]["saes"]["layers.0"]["n_features"] == 4
    assert "4 of 4 features explained" in "\n".join(found.lines())


def test_nothing_is_asked_twice_with_the_same_settings(index: PlantedIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    first, again, other = Knowing(), Knowing(), Knowing()
    explain(index, first, monkeypatch, latents=(0, 2))
    explain(index, again, monkeypatch)
    assert (first.asked, again.asked) == ([0, 2], [1, 3])
    explain(index, other, monkeypatch, n_top=5)
    assert other.asked == [0, 1, 2, 3]


def test_failures_are_counted_by_reason_and_asked_again(index: PlantedIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    found = explain(index, Knowing("failing"), monkeypatch)
    numbers = found.summary["saes"]["layers.0"]
    assert (numbers["n_features"], numbers["n_failed"], numbers["n_scored"]) == (4, 1, 3)
    assert numbers["reasons"] == {"garbage": 1}
    n_windows = sum(
        feature.scores["simulation"]["all"]["n_failed"]
        for feature in read_explanations(index.site.folder, interpreter="knowing").values()
        if feature.scores
    )
    assert numbers["failures"] == {"timeout": n_windows} and n_windows > 100
    assert "simulation.all.correlation" not in numbers["scores"]  # not defined for any
    again = Knowing("failing")
    explain(index, again, monkeypatch)
    assert again.asked == [1]


def test_the_limit_on_cost_stops_and_the_rest_is_asked_later(
    index: PlantedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = explain(index, Knowing(budget=3), monkeypatch)
    assert stopped.summary["stopped"] is True
    later = Knowing()
    gone_on = explain(index, later, monkeypatch)
    assert gone_on.summary["stopped"] is False
    assert later.asked == [2, 3]  # were asked for together, and not all of it fitted
    assert gone_on.summary["saes"]["layers.0"]["n_explained"] == 4


def test_what_is_asked_for_is_told_and_the_summary_is_of_all(
    index: PlantedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    explain(index, Knowing(), monkeypatch)
    one = explain(index, Knowing(), monkeypatch, latents=(2,))
    assert [feature.latent for feature in one.features("layers.0")] == [2]
    numbers = one.summary["saes"]["layers.0"]
    assert (numbers["n_wanted"], numbers["n_features"]) == (1, 4)
    kept = json.loads((index.folder / SUMMARY).read_text(encoding="utf-8"))
    assert kept["interpreters"]["knowing"]["saes"]["layers.0"]["n_features"] == 4


def test_saes_are_chosen_by_site_and_summed_up_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = TwoSAEs(tmp_path / "index")
    both = explain(index, Knowing(), monkeypatch, sites=("layers.0",))
    assert list(both.summary["saes"]) == index.keys
    assert [f.n_fired for f in both.features("a/layers.0")] != [f.n_fired for f in both.features("b/layers.0")]
    again = Knowing()
    second = explain(index, again, monkeypatch, sites=("b/layers.0",))
    assert again.asked == [] and list(second.summary["saes"]) == ["b/layers.0"]
    kept = json.loads((index.folder / SUMMARY).read_text(encoding="utf-8"))
    assert list(kept["interpreters"]["knowing"]["saes"]) == index.keys
    with pytest.raises(UserError, match=r"`latents` must come with one SAE.* There are 2: a/layers\.0, b/layers\.0"):
        explain(index, Knowing(), monkeypatch, latents=(1,))
    assert explain(index, Knowing(), monkeypatch, sites=("a/layers.0",), latents=(1,)).latents == {"a/layers.0": [1]}


def test_lines_show_explanations_and_where_they_are(index: PlantedIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    class Telling(Knowing):
        def explain(self, materials: Sequence[Material]) -> list[Explanation | Failed]:
            return [Explanation(m.key, m.latent, f"it is {m.latent}\x1b[2J" + "x" * 100) for m in materials]

    found = explain(index, Telling(), monkeypatch)
    lines = found.lines()
    [line] = [line for line in lines if "it is 0" in line]
    assert line.startswith("         0   1.00  it is 0␛[2Jxxx") and line.endswith("x…") and len(line) < 115
    assert "  best by simulation, correlation" in lines
    assert f"  all of them: {found.path('layers.0')}" in lines and found.path("layers.0").is_file()
    assert lines[-1] == f"as pages: strata dashboard {index.folder.parent}"
    assert not any("\x1b" in line for line in lines)


def test_what_cannot_be_asked_is_found_before_the_index_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "NOBODYS_KEY"):
        monkeypatch.delenv(name, raising=False)
    run = tmp_path / "no-run"

    def complaint(**settings: Any) -> str:
        with pytest.raises(UserError) as error:
            command.explain_run(ExplainConfig(run=run, model="m", **settings), progress=False)
        return str(error.value)

    assert "`OPENAI_API_KEY` must hold the API key" in complaint(interpreter="http")
    local = "http://localhost:1/v1"
    assert "`NOBODYS_KEY`" in complaint(interpreter="http", base_url=local, api_key_variable="NOBODYS_KEY")
    assert "hold no user, password" in complaint(interpreter="http", base_url="http://me:secret@localhost/v1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    assert "The interpreting model must be" in complaint(interpreter="local")
    monkeypatch.setitem(sys.modules, "openai", None)
    assert "strata-sae[openai]" in complaint(interpreter="http", base_url=local)
    assert not run.exists()


def test_the_local_interpreter_may_run_the_models_code_where_that_is_allowed(
    index: PlantedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    given: list[bool] = []

    def asked(name: str, *, trust_remote_code: bool, **_: Any) -> Any:
        given.append(trust_remote_code)
        if len(given) % 2 == 0:  # first the tokenizer, then the model
            raise OSError("that is all we wanted to know")

    for kind in (transformers.AutoTokenizer, transformers.AutoModelForCausalLM):
        monkeypatch.setattr(kind, "from_pretrained", asked)
    for allowed in (False, True):
        config = ExplainConfig(run=Path("run"), interpreter="local", model="m", trust_remote_code=allowed)
        asked_of = Features(sites={}, pieces=cut(index), vocabulary=index.vocabulary)
        with (
            pytest.raises(UserError, match="that is all we wanted to know"),
            INTERPRETERS["local"].open(config, asked_of, False),
        ):
            pass
    assert given == [False, False, True, True]


def test_settings_that_cannot_be_are_refused(index: PlantedIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"`latents` must be below 4 for layers\.0\. Got 9"):
        explain(index, Knowing(), monkeypatch, latents=(9,))
    with pytest.raises(UserError, match=r"At least one feature of layers\.0 must fire 1000000 times"):
        explain(index, Knowing(), monkeypatch, least_firings=1_000_000)
    run = Path("run")
    with pytest.raises(UserError, match="`model` must be given with the interpreter 'http'"):
        ExplainConfig(run=run, interpreter="http")
    with pytest.raises(UserError, match="`max_cost` must come with prices"):
        ExplainConfig(run=run, interpreter="http", model="m", max_cost=1.0)
    with pytest.raises(UserError, match="`n_top` must be at least 1"):
        ExplainConfig(run=run, n_top=0)
    with pytest.raises(UserError, match="`n_top_tokens` must be 1 to 20"):
        ExplainConfig(run=run, n_top_tokens=30)
    for wrong in ("[1]", "{temperature: 1}", "1"):
        with pytest.raises(UserError, match="`extra_body` must be a JSON object"):
            ExplainConfig(run=run, extra_body=wrong)
    with pytest.raises(UserError, match="has no setting 'scorer'"):
        ExplainConfig(run=run, scorer="fuzzing")


def knows_token_seven(body: dict[str, Any], _: int) -> Answer:
    """A model that explains every feature as " t7", and judges by that."""
    if "Windows\n" not in task_of(body):
        return Answer(chat_answer(body, "the token t7"))
    lines = (line.partition(": ") for line in task_of(body).split("Windows\n")[1].split("\n"))
    return Answer(chat_answer(body, "\n".join(f"{n}\t{int(' t7' in text)}" for n, _, text in lines)))


def test_an_endpoint_explains_and_judges_and_is_paid_once(index: PlantedIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-nobody")
    closed, close = [], RequestCache.close
    monkeypatch.setattr(RequestCache, "close", lambda cache: closed.append(close(cache)))
    with LoopbackServer(knows_token_seven) as server:
        config = ExplainConfig(run=index.folder.parent, interpreter="http", base_url=server.url, model="seven",
                               api_key_variable="OPENAI_API_KEY",
                               scorers=("detection",), latents=(0, 2), window_tokens=16,
                               price_per_million_input=1.0, price_per_million_output=2.0, max_cost=1.0)  # fmt: skip
        found = command.explain_index(index, config, progress=False)
        assert server.requests[0][2]["authorization"] == "Bearer secret-of-nobody"
        account = found.summary["account"]
        assert account["n_requests"] == len(server.requests) > 2
        assert 0 < account["cost"] < 1
        [of_seven] = [one for one in found.features("layers.0") if one.latent == 0]
        [at_random] = [one for one in found.features("layers.0") if one.latent == 2]
        assert of_seven.text == at_random.text == "the token t7"
        # Token 7 at a place that is no row is in the window, and the feature does not fire there.
        assert of_seven.score("detection.balanced_accuracy") > 0.9
        assert at_random.score("detection.balanced_accuracy") < 0.7
        n_asked = len(server.requests)
        for path in index.site.folder.glob("explanations*"):
            path.unlink()
        again = command.explain_index(index, config, progress=False).summary["account"]
        assert len(server.requests) == n_asked
        assert (again["n_cached"], again["cost"]) == (n_asked, 0)
        assert len(closed) == 2  # the file of answers, each time
        kept = [path.read_bytes() for path in index.folder.parent.rglob("*") if path.is_file()]
        assert not any(b"secret-of-nobody" in content for content in kept)


@pytest.mark.parametrize("answers", ["nobody", "broken"])
def test_an_endpoint_that_never_answers_is_an_error(index: PlantedIndex, answers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        free = closed.getsockname()[1]
    with LoopbackServer(lambda body, _: Answer(b"<html>", status=200)) as server:
        url = f"http://127.0.0.1:{free}/v1" if answers == "nobody" else server.url
        config = ExplainConfig(run=index.folder.parent, interpreter="http", base_url=url, model="seven",
                               latents=(0, 2), window_tokens=16, n_retries=0)  # fmt: skip
        reason = "connection broken" if answers == "nobody" else "not an answer of this protocol"
        with pytest.raises(UserError, match=rf"seven \(http {url}\) answered none of 2 requests: {reason}"):
            command.explain_index(index, config, progress=False)
    with LoopbackServer(knows_token_seven) as server:
        config = replace(config, base_url=server.url, scorers=("detection",))
        again = command.explain_index(index, config, progress=False)
    assert again.summary["account"]["n_failed"] == 0 and len(again.features("layers.0")) == 2


def test_an_explainer_sees_windows_of_all_strengths(index: PlantedIndex) -> None:
    with LoopbackServer(knows_token_seven) as server:
        config = ExplainConfig(run=index.folder.parent, interpreter="http", base_url=server.url, model="seven",
                               scorers=("detection",), latents=(2,), window_tokens=16, n_explained=6,
                               extra_body='{"seed": 7}', n_top_tokens=3)  # fmt: skip
        command.explain_index(index, config, progress=False)
        [prompt] = [task_of(body) for body in server.bodies if "Windows\n" not in task_of(body)]
        assert {body["seed"] for body in server.bodies} == {7}
        assert {body["top_logprobs"] for body in server.bodies if "top_logprobs" in body} == {3}
    windows = [part for part in prompt.split("\n\n") if part.startswith("Window ")]
    assert len(windows) == 6
    strongest = [max(int(line.split("\t")[1]) for line in window.split("\n")[1:]) for window in windows]
    # Its activations are 1 to 3: level 3 to 10.
    assert min(strongest[:3]) >= 9
    assert strongest[-1] < 7


# Records


def feature(latent: int, **more: Any) -> ExplainedFeature:
    return ExplainedFeature(**{"latent": latent, "text": "a\nb <\u2028> \ud800", "interpreter": "token patterns",
                               "scores": {}, "shuffled": {}, **more})  # fmt: skip


def test_records_come_back_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    file = ExplanationsFile(tmp_path, interpreter="token patterns", settings={"seed": 0})
    file.add([feature(3, patterns=({"tokens": ["x"], "token_ids": [1], "level": 2.0},)), feature(5)])
    path = tmp_path / "explanations.jsonl"
    with path.open("ab") as torn:
        torn.write(b'{"latent": 7, "text": "')
    assert list(read_explanations(tmp_path)) == [3, 5]
    again = ExplanationsFile(tmp_path, interpreter="token patterns", settings={"seed": 0})
    assert again.features[3] == feature(3, patterns=({"tokens": ["x"], "token_ids": [1], "level": 2.0},))
    again.add([feature(7)])
    assert list(read_explanations(tmp_path)) == [3, 5, 7]


def test_explanations_of_other_settings_are_kept_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ExplanationsFile(tmp_path, interpreter=OWN, settings={"seed": 0}).add([feature(3)])
    whole = (tmp_path / "explanations.jsonl").read_bytes()
    assert ExplanationsFile(tmp_path, interpreter=OWN, settings={"seed": 1}).features == {}
    assert "explained before with other settings: begun anew" in capsys.readouterr().err
    assert (tmp_path / "explanations.jsonl.before").read_bytes() == whole
    assert list(read_all_explanations(tmp_path)) == [OWN]


def test_damaged_lines_are_left_out_and_the_others_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ExplanationsFile(tmp_path, interpreter=OWN, settings={"seed": 0})
    file.add([feature(latent) for latent in range(5)])
    header, *lines = file.path.read_bytes().splitlines()
    lines[1], lines[3] = b"\xff\x00 garbage", b'{"latent": "three"}'
    file.path.write_bytes(b"\n".join([header, *lines, b""]))
    assert list(read_explanations(tmp_path)) == [0, 2, 4]
    assert "2 of 5 lines are damaged" in capsys.readouterr().err
    again = ExplanationsFile(tmp_path, interpreter=OWN, settings={"seed": 0})
    assert list(again.features) == [0, 2, 4] and again.finished == {0, 2, 4}
    again.add([feature(1)])
    capsys.readouterr()
    assert sorted(read_explanations(tmp_path)) == [0, 1, 2, 4]
    assert capsys.readouterr().err == ""


def test_a_file_without_a_readable_beginning_is_kept_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ExplanationsFile(tmp_path, interpreter=OWN, settings={})
    file.add([feature(1)])
    damaged = b"#" + file.path.read_bytes()
    file.path.write_bytes(damaged)
    assert read_explanations(tmp_path) == {}
    assert ExplanationsFile(tmp_path, interpreter=OWN, settings={}).features == {}
    assert (tmp_path / "explanations.jsonl.damaged").read_bytes() == damaged
    assert "its first line cannot be read" in capsys.readouterr().err


def test_a_failure_stays_until_it_is_answered(tmp_path: Path) -> None:
    ExplanationsFile(tmp_path, interpreter=OWN, settings={}).add([feature(1, text="", failed="timeout"), feature(2)])
    file = ExplanationsFile(tmp_path, interpreter=OWN, settings={})
    assert (set(file.features), file.finished) == ({1, 2}, {2})
    file.add([feature(1)])
    assert file.finished == {1, 2}
    assert [one.failed for one in read_explanations(tmp_path).values()] == ["", ""]


def test_interpreters_live_beside_each_other(tmp_path: Path) -> None:
    everyone = [(OWN, ""), (OWN, "http http://a/v1"), ("a/b", "local"), ("a-b", "local"), ("a/b", "http http://a/v1"),
                ("a/b", "http http://b/v1")]  # fmt: skip
    for latent, (name, source) in enumerate(everyone):
        ExplanationsFile(tmp_path, interpreter=name, source=source, settings={}).add([feature(latent)])
    assert {path.name for path in tmp_path.iterdir()} == {file_name(name, source=source) for name, source in everyone}
    found = read_all_explanations(tmp_path)
    assert sorted(latent for there in found.values() for latent in there) == list(range(len(everyone)))
    assert list(read_explanations(tmp_path)) == [0]  # whatever a language model is called
    assert read_explanations(tmp_path / "nowhere") == {}


def test_what_the_limit_left_half_scored_is_counted_apart() -> None:
    def scored(latent: int, accuracy: float, n_failed: int, **failures: int) -> ExplainedFeature:
        judged = {"balanced_accuracy": accuracy, "auroc": accuracy, "n": 40, "n_failed": n_failed}
        return feature(latent, scores={"simulation": None, "detection": judged, "fuzzing": None, "failures": failures})

    found = summarize([scored(1, 1.0, 0), scored(2, 0.5, 4, timeout=4), scored(3, 0.0, 30, budget=30)], seed=0)
    assert (found["n_scored"], found["n_left_open"]) == (2, 1)
    assert found["scores"]["detection.auroc"]["mean"] == 0.75
    assert found["windows"]["detection.auroc"] == {"n": 80, "n_failed": 4}
    assert found["failures"] == {"timeout": 4}
    lines = "\n".join(table("layers.0", found))
    assert "76 of 80 windows answered" in lines and "1 half scored when the limit on cost was reached" in lines


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.2, 500)
    found = distribution(np.append(values, [np.nan, np.nan]), seed=0)
    assert found is not None
    assert (found["n"], found["n_undefined"]) == (500, 2)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(500), rel=0.1)
    assert distribution(np.array([np.nan]), seed=0) is None
