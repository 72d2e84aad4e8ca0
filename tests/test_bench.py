"""`strata bench`: what it measures and writes, seconds to a mark, trainings that are not run twice."""

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from strata.bench import command, quality, registry, rows
from strata.bench.command import bench, fastest
from strata.bench.contender import Given
from strata.bench.machine import describe
from strata.bench.memory import peak_bytes
from strata.bench.own import Strata
from strata.bench.quality import Training, open_record, setting_of, train_all, trainings
from strata.bench.reached import all_reached, first_step
from strata.bench.rows import demo_sites, open_rows, synthetic_rows
from strata.bench.tables import lines_of
from strata.bench.turns import Times, step_timer, take_turns, timed
from strata.bench.worker import Worker, given_of
from strata.config.bench import BenchOptions
from strata.errors import UserError

CPU = torch.device("cpu")
TINY: dict[str, Any] = {"d_in": 16, "d_sae": 64, "k": 4, "rows": 32, "rounds": 1, "steps_per_round": 1}
QUICK: dict[str, Any] = TINY | {"memory": False, "language_model": False, "contenders": ("strata",)}


@pytest.fixture(autouse=True)
def quick_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strata.plan.calibration._COPY_BYTES", 2**16)


class Mean:
    """Predicts the mean of what it has seen: after its first step its FVU is about 1, before it is more."""

    def __init__(self, given: Given) -> None:
        self.made_with = vars(given)
        self.d_sae, self.steps, self.mean = given.d_sae, 0, torch.full((given.d_in,), 10.0)

    def prepare(self, sample: torch.Tensor) -> None:
        self.prepared = len(sample)

    def step(self, x: torch.Tensor) -> None:
        self.steps += 1
        self.mean = x.mean(0)

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        return self.mean.expand(len(x), -1)

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        codes = torch.zeros(len(x), self.d_sae)
        codes[:, :3] = 1.0
        return codes


@pytest.fixture
def mean(monkeypatch: pytest.MonkeyPatch) -> list[Mean]:
    """A peer named "mean" that is installed; gives those that are made."""
    made: list[Mean] = []

    def make(given: Given) -> Mean:
        made.append(Mean(given))
        return made[-1]

    monkeypatch.setitem(registry.CONTENDERS, "mean", registry.Entry(make=make))
    return made


@pytest.fixture
def no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "installed", lambda name: not registry.CONTENDERS[name].distribution)
    monkeypatch.setattr(quality, "installed", registry.installed)


def test_end_to_end_with_json_and_tables(tmp_path, no_peers):
    path = tmp_path / "deep" / "bench.json"
    options = BenchOptions(**QUICK | {"contenders": ("installed",), "widths": (1, 2), "json": path})
    lines = bench(options, progress=False)
    record = json.loads(path.read_text())
    assert list(record["steps"]) == ["strata"]
    step = record["steps"]["strata"]
    assert 0 < step["min_seconds"] <= step["median_seconds"] <= step["max_seconds"]
    assert step["rows_per_second"] == pytest.approx(32 / step["median_seconds"])
    floors = [one["median_seconds"] for found in record["products"].values() for one in found.values()]
    assert record["floor"]["seconds"] == min(floors)
    assert record["copy_bytes_per_second"] > 0
    assert record["selection"]["median_seconds"] > 0
    assert [one["d_sae"] for one in record["widths"]] == [64, 128]
    assert record["quality"] is None
    assert record["reached"] == []
    assert record["machine"]["packages"]["torch"] == torch.__version__
    assert record["setting"]["d_sae"] == 64
    ratio = step["median_seconds"] / record["floor"]["seconds"]
    row = next(line for line in lines if line.startswith("| strata"))
    assert row.split("|")[5:7] == [" 1.00 ", f" {ratio:.2f} "]


def test_ratios_in_the_table(mean):
    times = {"median_seconds": 0.5, "min_seconds": 0.4, "max_seconds": 0.6, "rows_per_second": 8192.0}
    slow = {name: 6 * value for name, value in times.items()} | {"rows_per_second": 1365.3, "peak_bytes": 3 * 2**20}
    record = {
        "setting": {"d_in": 384, "d_sae": 6144, "k": 32, "rows": 4096},
        "machine": describe(CPU),
        "steps": {"strata": times, "mean": slow},
        "products": {"float32": {"256 rows a piece": {"median_seconds": 0.25}}},
        "floor": {"dtype": "float32", "piece": "256 rows a piece", "seconds": 0.25},
        "selection": {"dtype": "float32", "median_seconds": 0.3},
        "copy_bytes_per_second": 1e10,
        "forward_tokens_per_second": {"fp32": 17500.0},
        "widths": [],
        "quality": None,
        "reached": [],
    }
    lines = lines_of(record)
    assert "| strata | 500.0 | 400.0 to 600.0 | 8,192 | 1.00 | 2.00 |  |" in lines
    assert "| mean | 3000.0 | 2400.0 to 3600.0 | 1,365 | 6.00 | 12.00 | 3 |" in lines
    assert "the score product alone, float32: 250.0 ms (77 GFLOP/s, 256 rows a piece)" in lines
    assert "the embedded language model's forward alone, fp32: 17,500 tokens/s" in lines


def test_turns_alternate_and_the_first_round_is_thrown_away():
    order: list[str] = []
    seconds = iter([9.0, 9.0, 1.0, 4.0, 3.0, 6.0])

    def timer(name: str):
        return lambda: (order.append(name), [next(seconds)])[1]

    found = take_turns({"a": timer("a"), "b": timer("b")}, n_rounds=2, progress=False)
    assert "".join(order) == "ababab"
    assert found == {"a": Times(2.0, 1.0, 3.0), "b": Times(5.0, 4.0, 6.0)}


def test_a_turn_has_one_untimed_step_and_goes_round_the_batches():
    seen: list[int] = []
    timer = timed(seen.append, n=2, device=CPU)
    assert len(timer()) == 2
    assert len(timer()) == 2
    assert seen == [0, 1, 2, 3, 4, 5]


def test_the_floor_is_the_fastest_product():
    slow, fast = Times(2.0, 1.0, 3.0), Times(0.5, 0.1, 9.0)
    assert fastest({"float32": {"a": slow}, "bfloat16": {"a": slow, "b": fast}}) == ("bfloat16", "b", 0.5)


class Here(Worker):
    """A worker in this process: a contender that only this process knows."""

    def __init__(self, setting: dict[str, Any]) -> None:
        self.name = setting["name"]
        made = registry.make(self.name, given_of(setting))
        n_rows = setting["n_batches"] * setting["rows"]
        sample = open_rows("synthetic", d_in=setting["d_in"], n_rows=n_rows, n_held_out=0).train.float()
        batches = sample.split(setting["rows"])
        self._timer = step_timer(made, batches, sample=sample, n=setting["n_timed"], device=torch.device("cpu"))

    def __call__(self) -> list[float]:
        return self._timer()

    def close(self) -> None:
        pass


def test_contenders_get_what_the_options_say(mean, monkeypatch):
    monkeypatch.setattr(command, "Worker", Here)
    options = BenchOptions(**QUICK | {"contenders": ("mean", "strata"), "seed": 5})
    lines = bench(options, progress=False)
    made = mean[0].made_with
    assert {key: made[key] for key in ("d_in", "d_sae", "k", "n_rows", "seed")} == {
        "d_in": 16, "d_sae": 64, "k": 4, "n_rows": 32, "seed": 5,
    }  # fmt: skip
    assert made["n_steps"] == 300
    assert mean[0].steps == 4  # two rounds, one of them thrown away, each with an untimed step
    assert [line.split(" | ")[0] for line in lines[2:6]] == [
        "| step",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| mean",
        "| strata",
    ]


def test_memory_is_measured_in_a_process_of_its_own():
    setting = {"d_in": 256, "d_sae": 8192, "k": 4, "rows": 64, "n_batches": 2, "seed": 0, "threads": 1}
    found = peak_bytes("strata", setting | {"device": "cpu", "rows_from": "synthetic"}, progress=False)
    assert found is not None
    weights_and_moments = 4 * 2 * 256 * 8192 * 3
    assert weights_and_moments * 0.9 < found < weights_and_moments * 3


def test_memory_of_what_fails_is_left_out(capsys, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert peak_bytes("strata", {"device": "cpu"}) is None
    assert "memory of strata could not be measured: exit code 1" in capsys.readouterr().err


# Quality


def quality_options(tmp_path: Path, **changes: Any) -> BenchOptions:
    given = {"quality": True, "steps": 6, "curve_every": 2, "held_out_rows": 64, "quality_file": tmp_path / "q.json"}
    return BenchOptions(**QUICK | {"quality_runs": ("strata", "mean:1e-3,default")} | given | changes)


def bench_rows(options: BenchOptions) -> rows.BenchRows:
    return open_rows("synthetic", d_in=16, n_rows=options.steps * options.rows, n_held_out=options.held_out_rows)


def test_trainings_are_kept_and_not_run_again(tmp_path, mean):
    options = quality_options(tmp_path)
    record = train_all(options, bench_rows(options), device=CPU, progress=False)
    assert list(record["results"]) == ["strata:default", "mean:1e-3", "mean:default"]
    assert [made.made_with["lr"] for made in mean] == [1e-3, None]
    assert json.loads((tmp_path / "q.json").read_text())["results"] == record["results"]
    ours = record["results"]["strata:default"]
    assert [step for step, _ in ours["curve"]] == [2, 4, 6]
    assert ours["curve"][-1][1] == ours["fvu"]
    assert ours["l0"] == 4
    theirs = record["results"]["mean:1e-3"]
    assert theirs["fvu"] == pytest.approx(1, abs=0.1)
    assert theirs["l0"] == 3
    assert theirs["silent_share"] == pytest.approx(1 - 3 / 64)
    assert ours["fvu"] < theirs["fvu"]
    again = train_all(
        replace(options, quality_runs=("mean:0.001,2e-3",)), bench_rows(options), device=CPU, progress=False
    )
    assert len(mean) == 3  # 0.001 is 1e-3
    assert list(again["results"]) == [*record["results"], "mean:2e-3"]


def test_a_training_of_ours_without_a_curve_is_made_again(tmp_path, mean):
    options = quality_options(tmp_path, quality_runs=("strata", "mean"))
    source = bench_rows(options)
    record = {"machine": {}, "setting": setting_of(options, source=source.source)}
    without = {"fvu": 0.9, "silent_share": 0.3, "l0": 4.0, "seconds": 1.0}
    record["results"] = {"strata:default": without, "mean:default": without}
    (tmp_path / "q.json").write_text(json.dumps(record))
    found = train_all(options, source, device=CPU, progress=False)["results"]
    assert found["mean:default"] == without
    assert [step for step, _ in found["strata:default"]["curve"]] == [2, 4, 6]


def test_looking_at_the_curve_changes_no_training(tmp_path):
    found = []
    for every in (1, 6):
        options = quality_options(tmp_path, curve_every=every, quality_file="none", quality_runs=("strata",))
        found.append(train_all(options, bench_rows(options), device=CPU, progress=False)["results"]["strata:default"])
    assert found[0]["fvu"] == found[1]["fvu"]


def test_peers_that_are_not_installed_are_left_out(tmp_path, no_peers, capsys):
    options = quality_options(tmp_path, quality_runs=("saelens:1e-3", "strata@2"))
    record = train_all(options, bench_rows(options), device=CPU)
    assert list(record["results"]) == ["strata@2:default"]
    assert record["results"]["strata@2:default"]["curve"][-1][0] == 2
    assert "saelens:1e-3: not installed, left out" in capsys.readouterr().err


def test_a_record_of_another_setting_is_refused(tmp_path, mean):
    options = quality_options(tmp_path, quality_runs=("mean",))
    train_all(options, bench_rows(options), device=CPU, progress=False)
    wider = replace(options, d_sae=128)
    with pytest.raises(
        UserError, match=r"`quality_file` must be of the same setting\. .*q\.json has d_sae=64, here d_sae=128"
    ):
        train_all(wider, bench_rows(options), device=CPU, progress=False)
    assert set(setting_of(options, source="s")) == {"d_sae", "k", "steps", "rows", "held_out", "seed", "source", "d_in"}


def test_a_record_that_is_none_is_refused(tmp_path):
    (tmp_path / "q.json").write_text("[]")
    with pytest.raises(UserError, match="`quality_file` must be one that `strata bench --quality` wrote"):
        open_record(tmp_path / "q.json", {})
    with pytest.raises(UserError, match="`quality_file` must be one that"):
        open_record(tmp_path / "nowhere.json", {}, must_exist=True)
    with pytest.raises(UserError, match=r"must hold trainings written as .*Got 'saelens:fast'"):
        Training.parse("saelens:fast", steps=300)


def test_times_are_joined_with_a_record_made_before(tmp_path):
    setting = {"d_sae": 64, "k": 4, "steps": 300, "rows": 32, "held_out": 8192, "seed": 0, "source": "rows", "d_in": 16}
    without_curve = {"fvu": 0.9, "silent_share": 0.3, "l0": 4.0, "seconds": 395.22}
    ours = {"fvu": 0.5, "silent_share": 0.2, "l0": 4.0, "seconds": 60.0, "curve": [[10, 0.95], [20, 0.9], [300, 0.5]]}
    record = {"machine": {}, "setting": setting, "results": {"sparsify:3e-3": without_curve, "strata:default": ours}}
    (tmp_path / "q.json").write_text(json.dumps(record))
    lines = bench(BenchOptions(**QUICK | {"quality_file": tmp_path / "q.json"}), progress=False)
    assert any(line.startswith("| sparsify (sparsify:3e-3) | 0.9000 | 300 |  | 20 (strata:default)") for line in lines)


def result(fvu: float, *curve: tuple[int, float]) -> dict[str, Any]:
    return {"fvu": fvu} | ({"curve": [list(pair) for pair in curve]} if curve else {})


def test_seconds_to_the_peers_final_fvu():
    results = {
        "saelens:1e-3": result(0.30),
        "saelens-scaled:3e-3": result(0.10, (10, 0.5), (290, 0.10), (300, 0.10)),
        "saelens@50:1e-2": result(0.01),  # of another length: it sets no mark
        "sparsify:default": result(0.20),
        "tiny:default": result(0.01),
        "strata:default": result(0.05, (10, 0.25), (20, 0.20), (30, 0.12), (40, 0.09), (300, 0.05)),
        "strata@25:default": result(0.09, (10, 0.30), (25, 0.09)),
        "strata@22:1e-2": result(0.08, (10, 0.30), (22, 0.08)),  # at another rate, as the peers are
        "strata-none:default": result(0.001, (10, 0.001)),
    }
    seconds = {"strata": 0.1, "saelens": 2.0, "sparsify": 0.5}
    found = {one.peer: one for one in all_reached({"setting": {"steps": 300}, "results": results}, seconds)}
    lens, sparsify, tiny = found["saelens"], found["sparsify"], found["tiny"]
    assert (lens.best, lens.peer_steps, lens.peer_seconds, lens.timed_as) == (
        "saelens-scaled:3e-3",
        290,
        580.0,
        "saelens",
    )
    assert (lens.ours, lens.our_steps, lens.our_seconds) == ("strata@22:1e-2", 22, 2.2)
    assert lens.ratio == pytest.approx(580 / 2.2)
    assert (sparsify.ours, sparsify.our_steps, sparsify.peer_steps) == ("strata:default", 20, 300)
    assert sparsify.ratio == pytest.approx(150 / 2)
    assert (tiny.ours, tiny.our_steps, tiny.our_seconds, tiny.ratio) == (None, None, None, None)


def test_the_first_measured_step_counts():
    curve = result(0.1, (10, 0.5), (20, 0.2), (30, 0.3), (40, 0.1))
    assert first_step(curve, 0.2, steps=40) == 20
    assert first_step(curve, 0.19, steps=40) == 40
    assert first_step(curve, 0.05, steps=40) is None
    assert first_step(result(0.1), 0.2, steps=40) == 40


def test_runs_are_written_as_name_steps_rates():
    found = trainings(["strata", "strata@100", "saelens-scaled:default,3e-3"], steps=300)
    assert [(one.name, one.steps, one.lr, one.key) for one in found] == [
        ("strata", 300, None, "strata:default"),
        ("strata", 100, None, "strata@100:default"),
        ("saelens-scaled", 300, None, "saelens-scaled:default"),
        ("saelens-scaled", 300, 3e-3, "saelens-scaled:3e-3"),
    ]


# Rows and contenders


def test_rows_of_a_file(tmp_path):
    path = tmp_path / "rows.safetensors"
    save_file({"train": synthetic_rows(40, 16), "held_out": synthetic_rows(8, 16)}, path, metadata={"source": "mine"})
    found = open_rows(path, d_in=16, n_rows=32, n_held_out=8)
    assert (len(found.train), len(found.held_out), found.source) == (32, 8, "mine")
    with pytest.raises(UserError, match="`rows_from` must hold 41 rows and 8 held-out ones of width 16"):
        open_rows(path, d_in=16, n_rows=41, n_held_out=8)
    with pytest.raises(UserError, match="`rows_from` must hold 32 rows and 8 held-out ones of width 24"):
        open_rows(path, d_in=24, n_rows=32, n_held_out=8)
    with pytest.raises(UserError, match="`rows_from` must be a safetensors file"):
        open_rows(tmp_path / "nothing", d_in=16, n_rows=32, n_held_out=8)


def test_demo_rows_are_neighbouring_layers():
    assert demo_sites(384) == ["layers.3", "layers.4"]
    assert demo_sites(192) == ["layers.3"]
    assert demo_sites(1536) == [f"layers.{i}" for i in range(8)]
    for d_in in (100, 0, 1728):
        with pytest.raises(UserError, match="`d_in` must be a multiple of 192 up to 1536"):
            demo_sites(d_in)


def test_demo_rows_are_collected_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STRATA_CACHE", str(tmp_path))
    monkeypatch.setattr(rows, "_LEAST_HELD_OUT", 64)
    monkeypatch.setattr("strata.lm.corpus.standard_library_texts", lambda held_out: [rows.__doc__ or ""] * 40)
    found = open_rows("demo", d_in=192, n_rows=256, n_held_out=16)
    assert (found.train.shape, found.held_out.shape) == ((256, 192), (16, 192))
    assert found.source.startswith("embedded model, layers.3 side by side; sinks left out: ")
    assert "collecting" in capsys.readouterr().err
    again = open_rows("demo", d_in=192, n_rows=128, n_held_out=16)
    assert capsys.readouterr().err == ""
    assert torch.equal(again.train, found.train[:128])


def test_strata_contender_is_the_learner_of_a_training():
    made = Strata(Given(d_in=16, d_sae=70, k=4, lr=None, n_steps=10, seed=0, n_rows=32, device=CPU))
    x = synthetic_rows(64, 16)
    made.prepare(x)
    before = made.reconstruct(x)
    made.step(x[:32])
    assert not torch.equal(made.reconstruct(x), before)
    assert made.codes(x).shape == (64, 70)  # no multiple of d_in
    assert int((made.codes(x) > 0).sum(1).max()) <= 4


def test_unknown_and_absent_contenders(no_peers):
    with pytest.raises(UserError, match=r"`contenders` must be known ones\. Got 'saelense'\. Did you mean 'saelens'\?"):
        registry.chosen(["saelense"], CPU)
    with pytest.raises(UserError, match=r"saelens needs sae-lens\. `pip install sae-lens` brings it"):
        registry.chosen(["saelens"], CPU)
    assert registry.chosen(["installed", "strata-none", "strata"], CPU) == ["strata", "strata-none"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"d_sae": 0}, "`d_sae` must be at least 1. Got 0. Give a positive number."),
        ({"k": 0}, "`k` must be in [1, d_sae]. Got k=0 with d_sae=6144. 32 is usual."),
        ({"rounds": 0}, "`rounds` must be at least 1. Got 0. Give a positive number."),
        ({"threads": 0}, '`threads` must be at least 1. Got 0. Or give "auto".'),
        ({"contenders": ()}, "`contenders` must name at least one. Got none. Leave it out for all of them."),
        ({"widths": (0,)}, "`widths` must be multiples of d_sae of at least 1. Got (0,). Give e.g. 1 2 4 8."),
        ({"seed": -1}, "`seed` must be at least 0. Got -1. Give a whole number."),
        (
            {"quality_runs": ("saelens:fast",)},
            "`quality_runs` must be written as contender[@steps][:rate,rate...]. Got 'saelens:fast'. Give e.g. saelens",
        ),
        ({"round": 3}, "`BenchOptions` has no setting 'round'. Did you mean 'rounds'?"),
    ],
)
def test_bad_settings(setting, said):
    with pytest.raises(UserError) as error:
        BenchOptions(**setting)
    assert str(error.value).startswith(said)


def test_longer_runs_than_there_are_rows_are_refused(tmp_path, mean):
    options = quality_options(tmp_path, quality_runs=("mean@7",))
    with pytest.raises(UserError, match=r"`quality_runs` must not take more than `steps`=6\. Got 7\. Raise --steps\."):
        train_all(options, bench_rows(options), device=CPU, progress=False)


@pytest.mark.saelens
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in registry.CONTENDERS if not name.startswith("strata")])
def test_peers_learn(name):
    package = {"saelens": "sae_lens"}.get(registry.family(name), registry.family(name))
    if importlib.util.find_spec(package) is None or name == "dictionary_learning-autocast":
        pytest.skip(f"{package} is not installed, or has this on GPUs only")
    given = Given(d_in=16, d_sae=64, k=4, lr=1e-2, n_steps=60, seed=0, n_rows=64, device=CPU)
    made = registry.make(name, given)
    x = synthetic_rows(64 * 60, 16)
    made.prepare(x)
    made.step(x[:64])
    first = quality.held_out_fvu(made, x[-512:])
    weights = [weight.detach().clone() for weight in _weights(made)]
    quality.evaluate(made, x[-512:])
    assert all(torch.equal(a, b) for a, b in zip(weights, _weights(made), strict=True))
    for batch in x.split(64)[1:]:
        made.step(batch)
    found = quality.evaluate(made, x[-512:])
    assert found["fvu"] < first
    assert 0 < found["l0"] <= 4


def _weights(made: Any) -> list[torch.Tensor]:
    trainer = made.trainer
    module = getattr(made, "sae", None) or getattr(trainer, "sae", None) or trainer.ae
    return list(module.parameters())
