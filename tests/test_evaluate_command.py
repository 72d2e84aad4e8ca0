"""`strata evaluate`: runs side by side; what lies in their folders, what is written, what is refused."""

import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from strata.cli import main
from strata.costs.flops import sae_step_flops
from strata.errors import MissingExtraError, UserError
from strata.evaluate import compare, lm_eval_suites
from strata.evaluate.compare import overlaps
from strata.evaluate.harness import harness_table, run_lm_eval
from strata.evaluate.held_out_text import held_out_batches
from strata.evaluate.parts import Parts, stamps
from strata.evaluate.runs import open_run, open_suites
from strata.evaluate.suites import evaluate_suites
from strata.evaluate_config import EvaluateConfig
from strata.lm.model import LanguageModel
from strata.lm.random_weights import with_random_weights
from strata.report.comparison import evaluate_and_report
from strata.report.comparison_tables import Table
from strata.report.cost_plot import Point, cost_plot, points
from strata.sae.gates import ReLU, TopK
from strata.sae.model import SAE, Transcoder
from tiny_models import WIDTH, save_tiny_model

SITES = ["layers.0", "layers.1", "layers.2"]
D_SAE, CONTEXT, N_ROWS = 48, 32, 3072
SECONDS = {"total": 9.0, "sae": 6.0, "rows": 2.0, "language_model": 2.0}
SETTINGS = {"architecture": "topk", "k": 4, "expansion_factor": 2, "seed": 0, "text_batch_size": 8}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    parts = [f"def name_{n}(x, y={n * 7919 % 1000}):\n    return x * {n} + y\n" for n in range(150)]
    (folder / "parts.jsonl").write_text("\n".join(json.dumps({"text": part}) for part in parts), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def lm(model: Path) -> LanguageModel:
    return LanguageModel(str(model), device="cpu")


def sae(site: str, *, seed: int = 0, like: SAE | None = None) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, WIDTH, generator=generator), dim=1)
    W_dec = W_dec if like is None else like.W_dec.clone()
    return SAE(
        W_enc=W_dec.t().contiguous(), b_enc=torch.zeros(D_SAE), W_dec=W_dec, b_dec=torch.zeros(WIDTH),
        gate=TopK(4), metadata={"site": site},
    )  # fmt: skip


def write_run(
    folder: Path, lm: LanguageModel, data: Path, saes: dict[str, SAE], *, random: bool = False, **settings: Any
) -> Path:
    """A run's folder as training leaves it, with these SAEs under their paths."""
    keys = [path.removesuffix(f"/{one.metadata.get('site')}") for path, one in saes.items()]
    name = lm.name.removesuffix(":random")
    record = {
        "status": "trained",
        "config": {
            "model": name, "data": str(data), "context_tokens": CONTEXT, "sae": SETTINGS | settings,
            "random_weights": random,
        },
        "model": lm.fingerprint(),
        "text": {"texts": {"fingerprint": f"of {data.name}"}},
        "n_steps": 48,
        "n_rows": N_ROWS,
        "dead": {key: {"dead_share": 0.25, "dead_window_rows": 640} for key in keys},
        "seconds": SECONDS,
    }  # fmt: skip
    for path, one in saes.items():
        one.save(folder / "sae" / path)
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def layer_wise(seed: int = 0) -> dict[str, SAE]:
    return {site: sae(site, seed=seed) for site in SITES}


def grouped(seed: int = 0) -> dict[str, SAE]:
    shared = sae("layers.0", seed=seed)
    return {
        "layers.0-1/layers.0": shared,
        "layers.0-1/layers.1": sae("layers.1", like=shared),
        "layers.2": sae("layers.2", seed=seed),
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, lm: LanguageModel, data: Path) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "plain", lm, data, layer_wise())


def config(*runs: Path, **options: Any) -> EvaluateConfig:
    given = {"n_tokens": 512, "tasks": ("none",), "lm_dtype": "fp32", "device": "cpu", "pca": False} | options
    return EvaluateConfig(runs=runs, **given)


def evaluated(folder: Path, *runs: Path, **options: Any) -> dict[str, Any]:
    page = evaluate_and_report(config(*runs, out=folder, **options), progress=False)
    return json.loads((page.parent / "evaluation.json").read_text(encoding="utf-8"))


def test_one_run_leaves_numbers_tables_plots_and_a_page(plain: Path) -> None:
    page = evaluate_and_report(config(plain, pca=True, tasks=("induction",), n_pairs=8), progress=False)
    folder = plain / "evaluation"
    assert page == folder / "index.html"
    names = {"evaluation.json", "evaluation.md", "fvu.svg", "delta_ce.svg", "index.html"}
    assert {path.name for path in folder.iterdir()} == names
    assert [path.name for path in plain.iterdir() if path.name.startswith(".")] == []
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert list(found["suites"]) == ["plain", "PCA, 4 components"]
    assert found["suites"]["plain"]["sites"]["layers.1"]["dead_share"] == 0.25
    assert found["suites"]["PCA, 4 components"]["means"]["l0"] == pytest.approx(4)
    assert found["suites"]["PCA, 4 components"]["means"]["fvu"] < 1
    task = found["tasks"][0]
    assert task["task"] == "induction" and 0 <= task["clean"]["accuracy"] <= 1
    assert set(task["suites"]) == set(found["suites"])
    for name in ("fvu.svg", "delta_ce.svg"):
        text = "".join(ET.fromstring((folder / name).read_text(encoding="utf-8")).itertext())
        assert "plain" in text and "PCA, 4 components" in text and "measured seconds" in text
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 2 and "src=" not in html and "href=" not in html
    tables = (folder / "evaluation.md").read_text(encoding="utf-8")
    shown = f"{found['suites']['plain']['sites']['layers.1']['fvu']:.3f}"
    assert f"| layers.1 | {shown} |" in tables and shown in html
    assert "did not fire in the last 640 rows of training" in tables
    evaluate_and_report(config(plain, overwrite=True), progress=False)
    assert "PCA" not in (folder / "evaluation.md").read_text(encoding="utf-8")


def test_the_command_compares_what_training_left(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "groups.json").write_text("[[0, 1], [2]]", encoding="utf-8")
    common = [
        *("train", "--model", str(model), "--data", str(data), "--n-tokens", "2048", "--sae.batch-size", "256"),
        *("--sae.expansion-factor", "2", "--sae.k", "4", "--context-tokens", "32", "--sae.text-batch-size", "8"),
        *("--buffer-tokens", "1024", "--device", "cpu", "--lm-dtype", "fp32", "--no-report"),
    ]
    runs = [tmp_path / name for name in ("layer-wise", "grouped", "random")]
    assert main([*common, "--sites", "all", "--out", str(runs[0])]) == 0
    assert main([*common, "--groups", str(tmp_path / "groups.json"), "--out", str(runs[1])]) == 0
    assert main([*common, "--sites", "all", "--random-weights", "--out", str(runs[2])]) == 0
    capsys.readouterr()
    words = ["evaluate", *map(str, runs), "--n-tokens", "512", "--tasks", "none", "--device", "cpu"]
    assert main([*words, "--no-pca", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "out" / "index.html")
    assert "evaluating 2 suite(s)" in said.err
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert found["mean_sites"] == SITES
    assert found["suites"]["grouped"]["groups"] == [["layers.0", "layers.1"], ["layers.2"]]
    assert found["suites"]["grouped"]["cost"]["sae_steps"] == 2 * found["suites"]["layer-wise"]["cost"]["sae_steps"] / 3
    assert found["suites"]["random"]["means"]["ce_loss_score"] is None
    for suite in found["suites"].values():
        assert suite["cost"]["sae_seconds"] > 0 and suite["means"]["dead_share"] is not None
        assert suite["means"]["l0"] == pytest.approx(4, abs=0.1) and suite["means"]["fvu"] < 1
    assert [pair["differ"] for pair in found["overlap"]] == ["groups"]


def test_the_numbers_are_those_of_the_engine(plain: Path, lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    found = evaluated(tmp_path / "out", plain)["suites"]["plain"]
    batches = held_out_batches(lm, str(data), n_tokens=512, context_tokens=CONTEXT, text_batch_size=8)
    wanted = evaluate_suites(lm, {"a": layer_wise()}, batches, lm_dtype="fp32")["a"]
    for site in SITES:
        own = {key: found["sites"][site][key] for key in wanted["sites"][site]}
        assert own == pytest.approx(wanted["sites"][site], rel=1e-5)
    assert found["all_sites"] == pytest.approx(wanted["all_sites"], rel=1e-5)
    mean = sum(one["fvu"] for one in wanted["sites"].values()) / 3
    assert found["means"]["fvu"] == pytest.approx(mean, rel=1e-5)


def test_all_sites_at_once_are_shown_beside_the_means_over_single_sites(plain: Path, tmp_path: Path) -> None:
    suite = evaluated(tmp_path / "out", plain)["suites"]["plain"]
    means, together = suite["means"], suite["all_sites"]
    assert means["ce_sae"] == pytest.approx(sum(one["ce_sae"] for one in suite["sites"].values()) / 3)
    cells = [f"{means['ce_sae']:.3f}", f"{together['ce_sae']:.3f}"]
    assert cells[0] != cells[1]
    tables = (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8")
    assert f"| plain | 3 | {together['ce_clean']:.3f} | {' | '.join(cells)} |" in tables
    shown = [
        f"{one['delta_ce_percent']:+.1f}\N{NO-BREAK SPACE}%".replace("-", "\N{MINUS SIGN}") for one in (means, together)
    ]
    assert f" | {' | '.join(shown)} | " in tables
    assert f"| all at once | {shown[1]} |" in tables
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert f"<td>{cells[0]}</td><td>{cells[1]}</td>" in html
    assert f'<th scope="row" class="name">all at once</th><td>{shown[1]}</td>' in html


def test_groups_take_their_share_of_steps_and_flops(plain: Path, lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    grouped_run = write_run(tmp_path / "grouped", lm, data, grouped())
    found = evaluated(tmp_path / "out", plain, grouped_run)
    alone, together = (found["suites"][name]["cost"] for name in ("plain", "grouped"))
    assert found["suites"]["grouped"]["groups"] == [["layers.0", "layers.1"], ["layers.2"]]
    assert (alone["n_saes"], together["n_saes"]) == (3, 2)
    assert (alone["sae_steps"], together["sae_steps"]) == (144, 96)
    assert alone["sae_flops"] == N_ROWS * 3 * sae_step_flops(WIDTH, D_SAE, 4)
    assert together["sae_flops"] / alone["sae_flops"] == pytest.approx(2 / 3)
    assert alone["lm_flops"] == together["lm_flops"] > 0
    assert (alone["sae_seconds"], alone["rows_seconds"], alone["divided"]) == (6.0, 2.0, False)
    assert found["suites"]["grouped"]["sites"]["layers.1"]["dead_share"] == 0.25
    [pair] = found["overlap"]
    assert pair["differ"] == "groups"
    assert pair["sites"] == dict.fromkeys(SITES, 1.0)  # all from one seed


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
    assert all(pair["differ"] == "seed" and pair["mean"] < 0.2 for pair in pairs)
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
    assert f"PCA, 4 components of {lm.name}:random" in found["suites"]
    assert [task["model"] for task in found["tasks"]] == [lm.name]
    assert found["overlap"] == []
    assert set(found["text"]["models"]) == {lm.name, f"{lm.name}:random"}


def test_circuits_are_judged_with_and_without_error(plain: Path, tmp_path: Path) -> None:
    found = evaluated(tmp_path / "out", plain, tasks=("induction",), n_pairs=8, circuits=True)
    assert [(one["task"], one["suite"], one["with_error"]) for one in found["circuits"]] == [
        ("induction", "plain", True),
        ("induction", "plain", False),
    ]
    assert [circuit["size"] for circuit in found["circuits"][0]["circuits"]] == [1, 4, 16]
    assert "Faithfulness of feature circuits" in (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8")


class FakeHarness:
    """In place of `run_lm_eval`: notes what it was asked, and says what is easily told again."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, lm: LanguageModel, saes: Any, tasks: Any, **options: Any) -> dict[str, Any]:
        self.asked.append({"model": lm.name, "sites": list(saes or ()), "tasks": list(tasks), **options})
        value = 0.5 if saes else 0.75
        numbers = {"acc,none": value, "acc_stderr,none": 0.0625, "f1,strict": value / 2, "f1_stderr,strict": "N/A"}
        names = {task: {"alias": task, **numbers} for task in tasks}
        return {
            "results": names,
            "higher_is_better": {task: {"acc": True, "f1": False} for task in tasks},
            "n-samples": {task: {"original": 1000, "effective": 12} for task in tasks},
        }


@pytest.fixture
def fake_harness(monkeypatch: pytest.MonkeyPatch) -> FakeHarness:
    """lm-eval seems to be installed."""
    for name in ("lm_eval", "accelerate"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    fake = FakeHarness()
    monkeypatch.setattr(lm_eval_suites, "run_lm_eval", fake)
    return fake


def test_tasks_of_lm_eval_are_run_on_the_model_itself_and_with_each_suite(
    plain: Path, lm: LanguageModel, data: Path, tmp_path: Path, fake_harness: FakeHarness
) -> None:
    control = write_run(tmp_path / "control", with_random_weights(lm), data, layer_wise(), random=True)
    wanted = {"lm_eval": ("a_task", "b_task"), "lm_eval_limit": 12, "lm_eval_path": data}
    found = evaluated(tmp_path / "out", plain, control, pca=True, **wanted)
    asked = {"model": lm.name, "tasks": ["a_task", "b_task"], "limit": 12, "include_path": data}
    assert fake_harness.asked == [{**asked, "sites": sites} for sites in ([], SITES, SITES)]
    [of_model] = found["lm_eval"]  # the random model has none
    assert (of_model["model"], of_model["limit"]) == (lm.name, 12)
    assert list(of_model["suites"]) == ["plain", "PCA, 4 components"]
    assert of_model["clean"]["results"]["a_task"]["acc,none"] == 0.75
    assert of_model["suites"]["plain"]["results"]["b_task"]["acc,none"] == 0.5
    lines = (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    of_random = f"PCA, 4 components of {lm.name}:random"
    assert f"| Task | Metric | Documents | model itself | plain | PCA, 4 components | control | {of_random} |" in lines
    row = "| acc ↑ | 12 | 0.750 ± 0.062 | 0.500 ± 0.062 | 0.500 ± 0.062 | – | – |"
    assert f"| a_task ({lm.name}) {row}" in lines
    assert f"| b_task ({lm.name}) | f1, strict ↓ | 12 | 0.375 | 0.250 | 0.250 | – | – |" in lines
    assert "0.750\N{NO-BREAK SPACE}±" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_without_lm_eval_no_table_speaks_of_it(plain: Path, tmp_path: Path) -> None:
    assert evaluated(tmp_path / "out", plain)["lm_eval"] == []
    assert "lm-evaluation-harness" not in (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("library", ["lm_eval", "accelerate"])
def test_a_missing_harness_is_named_before_anything_is_run(
    library: str, fake_harness: FakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    message = rf"needs the library `{library}`\. Install it with `pip install 'strata-sae\[lm-eval\]'`"
    with pytest.raises(MissingExtraError, match=message):
        evaluate_and_report(config(Path("nowhere"), lm_eval=("hellaswag",)), progress=False)


def test_what_lm_eval_cannot_do_is_said_before_suites_are_measured(
    plain: Path, tmp_path: Path, fake_harness: FakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"`lm_eval_path` must be a folder with YAML files of tasks\. nowhere is none"):
        evaluated(tmp_path / "out", Path("nothing"), lm_eval=("a",), lm_eval_path=Path("nowhere"))

    def refuses(*_: Any, **__: Any) -> None:
        raise UserError("`tasks` must be names of lm-eval's tasks.")

    monkeypatch.setattr(lm_eval_suites, "run_lm_eval", refuses)
    monkeypatch.setattr(compare, "evaluate_suites", lambda *_, **__: pytest.fail("suites were measured first"))
    with pytest.raises(UserError, match="must be names of lm-eval's tasks"):
        evaluated(tmp_path / "out", plain, lm_eval=("a",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.lm_eval
@pytest.mark.filterwarnings("default")
def test_the_harness_itself_on_the_suites_of_a_run(
    plain: Path, lm: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = tmp_path / "texts.jsonl"
    documents.write_text("".join(json.dumps({"text": f"x = {n}\nprint(x + {n})\n"}) + "\n" for n in range(6)))
    task = {
        "task": "strata_own", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(documents)}},
        "test_split": "test", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [
            {"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
        ],
    }  # fmt: skip
    (tmp_path / "strata_own.yaml").write_text(json.dumps(task))
    words = ["evaluate", str(plain), "--n-tokens", "512", "--tasks", "none", "--no-pca", "--device", "cpu"]
    words += ["--lm-eval", "strata_own", "--lm-eval-limit", "4", "--lm-eval-path", str(tmp_path)]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "index.html")
    [found] = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))["lm_eval"]
    for saes, results in ((None, found["clean"]), (layer_wise(), found["suites"]["plain"])):
        wanted = run_lm_eval(lm, saes, ["strata_own"], limit=4, include_path=tmp_path)
        assert results["n-samples"]["strata_own"]["effective"] == 4
        [row], [own] = harness_table(results), harness_table(wanted)
        assert row["value"] == pytest.approx(own["value"], rel=1e-5)
    assert found["clean"]["results"] != found["suites"]["plain"]["results"]


def test_an_interrupted_evaluation_goes_on_with_what_it_had_found(
    plain: Path, tmp_path: Path, fake_harness: FakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: dict[str, Any] = {"tasks": ("induction",), "n_pairs": 8, "lm_eval": ("a_task",), "overwrite": True}
    whole = evaluated(tmp_path / "whole", plain, **wanted)
    out, kept = tmp_path / "out", tmp_path / ".unfinished-out" / "parts.json"

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(compare, "task_scores", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"The same command goes on with what it had found\."):
            evaluated(out, plain, **wanted)
    assert kept.is_file() and not out.exists()
    fake_harness.asked.clear()
    with monkeypatch.context() as patched:
        patched.setattr(compare, "evaluate_suites", lambda *_, **__: pytest.fail("measured again"))
        gone_on = evaluated(out, plain, **wanted)
    assert [one["sites"] for one in fake_harness.asked] == [SITES]  # the model itself was asked before
    assert {**gone_on, "date": None} == {**whole, "date": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_parts_of_another_evaluation_are_not_gone_on_with(
    plain: Path, tmp_path: Path, fake_harness: FakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(compare, "evaluate_suites", stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluated(tmp_path / "out", plain, lm_eval=("a_task",))
    fake_harness.asked.clear()
    evaluated(tmp_path / "out", plain, lm_eval=("a_task",), lm_eval_limit=3)
    assert [one["limit"] for one in fake_harness.asked] == [3, 3]


def test_parts_are_found_once_for_each_identity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "parts.json"

    def one_of(of: Any) -> list[int]:
        made: list[int] = []
        parts = Parts(path, of=of)
        for _ in range(2):
            parts.of("a", None, make=lambda: made.append(1) or {"x": (1.5, None)})["x"].append("mine")
        assert parts.of("a", None, make=dict) == {"x": [1.5, None]}  # nobody changes what is kept
        return made

    assert one_of({"n": 1}) == [1] and capsys.readouterr().err == ""
    assert one_of({"n": 1}) == [] and "1 part(s) were finished before" in capsys.readouterr().err
    assert one_of({"n": 2}) == [1]
    for damaged in ("", "[1]", '{"of": 1}'):
        path.write_text(damaged, encoding="utf-8")
        assert one_of({"n": 2}) == [1]
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"`out` must be a folder that can be written\. .*file"):
        Parts(tmp_path / "file" / "parts.json", of=1).of("a", make=dict)


def test_stamps_tell_a_changed_file(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a").write_text("1", encoding="utf-8")
    before = stamps([tmp_path])
    assert stamps([tmp_path / "below" / "a", tmp_path / "gone"]) == before
    (tmp_path / "below" / "a").write_text("12", encoding="utf-8")
    assert stamps([tmp_path]) != before


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
    assert "1 transcoder(s) left out" in capsys.readouterr().err
    alone = write_run(tmp_path / "alone", lm, data, {"layers.0.to.layers.1": transcoder})
    with pytest.raises(UserError, match=r"holds 1 transcoder\(s\) and no SAE"):
        open_suites([open_run(alone)], progress=False)


def test_runs_that_cannot_be_read_are_refused(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`runs` must be folders of runs.*no run.json"):
        open_run(tmp_path)
    (tmp_path / "run.json").write_text('{"status": "training"}', encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        open_run(tmp_path)
    record = json.loads((plain / "run.json").read_text(encoding="utf-8")) | {"status": "training"}
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match=r"holds no SAEs \(status: training\).*--resume"):
        open_run(tmp_path)


def test_runs_of_other_text_or_model_are_refused(plain: Path, lm: LanguageModel, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other-text"
    other.mkdir()
    (other / "parts.jsonl").write_text((data / "parts.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    moved = write_run(tmp_path / "moved", lm, other, layer_wise())
    with pytest.raises(UserError, match=r"`runs` must be of one text.*other-text, 32 tokens.*--data"):
        evaluated(tmp_path / "out", plain, moved)
    assert set(evaluated(tmp_path / "out", plain, moved, data=str(data))["suites"]) == {"plain", "moved"}
    record = json.loads((moved / "run.json").read_text(encoding="utf-8"))
    record["model"]["weights_sha256"] = "0" * 64
    (moved / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match="no longer those of"):
        evaluated(tmp_path / "again", moved)
    assert not (tmp_path / "again").exists()


def test_a_folder_is_not_overwritten_unasked(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(UserError, match=r"`out` must be a new folder"):
        evaluated(tmp_path / "out", plain)
    with pytest.raises(UserError, match="`overwrite` replaces evaluations only"):
        evaluated(tmp_path / "out", plain, overwrite=True)
    with pytest.raises(UserError, match="`overwrite` replaces evaluations only"):
        evaluated(plain, plain, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        evaluated(tmp_path / "out" / "mine.txt", plain)
    assert (tmp_path / "out" / "mine.txt").read_text(encoding="utf-8") == "keep me"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"runs": ()}, "`runs` must name at least one run folder. Got none."),
        ({"runs": (Path("a"), Path("b/../a"))}, "`runs` must name each run once."),
        ({"n_tokens": 1}, "`n_tokens` must be at least 2. Got 1."),
        ({"n_pairs": 3}, "`n_pairs` must be at least 4. Got 3."),
        ({"tasks": ()}, "`tasks` must name tasks. Got nothing."),
        ({"tasks": ("auto", "ioi")}, '`tasks` must be "auto" alone or names. Got auto ioi.'),
        ({"tasks": ("none",), "circuits": True}, '`circuits` are found for tasks. Got tasks "none".'),
        ({"lm_eval": ("a", "b", "a")}, "`lm_eval` must name each task once. Got a twice."),
        ({"lm_eval": ("a",), "lm_eval_limit": 0}, "`lm_eval_limit` must be at least 1. Got 0."),
        ({"lm_eval_limit": 5}, "`lm_eval_limit` must come with tasks of lm-eval. Got 5 and no task."),
        ({"lm_eval_path": Path("p")}, "`lm_eval_path` must come with tasks of lm-eval. Got p and no task."),
        ({"task": ("none",)}, "`EvaluateConfig` has no setting 'task'. Did you mean 'tasks'?"),
        ({"n_tokens": "many"}, "`EvaluateConfig.n_tokens` must be a whole number. Got 'many'."),
    ],
)
def test_descriptions_that_cannot_be_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        EvaluateConfig(**{"runs": (Path("a"),), **given})
    assert str(raised.value).startswith(said)


def test_an_unknown_task_is_named_before_anything_is_run() -> None:
    with pytest.raises(
        UserError, match=r"`tasks` must be tasks that there are. Got 'inducton'. Did you mean 'induction'"
    ):
        evaluate_and_report(config(Path("nowhere"), tasks=("inducton",)), progress=False)


def test_the_folder_is_named_after_the_runs() -> None:
    assert config(Path("runs/a")).folder() == Path("runs/a/evaluation")
    assert config(Path("runs/a"), Path("x/b")).folder() == Path("evaluations/a+b")
    five = [Path(f"runs/{name}") for name in "abcde"]
    assert config(*five).folder() == Path("evaluations/a+b+c+and-2-more")
    assert config(Path("runs/a"), out=Path("here")).folder() == Path("here")


def test_tables_escape_what_markdown_reads() -> None:
    table = Table("T", "", ["a", "b"], [["x|y", "<b>"]])
    assert table.markdown().splitlines()[-1] == r"| x\|y | &lt;b> |"


def test_suites_that_differ_in_their_seeds_share_a_label() -> None:
    def suite(seed: int, k: int = 4) -> dict[str, Any]:
        cost = {"sae_seconds": 2.0, "sae_flops": 1e9, "lm_flops": 1e9}
        settings = {"k": k, "seed": seed}
        return {"settings": settings, "groups": [["s"]], "kind": "sae", "model": "m", "sites": {"s": {}},
                "cost": cost, "random_weights": False, "run": "r", "fvu": 0.1 + 0.01 * seed}  # fmt: skip

    suites = {"a-seed0": suite(0), "a-seed1": suite(1), "b": suite(0, k=8), "c": suite(0) | {"fvu": None}}
    found = points(suites, lambda one: one["fvu"])
    assert [(point.name, point.label) for point in found] == [("a-seed0", "a (2 runs)"), ("a-seed1", ""), ("b", "b")]
    assert found[0].flops == 2e9


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
