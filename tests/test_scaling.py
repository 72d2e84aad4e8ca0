"""`strata scaling`: from a store to a table of losses, a fit and a page; interrupted and gone on with."""

import json
import math
import os
import random
import re
import shutil
import signal
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strata.activations.harvest import collect_activations
from strata.activations.store import open_store
from strata.config.scaling import ScalingConfig
from strata.costs.flops import sae_step_flops
from strata.costs.memory import RowsInMemory, training_memory
from strata.costs.scaling_fit import bootstrap, fit_law
from strata.costs.scaling_law import Law
from strata.costs.step import SAEShape
from strata.errors import UserError
from strata.lm.model import LanguageModel
from strata.machine import free_memory as free_memory_module
from strata.machine.free_memory import free_memory
from strata.report.scaling import scaling_and_report, verdict, warning, write_scaling_report
from strata.scaling.analysis import analyse, points_of, speed
from strata.scaling.caveats import caveats
from strata.scaling.command import scaling_run
from strata.scaling.files import read_record
from strata.scaling.memory import most_side_by_side
from strata.scaling.subject import subject_of
from strata.signals import Interrupted

from tiny_models import tiny_model, tiny_tokenizer  # isort: skip

TRUE = Law(e=math.log(0.12), epsilon=0.3, a=math.log(2), alpha=0.5, gamma=0.1, b=math.log(60), beta=0.6, kappa=0.15)


def recorded(
    law: Law = TRUE, *, noise: float = 0.003, widths: Any = (4, 8, 16, 32), ks: Any = (16, 32, 64)
) -> dict[str, Any]:
    """What a sweep leaves whose losses follow a law."""
    rng, points = np.random.default_rng(0), []
    for n_steps in (15, 30, 61, 122):
        for width in widths:
            for k in ks:
                n, t = 192 * width, 4096 * n_steps
                loss = float(law.loss(n, t, k)) * math.exp(noise * rng.standard_normal())
                flops = t * sae_step_flops(192, n, k)
                point = {"width": width, "d_sae": n, "k": k, "seed": 0, "n_steps": n_steps, "n_tokens": t}
                point |= {"flops": flops, "fvu": loss, "l0": float(k), "dead_share": 0.0, "silent_share": 0.1}
                points.append(point)
    training = {"n_steps": 122, "n_tokens": 4096 * 122, "n_saes": 12, "flops": 2e13, "seconds": {"sae": 400.0}}
    return {
        "site": "layers.3",
        "d_in": 192,
        "batch_size": 4096,
        "architecture": "topk",
        "held_out_rows": 1000,
        "order_seed": 0,
        "store": {"n_rows": 500_000},
        "model": {"name": "a <b>&", "model_class": "a <b>&", "n_parameters": 5_000_000},
        "text": {"texts": {"source": "stdlib"}, "context_tokens": 256},
        "points": points,
        "trainings": [training],
        "config": {},
        "versions": {"strata-sae": "0"},
        "date": "2030-01-01",
        "fit": None,
    }


def settings(**changed: Any) -> ScalingConfig:
    given: dict[str, Any] = {"activations": Path("store"), "n_bootstrap": 20, "training_tokens": 1e8}
    return ScalingConfig(**given | changed)


def analysed(record: dict[str, Any], config: ScalingConfig) -> dict[str, Any]:
    return analyse(record, config, subject=subject_of(record, config))


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    record = recorded()
    found = analysed(record, settings(budget=("1e15", "2h")))
    return record | {"fit": json.loads(json.dumps(found, allow_nan=False))}


def test_a_sweeps_law_is_found_and_checked(fitted: dict[str, Any]) -> None:
    fit = fitted["fit"]
    assert (fit["at_k"], fit["n_points"]) == (32.0, 48)
    law = Law.from_json(fit["law"])
    assert law.alpha == pytest.approx(0.5, abs=0.06)
    assert law.beta == pytest.approx(0.6, abs=0.06)
    names = [check["left_out"] for check in fit["checks"]]
    assert names == ["the largest run", "all runs on the most tokens", "all of the widest SAEs"]
    largest = fit["checks"][0]
    assert (largest["n_fitted"], len(largest["points"])) == (45, 3)
    assert largest["worst_error"] < 0.03
    for check in fit["checks"]:
        assert check["n_inside"] >= len(check["points"]) * 0.6
        for point in check["points"]:
            assert point["relative_error"] == pytest.approx(point["predicted"] / point["measured"] - 1)
            assert point["inside"] == (point["low"] <= point["measured"] <= point["high"])
    for one in fit["compute"]:
        assert one["envelope"] == sorted(one["envelope"])
        assert abs(one["check"]["relative_error"]) < 0.05


def test_budgets_have_a_best_width_with_its_interval(fitted: dict[str, Any]) -> None:
    budgets = {one["name"]: one for one in fitted["fit"]["budgets"]}
    assert budgets["1e15"]["flops"] == 1e15
    assert budgets["2h"]["flops"] == pytest.approx(7200 * 2e13 / 400)  # at the speed of the trainings
    assert speed(fitted) == 2e13 / 400
    for one in budgets.values():
        assert one["n_latents"]["low"] < one["n_latents"]["value"] * 1.01
        assert one["n_latents"]["high"] > one["n_latents"]["value"] * 0.99
        cost = one["n_tokens"]["value"] * sae_step_flops(192, 1, 0) * one["n_latents"]["value"]
        assert cost == pytest.approx(one["flops"], rel=0.2)  # the rest is what fired
    largest = max(point["flops"] for point in fitted["points"])
    assert budgets["1e15"]["orders_beyond"] == pytest.approx(math.log10(1e15 / largest))
    with pytest.raises(UserError, match=r"`budget` must pay for more than a token. Got 100"):
        analysed(fitted, settings(budget=("100",)))


def test_what_is_foretold_says_how_far_out_it_lies(fitted: dict[str, Any]) -> None:
    flat = fitted["fit"]["flat"]
    assert flat["subject"]["flops"] == 6 * 5e6 * 1e8
    assert flat["multiple"]["value"] == pytest.approx(flat["flops"]["value"] / flat["subject"]["flops"])
    assert flat["multiple"]["low"] < flat["multiple"]["value"] < flat["multiple"]["high"]
    orders = math.log10(flat["n_latents"]["value"] / (192 * 32))
    assert flat["orders_n_latents"]["value"] == pytest.approx(orders)
    assert orders > 1
    said = warning(fitted["fit"])
    assert f"{orders:.1f} (" in said
    assert "orders of magnitude beyond the widest SAE" in said
    assert "times the language model's own training" in verdict(fitted["fit"])


def test_without_the_models_tokens_no_multiple_is_told() -> None:
    found = analysed(recorded(ks=(32,)), settings(training_tokens="auto", form="additive"))
    assert found["flat"]["multiple"] is None
    assert "give --training-tokens" in found["flat"]["subject"]["source"]
    assert "is not known" in verdict(found)


def of_model(architecture: str, folder: Path, *, n_more: int = 0) -> dict[str, Any]:
    """A sweep on rows of a model with random weights, whose configuration stands in the folder."""
    model = tiny_model(architecture)
    model.config.save_pretrained(folder)
    n_parameters = sum(weight.numel() for weight in model.parameters()) + n_more
    return recorded() | {"model": {"name": str(folder), "model_class": "Any", "n_parameters": n_parameters}}


def test_of_a_model_with_experts_the_parameters_that_a_token_passes_are_counted(tmp_path: Path) -> None:
    """As `strata plan` counts them: 2 of 3 experts in each block."""
    config = settings(training_tokens=1e9)
    record = of_model("mixtral", tmp_path / "experts")
    found = subject_of(record, config)
    blocks = tiny_model("mixtral").get_submodule("model.layers")
    experts = sum(weight.numel() for name, weight in blocks.named_parameters() if ".experts." in name)
    assert experts > 0
    counted = record["model"]["n_parameters"] - experts / 3
    assert (found["counted_parameters"], found["flops"], found["doubt"]) == (counted, 6 * counted * 1e9, None)
    dense = of_model("gpt2", tmp_path / "dense")
    found = subject_of(dense, config)
    assert found["flops"] == 6 * dense["model"]["n_parameters"] * 1e9
    assert found["doubt"] is None


def test_where_a_model_cannot_be_drawn_all_of_it_counts_and_that_is_said(tmp_path: Path) -> None:
    config = settings(training_tokens=1e9)
    nameless = recorded()
    other = of_model("gpt2", tmp_path, n_more=1)
    gone = recorded() | {"model": {"name": str(tmp_path / "gone"), "model_class": "Any", "n_parameters": 5_000_000}}
    whys = ("the store names no checkpoint", "another number of parameters", "its outline cannot be made: `model` must")
    for record, why in zip((nameless, other, gone), whys, strict=True):
        found = subject_of(record, config)
        assert found["flops"] == 6 * record["model"]["n_parameters"] * 1e9
        assert why in found["doubt"]
    assert subject_of(nameless, settings(training_tokens="auto"))["doubt"] is None  # no cost is told
    assert any("counts all of its parameters" in said for said in analysed(nameless, config)["caveats"])


def doubts(record: dict[str, Any]) -> str:
    points = points_of(record)
    fit = fit_law(points)
    return " ".join(caveats(points, fit, bootstrap(points, fit, n_samples=20, seed=0), k=32.0, checks=[]))


def test_what_the_points_cannot_tell_is_said() -> None:
    said = doubts(recorded(widths=(8,), ks=(32,)))
    assert "One width only: the width term is part of the irreducible loss here." in said
    assert "One k only" in said
    assert "No best width for a budget" in said
    assert "Too few values to leave the largest run out" in said
    said = doubts(recorded(widths=(8, 16), ks=(16, 32)))
    assert "Two values of width: its exponent and the irreducible loss cannot be told apart" in said
    assert "Two values of k" in said
    floorless = replace(TRUE, e=-math.inf)
    assert "irreducible loss at k = 32 cannot be told from 0" in doubts(recorded(floorless))
    full = doubts(recorded())
    assert "cannot be told" not in full
    assert "only:" not in full


def test_a_k_that_was_not_swept_is_refused() -> None:
    with pytest.raises(UserError, match=r"`at_k` must be one of the swept values of k. Got 8. Those are \[16.0"):
        analysed(recorded(), settings(at_k=8, fit_only=True))
    with pytest.raises(UserError, match=r"A fit needs points"):
        analysed(recorded() | {"points": []}, settings())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"widths": ()}, "`widths` must name at least one value"),
        ({"k": (16, 16)}, "`k` must name each value once. Got 16 16"),
        ({"widths": (0,)}, "`SAEConfig.expansion_factor` must be at least 1. Got 0"),
        (
            {"n_tokens": ("half",)},
            r"`n_tokens` must be written such as 50%.* Got 'half'. Give a number .* alone or with k or M or G or %.$",
        ),
        ({"n_tokens": ("120%",)}, "`n_tokens` must be written such as .* Got '120%'. A share is at most 100%"),
        ({"budget": ("5x",)}, r"`budget` must be written .* Got '5x'. Give a number above 0, alone or with h.$"),
        ({"budget": ("1e15 FLOPs",)}, "`budget` must be written such as 1e15"),
        ({"budget": ("50%",)}, "`budget` must be written such as 1e15"),
        ({"n_bootstrap": 5}, "`n_bootstrap` must be at least 20. Got 5"),
        ({"held_out_rows": 1}, "`held_out_rows` must be at least 2"),
        ({"side_by_side": 0}, "`side_by_side` must be at least 1"),
        ({"flat_gain": 1.0}, "`flat_gain` must be a share between 0 and 1"),
        ({"at_k": 5}, "`at_k` must be one of the swept values of k. Got 5. Those are 16 32 64"),
        ({"resume": True, "overwrite": True}, "`resume` must not be given with overwrite. Got both"),
        ({"width": (4,)}, "`ScalingConfig` has no setting 'width'. Did you mean 'widths'"),
    ],
)
def test_bad_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**given)


def test_token_budgets_are_whole_batches() -> None:
    config = settings(n_tokens=("50%", "100%", "250k"), batch_size=4096)
    assert config.steps(1_000_000) == [61, 122, 244]
    with pytest.raises(UserError, match=r"`n_tokens` must be at most the store's rows. Got 250k in a store of 100000"):
        config.steps(100_000)
    with pytest.raises(UserError, match=r"`n_tokens` must be at least one batch of 4096 rows. Got 50%"):
        settings(n_tokens=("50%",)).steps(8000)
    with pytest.raises(UserError, match=r"`n_tokens` must differ in whole batches. Got 50% and 51%, both 1 steps"):
        settings(n_tokens=("50%", "51%")).steps(10_000)
    with pytest.raises(UserError, match=r"`budget` in hours needs a sweep with a speed. Got 2h"):
        settings(budget=("2h",)).budgets(None)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 64 GB, of which 20 GiB are available, and no container; files of it may be changed."""
    lines = "MemTotal:       62500000 kB\nMemFree:         1000000 kB\nMemAvailable:   20971520 kB\n"
    (tmp_path / "meminfo").write_text(lines)
    monkeypatch.setattr(free_memory_module, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(free_memory_module, "_CGROUP", tmp_path)
    monkeypatch.setattr(free_memory_module, "memory_bytes", lambda: 64e9)
    return tmp_path


def test_free_memory_is_what_others_leave(machine: Path) -> None:
    cpu = torch.device("cpu")
    assert free_memory(cpu) == 20 * 2**30
    (machine / "memory.max").write_text("max\n")
    (machine / "memory.current").write_text("6000000000\n")
    assert free_memory(cpu) == 20 * 2**30
    (machine / "memory.max").write_text("8000000000\n")
    assert free_memory(cpu) == 2e9
    (machine / "memory.stat").write_text("anon 4000000000\ninactive_file 1500000000\n")
    assert free_memory(cpu) == 3.5e9
    for name in ("meminfo", "memory.max"):
        (machine / name).unlink()
    assert free_memory(cpu) == 64e9  # a system that does not tell what is free


def test_as_many_are_trained_at_once_as_fit(machine: Path) -> None:
    shape = SAEShape(d_in=768, d_sae=768 * 16, k=32)
    n = most_side_by_side(shape, batch_size=4096, device="cpu")
    for n_saes, fits in ((n, True), (n + 1, False)):
        rows = RowsInMemory(row_bytes=4.0 * 768, buffer_rows=65_536)
        parts = training_memory([shape] * n_saes, batch_size=4096, rows=rows)
        assert (sum(parts.values()) <= 0.75 * 20 * 2**30) == fits
    wider = most_side_by_side(SAEShape(d_in=768, d_sae=768 * 64, k=32), batch_size=4096, device="cpu")
    assert 0 < wider < n
    (machine / "meminfo").write_text("MemAvailable: 4194304 kB\n")
    assert 0 < most_side_by_side(shape, batch_size=4096, device="cpu") < n
    (machine / "meminfo").write_text("MemAvailable: 500000 kB\n")
    assert most_side_by_side(shape, batch_size=4096, device="cpu") == 0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["def", "return", "class", "import", "lambda", "yield", "async", "await", "finally", "raise", "print"]
    draw = random.Random(0)
    texts = [" ".join(draw.choice(words) for _ in range(18)) for _ in range(120)]
    folder = tmp_path_factory.mktemp("stores") / "tiny"
    lm = LanguageModel(tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    options = {"held_out_tokens": 400, "context_tokens": 32, "progress": False}
    collect_activations(lm, texts, sites=["layers.0", "layers.1"], store=folder, **options)
    return folder


def tiny(store: Path, out: Path, **changed: Any) -> ScalingConfig:
    given: dict[str, Any] = {
        "activations": store,
        "out": out,
        "widths": (1, 2, 4),
        "k": (4,),
        "n_tokens": ("256", "512", "11%"),
        "batch_size": 256,
        "form": "additive",
        "n_bootstrap": 20,
        "device": "cpu",
    }
    return ScalingConfig(**given | changed)


@pytest.fixture(scope="module")
def swept(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scaling") / "sweep"
    assert scaling_and_report(tiny(store, out, side_by_side=4), progress=False) == out / "index.html"
    return out


def table(folder: Path) -> list[tuple[Any, ...]]:
    points = read_record(folder)["points"]
    return sorted(tuple(sorted((key, value) for key, value in point.items())) for point in points)


def test_a_sweep_measures_every_combination(swept: Path, store: Path) -> None:
    record, opened = read_record(swept), open_store(store)
    assert (record["site"], record["d_in"], len(record["points"])) == ("layers.0", 32, 9)
    assert [one["n_saes"] for one in record["trainings"]] == [3, 3, 3]
    assert [one["n_steps"] for one in record["trainings"]] == [1, 2, int(0.11 * opened.n_rows()) // 256]
    for point in record["points"]:
        assert point["d_sae"] == 32 * point["width"]
        assert point["n_tokens"] == 256 * point["n_steps"]
        assert point["flops"] == point["n_tokens"] * sae_step_flops(32, point["d_sae"], point["k"])
        assert point["fvu"] > 0
        assert point["l0"] <= point["k"]
    by = {(p["width"], p["k"], p["n_steps"]): p["fvu"] for p in record["points"]}
    longest, shortest = max(p["n_steps"] for p in record["points"]), min(p["n_steps"] for p in record["points"])
    assert all(by[width, 4, longest] < by[width, 4, shortest] for width in (1, 2, 4))
    assert not list(swept.glob("trainings/*/checkpoints"))
    assert len(list(swept.glob("trainings/*/metrics.jsonl"))) == 3


def test_fewer_at_once_and_interrupted_gives_the_same(
    swept: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of the last budget, gone on with, two SAEs at a time: the same numbers."""
    import strata.loop

    config, steps, step_all = tiny(store, tmp_path / "out", side_by_side=2), [0], strata.loop.step_all

    def stopping(*given: Any) -> None:
        step_all(*given)
        steps[0] += 1
        if steps[0] == 8:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(strata.loop, "step_all", stopping)
    with pytest.raises(Interrupted):
        scaling_run(config, progress=False)
    before = read_record(tmp_path / "out")
    assert len(before["points"]) == 6
    assert before["fit"] is None
    with pytest.raises(UserError, match=r"has no fit yet. Go on with --resume"):
        write_scaling_report(tmp_path / "out")
    assert list((tmp_path / "out").glob("trainings/*/checkpoints/*"))
    monkeypatch.setattr(strata.loop, "step_all", lambda *given: (step_all(*given), steps.append(1)))
    scaling_run(replace(config, resume=True), progress=False)
    total = sum(one["n_steps"] for one in read_record(tmp_path / "out")["trainings"])
    assert len(steps) - 1 + 8 == total  # no step was taken twice
    assert table(tmp_path / "out") == table(swept)


def test_a_sweep_can_grow_but_not_change(swept: Path, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(swept, out)
    scaling_run(tiny(store, out, k=(4, 8), side_by_side=4, resume=True), progress=False)
    assert len(read_record(out)["points"]) == 18
    with pytest.raises(
        UserError, match=r"`resume` needs the rows and settings of the sweep before. Changed: batch_size"
    ):
        scaling_run(tiny(store, out, batch_size=128, side_by_side=4, resume=True), progress=False)
    assert len(read_record(out)["points"]) == 18


def test_it_is_fitted_again_without_the_store(swept: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(swept, out)
    config = tiny(tmp_path / "gone", out, fit_only=True, at_k=4, training_tokens=1e6, form="coupled")
    scaling_run(config, progress=False)
    record = read_record(out)
    assert (record["fit"]["at_k"], record["fit"]["form"]) == (4.0, "coupled")
    assert record["fit"]["flat"]["subject"]["n_tokens"] == 1e6
    assert record["config"] == read_record(swept)["config"]  # what was trained stays said
    assert record["points"] == read_record(swept)["points"]


def test_folders_are_left_alone_unless_told(swept: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`out` must be a new folder. .* exists already.*--resume"):
        scaling_run(tiny(store, swept), progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match=r"`overwrite` replaces sweeps only. .* holds no scaling.json"):
        scaling_run(tiny(store, tmp_path / "mine", overwrite=True), progress=False)
    with pytest.raises(UserError, match=r"`resume` needs a folder of sweeps"):
        scaling_run(tiny(store, tmp_path / "new", resume=True), progress=False)
    with pytest.raises(UserError, match=r"There is no .*scaling.json. Run the sweep first"):
        scaling_run(tiny(store, tmp_path / "new", fit_only=True), progress=False)
    (tmp_path / "mine" / "scaling.json").write_text("{")
    with pytest.raises(UserError, match=r"scaling.json is damaged"):
        scaling_run(tiny(store, tmp_path / "mine", fit_only=True), progress=False)


def test_what_the_store_lacks_is_refused_before_training(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no site 'layers.9'"):
        scaling_run(tiny(store, tmp_path / "out", site="layers.9"), progress=False)
    with pytest.raises(UserError, match=r"`SAEConfig.k` must be in \[1, d_sae\]. Got k=64 with d_sae=32"):
        scaling_run(tiny(store, tmp_path / "out", k=(64,)), progress=False)
    lm = LanguageModel(tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    collect_activations(lm, ["print " * 100] * 4, sites=["layers.0"], store=tmp_path / "s", progress=False)
    with pytest.raises(UserError, match=r"store with held-out rows. .* holds 0. Collect it with --held-out-tokens"):
        scaling_run(tiny(tmp_path / "s", tmp_path / "out"), progress=False)
    assert not (tmp_path / "out").exists()


class Page(HTMLParser):
    """The tags of a page, what takes something from elsewhere, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_shows_it_all_and_needs_no_network(fitted: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "scaling.json").write_text(json.dumps(fitted))
    source = write_scaling_report(tmp_path).read_text(encoding="utf-8")
    page = Page(source)
    assert page.links == []
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", source)
    assert "b" not in page.tags
    assert "a <b>&" in page.words
    assert page.tags.count("svg") == 7
    assert page.tags.count("circle") > 48
    assert "beyond what was measured" in page.words
    assert "orders of magnitude beyond the widest SAE" in page.words
    assert "Best width and tokens" in page.words
    assert "nan" not in re.findall(r"\w+", page.words.lower())


def test_the_page_says_which_parameters_count(fitted: dict[str, Any], tmp_path: Path) -> None:
    subject = fitted["fit"]["flat"]["subject"] | {"counted_parameters": 1.5e6}
    fit = fitted["fit"] | {"flat": fitted["fit"]["flat"] | {"subject": subject}}
    (tmp_path / "scaling.json").write_text(json.dumps(fitted | {"fit": fit}))
    assert "5 M, of which a token passes 1.5 M" in write_scaling_report(tmp_path).read_text(encoding="utf-8")


def test_a_page_of_a_tiny_sweep_is_written(swept: Path) -> None:
    page = Page((swept / "index.html").read_text(encoding="utf-8"))
    assert page.tags.count("svg") >= 4
    assert "in 3 trainings" in page.words
