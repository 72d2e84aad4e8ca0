"""Nothing is lost: checkpoints, signals, kills, and runs that go on to the same bits."""

import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

import strata
from strata.activations.collected import Activations
from strata.activations.harvest import token_stream
from strata.activations.source import RowSource, ShuffledRows, SiteRows
from strata.activations.store import open_store
from strata.activations.stream import Stream
from strata.assignments import assign
from strata.checkpoint import checkpoint_steps, load_checkpoint, save_checkpoint
from strata.collect import collect_run
from strata.config.collect import CollectConfig
from strata.config.train import SAEConfig, TrainConfig
from strata.errors import UserError
from strata.prepare import Prepared, prepare
from strata.recording import Recording
from strata.run import train_run
from strata.signals import Interrupted, StopSignals
from strata.train import train
from tiny_models import save_tiny_model, shared_language_model

ARCHITECTURES = get_args(get_type_hints(SAEConfig)["architecture"])
SMALL = SAEConfig(expansion_factor=2, k=4, batch_size=32, text_batch_size=4, dead_feature_window=3)
N_STEPS = 20


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def state_of(step: int) -> dict[str, Any]:
    return {"step": step, "weights": {"W": torch.arange(6.0).view(2, 3) + step, "n": 3}, "seconds": {"total": 1.5}}


def written(folder: Path, *steps: int, keep: int = 10) -> Path:
    for step in steps:
        save_checkpoint(folder, step=step, state=state_of(step), identity={"k": 4}, keep=keep)
    return folder


def test_a_checkpoint_gives_back_what_it_got(tmp_path: Path) -> None:
    found = load_checkpoint(written(tmp_path / "new" / "checkpoints", 7))
    assert (found.step, found.identity) == (7, {"k": 4})
    assert torch.equal(found.state["weights"]["W"], state_of(7)["weights"]["W"])
    assert {**found.state, "weights": 0} == {**state_of(7), "weights": 0}
    folder = tmp_path / "new" / "checkpoints" / "step-7"
    record = json.loads((folder / "checkpoint.json").read_text())
    content = (folder / "state.pt").read_bytes()
    assert (record["step"], record["bytes"]) == (7, len(content))
    assert record["crc32"] == f"{zlib.crc32(content):08x}"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.json", "state.pt"]


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    assert checkpoint_steps(written(tmp_path, 1, 2, 3, 4, keep=2)) == [4, 3]
    assert checkpoint_steps(written(tmp_path, 5, keep=1)) == [5]
    assert [path.name for path in tmp_path.iterdir()] == ["step-5"]


def test_a_step_that_is_written_again_replaces_the_one_before(tmp_path: Path) -> None:
    written(tmp_path, 1, 2, 3)
    save_checkpoint(tmp_path, step=2, state={"again": 1})  # as after step 3 was found damaged
    assert checkpoint_steps(tmp_path) == [2, 1]
    assert load_checkpoint(tmp_path).state == {"again": 1}


class _Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("exploded",))


def as_if_whole(folder: Path, content: bytes) -> None:
    """The content as a checkpoint's state, with a record that agrees."""
    (folder / "state.pt").write_bytes(content)
    record = json.loads((folder / "checkpoint.json").read_text())
    record |= {"bytes": len(content), "crc32": f"{zlib.crc32(content):08x}"}
    (folder / "checkpoint.json").write_text(json.dumps(record))


def one_bit(folder: Path) -> None:
    content = bytearray((folder / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "state.pt").write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut short": lambda f: (f / "state.pt").write_bytes((f / "state.pt").read_bytes()[:-7]),
    "a bit flipped": one_bit,
    "no state": lambda f: (f / "state.pt").unlink(),
    "no record": lambda f: (f / "checkpoint.json").unlink(),
    "a torn record": lambda f: (f / "checkpoint.json").write_text('{"step": 3, "by'),
    "a record of something else": lambda f: (f / "checkpoint.json").write_text("[]"),
    "code in a pickle": lambda f: as_if_whole(f, pickle.dumps(_Bomb())),
    "not a state": lambda f: as_if_whole(f, b"something"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damage: Callable[[Path], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = written(tmp_path / "checkpoints", 2, 3)
    damage(folder / "step-3")
    assert load_checkpoint(folder).step == 2
    said = capsys.readouterr().err
    assert "step-3" in said
    assert "damaged" in said
    assert len(said.splitlines()) == 1
    damage(folder / "step-2")
    with pytest.raises(UserError, match=r"`resume` needs a checkpoint that is whole.*step-3, step-2.*overwrite"):
        load_checkpoint(folder)
    assert not (tmp_path / "exploded").exists()


def test_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".unfinished-9").mkdir()
    with pytest.raises(UserError, match=r"`resume` needs a checkpoint\. .* holds none"):
        load_checkpoint(tmp_path)


def test_a_disk_that_is_full_costs_no_older_checkpoint(tmp_path: Path) -> None:
    written(tmp_path, 1)
    before = (tmp_path / "step-1" / "state.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))  # files may not grow beyond: a real failed write
    try:
        with pytest.raises(UserError, match=r"must fit into the run folder.*large.*as they were"):
            save_checkpoint(tmp_path, step=2, state={"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert (tmp_path / "step-1" / "state.pt").read_bytes() == before
    assert load_checkpoint(tmp_path).step == 1


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match=rf"{tmp_path / 'checkpoints'}: Not a directory"):
        save_checkpoint(tmp_path / "checkpoints", step=1, state={})


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder(tmp_path: Path) -> None:
    written(tmp_path, 1)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match=r"Permission denied"):
            written(tmp_path, 2)
    finally:
        tmp_path.chmod(0o700)
    assert load_checkpoint(tmp_path).step == 1


# --- signals --------------------------------------------------------------------------------------------------------


class SignalAt:
    """The same rows; a signal comes just before the batch of a step."""

    def __init__(self, rows: ShuffledRows, step: int, *numbers: int) -> None:
        self._rows, self._step, self._numbers = rows, step, numbers

    def sample(self, n_rows: int, *, site: str) -> Tensor:
        return self._rows.sample(n_rows, site=site)

    def batches(self, start_step: int = 0) -> Iterator[SiteRows]:
        for step, batch in enumerate(self._rows.batches(start_step), start_step + 1):
            if step == self._step:
                for number in self._numbers:
                    signal.raise_signal(number)
            yield batch

    def state(self, step: int) -> dict[str, Any]:
        return self._rows.state(step)

    def load_state(self, state: dict[str, Any]) -> None:
        self._rows.load_state(state)


def rows_of_width(d_in: int = 8) -> Activations:
    generator = torch.Generator().manual_seed(5)
    mixed = torch.randn(320, 16, generator=generator).relu() @ torch.randn(16, d_in, generator=generator)
    return Activations({"layers.1": mixed + 0.1, "layers.2": mixed.flip(1).abs()})


def prepared_for(source: RowSource, config: SAEConfig = SMALL, **given: Any) -> Prepared:
    targets = given.pop("target_sites", None)
    assignments = assign([source.sites[0]], config, target_sites=targets, skip=given.pop("skip", False))
    return prepare(source, assignments, device="cpu", **given)


def recorded(folder: Path, **given: Any) -> Recording:
    return Recording(**{"folder": folder, "progress": False, "log_every_steps": 1, "checkpoint_every": "100%"} | given)


def stopped(prepared: Prepared, folder: Path, *, step: int, number: int = signal.SIGTERM, **given: Any) -> Interrupted:
    with pytest.raises(Interrupted) as caught:
        train(replace(prepared, rows=SignalAt(prepared.rows, step, number)), recorded(folder, **given))
    return caught.value


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_writes_a_checkpoint_and_leaves(number: int, code: int, tmp_path: Path) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    left = stopped(prepared_for(rows_of_width()), tmp_path, step=4, number=number)
    assert left.exit_code == code
    assert isinstance(left, KeyboardInterrupt)
    assert "step 4 of 10" in str(left)
    assert str(tmp_path) in str(left)
    assert "--resume" in str(left)
    assert checkpoint_steps(tmp_path / "checkpoints") == [4]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    prepared = prepared_for(rows_of_width())
    twice = SignalAt(prepared.rows, 4, signal.SIGTERM, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(replace(prepared, rows=twice), recorded(tmp_path, checkpoint_every="3 steps"))
    assert not isinstance(caught.value, Interrupted)
    assert checkpoint_steps(tmp_path / "checkpoints") == [3]


def test_a_signal_in_the_last_step_loses_nothing(tmp_path: Path) -> None:
    stopped(prepared_for(rows_of_width()), tmp_path, step=10)
    resumed = train(prepared_for(rows_of_width()), recorded(tmp_path, resume=True))
    assert_same(
        resumed.saes["layers.1"], train(prepared_for(rows_of_width()), Recording(progress=False)).saes["layers.1"]
    )


def test_without_a_folder_signals_do_what_they_always_do() -> None:
    prepared = prepared_for(rows_of_width())
    with pytest.raises(KeyboardInterrupt) as caught:
        train(replace(prepared, rows=SignalAt(prepared.rows, 4, signal.SIGINT)), Recording(progress=False))
    assert not isinstance(caught.value, Interrupted)


def test_ignored_signals_stay_ignored_and_threads_change_nothing(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGINT)
        assert stop.received is None
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    handlers: list[Any] = []
    failed: list[BaseException] = []

    def in_a_thread() -> None:
        try:
            with StopSignals():
                handlers.append(signal.getsignal(signal.SIGINT))
            train(prepared_for(rows_of_width()), recorded(tmp_path))
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failed.append(error)

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert failed == []
    assert handlers == [before]


def test_the_command_ends_with_130_or_143_and_one_sentence(
    run_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import strata.run as program
    from strata.cli import main

    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        out = tmp_path / str(code)

        def train_and_signal(prepared: Prepared, recording: Recording, number: int = number) -> Any:
            return train(replace(prepared, rows=SignalAt(prepared.rows, 3, number)), recording)

        with monkeypatch.context() as patched:
            patched.setattr(program, "train", train_and_signal)
            assert main([*run_words, "--out", str(out)]) == code
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("strata: stopped at step 3")
        assert "--resume" in said
        assert main([*run_words, "--out", str(out), "--resume"]) == 0
        assert json.loads((out / "run.json").read_text())["status"] == "trained"


# --- 10 + 10 = 20 ---------------------------------------------------------------------------------------------------


def streamed(sites: list[str]) -> Stream:
    """The tiny model's stream; the buffer holds a fifth of the rows, so that it is met in the middle of its refills."""
    lm = shared_language_model("gpt_neox")
    ids = torch.randint(3, 300, (22, 32), generator=torch.Generator().manual_seed(1))
    return Stream(lm, token_stream(lm, ids, text_batch_size=2), sites=sites, n_tokens=N_STEPS * 32, buffer_tokens=130)


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the tiny model's activations."""
    folder = tmp_path_factory.mktemp("stores") / "tiny"
    lm = shared_language_model("gpt_neox")
    ids = torch.randint(3, 300, (22, 32), generator=torch.Generator().manual_seed(1))
    strata.collect_activations(
        lm, ids, ["layers.1", "layers.2"], n_tokens=N_STEPS * 32, store=folder, held_out_tokens=0, progress=False
    )
    return folder


SOURCES: dict[str, Callable[[Path], RowSource]] = {
    "collected": lambda _: Activations({s: t.repeat(2, 1) for s, t in rows_of_width().items()}),
    "stream": lambda _: streamed(["layers.1", "layers.2"]),
    "store": open_store,
}


def assert_same(a: strata.SAE, b: strata.SAE) -> None:
    found, wanted = a.state_dict(), b.state_dict()
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


UNTIMED = {"seconds": 0, "rows_per_second": 0, "rows_seconds": 0, "sae_seconds": 0}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


FURTHER: list[dict[str, Any]] = [
    *({"revival": name, "k": 1, "expansion_factor": 4} for name in ("lift", "ghost", "resample", "auxk")),
    {"target_sites": {"layers.1": "layers.2"}, "skip": True},
    {"num_epochs": 2},
]


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        *(({"architecture": name}, mode) for name in ARCHITECTURES for mode in SOURCES),
        *((given, "stream") for given in FURTHER),
    ],
    ids=lambda given: "-".join(map(str, given.values())) if isinstance(given, dict) else given,
)
def test_ten_and_ten_steps_are_twenty_bitwise(
    given: dict[str, Any], mode: str, store_folder: Path, tmp_path: Path
) -> None:
    transcoder = {name: given[name] for name in ("target_sites", "skip") if name in given}
    config = replace(SMALL, **{name: value for name, value in given.items() if name not in transcoder})
    n_steps = N_STEPS * config.num_epochs

    def prepared() -> Prepared:
        source = SOURCES[mode](store_folder)
        held_out = {
            site: source.shuffled(batch_size=32, n_epochs=1, seed=1).sample(64, site=site) for site in source.sites
        }
        found = prepared_for(source, config, **transcoder, held_out=held_out)
        assert found.n_steps == n_steps
        return found

    [(key, whole)] = train(prepared(), recorded(tmp_path / "whole")).saes.items()
    folder = tmp_path / "stopped"
    stopped(prepared(), folder, step=n_steps // 2)
    assert checkpoint_steps(folder / "checkpoints") == [n_steps // 2]
    assert_same(train(prepared(), recorded(folder, resume=True)).saes[key], whole)
    for found, wanted in zip(lines(folder), lines(tmp_path / "whole"), strict=True):
        assert {**found, **UNTIMED} == {**wanted, **UNTIMED}


def test_a_checkpoint_with_the_buffer_spares_the_language_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is that without the buffer, bitwise; the forward passes whose rows lie in it are not repeated."""
    n_forwards = {}
    harvest = Stream.harvest

    def counting(self: Stream, *given: Any, **named: Any) -> Any:
        n_forwards[folder] = n_forwards.get(folder, 0) + 1
        return harvest(self, *given, **named)

    monkeypatch.setattr(Stream, "harvest", counting)

    def prepared() -> Prepared:
        return prepared_for(streamed(["layers.1"]))

    folder = tmp_path / "whole"
    [whole] = train(prepared(), Recording(progress=False)).saes.values()
    for kept in (True, False):
        folder = tmp_path / f"buffer-{kept}"
        stopped(prepared(), folder, step=N_STEPS // 2, keep_buffer=kept)
        n_forwards[folder] = 0
        recording = recorded(folder, resume=True, keep_buffer=kept)
        assert_same(next(iter(train(prepared(), recording).saes.values())), whole)
    assert n_forwards[tmp_path / "buffer-True"] < n_forwards[tmp_path / "buffer-False"]


def test_a_sweep_resumes_to_the_same_bits(tmp_path: Path) -> None:
    configs = [replace(SMALL, k=2), replace(SMALL, k=8, architecture="jumprelu"), replace(SMALL, k=8, seed=3)]

    def prepared() -> Prepared:
        return prepare(SOURCES["stream"](tmp_path), assign(["layers.2", "layers.1"], configs))

    whole = train(prepared(), Recording(progress=False)).saes
    stopped(prepared(), tmp_path, step=7)
    resumed = train(prepared(), recorded(tmp_path, resume=True)).saes
    assert list(resumed) == list(whole)
    for key, sae in whole.items():
        assert_same(resumed[key], sae)


def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(prepared_for(rows_of_width()), Recording(progress=False)).saes["layers.1"]
    stopped(prepared_for(rows_of_width()), tmp_path, step=8, checkpoint_every="3 steps")
    assert checkpoint_steps(tmp_path / "checkpoints") == [8, 6]
    one_bit(tmp_path / "checkpoints" / "step-8")
    resumed = train(prepared_for(rows_of_width()), recorded(tmp_path, resume=True)).saes["layers.1"]
    assert "step-8" in capsys.readouterr().err
    assert_same(resumed, whole)


def test_a_training_that_goes_on_says_from_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped(prepared_for(rows_of_width()), tmp_path, step=4)
    assert capsys.readouterr().err == ""
    train(prepared_for(rows_of_width()), recorded(tmp_path, resume=True, progress=True))
    first = capsys.readouterr().err.splitlines()[0]
    assert first == f"going on from step 4 of 10, the checkpoint {tmp_path / 'checkpoints' / 'step-4'}"
    train(prepared_for(rows_of_width()), recorded(tmp_path, resume=True))
    assert capsys.readouterr().err == "", "without progress"


# --- from Python ----------------------------------------------------------------------------------------------------


def interrupt_saves(monkeypatch: pytest.MonkeyPatch, *, at: int) -> None:
    """A SIGTERM comes after the checkpoint of a step is written."""
    import strata.loop as program

    def save_and_signal(*given: Any, step: int, **more: Any) -> None:
        save_checkpoint(*given, step=step, **more)
        if step == at:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(program, "save_checkpoint", save_and_signal)


IDS = torch.randint(3, 300, (30, 32), generator=torch.Generator().manual_seed(1))


def by_suite(recording: Recording) -> strata.SAE:
    lm = shared_language_model("gpt_neox")
    suite = strata.train_suite(lm, IDS, sites=["layers.1"], config=SMALL, buffer_tokens=160, recording=recording)
    return suite["layers.1"]


def by_model(recording: Recording) -> strata.SAE:
    lm = shared_language_model("gpt_neox")
    return lm.train_sae(IDS, "layers.1", config=SMALL, recording=recording)


def by_trainer(recording: Recording) -> strata.SAE:
    return strata.Trainer(SMALL, recording=recording, device="cpu").train(rows_of_width()["layers.1"])


@pytest.mark.parametrize("ways_in", [by_suite, by_model, by_trainer], ids=["train_suite", "train_sae", "Trainer"])
def test_trainings_resume_from_python(
    ways_in: Callable[[Recording], strata.SAE], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ways_in(Recording(progress=False))
    recording = recorded(tmp_path, checkpoint_every="4 steps", keep_checkpoints=1)
    with monkeypatch.context() as patched:
        interrupt_saves(patched, at=4)
        with pytest.raises(Interrupted):
            ways_in(recording)
    # The signal came between two steps: the next one was the last.
    assert checkpoint_steps(tmp_path / "checkpoints") == [4]
    with pytest.raises(UserError, match=r"`Recording\.folder` must be a new folder.*resume=True"):
        ways_in(recording)
    assert_same(ways_in(replace(recording, resume=True)), whole)


def test_what_is_not_the_same_is_not_resumed(tmp_path: Path) -> None:
    acts = rows_of_width()
    stopped(prepared_for(acts), tmp_path, step=4)
    other = Activations({site: rows + 1 for site, rows in acts.items()})
    more = Activations({site: rows.repeat(2, 1) for site, rows in acts.items()})
    elsewhere = Activations({"layers.2": acts["layers.1"]})
    cases = [
        (acts, replace(SMALL, k=5, seed=1), "Changed: k, seed"),
        (acts, replace(SMALL, architecture="relu"), "Changed: architecture"),
        (other, SMALL, "Changed: rows"),
        (more, SMALL, "Changed: n_steps, n_rows, rows"),
        (elsewhere, SMALL, "Changed: sites"),
    ]
    for source, config, sentence in cases:
        with pytest.raises(UserError, match=rf"`resume` needs.*{sentence}\..*{tmp_path}"):
            train(prepared_for(source, config), recorded(tmp_path, resume=True))
    assert checkpoint_steps(tmp_path / "checkpoints") == [4]


def test_an_iterator_cannot_be_resumed() -> None:
    lm = strata.LanguageModel("demo")
    given = {"sites": ["layers.1"], "n_tokens": 64, "progress": False}
    recording = Recording(folder=Path("nowhere"), resume=True)
    with pytest.raises(UserError, match=r"`resume` needs texts that can be read again.*iterator.*only once"):
        strata.train_suite(lm, iter(["x = 1\n" * 50]), config=SMALL, recording=recording, **given)
    with pytest.raises(UserError, match=r"`num_epochs` must be 1 for an iterator"):
        strata.train_suite(lm, iter(["x = 1\n" * 50]), config=replace(SMALL, num_epochs=2), **given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"resume": True}, r"`Recording\.resume` must be left out without a folder"),
        ({"loggers": ("wandb",)}, r"`Recording\.loggers` must be left out without a folder"),
        ({"keep_checkpoints": 0}, r"`Recording\.keep_checkpoints` must be at least 1. Got 0"),
        ({"log_every_steps": 0}, r"`Recording\.log_every_steps` must be at least 1"),
        ({"checkpoint_every": "often"}, r"`Recording\.checkpoint_every` must be a length.*'often'"),
        ({"held_out_every": "200%"}, r"`Recording\.held_out_every` is a share"),
        ({"loggers": ("mlflow",), "folder": Path("x")}, r"`Recording\.loggers` must be"),
        ({"keep": 3}, r"`Recording` has no setting 'keep'"),
    ],
)
def test_recordings_that_are_none(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Recording(**given)


# --- killed at any moment -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "code.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"def f{n}(x):\n    return x + {n}\n" * 6}) for n in range(60)))
    return path


@pytest.fixture
def run_words(model_folder: Path, text: Path) -> list[str]:
    return [
        *("train", "--model", str(model_folder), "--data", str(text), "--sites", "layers.1", "--n-tokens", "640"),
        *("--context-tokens", "32", "--sae.batch-size", "64", "--sae.expansion-factor", "2", "--sae.k", "4"),
        *("--sae.text-batch-size", "4", "--device", "cpu", "--lm-dtype", "fp32", "--no-report"),
    ]


CHECKPOINT_STEPS = 3


def killable(model: Path, text: Path, out: Path, mode: str) -> TrainConfig:
    sites = ("layers.0", "layers.1")
    if mode == "store":
        collect_run(
            CollectConfig(
                model=str(model), data=str(text), sites=sites, n_tokens=1920, context_tokens=32, dtype="fp32",
                out=out.parent / "store", device="cpu", lm_dtype="fp32", held_out_tokens=64,
            ),
            progress=False,
        )  # fmt: skip
    return TrainConfig(
        model=str(model),
        data=str(text),
        sites=sites,
        activations=out.parent / "store" if mode == "store" else "stream",
        n_tokens="all" if mode == "store" else 1920,
        buffer_tokens=640,
        context_tokens=32,
        sae=replace(SMALL, batch_size=48, architecture="batchtopk"),
        out=out,
        device="cpu",
        lm_dtype="fp32",
        log_every_steps=1,
        held_out_rows=64,
        checkpoint_every=f"{CHECKPOINT_STEPS} steps",
        report=False,
    )


def run_in_child(config: TrainConfig) -> None:
    sys.stderr = config.folder().with_name("said").open("w")  # for as long as the process lives
    torch.set_num_threads(1)
    train_run(config, progress=False)


def assert_everything_opens(out: Path) -> int:
    """Every file that has its final name is whole; gives the step from which the run would go on."""
    if not out.exists() or not (out / "run.json").exists():
        return 0
    record = json.loads((out / "run.json").read_text())
    logged = lines(out) if (out / "metrics.jsonl").exists() else []
    assert [line["step"] for line in logged] == list(range(1, len(logged) + 1))
    kept = checkpoint_steps(out / "checkpoints")
    for step in kept:
        folder = out / "checkpoints" / f"step-{step}"
        described = json.loads((folder / "checkpoint.json").read_text())
        assert zlib.crc32((folder / "state.pt").read_bytes()) == int(described["crc32"], 16)
        assert torch.load(folder / "state.pt", weights_only=True)["step"] == step
    if (out / "sae").exists():
        assert {path.name for path in (out / "sae").iterdir()} == {"layers.0", "layers.1"}
        for path in (out / "sae").iterdir():
            strata.SAE.load(path)
    if record["status"] == "trained":
        return len(logged)
    newest = kept[0] if kept else 0
    assert len(logged) - newest <= CHECKPOINT_STEPS  # the steps since the last checkpoint, one of them being written
    return newest


@pytest.mark.parametrize("n_kills", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["stream", "store"])
def test_killed_at_random_moments(n_kills: int, mode: str, model_folder: Path, text: Path, tmp_path: Path) -> None:
    """A real process, SIGKILL; whatever the moment, everything opens and the end is the same bits."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["strata.run", "transformers.models.gpt_neox.modeling_gpt_neox"])
    dice = random.Random(n_kills)
    config = killable(model_folder, text, tmp_path / "killed", mode)
    train_run(replace(config, out=tmp_path / "whole"), progress=False)
    deadline, killed, went_on = time.monotonic() + 30 * n_kills, 0, 0
    longest = 1.0
    while killed < n_kills:
        assert time.monotonic() < deadline
        start_step = assert_everything_opens(tmp_path / "killed")
        started = (tmp_path / "killed" / "run.json").exists()
        finished = started and json.loads((tmp_path / "killed" / "run.json").read_text())["status"] == "trained"
        resume = start_step > 0 and not finished
        went_on += resume
        now = replace(config, resume=resume, overwrite=started and not resume)
        process = processes.Process(target=run_in_child, args=(now,))
        begun = time.monotonic()
        process.start()
        process.join(dice.uniform(0.0, longest))
        if process.is_alive():
            process.kill()
            process.join()
            killed += 1
            longest *= 1.2  # until the kills reach all of a run
        else:
            longest = time.monotonic() - begun
        assert process.exitcode in (0, -signal.SIGKILL), (tmp_path / "said").read_text()
    step = assert_everything_opens(tmp_path / "killed")
    record = tmp_path / "killed" / "run.json"
    if not (record.exists() and json.loads(record.read_text())["status"] == "trained"):
        train_run(replace(config, resume=step > 0, overwrite=step == 0), progress=False)
    for site in config.sites:
        found, wanted = (strata.SAE.load(tmp_path / run / "sae" / site) for run in ("killed", "whole"))
        assert_same(found, wanted)
    assert [line["sites"] for line in lines(tmp_path / "killed")] == [
        line["sites"] for line in lines(tmp_path / "whole")
    ]
    assert went_on > 0 or n_kills < 10
