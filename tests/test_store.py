"""Stores: every row once, whichever process wrote it and however often it was stopped; damage is found and named."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import strata.activations.store_plan
import strata.activations.store_writing
from strata.activations.collected import Activations
from strata.activations.harvest import collect_activations
from strata.activations.shards import Shard
from strata.activations.source import RowSource, ShuffledRows
from strata.activations.store import Store, open_store, rows_of
from strata.activations.store_layout import Part, read_manifest, write_manifest
from strata.activations.store_plan import StorePlan
from strata.activations.store_writing import write_store
from strata.activations.whole_files import only_writer
from strata.collect import collect_run
from strata.config.collect import CollectConfig
from strata.lm.model import LanguageModel

from tiny_models import MAX_POSITIONS, save_tiny_model, tiny_model, tiny_tokenizer  # isort: skip

SITES = ["layers.0", "layers.1"]
SMALL: dict[str, Any] = {"dtype": "fp32", "shard_rows": 300, "buffer_tokens": 600, "text_batch_size": 8}
N_ROWS = 1216  # of TEXTS: four shards of 300 and one of 16
TEXTS = torch.randint(2, 300, (76, 16), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", autouse=True)
def small_blocks_and_one_thread() -> Iterator[None]:
    """Blocks of 128 rows of fp32, so that small shards have several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(strata.activations.store_plan, "_BLOCK_BYTES", (1, 128 * 128))
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(tiny_model("gpt_neox"), tokenizer=tiny_tokenizer())


@pytest.fixture(scope="module")
def collected(lm: LanguageModel) -> Activations:
    found = collect_activations(lm, TEXTS, SITES)
    assert isinstance(found, Activations)
    return found


@pytest.fixture(scope="module")
def written(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole store that no test changes."""
    folder = tmp_path_factory.mktemp("stores") / "whole"
    write(lm, folder)
    return folder


@pytest.fixture(scope="module")
def written_int8(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as int8."""
    folder = tmp_path_factory.mktemp("stores") / "int8"
    write(lm, folder, dtype="int8")
    return folder


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def write(lm: LanguageModel, folder: Path, texts: Any = TEXTS, **changed: Any) -> Store:
    plan = StorePlan(**{**SMALL, **changed})
    write_store(lm, texts, sites=SITES, folder=folder, plan=plan, progress=False)
    return open_store(folder, allow_incomplete=True)


def in_order(x: Tensor) -> Tensor:
    return x[np.lexsort(x.double().numpy().T[::-1])]


def all_rows(batches: Iterator[dict[str, Tensor]], site: str = "layers.1") -> Tensor:
    return torch.cat([batch[site] for batch in batches])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*-shard-*.safetensors"))


def test_a_store_holds_every_row_once_in_random_order(written: Path, collected: Activations):
    store = open_store(written)
    assert [shard.name for shard in shards(written)] == [f"part-00000-shard-{n:05d}.safetensors" for n in range(5)]
    assert (store.n_rows(), store.d_in("layers.1"), store.sites) == (N_ROWS, 32, SITES)
    for site in SITES:
        assert torch.equal(in_order(store[site]), in_order(collected[site]))
        assert not torch.equal(store[site][:300], collected[site][:300])
    both, wanted = (torch.cat([rows[site] for site in SITES], dim=1) for rows in (store, collected))
    assert torch.equal(in_order(both), in_order(wanted)), "sites stay aligned"
    assert isinstance(store, RowSource)
    assert isinstance(store.shuffled(batch_size=10, n_epochs=1, seed=0), ShuffledRows)


def test_reading_gives_every_row_once_an_epoch_in_new_orders(written: Path):
    store = open_store(written)
    epochs = all_rows(store.shuffled(batch_size=64, n_epochs=2, seed=0).batches()).split(N_ROWS)
    assert [len(epoch) for epoch in epochs] == [N_ROWS, N_ROWS]
    for epoch in epochs:
        assert torch.equal(in_order(epoch), in_order(store["layers.1"]))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], all_rows(store.shuffled(batch_size=64, n_epochs=1, seed=1).batches()))
    nearest = torch.cdist(epochs[0][:512], store["layers.1"]).argmin(1) // 300
    from_shards = [len(set(batch.tolist())) for batch in nearest.split(64)]
    assert min(from_shards) >= 4, "every batch holds rows of all shards but perhaps the short one"


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8"])
def test_types_come_back_as_they_were_rounded(lm: LanguageModel, collected: Activations, tmp_path: Path, dtype: str):
    store = write(lm, tmp_path / "store", dtype=dtype)
    batch = next(iter(store.shuffled(batch_size=500, n_epochs=1, seed=0).batches()))["layers.1"]
    assert batch.dtype == {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}[dtype]
    distance, _ = torch.cdist(batch.float(), collected["layers.1"]).min(1)
    assert distance.max() < 0.03 * collected["layers.1"].norm(dim=1).mean()
    assert (
        len(open_store(tmp_path / "store").shuffled(batch_size=9, n_epochs=1, seed=0).sample(99, site=SITES[0])) == 99
    )
    size = sum(path.stat().st_size for path in shards(tmp_path / "store"))
    expected = {"fp16": 2, "bf16": 2, "int8": 1}[dtype] * 32 * 2 * N_ROWS
    assert expected < size < 1.5 * expected


@pytest.mark.parametrize("stored", ["written", "written_int8"])
@pytest.mark.parametrize("start", [1, 7, 18, 30])
def test_reading_goes_on_where_it_was(
    stored: str, start: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("strata.activations.store_reading._WINDOW_BLOCKS", 4)
    folder = request.getfixturevalue(stored)
    rows = open_store(folder).shuffled(batch_size=70, n_epochs=2, seed=5)
    whole = list(rows.batches())
    assert len(whole) == 2 * N_ROWS // 70
    rest = list(open_store(folder).shuffled(batch_size=70, n_epochs=2, seed=5).batches(start_step=start))
    assert len(rest) == len(whole) - start
    for found, wanted in zip(rest, whole[start:], strict=True):
        assert all(torch.equal(found[site], wanted[site]) for site in SITES)
    assert list(rows.batches(start_step=len(whole))) == []


def test_going_on_reads_nothing_of_what_came_before(written: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("strata.activations.store_reading._WINDOW_BLOCKS", 1)
    read: list[int] = []
    original = Shard.block
    monkeypatch.setattr(Shard, "block", lambda self, *a, **k: read.append(self.rows) or original(self, *a, **k))
    store = open_store(written).only("layers.0")
    assert len(list(store.shuffled(batch_size=16, n_epochs=1, seed=0).batches(start_step=75))) == 1
    assert len(read) == 1


def test_some_sites_give_the_same_rows_and_the_others_are_not_read(written: Path):
    store = open_store(written)
    both = all_rows(store.shuffled(batch_size=64, n_epochs=1, seed=0).batches())
    one = store.only("layers.1")
    assert one.sites == ["layers.1"]
    batches = list(one.shuffled(batch_size=64, n_epochs=1, seed=0).batches())
    assert set(batches[0]) == {"layers.1"}
    assert torch.equal(torch.cat([batch["layers.1"] for batch in batches]), both)
    sample = store.shuffled(batch_size=64, n_epochs=1, seed=0).sample(100, site="layers.1")
    assert torch.equal(sample, both[:100])
    assert len(store.shuffled(batch_size=64, n_epochs=1, seed=0).sample(10**6, site="layers.1")) == N_ROWS


class _StoppedError(BaseException):
    pass


def stop_after(n_shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, done = strata.activations.store_writing.write_shard, []

    def write_some(*given: Any, **named: Any) -> Any:
        if len(done) == n_shards:
            raise _StoppedError
        done.append(1)
        return original(*given, **named)

    monkeypatch.setattr(strata.activations.store_writing, "write_shard", write_some)


@pytest.mark.parametrize(("stored", "dtype"), [("written", "fp32"), ("written_int8", "int8")])
def test_an_interrupted_collection_goes_on_and_leaves_the_same_bytes(
    lm: LanguageModel,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    stored: str,
    dtype: str,
):
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        with pytest.raises(_StoppedError):
            write(lm, tmp_path, dtype=dtype)
    assert len(shards(tmp_path)) == 2
    with pytest.raises(ValueError, match="is not complete: part 1/1 is not"):
        open_store(tmp_path)
    assert open_store(tmp_path, allow_incomplete=True).n_rows() == 600
    # What a kill in the middle of writing leaves, and one between a shard and its record
    (tmp_path / ".part-00000-shard-00002.safetensors.unfinished").write_bytes(b"torn")
    (tmp_path / "part-00000-shard-00002.safetensors").write_bytes(b"not in the record")
    write(lm, tmp_path, dtype=dtype)
    assert content(tmp_path) == content(request.getfixturevalue(stored))
    before = {path: path.stat().st_mtime_ns for path in shards(tmp_path)}
    write(lm, tmp_path, dtype=dtype)
    assert before == {path: path.stat().st_mtime_ns for path in shards(tmp_path)}, "complete: left alone"


def test_a_collection_says_where_it_goes_on_and_nothing_twice(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        with pytest.raises(_StoppedError):
            write(lm, tmp_path)
    monkeypatch.setattr(strata.activations.store_writing, "_SECONDS_BETWEEN_LINES", -1)  # a line for each shard
    assert capsys.readouterr().err == ""
    write_store(lm, TEXTS, sites=SITES, folder=tmp_path, plan=StorePlan(**SMALL), progress=True)
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "going on behind 2 shards, 600 rows"
    assert [line.split(" rows")[0] for line in lines] == ["900", "1,200", "1,216"]


_KILLED = """
import os, signal, sys
import torch
import strata.activations.store_writing as writing
from strata.activations.store_plan import StorePlan
from strata.lm.model import LanguageModel
from tiny_models import tiny_model

folder, when = sys.argv[1], sys.argv[2]
original = {name: getattr(writing, name) for name in ("write_shard", "write_part")}
calls = []

def dying(name):
    def call(*given, **named):
        found = original[name](*given, **named)
        calls.append(name)
        if when == name and calls.count(name) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    return call

for name in original:
    setattr(writing, name, dying(name))
torch.set_num_threads(1)
texts = torch.randint(2, 300, (76, 16), generator=torch.Generator().manual_seed(3))
plan = StorePlan(dtype="fp32", shard_rows=300, buffer_tokens=600, text_batch_size=8)
lm = LanguageModel(tiny_model("gpt_neox"))
writing.write_store(lm, texts, sites=["layers.0", "layers.1"], folder=writing.Path(folder), plan=plan)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_a_store_that_goes_on(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}

    def run(folder: Path, when: str) -> int:
        return subprocess.run([sys.executable, "-c", _KILLED, folder, when], env=environment).returncode

    assert run(tmp_path / "whole", "never") == 0
    for when in ("write_shard", "write_part"):
        assert run(tmp_path / when, when) == -signal.SIGKILL
        assert open_store(tmp_path / when, allow_incomplete=True).n_rows() == (600 if when == "write_shard" else 900)
        assert run(tmp_path / when, "never") == 0
        assert content(tmp_path / when) == content(tmp_path / "whole")


def test_leaving_early_is_silent_to_the_end_of_the_program(written: Path):
    code = f"""
from strata.activations.store import open_store
rows = open_store({str(written)!r}).shuffled(batch_size=10, n_epochs=50, seed=0).batches()
next(rows)
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_several_processes_write_one_store(lm: LanguageModel, collected: Activations, tmp_path: Path):
    for number in (2, 3):
        write(lm, tmp_path / "store", part=f"{number}/3")
    with pytest.raises(ValueError, match=r"not complete: part 1/3 is not\..*allow_incomplete=True"):
        open_store(tmp_path / "store")
    store = write(lm, tmp_path / "store", part="1/3")
    assert torch.equal(in_order(open_store(tmp_path / "store")["layers.0"]), in_order(collected["layers.0"]))
    assert {path.name.split("-shard")[0] for path in shards(store.folder)} == {f"part-0000{n}" for n in range(3)}
    divided = write(lm, tmp_path / "divided", TEXTS[:20], part="1/3", n_tokens=100)
    assert divided.n_rows() == 34


def test_only_one_process_makes_the_manifest_and_a_part(written: Path, lm: LanguageModel, tmp_path: Path):
    manifest = read_manifest(written)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: write_manifest(tmp_path, manifest), range(32)))
    assert sum(made) == 1
    assert read_manifest(tmp_path) == manifest
    assert len(list(tmp_path.iterdir())) == 1
    part = Part(0, 1)
    with (
        only_writer(written, part.record_name(), what="held"),
        pytest.raises(ValueError, match="Part 1/1 of the store"),
    ):
        write(lm, written)


def test_a_file_system_without_links_will_do(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_links(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    manifest = read_manifest(written)
    assert [write_manifest(tmp_path, manifest), write_manifest(tmp_path, manifest)] == [True, False]
    assert read_manifest(tmp_path) == manifest


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"dtype": "fp16"}, "dtype was 'fp32' and is now 'fp16'"),
        ({"seed": 1}, "settings.seed was 0 and is now 1"),
        ({"n_tokens": 50}, "n_tokens was 'all' and is now 50"),
        ({"part": "1/2"}, "n_parts was 1 and is now 2"),
        ({"texts": TEXTS + 1}, "text.texts.fingerprint differs"),
        ({"lm": LanguageModel(tiny_model("gpt2"))}, "model.model_class was 'GPTNeoXForCausalLM'"),
    ],
)
def test_a_store_is_not_mixed_up(lm: LanguageModel, copy: Path, changed: dict[str, Any], named: str):
    before = content(copy)
    with pytest.raises(ValueError, match="was begun with another") as error:
        write(**{"lm": lm, "folder": copy, **changed})
    assert named in str(error.value)
    assert content(copy) == before


def documents(n: int = 60) -> list[str]:
    return [f"{number} " + "abcdefgh"[number % 8] * 8 for number in range(n)]


def test_held_out_rows_are_of_other_documents(lm: LanguageModel, tmp_path: Path):
    settings = {"context_tokens": 32, "split": "train", "texts": documents(150)}
    store = write(lm, tmp_path / "store", held_out_tokens=30, **settings)
    held_out = store.held_out(site="layers.0")
    assert held_out.shape == (30, 32)
    assert torch.equal(store.held_out(9, site="layers.0"), held_out[:9])
    assert store.n_rows() == write(lm, tmp_path / "without", **settings).n_rows()
    assert open_store(tmp_path / "without").held_out(site="layers.0").shape == (0, 32)
    collected = collect_activations(lm, documents(150), "layers.0", context_tokens=32)
    assert store.n_rows() < collected.n_rows() - 30, "those to train on are not all"
    assert store.describe()["text"]["texts"]["split"] == "train"
    few = write(lm, tmp_path / "few", held_out_tokens=30, **{**settings, "texts": documents(3)})
    assert few.held_out(site="layers.0").shape == (0, 32), "three documents have none to hold out"


def test_a_text_with_fewer_rows_ends_the_store(lm: LanguageModel, tmp_path: Path):
    assert write(lm, tmp_path / "store", TEXTS[:20], n_tokens=1000).n_rows() == 320
    assert write(lm, tmp_path / "less", TEXTS[:20], n_tokens=310).n_rows() == 310


def spoil(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


def read_all(folder: Path) -> None:
    for _ in open_store(folder).shuffled(batch_size=64, n_epochs=1, seed=0).batches():
        pass


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (halve, "bytes instead of"),
        (Path.unlink, "it is missing"),
        (lambda path: spoil(path, 40), "its header has changed"),
        (lambda path: spoil(path, path.stat().st_size - 5), "the checksum of layers.1, block 2, differs"),
    ],
)
def test_a_damaged_shard_is_named_and_can_be_written_anew(
    lm: LanguageModel, copy: Path, damage: Callable[[Path], None], why: str
):
    before, shard = content(copy), shards(copy)[2]
    damage(shard)
    with pytest.raises(ValueError, match="is damaged") as error:
        read_all(copy)
    assert str(shard) in str(error.value)
    assert why in str(error.value)
    shard.unlink(missing_ok=True)
    write(lm, copy)
    assert content(copy) == before
    read_all(copy)


def test_a_checksum_is_looked_at_once(written: Path, monkeypatch: pytest.MonkeyPatch):
    looked: list[bool] = []
    original = Shard.block
    monkeypatch.setattr(Shard, "block", lambda self, *a, **k: looked.append(k["verify"]) or original(self, *a, **k))
    store = open_store(written)
    for seed in range(3):
        list(store.shuffled(batch_size=64, n_epochs=1, seed=seed).batches())
    assert sum(looked) == len(looked) // 3 == 2 * (3 * 4 + 1)
    store.close()
    assert len(store["layers.0"]) == N_ROWS


def test_damaged_notes_are_named(copy: Path):
    record = copy / "part-00000-of-00001.json"
    whole = record.read_text()
    record.write_text(whole[:-20])
    with pytest.raises(ValueError, match=r"part-00000-of-00001\.json is damaged"):
        open_store(copy)
    record.write_text(json.dumps({"shards": [{}], "held_out": [], "complete": True}))
    with pytest.raises(ValueError, match=r"part-00000-of-00001\.json is damaged"):
        open_store(copy)
    record.write_text(whole)
    manifest = json.loads((copy / "manifest.json").read_text())
    for changed, message in (
        ({"format": "other"}, "names the format 'strata-store'"),
        ({"format_version": 2}, "version 1 and older.*version 2"),
        ({"colour": "red"}, "its keys are not those of a store"),
    ):
        (copy / "manifest.json").write_text(json.dumps(manifest | changed))
        with pytest.raises(ValueError, match=message):
            open_store(copy)


def test_a_damaged_encoding_is_named(written_int8: Path, tmp_path: Path):
    shutil.copytree(written_int8, tmp_path / "store")
    spoil(
        tmp_path / "store" / "encoding.safetensors", -1 + (tmp_path / "store" / "encoding.safetensors").stat().st_size
    )
    with pytest.raises(ValueError, match=r"encoding\.safetensors is damaged"):
        open_store(tmp_path / "store")


def test_a_full_disk_leaves_what_was_finished(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original, calls = safetensors.torch.save_file, []

    def full(*given: Any, **named: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", full)
        with pytest.raises(ValueError, match="No space left on device") as error:
            write(lm, tmp_path / "store")
    assert str(tmp_path / "store") in str(error.value)
    assert open_store(tmp_path / "store", allow_incomplete=True).n_rows() == 600
    assert not list((tmp_path / "store").glob("*unfinished*"))
    assert write(lm, tmp_path / "store").n_rows() == N_ROWS


def test_places_that_are_no_store(lm: LanguageModel, tmp_path: Path):
    with pytest.raises(ValueError, match="is no folder"):
        open_store(tmp_path / "none")
    with pytest.raises(ValueError, match=r"holds no manifest\.json"):
        open_store(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"needs a folder of its own\..*holds 'mine.txt'"):
        write(lm, tmp_path)
    with pytest.raises(ValueError, match=r"mine\.txt is a file"):
        write(lm, tmp_path / "mine.txt")
    with pytest.raises(ValueError, match=r"must be a folder that can be written.*Not a directory"):
        write(lm, tmp_path / "mine.txt" / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_questions_that_a_store_cannot_answer(lm: LanguageModel, written: Path):
    store = open_store(written)
    for ask in (store.d_in, store.only, lambda site: store.held_out(site=site), lambda site: store[site]):
        with pytest.raises(ValueError, match=r"has no site 'layers\.4'\. Did you mean 'layers\."):
            ask("layers.4")
    with pytest.raises(ValueError, match="at least one site"):
        store.only([])
    store.check_model(lm.fingerprint() | {"name": "elsewhere"})
    other = LanguageModel(tiny_model("gpt2")).fingerprint()
    with pytest.raises(ValueError, match=r"holds activations of 'GPTNeoXForCausalLM'.*model_class and n_parameters"):
        store.check_model(other)
    for wrong in (3, ["a"], None):
        with pytest.raises(ValueError, match="or the path of a store"):
            rows_of(wrong)
    given = rows_of(str(written))
    assert given.describe() == store.describe() == rows_of(store).describe()
    assert rows_of(torch.zeros(2, 2)).n_rows() == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": "int4"}, "`dtype` must be one of fp32, fp16, bf16, int8"),
        ({"part": "5/4"}, "`part` must be.*Got '5/4'"),
        ({"part": "0/4"}, "`part` must be.*Got '0/4'"),
        ({"part": "two"}, "`part` must be.*Got 'two'"),
        ({"n_tokens": 3, "part": "1/4"}, "`n_tokens` must be at least 4, one for each part. Got 3"),
        ({"shard_rows": 0}, "`shard_rows` must be at least 1"),
        ({"held_out_tokens": 10}, "`split` must be \"train\" beside held_out_tokens=10. Got 'all'"),
        ({"buffer_tokens": 10}, "`buffer_tokens` must hold one training batch"),
        ({"texts": iter(["a text"]), "part": "1/2"}, "`part` needs texts that can be opened more than once"),
        ({"texts": iter(["a"]), "held_out_tokens": 5, "split": "train"}, "`held_out_tokens` needs texts"),
        ({"texts": [" "]}, "must hold some text"),
    ],
)
def test_plans_that_cannot_be_carried_out(lm: LanguageModel, tmp_path: Path, changed: dict[str, Any], message: str):
    given = {"texts": TEXTS, "context_tokens": 16, **changed}
    with pytest.raises(ValueError, match=message):
        write(lm, tmp_path / "store", **given)


def test_an_iterator_fills_a_store_but_cannot_go_on(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"context_tokens": 16, "shard_rows": 100}
    assert write(lm, tmp_path / "whole", iter(documents()), **settings).n_rows() > 300
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        with pytest.raises(_StoppedError):
            write(lm, tmp_path / "store", iter(documents()), **settings)
    with pytest.raises(ValueError, match="cannot be continued from an iterator"):
        write(lm, tmp_path / "store", iter(documents()), **settings)


def test_collect_activations_into_a_store(lm: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store = collect_activations(lm, TEXTS, SITES, store=tmp_path / "store", dtype="bf16", n_tokens=500)
    assert isinstance(store, Store)
    assert store["layers.0"].shape == (500, 32)
    assert store["layers.0"].dtype == torch.bfloat16
    assert "500 of 500 rows" in capsys.readouterr().err
    collect_activations(
        lm, documents(150), store=str(tmp_path / "b"), context_tokens=16, held_out_tokens=9, progress=False
    )
    assert len(open_store(tmp_path / "b").held_out(site=lm.middle_site)) == 9
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="`held_out_tokens` and `part` are of stores"):
        collect_activations(lm, TEXTS, held_out_tokens=9)


def test_the_command_collects_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = save_tiny_model(tmp_path / "model")
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(150)))
    config = CollectConfig(
        model=str(model), data=str(data), sites=("middle", "layers.2"), out=tmp_path / "out", held_out_tokens=30,
        context_tokens=MAX_POSITIONS, device="cpu", dtype="int8", n_tokens=1000,
    )  # fmt: skip
    folder = collect_run(config)
    store = open_store(folder)
    assert (store.sites, store.n_rows()) == (["layers.1", "layers.2"], 1000)
    assert len(store.held_out(site="layers.2")) == 30
    description = store.describe()
    assert (description["mode"], description["text"]["context_tokens"]) == ("store", MAX_POSITIONS)
    assert "2 sites of width 32" in capsys.readouterr().err
    collect_run(config, progress=True)
    assert "part 1/1 is complete" in capsys.readouterr().err
    assert CollectConfig(model="org/m", data="a/b.txt").folder() == Path("stores/m-b")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dtype": "int4"}, r"`CollectConfig\.dtype` must be 'fp32' or"),
        ({"held_out_tokens": -1}, "`held_out_tokens` must be at least 0"),
        ({"n_tokens": 0}, "`n_tokens` must be at least 1"),
        ({"shard_row": 5}, "no setting 'shard_row'. Did you mean 'shard_rows'"),
        ({"sites": ()}, "`sites` must name at least one site"),
    ],
)
def test_collections_that_make_no_sense(setting: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        CollectConfig(**setting)
