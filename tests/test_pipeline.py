"""Forwards that run ahead, in pieces that fit the memory, compiled: the same rows, and nothing left behind."""

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from strata.activations import ahead
from strata.activations.ahead import InThread, OnSideStream, WhenAsked, way_of
from strata.activations.draws import Draws
from strata.activations.harvest import harvest, token_stream
from strata.activations.source import SiteRows
from strata.activations.stream import Stream
from strata.activations.streamed_rows import StreamedRows
from strata.config.layer_groups import Group
from strata.errors import UserError, is_out_of_memory
from strata.lm import microbatch
from strata.lm.compiled import CompiledBlocks, pays
from strata.lm.microbatch import Microbatch, positions_between
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenBatch
from strata.lm.transfer import moved
from tiny_models import shared_language_model, tiny_model

SITES = ["layers.0", "layers.1"]
GROUP = Group(("layers.0", "layers.1"))
IDS = torch.randint(2, 300, (20, 16), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def lm() -> LanguageModel:
    """One of its own: pieces are remembered."""
    return LanguageModel(tiny_model("gpt_neox"))


def open_stream(*, overlap: str = "off", lm: LanguageModel | None = None, text_batch_size: int = 3) -> Stream:
    model = shared_language_model("gpt_neox") if lm is None else lm
    tokens = token_stream(model, IDS, text_batch_size=text_batch_size)
    return Stream(model, tokens, sites=SITES, buffer_tokens=128, overlap=overlap)


def shuffled(stream: Stream, *, batch_size: int = 32, n_epochs: int = 2) -> StreamedRows:
    return stream.shuffled(batch_size=batch_size, n_epochs=n_epochs, seed=5, reads=["layers.1", GROUP])


def assert_same(found: list[SiteRows], wanted: list[SiteRows]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert list(one) == list(other)
        assert all(torch.equal(one[key], other[key]) for key in one)


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("strata-forward")]


def until(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 5
    while not true() and time.monotonic() < end:
        time.sleep(0.002)
    return true()


def noted(stream: Stream, do: Callable[[int], None] = lambda number: None) -> list[int]:
    """The numbers of the batches that the stream's model is run on, as they are; `do` is done before each."""
    numbers: list[int] = []
    original = stream.harvest

    def run(batch: TokenBatch, draws: Draws, *, number: int) -> SiteRows:
        numbers.append(number)
        do(number)
        return original(batch, draws, number=number)

    stream.harvest = run
    return numbers


# --- ahead of the training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [32, 80], ids=["smaller than a forward", "larger"])
def test_forwards_in_a_thread_give_the_same_batches(batch_size: int) -> None:
    wanted = list(shuffled(open_stream(), batch_size=batch_size).batches())
    stream = open_stream(overlap="thread")
    numbers = noted(stream, lambda number: time.sleep(0.004 * (number % 3 == 0)))
    found = []
    for step, batch in enumerate(shuffled(stream, batch_size=batch_size).batches()):
        found.append(batch)
        time.sleep(0.003 * (step % 5 == 0))
    assert_same(found, wanted)
    assert numbers == list(range(14)), "both epochs, each batch once"
    assert not own_threads()


@pytest.mark.parametrize("step", [1, 12])
@pytest.mark.parametrize("sampled", [True, False])
def test_a_resumed_stream_gives_the_same_batches(step: int, sampled: bool) -> None:
    wanted = list(shuffled(open_stream()).batches())
    rows = shuffled(open_stream(overlap="thread"))
    rows.sample(64, site="layers.1")
    batches = rows.batches()
    assert_same([next(batches) for _ in range(step)], wanted[:step])
    state = rows.state(step)
    state["activations"] = {key: tensor.clone() for key, tensor in state["activations"].items()}
    batches.close()

    def begun_again() -> StreamedRows:
        again = shuffled(open_stream(overlap="thread"))
        if sampled:
            again.sample(64, site="layers.1")  # begins forwards that are not wanted then
        return again

    assert_same(list(begun_again().batches(start_step=step)), wanted[step:])
    with_buffer = begun_again()
    with_buffer.load_state(state)
    assert_same(list(with_buffer.batches(start_step=step)), wanted[step:])


def test_the_next_forwards_run_while_a_batch_is_trained_on_and_no_more() -> None:
    for batch_size, n_ahead in ((32, 1), (80, 2)):
        stream = open_stream(overlap="thread")
        numbers = noted(stream)
        with closing(shuffled(stream, batch_size=batch_size).batches()) as batches:
            next(batches)
            n_used = 2  # of 48 rows: the buffer has 128
            assert until(lambda: len(numbers) == n_used + n_ahead)  # noqa: B023
            time.sleep(0.05)
            assert len(numbers) == n_used + n_ahead
    asked = open_stream()
    numbers = noted(asked)
    next(shuffled(asked).batches())
    assert len(numbers) == 2


@pytest.mark.parametrize("kind", [UserError, RuntimeError])
@pytest.mark.parametrize("overlap", ["thread", "off"])
def test_what_a_forward_raises_reaches_the_one_who_asks(kind: type[Exception], overlap: str) -> None:
    def fail_at_five(number: int) -> None:
        if number == 5:
            raise kind("number five")

    stream = open_stream(overlap=overlap)
    noted(stream, fail_at_five)
    wanted, found = list(shuffled(open_stream()).batches()), []
    with pytest.raises(kind, match="number five") as raised:
        found.extend(shuffled(stream).batches())  # keeps those before it
    assert "fail_at_five" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert_same(found, wanted[: len(found)])
    assert len(found) == 5, "rows of the batches before it are given first"
    assert not own_threads()


def test_what_the_text_raises_comes_in_its_turn() -> None:
    def torn(stream: Stream) -> Iterator[TokenBatch]:
        for number, batch in enumerate(Stream.token_batches(stream, 10**6)):
            if number == 6:
                raise UserError("the disk is gone")
            yield batch

    given: dict[str, list[SiteRows]] = {"thread": [], "off": []}
    for overlap, found in given.items():
        stream = open_stream(overlap=overlap)
        stream.token_batches = lambda n_rows, stream=stream: torn(stream)
        with pytest.raises(UserError, match="the disk is gone"):
            found.extend(shuffled(stream).batches())
    assert len(given["off"]) > 3
    assert_same(given["thread"], given["off"])


def test_leaving_early_leaves_no_thread() -> None:
    def begun() -> Any:
        stream = open_stream(overlap="thread")
        noted(stream, lambda number: time.sleep(0.01))
        batches = shuffled(stream).batches()
        next(batches)
        assert own_threads()
        return batches

    begun().close()
    assert not own_threads()
    batches = begun()
    del batches
    assert not own_threads()
    with pytest.raises(KeyboardInterrupt), closing(begun()):
        raise KeyboardInterrupt
    assert not own_threads()
    rows = shuffled(open_stream(overlap="thread"))
    rows.sample(8, site="layers.1")  # and no batch is ever asked for
    del rows
    assert until(lambda: not own_threads())


def test_closing_waits_for_the_forward_that_runs() -> None:
    way, ended = InThread(), []

    def slowly() -> SiteRows:
        time.sleep(0.05)
        ended.append(1)
        return {}

    first = way.begin(slowly)
    second = way.begin(slowly)
    assert first() == {}
    third = way.begin(slowly)
    assert until(lambda: len(ended) >= 1)
    way.close()
    n_ended = len(ended)
    time.sleep(0.12)
    assert len(ended) == n_ended < 3, "one that waits is not begun any more"
    del second, third


def test_overlap_is_chosen_by_the_device() -> None:
    cpu = torch.device("cpu")
    assert isinstance(way_of("auto", cpu), WhenAsked)
    assert isinstance(way_of("thread", cpu), InThread)
    with pytest.raises(UserError, match=r"`overlap` must be one of auto, thread, off\. Got 'on'"):
        open_stream(overlap="on")
    with pytest.raises(UserError, match=r"`overlap` \"thread\" is for models on the CPU\. This one is on cuda:1"):
        way_of("thread", torch.device("cuda:1"))


class _Cuda:
    """CUDA's streams and events as a list of what would be launched, in the host's order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.current = _FakeStream("main", self)
        self._n_events = 0
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: _FakeStream("side", self))
        monkeypatch.setattr(torch.cuda, "Event", lambda: _FakeEvent(self))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.switched)

    @contextmanager
    def switched(self, stream: "_FakeStream") -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def launch(self, what: str) -> None:
        self.log.append(f"{self.current.name}: {what}")


class _FakeStream:
    def __init__(self, name: str, cuda: _Cuda) -> None:
        self.name, self._cuda = name, cuda

    def wait_stream(self, other: "_FakeStream") -> None:
        self._cuda.log.append(f"{self.name}: wait for {other.name}")

    def wait_event(self, event: "_FakeEvent") -> None:
        self._cuda.log.append(f"{self.name}: wait for {event.place}")


class _FakeEvent:
    def __init__(self, cuda: _Cuda) -> None:
        self._cuda = cuda

    def record(self, stream: _FakeStream) -> None:
        last = next(line for line in reversed(self._cuda.log) if line.startswith(stream.name))
        self.place = last


def test_on_cuda_each_stream_waits_for_what_it_needs_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = _Cuda(monkeypatch)
    monkeypatch.setattr(ahead, "way_of", lambda overlap, device: OnSideStream(device))
    monkeypatch.setattr("strata.activations.stream.way_of", ahead.way_of)
    stream = open_stream()
    noted(stream, lambda number: cuda.launch(f"forward {number}"))
    rows = shuffled(stream, batch_size=48)
    write = rows._write
    monkeypatch.setattr(rows, "_write", lambda slots, found: (cuda.launch("write"), write(slots, found)))
    found = []
    for batch in rows.batches():
        cuda.launch("step")
        found.append(batch)
    assert_same(found, list(shuffled(open_stream(), batch_size=48).batches()))
    first_step = cuda.log.index("main: step")
    assert cuda.log[:first_step] == [
        "side: wait for main", "side: forward 0", "side: wait for main", "side: forward 1",
        "main: wait for side: forward 0", "main: write",
        "side: wait for main: write", "side: forward 2",
        "main: wait for side: forward 1", "main: write",
    ]  # fmt: skip
    assert cuda.log[first_step + 1 : first_step + 6] == [
        "side: wait for main: write", "side: forward 3",  # not for the step, beside which it runs
        "main: wait for side: forward 2", "main: write", "main: step",
    ]  # fmt: skip


def test_on_cuda_a_failure_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    _Cuda(monkeypatch)
    way = OnSideStream(torch.device("cuda"))

    def fail() -> SiteRows:
        raise UserError("too long a text")

    monkeypatch.setattr(_FakeEvent, "record", lambda event, stream: setattr(event, "place", "anywhere"))
    rows = way.begin(fail)
    with pytest.raises(UserError, match="too long a text"):
        rows()


def test_small_tensors_move(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(3)
    assert moved(x, torch.device("cpu")) is x
    steps: list[Any] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: (steps.append("pinned"), self)[1])
    monkeypatch.setattr(Tensor, "to", lambda self, device, non_blocking=False: (steps.append(non_blocking), self)[1])
    moved(x, torch.device("cuda"))
    assert steps == ["pinned", True]


# --- pieces that fit the memory -------------------------------------------------------------------------------------


def real_failure() -> None:
    torch.empty(2**58)  # an exbibyte


def out_of_cuda_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")


def limit(lm: LanguageModel, n_sequences: int, fail: Callable[[], None] = real_failure) -> list[int]:
    """Passes of more sequences fail; the list gets the size of every pass."""
    sizes: list[int] = []

    def before(module: Any, args: Any) -> None:
        sizes.append(len(args[0]))
        if len(args[0]) > n_sequences:
            fail()

    lm.model.get_input_embeddings().register_forward_pre_hook(before)
    return sizes


def batch_with_pads() -> TokenBatch:
    attended = torch.ones(12, 16, dtype=torch.bool)
    attended[-1, 5:] = False
    is_row = attended.clone()
    is_row[:, 0] = False
    is_row[4:6] = False  # a piece without any row
    return TokenBatch(IDS[:12], attended, is_row)


@pytest.mark.parametrize("fail", [real_failure, out_of_cuda_memory])
def test_out_of_memory_is_answered_by_smaller_pieces_once(
    lm: LanguageModel, fail: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    batch, draws = batch_with_pads(), Draws(["layers.1", GROUP], seed=1)
    wanted = harvest(lm, batch, [], draws=draws, number=7)
    everywhere = harvest(lm, TokenBatch(IDS, IDS >= 0, IDS >= 0), SITES)
    assert capsys.readouterr().err == ""
    sizes = limit(lm, 3, fail)
    found = harvest(lm, batch, [], draws=draws, number=7)
    assert sizes == [12, 6, 3, 3, 3, 3]
    assert capsys.readouterr().err == (
        "Out of memory in a forward of 12 sequences of 16 tokens: from now on 3 at a time. The rows are the same up to"
        " rounding.\n"
    )
    assert list(found) == list(wanted)
    assert torch.equal(found["layers.0-1:layer"], wanted["layers.0-1:layer"]), "what is drawn is drawn for the batch"
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-4, atol=1e-4)
    del sizes[:]
    again = harvest(lm, TokenBatch(IDS, IDS >= 0, IDS >= 0), SITES)
    assert sizes == [3] * 6 + [2]
    assert capsys.readouterr().err == "", "it is known by now"
    for site in SITES:
        torch.testing.assert_close(again[site], everywhere[site], rtol=1e-4, atol=1e-4)
    del sizes[:]
    harvest(lm, TokenBatch(IDS[:6].view(12, 8), IDS[:6].view(12, 8) >= 0, IDS[:6].view(12, 8) >= 0), SITES)
    assert sizes[0] == 6, "as many tokens at a time, not as many sequences"


def test_a_stream_goes_on_in_smaller_pieces(lm: LanguageModel) -> None:
    wanted = list(shuffled(open_stream()).batches())
    for overlap in ("off", "thread"):
        own = LanguageModel(tiny_model("gpt_neox"))
        said: list[str] = []
        own.microbatch.say = said.append
        limit(own, 2)
        found = list(shuffled(open_stream(overlap=overlap, lm=own)).batches())
        assert len(said) == 1
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one["layers.0-1:layer"], other["layers.0-1:layer"])
            torch.testing.assert_close(one["layers.1"], other["layers.1"], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(one["layers.0-1"], other["layers.0-1"], rtol=1e-4, atol=1e-4)


def test_one_sequence_that_does_not_fit_is_said(lm: LanguageModel) -> None:
    sizes = limit(lm, 0)
    with pytest.raises(UserError) as raised:
        harvest(lm, batch_with_pads(), SITES)
    assert sizes == [12, 6, 3, 2, 1]
    said = str(raised.value)
    assert said.startswith(
        "`context_tokens` must be so few that one sequence fits the memory, whatever `text_batch_size` is. Got 16. It"
        " ran out: "
    )
    assert "can't allocate memory" in said
    assert said.endswith("Lower context_tokens, read an earlier site, or load the model in bf16.")


def test_other_errors_are_left_alone(lm: LanguageModel) -> None:
    def broken() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    sizes = limit(lm, 0, broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        harvest(lm, batch_with_pads(), SITES)
    assert sizes == [12]


def test_what_out_of_memory_is() -> None:
    with pytest.raises(RuntimeError) as raised:
        real_failure()
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_the_first_size_is_that_which_fits(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 6e5
    monkeypatch.setattr(microbatch, "free_memory", lambda device: free)
    said: list[str] = []
    sizes = limit(lm, 1000)
    lm.microbatch.say = said.append
    batch = TokenBatch(IDS, IDS >= 0, IDS >= 0)
    harvest(lm, batch, SITES)
    assert 1 < sizes[0] < 20
    assert sum(sizes) == 20
    assert lm.microbatch.size(20, context_tokens=16) == sizes[0]
    [line] = said
    assert line == (
        f"The language model takes {sizes[0]} of 20 sequences of 16 tokens at a time: 20 would need about 0.0 GB, and"
        " 0.0 GB is free."
    )
    harvest(lm, batch, SITES)
    assert len(said) == 1
    free = 1e12
    harvest(lm, batch, SITES)
    assert sizes[-1] < 20, "decided once: not by what is free at the moment"
    plenty = LanguageModel(tiny_model("gpt_neox"))
    all_sizes = limit(plenty, 1000)
    harvest(plenty, batch, SITES)
    assert all_sizes == [20]
    free = 1e3
    poor = LanguageModel(tiny_model("gpt_neox"))
    with pytest.raises(UserError, match=r"Got 16\. It would need about .* GB; 0\.0 GB is free\. Lower context_tokens"):
        harvest(poor, batch, SITES)


def test_an_eager_attention_needs_more(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def request(n_sequences: int = 4) -> float:
        return microbatch.Request(lm, {"a": "layers.1"}, {"a": 64}, n_sequences=4, context_tokens=16).bytes(n_sequences)

    fused, half = request(), request(2)
    rows = 64 * 32 * 4.0
    assert half == pytest.approx(fused / 2 + rows)  # in pieces, the rows of the whole lie beside them
    lm.model.config._attn_implementation = "eager"
    assert request() == pytest.approx(fused + 3 * 4 * 4 * 4 * 16**2)
    monkeypatch.setattr(type(lm.model.config), "get_text_config", lambda self: object())
    assert request() == 0


def test_positions_of_a_piece() -> None:
    where = torch.tensor([0, 3, 4, 9, 11])
    assert positions_between(where, 0, 4).tolist() == [0, 3]
    assert positions_between(where, 4, 8).tolist() == [0]
    assert positions_between(where, 8, 12).tolist() == [1, 3]


def test_a_buffer_too_large_is_said() -> None:
    rows = shuffled(open_stream())
    huge = torch.empty(1).expand(1, 2**50)
    with pytest.raises(UserError, match=r"`buffer_tokens` must be so few rows .* memory of cpu\. Got 128\. Lower it"):
        rows._new_storage(huge)


def test_a_microbatch_says_to_whom_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    Microbatch(say=said.append).say("a line")
    assert said == ["a line"]
    assert capsys.readouterr().err == ""


# --- compiled -------------------------------------------------------------------------------------------------------


@pytest.fixture
def compiling() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_with(lm: LanguageModel, backend: Any, sites: list[str] | None = None) -> tuple[CompiledBlocks, list[str]]:
    said: list[str] = []
    return CompiledBlocks(lm, sites or SITES, backend=backend, say=said.append), said


@pytest.mark.usefixtures("compiling")
def test_compiled_blocks_give_the_same_rows(lm: LanguageModel) -> None:
    n_ops: list[int] = []

    def counting(graph: Any, example_inputs: Any) -> Any:
        n_ops.append(len(graph.graph.nodes))
        return graph.forward

    stream = open_stream(lm=lm, text_batch_size=3)
    wanted = list(shuffled(stream).batches())
    compiled, said = compiled_with(lm, counting)
    stream = open_stream(lm=lm, text_batch_size=3)
    stream._compiled = compiled
    found = list(shuffled(stream).batches())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one["layers.1"], other["layers.1"], rtol=1e-4, atol=1e-4)
    assert n_ops, "it was compiled"
    assert len(n_ops) == 1, "blocks of the same code and shape once, the last batch of an epoch not at all"
    assert said == []
    assert all("forward" not in block.__dict__ for block in lm.model.modules())


@pytest.mark.usefixtures("compiling")
def test_compiling_that_fails_is_said_and_the_model_runs_as_it_is(lm: LanguageModel) -> None:
    def broken(graph: Any, example_inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    wanted = lm.activations(IDS[:4], SITES)
    compiled, said = compiled_with(lm, broken)
    for _ in range(2):
        with compiled.used_for(4):
            found = lm.activations(IDS[:4], SITES)
        assert all(torch.equal(found[site], wanted[site]) for site in SITES)
    assert len(said) == 1
    assert said[0].startswith("The language model runs as it is: compiling it failed (")
    assert "no compiler here" in said[0]


@pytest.mark.usefixtures("compiling")
def test_out_of_memory_in_compiled_blocks_is_no_failure_to_compile(lm: LanguageModel) -> None:
    def hungry(graph: Any, example_inputs: Any) -> Any:
        return lambda *given: real_failure()

    compiled, said = compiled_with(lm, hungry)
    with compiled.used_for(4), pytest.raises(RuntimeError, match="can't allocate memory"):
        lm.activations(IDS[:4], SITES)
    assert not compiled.failed
    assert said == []


@pytest.mark.usefixtures("compiling")
def test_a_block_with_a_site_inside_is_not_compiled(lm: LanguageModel) -> None:
    n_compiled: list[int] = []

    def counting(graph: Any, example_inputs: Any) -> Any:
        n_compiled.append(1)
        return graph.forward

    compiled, _ = compiled_with(lm, counting, ["layers.0.mlp"])
    wanted = lm.activations(IDS[:4], ["layers.0.mlp"])
    with compiled.used_for(4):
        found = lm.activations(IDS[:4], ["layers.0.mlp"])
    assert torch.equal(found["layers.0.mlp"], wanted["layers.0.mlp"])
    assert n_compiled == []


def test_where_compiling_pays(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not pays(lm, SITES, n_tokens=10**18, context_tokens=16)  # on the CPU
    monkeypatch.setattr(LanguageModel, "device", torch.device("cuda"))
    monkeypatch.setattr("strata.lm.compiled.find_spec", lambda name: object())
    assert pays(lm, SITES, n_tokens=10**18, context_tokens=16)
    assert not pays(lm, SITES, n_tokens=10**6, context_tokens=16)
    monkeypatch.setattr("strata.lm.compiled.find_spec", lambda name: None)
    assert not pays(lm, SITES, n_tokens=10**18, context_tokens=16)


def test_an_unknown_way_to_compile_is_refused(lm: LanguageModel) -> None:
    tokens = token_stream(lm, IDS, text_batch_size=3)
    with pytest.raises(UserError, match=r"`lm_compile` must be one of auto, on, off\. Got 'yes'"):
        Stream(lm, tokens, sites=SITES, lm_compile="yes")
    assert Stream(lm, tokens, sites=SITES, lm_compile="on")._compiled is not None
