"""Windows to explain and score from, the scores themselves, records, and the program, on a planted index."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.errors import UserError
from strata.explain_config import ExplainConfig
from strata.interpret.explain import command
from strata.interpret.explain.choice import Choice
from strata.interpret.explain.interpreter import (
    Explanation,
    Failed,
    Judged,
    JudgeTask,
    Material,
    Simulated,
    SimulationTask,
)
from strata.interpret.explain.judged_scores import auroc, fuzzing_marks, judged_score, true_marks
from strata.interpret.explain.material import Amounts, FeatureMaterial, gather
from strata.interpret.explain.pieces import Pieces
from strata.interpret.explain.record import ExplainedFeature, ExplanationsFile, read_all_explanations, read_explanations
from strata.interpret.explain.scoring import Trial, score
from strata.interpret.explain.simulation_scores import simulation_score
from strata.interpret.explain.summary import distribution
from strata.interpret.index import FeatureIndex
from strata.interpret.site_index import Firings, SiteIndex
from strata.interpret.windows import Windows

N_SEQS, SEQ, N_DOCUMENTS, VOCABULARY = 160, 48, 23, 12


class PlantedSite(SiteIndex):
    """Latents that fire at given places."""

    def __init__(self, key: str, activations: np.ndarray, folder: Path = Path("nowhere")) -> None:
        self.key, self.folder, self.d_sae = key, folder, len(activations)
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
    json.dumps([constant.as_json(), silent.as_json(), nothing.as_json()], allow_nan=False)


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
    assert truth.simulation is not None and truth.detection is not None and truth.fuzzing is not None
    assert truth.simulation["all"].correlation == pytest.approx(1)
    assert truth.simulation["top"].n_windows == 10 and truth.simulation["all"].n_windows == 50
    assert (truth.detection.balanced_accuracy, truth.fuzzing.balanced_accuracy) == (1.0, 1.0)
    assert (truth.detection.n, truth.fuzzing.n) == (50, 30)
    [no] = score(Knowing("no"), [explanation], [Trial.of(material, seed=0)], scorers=ALL)
    assert no.detection is not None and no.fuzzing is not None and no.simulation is not None
    assert (no.detection.balanced_accuracy, no.detection.auroc, no.fuzzing.auroc) == (0.5, 0.5, 0.5)
    assert no.simulation["all"].correlation is None
    [part] = score(Knowing(), [explanation], [Trial.of(material, seed=0)], scorers=("detection",))
    assert (part.simulation, part.fuzzing) == (None, None)


def explain(
    index: PlantedIndex, interpreter: Any, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> command.Explained:
    class Chosen(Choice):
        def __init__(self, *_: Any, **__: Any) -> None:
            self.interpreter, self.is_free = interpreter, True

        def account(self) -> dict[str, Any]:
            return {}

    monkeypatch.setattr(command, "Choice", Chosen)
    monkeypatch.setattr(command, "_FEATURES_AT_ONCE", 2)
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
    features = read_explanations(index.site.folder, interpreter="knowing")
    assert sorted(features) == [0, 1, 2, 3]
    assert features[0].score("simulation.all.correlation") == pytest.approx(1)
    assert features[0].n_fired == index.site.n_fired[0]
    kept = json.loads((index.folder / command.SUMMARY).read_text(encoding="utf-8"))
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
    with pytest.raises(UserError, match="has no setting 'scorer'"):
        ExplainConfig(run=run, scorer="fuzzing")


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
    assert ExplanationsFile(tmp_path, interpreter="token patterns", settings={"seed": 1}).features == {}


def test_interpreters_live_beside_each_other(tmp_path: Path) -> None:
    for name in ("token patterns", "org/model-8b", "other"):
        ExplanationsFile(tmp_path, interpreter=name, settings={}).add([feature(1, interpreter=name)])
    assert {path.name for path in tmp_path.iterdir()} == {
        "explanations.jsonl", "explanations-org-model-8b.jsonl", "explanations-other.jsonl",
    }  # fmt: skip
    assert set(read_all_explanations(tmp_path)) == {"token patterns", "org/model-8b", "other"}
    assert read_explanations(tmp_path / "nowhere") == {}


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.2, 500)
    found = distribution(np.append(values, [np.nan, np.nan]), seed=0)
    assert found is not None
    assert (found["n"], found["n_undefined"]) == (500, 2)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(500), rel=0.1)
    assert distribution(np.array([np.nan]), seed=0) is None
