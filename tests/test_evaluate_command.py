"""`strata evaluate`: what is written, what goes on after an interruption, tasks of lm-eval, what is refused."""

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

from finished_runs import SITES, config, evaluated, layer_wise, write_run, write_text
from strata.cli import main
from strata.config.evaluate import EvaluateConfig
from strata.errors import MissingExtraError, UserError
from strata.evaluate import compare, evaluations, lm_eval_suites
from strata.evaluate.harness import harness_table, run_lm_eval
from strata.evaluate.parts import Parts, stamps
from strata.lm.model import LanguageModel
from strata.lm.random_weights import with_random_weights
from strata.report.comparison import evaluate_and_report
from strata.report.comparison_tables import Table
from tiny_models import save_tiny_model


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
        *("train", "--model", str(model), "--data", str(data), "--n-tokens", "512", "--sae.batch-size", "128"),
        *("--sae.expansion-factor", "2", "--sae.k", "4", "--context-tokens", "32", "--sae.text-batch-size", "8"),
        *("--buffer-tokens", "512", "--device", "cpu", "--lm-dtype", "fp32", "--no-report"),
        *("--checkpoint-every", "1M tokens"),
    ]
    runs = [tmp_path / name for name in ("layer-wise", "grouped", "random")]
    assert main([*common, "--sites", "all", "--out", str(runs[0])]) == 0
    assert main([*common, "--groups", str(tmp_path / "groups.json"), "--out", str(runs[1])]) == 0
    assert main([*common, "--sites", "all", "--random-weights", "--sae.seed", "1", "--out", str(runs[2])]) == 0
    capsys.readouterr()
    words = ["evaluate", *map(str, runs), "--n-tokens", "256", "--tasks", "none", "--device", "cpu"]
    assert main([*words, "--no-pca", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "out" / "index.html")
    assert "evaluating 2 suites" in said.err and "tiny:random, seed 1: 1 suite;" in said.err
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert found["mean_sites"] == SITES
    assert found["suites"]["grouped"]["groups"] == [["layers.0", "layers.1"], ["layers.2"]]
    assert found["suites"]["grouped"]["cost"]["sae_steps"] == 2 * found["suites"]["layer-wise"]["cost"]["sae_steps"] / 3
    assert found["suites"]["random"]["means"]["ce_loss_score"] is None
    for suite in found["suites"].values():
        assert suite["cost"]["sae_seconds"] > 0 and suite["means"]["dead_share"] is not None
        assert suite["means"]["l0"] == pytest.approx(4, abs=0.1) and suite["means"]["fvu"] < 1
    assert [pair["differ"] for pair in found["overlap"]] == ["groups"]


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
    assert list(of_model["suites"]) == ["plain", f"PCA, 4 components of {lm.name}"]
    assert of_model["clean"]["results"]["a_task"]["acc,none"] == 0.75
    assert of_model["suites"]["plain"]["results"]["b_task"]["acc,none"] == 0.5
    lines = (tmp_path / "out" / "evaluation.md").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    of_random, of_lm = (f"PCA, 4 components of {name}" for name in (f"{lm.name}:random", lm.name))
    assert f"| Task | Metric | Documents | model itself | plain | {of_lm} | control | {of_random} |" in lines
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
        patched.setattr(evaluations, "task_scores", interrupted)
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

    both = Parts(None, of=1)
    assert [both.within(name).of("a", make=lambda name=name: name) for name in "xyx"] == ["x", "y", "x"]
    assert one_of({"n": 1}) == [1] and capsys.readouterr().err == ""
    assert one_of({"n": 1}) == [] and "1 part of it done before" in capsys.readouterr().err
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
        ({"tasks": ("none",), "circuits": "attribution"}, '`circuits` are found for tasks. Got tasks "none".'),
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
