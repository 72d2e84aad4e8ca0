"""Runs side by side: their suites, what they cost, what they have in common, and what is drawn of it."""

import gc
import json
import weakref
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from finished_runs import (
    CONTEXT,
    D_SAE,
    N_ROWS,
    SITES,
    change_record,
    evaluated,
    grouped,
    layer_wise,
    sae,
    write_run,
    write_text,
)
from strata.costs.flops import sae_step_flops
from strata.errors import UserError
from strata.evaluate import run_model
from strata.evaluate.held_out_text import held_out_batches
from strata.evaluate.overlap import overlaps
from strata.evaluate.run_suites import open_suites
from strata.evaluate.runs import open_run
from strata.evaluate.suites import by_suite, evaluate_suites
from strata.lm.flops import forward_flops_of
from strata.lm.model import LanguageModel
from strata.lm.random_weights import with_random_weights
from strata.report.cost_plot import Point, cost_plot, left_out, points
from strata.sae.gates import ReLU
from strata.sae.model import Transcoder
from tiny_models import WIDTH, save_tiny_model


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def lm(model: Path) -> LanguageModel:
    return LanguageModel(str(model), device="cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel, data: Path) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "plain", lm, data, layer_wise())


def test_the_numbers_are_those_of_the_engine(plain: Path, lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    found = evaluated(tmp_path / "out", plain)["suites"]["plain"]
    batches = held_out_batches(lm, str(data), n_tokens=256, context_tokens=CONTEXT, text_batch_size=16)
    wanted = evaluate_suites(lm, {"a": layer_wise()}, batches, lm_dtype="fp32")["a"]
    for site in SITES:
        own = {key: found["sites"][site][key] for key in wanted["sites"][site]}
        assert own == pytest.approx(wanted["sites"][site], rel=1e-5)
    assert found["all_sites"] == pytest.approx(wanted["all_sites"], rel=1e-5)
    mean = sum(one["fvu"] for one in wanted["sites"].values()) / 3
    assert found["means"]["fvu"] == pytest.approx(mean, rel=1e-5)


def test_groups_take_their_share_of_steps_and_flops(plain: Path, lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    grouped_run = write_run(tmp_path / "grouped", lm, data, grouped())
    found = evaluated(tmp_path / "out", plain, grouped_run)
    alone, together = (found["suites"][name]["cost"] for name in ("plain", "grouped"))
    assert found["suites"]["grouped"]["groups"] == [["layers.0", "layers.1"], ["layers.2"]]
    assert (alone["n_saes"], together["n_saes"]) == (3, 2)
    assert (alone["sae_steps"], together["sae_steps"]) == (144, 96)
    assert alone["sae_flops"] == N_ROWS * 3 * sae_step_flops(WIDTH, D_SAE, 4)
    assert together["sae_flops"] / alone["sae_flops"] == pytest.approx(2 / 3)
    per_row = forward_flops_of(lm, SITES, context_tokens=CONTEXT)
    assert alone["lm_flops"] == together["lm_flops"] == N_ROWS * per_row > 0
    assert (alone["lm_rows"], alone["grouping_rows"], alone["grouping_flops"]) == (N_ROWS, 0, 0)
    assert (alone["sae_seconds"], alone["rows_seconds"], alone["divided"]) == (6.0, 2.0, False)
    assert found["suites"]["grouped"]["sites"]["layers.1"]["dead_share"] == 0.25
    [pair] = found["overlap"]
    assert (pair["differ"], pair["same_start"]) == ("groups", True)
    assert "| groups; same start |" in (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8")
    assert pair["sites"] == dict.fromkeys(SITES, 1.0)  # all from one seed


def test_measuring_layers_for_groups_is_part_of_the_cost(
    plain: Path, lm: LanguageModel, data: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "auto", lm, data, grouped())
    change_record(run, groups_measured={"seconds": 1.5, "n_tokens": 1024})
    found = evaluated(tmp_path / "out", plain, run)["suites"]
    alone, together = (found[name]["cost"] for name in ("plain", "auto"))
    per_row = forward_flops_of(lm, SITES, context_tokens=CONTEXT)
    assert (together["lm_rows"], together["grouping_rows"]) == (N_ROWS + 1024, 1024)
    assert together["lm_flops"] - alone["lm_flops"] == together["grouping_flops"] == 1024 * per_row
    assert (together["rows_seconds"], together["grouping_seconds"], together["rows_per_sae"]) == (3.5, 1.5, N_ROWS)
    tables = (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8")
    assert "Of these to find groups |" in tables and "| 1,024 rows, " in tables


def test_features_are_compared_between_runs_on_the_same_rows_alone(
    plain: Path, lm: LanguageModel, data: Path, tmp_path: Path
) -> None:
    other = write_run(tmp_path / "other", lm, data, layer_wise(1), seed=1)
    record = json.loads((other / "run.json").read_text(encoding="utf-8"))

    def differ() -> list[str]:
        suites = open_suites([open_run(plain), open_run(other)], progress=False)
        return [pair["differ"] for pair in overlaps(suites, progress=False)]

    assert differ() == ["seed"]
    for changes in (
        {"n_rows": 2 * N_ROWS},
        {"text": {"texts": {"fingerprint": "of another"}}},
        {"config": record["config"] | {"activations": "a/store"}},
        {"config": record["config"] | {"context_tokens": 2 * CONTEXT}},
    ):
        change_record(other, **record | changes)
        assert differ() == []


def test_a_sweep_is_a_suite_for_each_of_its_settings(lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    saes = {f"{site}/k={k},seed={seed}": sae(site, seed=seed) for site in SITES for k in (2, 4) for seed in (0, 1)}
    suites = open_suites([open_run(write_run(tmp_path / "swept", lm, data, saes))], progress=False)
    labels = [(suite.name, suite.k, suite.settings["seed"]) for suite in suites]
    assert labels == [(f"swept/k={k},seed={s}", k, s) for k in (2, 4) for s in (0, 1)]
    assert all(list(suite.saes) == SITES and suite.is_layer_wise and suite.n_suites == 4 for suite in suites)
    pairs = overlaps(suites, progress=False)
    assert [(pair["a"][6:], pair["b"][6:]) for pair in pairs] == [
        ("k=2,seed=0", "k=2,seed=1"),
        ("k=4,seed=0", "k=4,seed=1"),
    ]
    assert all(pair["differ"] == "seed" and not pair["same_start"] and pair["mean"] < 0.2 for pair in pairs)
    found = evaluated(tmp_path / "out", tmp_path / "swept")
    costs = [suite["cost"] for suite in found["suites"].values()]
    assert sum(cost["sae_seconds"] for cost in costs) == pytest.approx(6.0)
    assert costs[0]["sae_seconds"] < costs[-1]["sae_seconds"]  # k=2 against k=4
    assert all(cost["divided"] and cost["rows_seconds"] == 2.0 for cost in costs)


def test_groupings_trained_in_one_run_are_told_apart(lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    whole = {f"layers.0-2/{site}": sae(site) for site in SITES}
    run = write_run(tmp_path / "both", lm, data, grouped() | whole)
    first, second = open_suites([open_run(run)], progress=False)
    assert (first.name, second.name) == ("both/1", "both/2")
    assert first.groups == [["layers.0", "layers.1"], ["layers.2"]]
    assert second.groups == [SITES]


def test_layers_of_a_group_stay_in_one_suite() -> None:
    keys = ["layers.0", "layers.0-1/layers.0", "layers.0-1/layers.1", "layers.1", "layers.2", "layers.2/k=2"]
    of_sites = ["layers.0", "layers.0", "layers.1", "layers.1", "layers.2", "layers.2"]
    saes = {key: sae(site) for key, site in zip(keys, of_sites, strict=True)}
    assert [list(suite) for suite in by_suite(saes)] == [[keys[0], *keys[3:5]], [*keys[1:3], keys[5]]]
    assert by_suite({}) == []


def test_runs_of_the_same_name_are_told_apart(lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    runs = [open_run(write_run(tmp_path / parent / "run", lm, data, layer_wise())) for parent in ("a", "b")]
    assert [suite.name for suite in open_suites(runs, progress=False)] == ["a/run", "b/run"]


def test_a_model_that_learned_nothing_is_compared_in_reconstruction_alone(
    plain: Path, lm: LanguageModel, data: Path, tmp_path: Path
) -> None:
    control = write_run(tmp_path / "control", with_random_weights(lm), data, layer_wise(), random=True)
    found = evaluated(tmp_path / "out", plain, control, pca=True, tasks=("induction",), n_pairs=8)
    trained, random = found["suites"]["plain"], found["suites"]["control"]
    assert random["random_weights"] and not trained["random_weights"]
    assert random["model"] == f"{lm.name}:random"
    assert random["means"]["fvu"] != trained["means"]["fvu"]
    assert random["sites"]["layers.0"]["ce_sae"] is not None
    for key in ("ce_loss_score", "kl_div_score", "delta_ce_percent"):
        assert random["sites"]["layers.0"][key] is random["means"][key] is random["all_sites"][key] is None
        assert trained["means"][key] is not None
    assert {f"PCA, 4 components of {name}" for name in (lm.name, f"{lm.name}:random")} < set(found["suites"])
    assert [task["model"] for task in found["tasks"]] == [lm.name]
    assert found["overlap"] == []
    assert set(found["text"]["models"]) == {lm.name, f"{lm.name}:random"}


def test_weights_drawn_with_other_seeds_are_other_models(lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"r{seed}", with_random_weights(lm, seed=seed), data, layer_wise(), random=True, seed=seed)
        for seed in (0, 1)
    ]
    found = evaluated(tmp_path / "out", *runs, pca=True)
    models = [f"{lm.name}:random", f"{lm.name}:random, seed 1"]
    assert list(found["text"]["models"]) == models
    assert [found["suites"][name]["model"] for name in ("r0", "r1")] == models
    assert list(found["suites"]) == [
        *("r0", f"PCA, 4 components of {models[0]}", "r1", f"PCA, 4 components of {models[1]}")
    ]
    fvu = [suite["means"]["fvu"] for suite in found["suites"].values()]
    assert len(set(fvu)) == 4 and found["overlap"] == []
    drawn_otherwise = write_run(
        tmp_path / "r2", with_random_weights(lm, seed=3), data, layer_wise(), random=True, seed=2
    )
    with pytest.raises(UserError, match=r"no longer those of .*r2\. Put the model back"):
        evaluated(tmp_path / "again", drawn_otherwise)


def test_models_of_one_basename_are_told_apart_and_loaded_one_at_a_time(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [save_tiny_model(tmp_path / parent / "tiny") for parent in ("a", "b")]
    runs = [
        write_run(tmp_path / f"run-{number}", LanguageModel(str(model)), data, layer_wise())
        for number, model in enumerate(models)
    ]
    before: list[weakref.ref] = []

    def load(*given: Any, **named: Any) -> LanguageModel:
        gc.collect()
        assert all(model() is None for model in before)
        lm = LanguageModel(*given, **named)
        before.append(weakref.ref(lm.model))
        return lm

    monkeypatch.setattr(run_model, "LanguageModel", load)
    found = evaluated(tmp_path / "out", *runs, pca=True, tasks=("induction",), n_pairs=4)
    names = [str(model) for model in models]
    assert len(before) == 2 and list(found["text"]["models"]) == names
    assert [task["model"] for task in found["tasks"]] == names
    assert list(found["suites"]) == [
        *("run-0", f"PCA, 4 components of {names[0]}", "run-1", f"PCA, 4 components of {names[1]}")
    ]


def test_principal_components_are_those_of_the_runs_own_text(
    plain: Path, lm: LanguageModel, data: Path, tmp_path: Path
) -> None:
    other = write_text(tmp_path / "other-text", word="class")
    moved = write_run(tmp_path / "moved", lm, other, layer_wise())
    own = evaluated(tmp_path / "own", plain, pca=True)["suites"]["PCA, 4 components"]["means"]["fvu"]
    found = evaluated(tmp_path / "out", plain, moved, pca=True, data=str(data))["suites"]
    names = [f"PCA, 4 components, fitted on {text}" for text in (data, other)]
    assert list(found) == ["plain", "moved", *names]
    assert found[names[0]]["means"]["fvu"] == own < found[names[1]]["means"]["fvu"]
    alone = evaluated(tmp_path / "alone", moved, pca=True, data=str(data))["suites"]
    assert alone["PCA, 4 components"]["means"]["fvu"] == found[names[1]]["means"]["fvu"]
    (other / "parts.jsonl").unlink()
    with pytest.raises(UserError, match=r"components are fitted on the text of the runs: .*other-text.*--no-pca"):
        evaluated(tmp_path / "gone", moved, pca=True, data=str(data))


def test_there_are_no_more_components_than_dimensions(lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    saes = {f"{site}/k={k}": sae(site) for site in SITES for k in (4, WIDTH + 1, WIDTH + 8)}
    found = evaluated(tmp_path / "out", write_run(tmp_path / "wide", lm, data, saes), pca=True)["suites"]
    baselines = {name: suite["settings"]["k"] for name, suite in found.items() if suite["kind"] == "pca"}
    assert baselines == {"PCA, 4 components": 4, f"PCA, {WIDTH} components": WIDTH}
    assert found[f"PCA, {WIDTH} components"]["means"]["fvu"] == pytest.approx(0, abs=1e-5)


def test_a_run_that_is_called_like_a_baseline_is_refused(lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "PCA, 4 components", lm, data, layer_wise())
    with pytest.raises(UserError, match=r"must not be called like a baseline\. Got 'PCA, 4 components'"):
        evaluated(tmp_path / "out", run, pca=True)


@pytest.mark.parametrize("method", ["attribution", "integrated"])
def test_circuits_are_judged_with_and_without_error(plain: Path, tmp_path: Path, method: str) -> None:
    found = evaluated(tmp_path / "out", plain, tasks=("induction",), n_pairs=4, circuits=method)
    assert [(one["task"], one["suite"], one["method"], one["with_error"]) for one in found["circuits"]] == [
        ("induction", "plain", method, True),
        ("induction", "plain", method, False),
    ]
    assert [circuit["size"] for circuit in found["circuits"][0]["circuits"]] == [1, 4, 16]
    tables = (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8")
    assert "Faithfulness of feature circuits" in tables
    assert ("integrated gradients" in tables) == (method == "integrated")


def test_transcoders_are_left_out_and_a_line_says_so(
    lm: LanguageModel, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = sae("layers.0")
    transcoder = Transcoder(
        W_enc=one.W_enc.data, b_enc=one.b_enc.data, W_dec=one.W_dec.data, b_dec=one.b_dec.data, gate=ReLU(),
        metadata={"site": "layers.0", "target_site": "layers.1"},
    )  # fmt: skip
    both = write_run(tmp_path / "both", lm, data, {"layers.0.to.layers.1": transcoder, "layers.2": sae("layers.2")})
    [suite] = open_suites([open_run(both)])
    assert list(suite.saes) == ["layers.2"]
    assert "1 transcoder left out" in capsys.readouterr().err
    alone = write_run(tmp_path / "alone", lm, data, {"layers.0.to.layers.1": transcoder})
    with pytest.raises(UserError, match=r"holds 1 transcoder and no SAE"):
        open_suites([open_run(alone)], progress=False)


def test_runs_that_cannot_be_read_are_refused(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"A run must be a folder that `strata train` wrote.*no run.json"):
        open_run(tmp_path)
    (tmp_path / "run.json").write_text('{"status": "training"}', encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        open_run(tmp_path)
    record = json.loads((plain / "run.json").read_text(encoding="utf-8")) | {"status": "training"}
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match=r"holds no SAEs \(status: training\).*--resume"):
        open_run(tmp_path)


def test_runs_of_other_text_or_model_are_refused(plain: Path, lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    other = write_text(tmp_path / "other-text")
    moved = write_run(tmp_path / "moved", lm, other, layer_wise())
    with pytest.raises(UserError, match=r"`runs` must be of one text to be compared.*other-text\. Name.*--data"):
        evaluated(tmp_path / "out", plain, moved)
    assert set(evaluated(tmp_path / "out", plain, moved, data=str(data))["suites"]) == {"plain", "moved"}
    record = json.loads((moved / "run.json").read_text(encoding="utf-8"))
    change_record(moved, config=record["config"] | {"context_tokens": 16})
    for text in ("auto", str(data)):
        with pytest.raises(
            UserError, match=r"of one context length.*plain: 32 tokens.*moved: 16 tokens\. Evaluate"
        ) as said:
            evaluated(tmp_path / "shorter", plain, moved, data=text)
        assert "--data" not in str(said.value)
    change_record(moved, model=record["model"] | {"weights_sha256": "0" * 64})
    with pytest.raises(UserError, match="no longer those of"):
        evaluated(tmp_path / "again", moved)
    assert not (tmp_path / "again").exists()


def drawn_suite(seed: int, k: int = 4, **others: Any) -> dict[str, Any]:
    """As evaluation.json has it, as far as plots read it."""
    cost = {"sae_seconds": 2.0, "sae_flops": 1e9, "lm_flops": 1e9, "hardware": "a"}
    settings = {"k": k, "seed": seed}
    suite = {"settings": settings, "groups": [["s"]], "kind": "sae", "model": "m", "sites": {"s": {}},
             "cost": cost, "random_weights": False, "run": "r", "fvu": 0.1 + 0.01 * seed}  # fmt: skip
    return suite | {"cost": cost | others.pop("cost", {})} | others


def test_suites_that_differ_in_their_seeds_share_a_label() -> None:
    suites = {"a-seed0": drawn_suite(0), "a-seed1": drawn_suite(1), "b": drawn_suite(0, k=8)}
    suites["c"] = drawn_suite(0, fvu=None)
    found = {"suites": suites, "mean_sites": ["s"]}
    drawn = points(found, lambda one: one["fvu"])
    assert [(point.name, point.label) for point in drawn] == [("a-seed0", "a (2 runs)"), ("a-seed1", ""), ("b", "b")]
    assert (drawn[0].flops, drawn[0].seconds) == (2e9, 2.0)
    assert left_out(found) == []


def test_suites_of_other_sites_are_not_drawn_and_that_is_said() -> None:
    wide = drawn_suite(0, sites={"s": {}, "t": {}}, cost={"hardware": "another"})
    found = {"suites": {"a": drawn_suite(0), "wide": wide}, "mean_sites": ["s"]}
    [only] = points(found, lambda one: one["fvu"])
    assert (only.name, only.seconds) == ("a", 2.0)  # of one hardware, with the other left out
    [said] = left_out(found)
    assert said.startswith("Not in the plots: wide. They have other sites")
    found["mean_sites"] = []
    assert points(found, lambda one: one["fvu"]) == []
    suites = {"a": drawn_suite(0), "p": wide | {"kind": "pca", "cost": None}}
    found = {"suites": suites, "mean_sites": ["s"]}
    assert [point.name for point in points(found, lambda one: one["fvu"])] == ["a", "p"]


def test_seconds_of_different_hardware_share_no_axis() -> None:
    found = {"suites": {"a": drawn_suite(0), "b": drawn_suite(0, k=8, cost={"hardware": "b"})}, "mean_sites": ["s"]}
    given = points(found, lambda one: one["fvu"])
    assert [(point.seconds, point.flops) for point in given] == [(None, 2e9), (None, 2e9)]
    [said] = left_out(found)
    assert said == "No plot over measured seconds, which are of different hardware: a: a; b: b."
    plot = cost_plot(given, title="T", y_title="y")
    assert "counted FLOPs" in plot and "measured seconds" not in plot and plot.count("<circle") == 2 + 1  # the legend's
    found["suites"]["b"]["cost"]["sae_seconds"] = None  # nothing measured there
    assert left_out(found) == [] and points(found, lambda one: one["fvu"])[0].seconds == 2.0


def test_what_is_not_drawn_is_said_beside_the_plots(plain: Path, lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    few = write_run(tmp_path / "few", lm, data, {"layers.0": sae("layers.0")})
    told = {"device": "cpu", "cpu": "Some CPU", "n_cores": 8, "n_threads": 4}
    fast = change_record(write_run(tmp_path / "fast", lm, data, {"layers.0": sae("layers.0")}), hardware=told)
    found = evaluated(tmp_path / "out", plain, few, fast)
    assert found["suites"]["fast"]["cost"]["hardware"] == "Some CPU, 4 of 8 cores"
    assert found["suites"]["plain"]["cost"]["hardware"] is None
    sentences = ("Not in the plots: plain.", "different hardware: few: unknown; fast: Some CPU, 4 of 8 cores.")
    for name in ("evaluation.md", "index.html"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert all(sentence in text for sentence in sentences)
        assert "Seconds of different hardware say nothing side by side" in text
    assert "measured seconds" not in (tmp_path / "out" / "fvu.svg").read_text(encoding="utf-8")


def test_a_plot_places_points_by_their_cost_and_escapes_names() -> None:
    named = '<x>"&'
    given = [
        Point(named, named, "layer-wise", 0.1, 10.0, 1e12),
        Point("half", "half", "groups", 0.2, 5.0, 5e11),
        Point("PCA", "PCA", "PCA", 0.4, None, None),
    ]
    drawn = ET.fromstring(cost_plot(given, title="T", y_title="y"))
    space = "{http://www.w3.org/2000/svg}"
    circles = [c for c in drawn.iter(f"{space}circle") if c.find(f"{space}title") is not None]
    assert len(circles) == 4  # two suites in two panels
    left, right = ([float(c.get(a, "")) for c in circles[:2]] for a in ("cx", "cy"))
    assert left[0] > left[1] and right[0] > right[1]  # dearer is to the right, better is lower
    assert named in [text.text for text in drawn.iter(f"{space}text")]
    assert cost_plot([given[2]], title="T", y_title="y") == ""


def test_no_name_lies_on_the_line_of_principal_components() -> None:
    near = [Point(f"suite {i}", f"suite {i}", "groups", 0.2 - 0.004 * i, 5.0 + i, 1e12 + 1e11 * i) for i in range(4)]
    drawn = ET.fromstring(cost_plot([*near, Point("PCA", "PCA", "PCA", 0.211, None, None)], title="T", y_title="y"))
    space = "{http://www.w3.org/2000/svg}"
    lines = [line for line in drawn.iter(f"{space}line") if line.get("stroke-dasharray")]
    [across] = {line.get("y1") for line in lines if line.get("y1") != "20.0"}  # that of the legend
    names = [text for text in drawn.iter(f"{space}text") if (text.text or "").startswith(("suite", "PCA"))]
    baselines = [float(text.get("y", "")) for text in names if text.get("y") != "24.0"]
    assert len(baselines) == 2 * 5, "in both panels"
    assert not [y for y in baselines if y - 10 < float(across or "") < y + 3]
