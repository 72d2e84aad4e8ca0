"""What a run says: metrics.jsonl, trackers behind one protocol, held-out numbers; and that it changes nothing."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest
import torch

import strata
from strata.activations.collected import Activations
from strata.assignments import assign
from strata.config.train import SAEConfig, TrainConfig
from strata.errors import MissingExtraError, UserError
from strata.evaluate.quality import logged_quality, prediction_quality, reconstruction_quality
from strata.log import MetricsFile
from strata.loggers import Logger, WandbLogger, check_trackers, flat_numbers, open_trackers
from strata.prepare import Prepared, prepare
from strata.recording import Recording
from strata.sae.gates import TopK
from strata.sae.model import SAE, Transcoder
from strata.train import train

ARCHITECTURES = get_args(get_type_hints(SAEConfig)["architecture"])
SMALL = SAEConfig(expansion_factor=2, k=4, batch_size=32, dead_feature_window=3)
KEYS = {"step", "rows", "tokens", "seconds", "rows_per_second", "learning_rate", "sites", "held_out"}
KEYS |= {"rows_seconds", "sae_seconds"}
RECORD = {
    "step": 10,
    "rows": 320,
    "learning_rate": None,
    "sites": {"layers.1": {"fvu": 0.5, "l0": 4.0}, "layers.2/k=3": {"fvu": 0.25, "l0": 3.0}},
    "held_out": {"layers.1": {"fvu": 0.75, "silent_share": None}},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def acts(seed: int = 5, n_rows: int = 640) -> Activations:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    mixed = torch.randn(n_rows, 16, generator=generator).relu() @ directions
    return Activations({"layers.1": mixed + 0.1, "layers.2": mixed.abs().sqrt()})


def prepared_for(config: SAEConfig = SMALL, *, watched: bool = False, **given: Any) -> Prepared:
    held_out = dict(acts(seed=6, n_rows=200)) if watched else {}
    return prepare(acts(), assign(["layers.1", "layers.2"], config, **given), device="cpu", held_out=held_out)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- metrics.jsonl --------------------------------------------------------------------------------------------------


def test_lines_have_the_same_keys_always_with_and_without_held_out_rows(tmp_path: Path) -> None:
    for watched in (True, False):
        folder = tmp_path / str(watched)
        recording = Recording(folder=folder, log_every_steps=2, held_out_every="25%", progress=False)
        train(prepared_for(watched=watched), recording)
        logged = lines(folder)
        assert [line["step"] for line in logged] == list(range(2, 21, 2))
        assert all(set(line) == KEYS for line in logged)
        measured = [line["step"] for line in logged if line["held_out"] is not None]
        assert measured == ([6, 10, 16, 20] if watched else [])  # the first lines after 5, 10, 15, and the last
    found = lines(tmp_path / "True")[-1]["held_out"]
    assert set(found) == {"layers.1", "layers.2"}
    for numbers in found.values():
        assert set(numbers) == {"fvu", "l0", "silent_share"}
        assert 0 < numbers["fvu"] < 1
        assert numbers["l0"] <= 4
        assert 0 <= numbers["silent_share"] < 1


def test_the_last_held_out_numbers_are_those_of_the_finished_sae(tmp_path: Path) -> None:
    trained = train(prepared_for(watched=True), Recording(folder=tmp_path, log_every_steps=7, progress=False))
    rows = acts(seed=6, n_rows=200)
    for site, sae in trained.saes.items():
        wanted = reconstruction_quality(sae, rows[site])
        assert lines(tmp_path)[-1]["held_out"][site] == {key: wanted[key] for key in ("fvu", "l0", "silent_share")}


def test_a_file_that_goes_on_drops_later_lines_and_torn_ones(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\nnull\n{"st')
    metrics = MetricsFile(path, keep_to_step=2)
    metrics.write({"step": 3, "again": True})
    metrics.close()
    assert lines(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    MetricsFile(path).close()
    assert path.read_text() == ""


def test_a_metrics_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"run folder must be one that can be written.*run/metrics\.jsonl"):
        MetricsFile(tmp_path / "run" / "metrics.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_ends_in_a_sentence(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.close()
    with Path("/dev/full").open("ab", buffering=0) as full:
        metrics._file = full
        with pytest.raises(UserError, match=r"metrics\.jsonl: No space left on device"):
            metrics.write({"step": 1})


# --- observing changes nothing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logging_and_held_out_numbers_change_no_weight(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb())
    config = replace(SMALL, architecture=architecture)
    silent = train(prepared_for(config), Recording(log_every_steps=1000, progress=False)).saes
    often = Recording(
        folder=tmp_path,
        log_every_steps=1,
        held_out_every="1 steps",
        checkpoint_every="2 steps",
        loggers=("wandb",),
        progress=True,
    )
    watched = train(prepared_for(config, watched=True), often).saes
    assert all(line["held_out"] for line in lines(tmp_path))
    for site, sae in silent.items():
        found = watched[site].state_dict()
        assert all(torch.equal(tensor, found[name]) for name, tensor in sae.state_dict().items())


def test_a_run_is_the_same_with_and_without_its_observers(tmp_path: Path) -> None:
    from strata.run import train_run

    config = TrainConfig(
        data=str(tmp_path / "texts.jsonl"), sites=("layers.0",), n_tokens=512, context_tokens=32, report=False,
        sae=replace(SMALL, text_batch_size=4), lm_dtype="fp32", device="cpu", out=tmp_path / "quiet", held_out_rows=0,
    )  # fmt: skip
    texts = [json.dumps({"text": f"def f{n}(x):\n    return x + {n}\n" * 10}) for n in range(100)]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts))
    train_run(config, progress=False)
    watched = replace(config, out=tmp_path / "watched", held_out_rows=128, log_every_steps=1, held_out_every="3 steps")
    train_run(watched, progress=False)
    weights = [(tmp_path / run / "sae" / "layers.0" / "sae_weights.safetensors") for run in ("quiet", "watched")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert all(line["held_out"] is None for line in lines(tmp_path / "quiet"))
    measured = [line["held_out"] for line in lines(tmp_path / "watched") if line["held_out"] is not None]
    assert len(measured) == 6  # 3, 6, 9, 12, 15 and the last of 16 steps
    assert measured[-1]["layers.0"]["fvu"] < measured[0]["layers.0"]["fvu"]


# --- held-out rows from Python --------------------------------------------------------------------------------------


def test_held_out_rows_are_given_from_python(tmp_path: Path) -> None:
    recording = Recording(folder=tmp_path / "trainer", progress=False)
    rows = acts()["layers.1"]
    strata.Trainer(SMALL, device="cpu", recording=recording).train(rows, held_out=rows[:100])
    assert lines(tmp_path / "trainer")[-1]["held_out"]["activations"]["fvu"] > 0
    with pytest.raises(UserError, match=r"`held_out` must hold rows of every site. Got none of layers\.2"):
        prepare(acts(), assign(["layers.1", "layers.2"], SMALL), held_out={"layers.1": rows})
    with pytest.raises(UserError, match=r"finite"):
        prepare(acts(), assign(["layers.1"], SMALL), held_out={"layers.1": rows * float("nan")})


def test_the_quality_of_a_transcoder_is_that_of_its_prediction() -> None:
    x, target = acts(seed=2)["layers.1"], acts(seed=2)["layers.2"]
    generator = torch.Generator().manual_seed(0)
    weights = {"W_enc": torch.randn(8, 32, generator=generator), "W_dec": torch.randn(32, 8, generator=generator)}
    biases = {"b_enc": torch.zeros(32), "b_dec": target.mean(0), "gate": TopK(4)}
    skip = 0.1 * torch.randn(8, 8, generator=generator)
    transcoder = Transcoder(**weights, **biases, W_skip=skip)
    found = prediction_quality(transcoder, x, target)
    error = (target - transcoder(x)).square().sum() / (target - target.mean(0)).square().sum()
    assert found["fvu"] == pytest.approx(error.item(), rel=1e-4)
    assert found["explained_variance"] == pytest.approx(1 - found["fvu"])
    assert found["l0"] == pytest.approx((transcoder.encode(x) > 0).float().sum(1).mean().item())
    assert found["silent_share"] == pytest.approx((transcoder.encode(x) <= 0).all(0).float().mean().item())
    logged = logged_quality(transcoder, {"a": x, "b": target}, site="a", target_site="b")
    assert logged == {key: found[key] for key in ("fvu", "l0", "silent_share")}
    sae = SAE(**weights, **biases)
    assert set(found) == set(reconstruction_quality(sae, x))
    alike, wanted = prediction_quality(sae, x, x), reconstruction_quality(sae, x)
    assert alike == {key: pytest.approx(value, rel=1e-4) for key, value in wanted.items()}


# --- trackers -------------------------------------------------------------------------------------------------------


class FakeRun:
    def __init__(self, **given: Any) -> None:
        self.given, self.logged, self.finished = given, [], False

    def log(self, numbers: dict[str, float], *, step: int) -> None:
        self.logged.append((step, numbers))

    def finish(self) -> None:
        self.finished = True


class FakeWandb(ModuleType):
    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[FakeRun] = []

    def init(self, **given: Any) -> FakeRun:
        self.runs.append(FakeRun(**given))
        return self.runs[-1]


class FakeWriter:
    made: list["FakeWriter"] = []  # noqa: RUF012 - of one test

    def __init__(self, log_dir: str, purge_step: int | None = None) -> None:
        self.log_dir, self.purge_step = log_dir, purge_step
        self.scalars: dict[str, list[tuple[int, float]]] = {}
        self.texts: dict[str, str] = {}
        self.closed = False
        FakeWriter.made.append(self)

    def add_scalar(self, name: str, value: float, *, global_step: int) -> None:
        self.scalars.setdefault(name, []).append((global_step, value))

    def add_text(self, name: str, text: str) -> None:
        self.texts[name] = text

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    wandb, tensorboard = FakeWandb(), ModuleType("torch.utils.tensorboard")
    tensorboard.SummaryWriter = FakeWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)
    monkeypatch.setattr(FakeWriter, "made", [])
    return wandb


def test_numbers_are_named_by_measurement_and_site() -> None:
    assert dict(flat_numbers(RECORD)) == {
        "step": 10,
        "rows": 320,
        "fvu/layers.1": 0.5,
        "l0/layers.1": 4.0,
        "fvu/layers.2/k=3": 0.25,
        "l0/layers.2/k=3": 3.0,
        "held_out/fvu/layers.1": 0.75,
    }


def test_trackers_get_every_line(fakes: FakeWandb, tmp_path: Path) -> None:
    recording = Recording(folder=tmp_path, log_every_steps=5, loggers=("wandb", "tensorboard"), progress=False)
    train(prepared_for(watched=True), recording)
    [run], [writer] = fakes.runs, FakeWriter.made
    assert [step for step, _ in run.logged] == [5, 10, 15, 20]
    wanted = lines(tmp_path)
    assert [numbers["fvu/layers.1"] for _, numbers in run.logged] == [
        line["sites"]["layers.1"]["fvu"] for line in wanted
    ]
    assert run.logged[-1][1]["held_out/fvu/layers.2"] == wanted[-1]["held_out"]["layers.2"]["fvu"]
    assert writer.scalars["l0/layers.2"] == [(line["step"], line["sites"]["layers.2"]["l0"]) for line in wanted]
    assert "step" not in writer.scalars
    assert writer.log_dir == str(tmp_path / "tensorboard")
    assert '"k": 4' in writer.texts["run"]
    assert run.given["config"]["k"] == 4
    assert run.finished
    assert writer.closed


def test_a_run_that_goes_on_continues_its_trackers(fakes: FakeWandb, tmp_path: Path) -> None:
    for step in (0, 10, 0):
        for logger in open_trackers(("wandb", "tensorboard"), folder=tmp_path, step=step, description={}):
            assert isinstance(logger, Logger)
            logger.close()
    first, again, new = (run.given["id"] for run in fakes.runs)
    assert first == again != new  # a run that begins anew in the folder is another one
    assert all(run.given["resume"] == "allow" for run in fakes.runs)
    assert [writer.purge_step for writer in FakeWriter.made] == [None, 11, None]
    assert "run" not in FakeWriter.made[1].texts


def test_an_error_in_the_middle_closes_the_trackers(fakes: FakeWandb, tmp_path: Path) -> None:
    prepared = prepared_for()
    broken = replace(prepared, rows=acts().shuffled(batch_size=32, n_epochs=1, seed=0), n_steps=30)
    with pytest.raises(StopIteration):
        train(broken, Recording(folder=tmp_path, loggers=("wandb",), progress=False))
    assert fakes.runs[0].finished


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_missing_library_is_named_before_anything_is_written(
    name: Any, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"`{name}`.*strata-sae\[{name}\]"):
        check_trackers((name,))
    with pytest.raises(MissingExtraError, match=name):
        train(prepared_for(), Recording(folder=tmp_path / "run", loggers=(name,), progress=False))
    assert not (tmp_path / "run").exists()


def test_trackers_need_a_folder() -> None:
    with pytest.raises(UserError, match=r"`loggers` needs a run folder"):
        open_trackers(("wandb",), folder=None, step=0, description={})


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_a_real_event_file(tmp_path: Path) -> None:
    recording = Recording(folder=tmp_path, log_every_steps=5, loggers=("tensorboard",), progress=False)
    train(prepared_for(), recording)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-not-found]

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("fvu/layers.1")] == [5, 10, 15, 20]


def test_the_id_of_a_wandb_run_is_kept_whole(fakes: FakeWandb, tmp_path: Path) -> None:
    WandbLogger(tmp_path, step=0, description={}).close()
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": fakes.runs[0].given["id"]}
    assert [path.name for path in tmp_path.iterdir()] == ["wandb.json"]
