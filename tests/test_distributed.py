"""Several processes train as one: the same bits on every rank, in every run, and as one process in rank order."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import strata
from strata.activations.collected import Activations
from strata.activations.harvest import token_stream
from strata.assignments import assign
from strata.checkpoint import checkpoint_steps, load_checkpoint
from strata.config.train import SAEConfig, TrainConfig
from strata.costs.step import SAEShape
from strata.distributed.checkpoint import restored
from strata.distributed.latents import LatentShard
from strata.distributed.outcomes import packed, unpacked
from strata.distributed.ranks import ALONE, Ranks, joined_ranks
from strata.distributed.rows import SharedStream
from strata.distributed.spread import Spread, chosen_spread, dealt
from strata.errors import UserError
from strata.kernels.gradient import matrix
from strata.loop import step_all
from strata.prepare import Prepared, prepare
from strata.recording import Recording
from strata.run import train_run
from strata.sae.rules.base import Outcome
from strata.sae.rules.registry import RULES
from strata.signals import Interrupted
from strata.train import train
from tiny_models import WIDTH, save_tiny_model, shared_language_model

SMALL = SAEConfig(expansion_factor=3, k=4, batch_size=48, text_batch_size=4, dead_feature_window=3)
ARCHITECTURES = tuple(RULES)
N_STEPS, HALF = 20, 10
SITES = ["layers.0", "layers.1", "layers.2"]
CPU = torch.device("cpu")


def same_bits(ranks: Ranks, tensors: list[Tensor]) -> bool:
    """Whether replicas are replicas still: exact checksums of their numbers agree."""
    own = torch.stack([t.detach().contiguous().view(-1).view(torch.int32).long().sum() for t in tensors])
    found = ranks.equal_gathered(own)
    return bool((found == found[0]).all())


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- ranks of a test ------------------------------------------------------------------------------------------------


def in_rank(job: Callable[..., Any], rank: int, size: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    sys.stderr = (folder / f"said-{rank}").open("w")
    try:
        with joined_ranks(init_method=f"file://{folder}/meet", rank=rank, size=size) as ranks:
            found = job(ranks, *arguments)
        torch.save(found, folder / f"found-{rank}.pt")
    except UserError as error:  # as `strata.cli.main` does
        print(f"strata: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except Interrupted as stopped:
        print(f"strata: {stopped}", file=sys.stderr, flush=True)
        sys.exit(stopped.exit_code)


def started(job: Callable[..., Any], size: int, *arguments: Any) -> tuple[list[Any], Path]:
    processes = multiprocessing.get_context("forkserver")
    preloaded = ["strata.run", "torch.distributed.checkpoint", "transformers.models.gpt_neox.modeling_gpt_neox"]
    processes.set_forkserver_preload(preloaded)
    folder = Path(tempfile.mkdtemp(prefix="strata-ranks-"))
    ranks = [processes.Process(target=in_rank, args=(job, rank, size, folder, arguments)) for rank in range(size)]
    for one in ranks:
        one.start()
    return ranks, folder


def together(job: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
    """What a job gives on each of `size` gloo processes."""
    ranks, folder = started(job, size, *arguments)
    for one in ranks:
        one.join(60)
    said = [(folder / f"said-{rank}").read_text() for rank in range(size)]
    assert [one.exitcode for one in ranks] == [0] * size, "\n".join(said)
    assert "Warning" not in "".join(said), "\n".join(said)
    found = [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(size)]
    shutil.rmtree(folder)
    return found


def differing(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested states are not the same bits."""
    if isinstance(a, dict):
        assert list(a) == list(b), path
        return [place for key in a for place in differing(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple):
        return [place for i, (x, y) in enumerate(zip(a, b, strict=True)) for place in differing(x, y, f"{path}/{i}")]
    same = torch.equal(a, b) if isinstance(a, Tensor) else a == b
    return [] if same else [path]


def rows(n_rows: int = 2000, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(60, WIDTH, generator=generator)
    code = torch.rand(n_rows, 60, generator=generator) * (torch.rand(n_rows, 60, generator=generator) < 0.1)
    return code @ features + 0.01 * torch.randn(n_rows, WIDTH, generator=generator) + 0.5


def activations() -> Activations:
    return Activations({site: rows(seed=number) for number, site in enumerate(SITES)})


def spread_of(kind: str, ranks: Ranks, owners: dict[str, int] | None = None) -> Spread:
    return Spread(ranks=ranks, kind=kind, owners=owners or {})  # pyright: ignore[reportArgumentType]


def prepared_with(config: SAEConfig, spread: Spread | None = None, *, sites: list[str] | None = None) -> Prepared:
    sites = sites or SITES[:1]
    source = Activations({site: activations()[site] for site in sites})
    return prepare(source, assign(sites, config), n_steps=N_STEPS, spread=spread)


def steps(prepared: Prepared, n_steps: int) -> list[float]:
    """Losses of the first learner."""
    batches, losses = prepared.rows.batches(), []
    for _ in range(n_steps):
        step_all(prepared.learners, next(batches))
        losses.append([learner.statistics()["loss"] for learner in prepared.learners.values()])
    return [one[0] for one in losses]


def states(prepared: Prepared) -> dict[str, Any]:
    return {key: learner.state() for key, learner in prepared.learners.items()}


def as_micro_batches(prepared: Prepared, n_parts: int) -> Prepared:
    for learner in prepared.learners.values():
        learner.pieces.n_rows = prepared.batch_size // n_parts
    return prepared


# --- data parallel --------------------------------------------------------------------------------------------------


def replicated(ranks: Ranks, configs: dict[str, SAEConfig]) -> dict[str, Any]:
    found = {}
    for name, config in configs.items():
        prepared = prepared_with(config, spread_of("data", ranks))
        steps(prepared, N_STEPS)
        [learner] = prepared.learners.values()
        assert same_bits(ranks, list(learner.params.values()))
        found[name] = states(prepared)
    return found


CONFIGS = {name: replace(SMALL, architecture=name) for name in ARCHITECTURES} | {
    "resample": replace(SMALL, revival="resample", architecture="topk"),
    "ghost": replace(SMALL, revival="ghost"),
    "no revival": replace(SMALL, revival="none"),
}


@pytest.fixture(scope="module")
def two_replicas() -> list[Any]:
    return together(replicated, 2, CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_replicas_are_one_process_that_accumulates(name: str, two_replicas: list[Any]) -> None:
    first, second = two_replicas
    assert differing(first[name], second[name]) == []
    alone = as_micro_batches(prepared_with(CONFIGS[name]), 2)
    steps(alone, N_STEPS)
    assert differing(states(alone), first[name]) == []
    [state] = first[name].values()
    assert state["n_steps_done"] == N_STEPS
    assert state["last_fired_step"].max() == N_STEPS


def test_four_replicas_and_another_run(two_replicas: list[Any]) -> None:
    few = {name: CONFIGS[name] for name in ("topk", "jumprelu")}
    four = together(replicated, 4, few)
    for other in four[1:]:
        assert differing(four[0], other) == []
    alone = as_micro_batches(prepared_with(CONFIGS["topk"]), 4)
    steps(alone, N_STEPS)
    assert differing(states(alone), four[0]["topk"]) == []
    assert differing({name: two_replicas[0][name] for name in few}, four[0]) != []  # micro-batches of other sizes
    again = together(replicated, 2, few)
    assert differing({name: two_replicas[0][name] for name in few}, again[1]) == []


def losses_of_fifty(ranks: Ranks) -> list[float]:
    source = Activations({"layers.0": rows(3000)})
    config = replace(SMALL, lr=2e-3, dead_feature_window=100)
    prepared = prepare(source, assign(["layers.0"], config), n_steps=50, spread=spread_of("data", ranks))
    return steps(prepared, 50)


def test_fifty_steps_are_those_of_the_large_batch() -> None:
    two = together(losses_of_fifty, 2)
    large = losses_of_fifty(ALONE)
    assert two[0] == two[1]
    assert max(abs(a - b) for a, b in zip(two[0], large, strict=True)) < 1e-5
    assert large[-1] < 0.9 * large[0]


def outcome_of(architecture: str, *, dense: bool) -> tuple[Outcome, Any]:
    config = replace(SMALL, architecture=architecture)  # pyright: ignore[reportArgumentType]
    [learner] = prepared_with(config).learners.values()
    if dense:
        learner.rule.dense_share = 0.0  # pyright: ignore[reportAttributeAccessIssue]
    batch = learner._batch(rows(12), None, None)
    return learner.rule.step(batch, learner.params, score_dtype=torch.float32), batch


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "relu of all"])
def test_an_outcome_arrives_as_it_was_sent(architecture: str) -> None:
    sent, batch = outcome_of(architecture.split(maxsplit=1)[0], dense="all" in architecture)
    letter = packed(sent, batch)
    got = unpacked(letter, batch)
    for name in ("values", "residual", "loss", "penalty", "d_rows", "slope", "d_scores"):
        assert torch.equal(getattr(sent, name), getattr(got, name)), name
    assert {n: matrix(g).tolist() for n, g in sent.gradients.items()} == {
        n: matrix(g).tolist() for n, g in got.gradients.items()
    }
    if architecture == "topk":  # 16 bytes an entry, a residual a row, a number a latent, a header
        assert len(letter) < 16 * len(sent.values) + 4 * sent.residual.numel() + 4 * 3 * WIDTH + 2000


# --- the SAEs dealt out, the text shared ----------------------------------------------------------------------------


def token_ids(n_sequences: int = 80) -> Tensor:
    return torch.randint(2, 290, (n_sequences, 16), generator=torch.Generator().manual_seed(3))


def shared_stream(ranks: Ranks, n_tokens: int | None = 1200) -> SharedStream:
    lm = shared_language_model("gpt_neox")
    tokens = token_stream(lm, token_ids(), context_tokens=16, text_batch_size=4)
    return SharedStream(lm, tokens, ranks=ranks, sites=SITES, n_tokens=n_tokens, buffer_tokens=400, lm_dtype="fp32")


class OneAfterTheOther:
    """The reference: in one process, all ranks' pieces of every batch, in their order."""

    def __init__(self, size: int) -> None:
        self.size, self.sites = size, SITES
        self.sources = [shared_stream(Ranks(rank, size)) for rank in range(size)]

    def d_in(self, site: str) -> int:
        return WIDTH

    def n_rows(self) -> int:
        return self.sources[0].n_rows()

    def describe(self) -> dict[str, Any]:
        return self.sources[0].describe()

    def shuffled(self, **order: Any) -> Any:
        self.parts = [source.shuffled(**order) for source in self.sources]
        return self

    def sample(self, n_rows: int, *, site: str) -> Tensor:
        return torch.cat([part.sample(-(-n_rows // self.size), site=site) for part in self.parts])

    def batches(self, start_step: int = 0) -> Iterator[dict[str, Tensor]]:
        for pieces in zip(*(part.batches(start_step) for part in self.parts), strict=False):
            yield {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}

    def state(self, step: int) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        return


def streamed(ranks: Ranks, kind: str, config: SAEConfig) -> dict[str, Any]:
    owners = {site: number % ranks.size for number, site in enumerate(SITES)}
    given = assign(SITES, config) if kind == "saes" else assign(SITES[1:2], config)
    prepared = prepare(shared_stream(ranks), given, spread=spread_of(kind, ranks, owners))
    steps(prepared, 15)
    return states(prepared)


def test_streams_and_suites_over_ranks() -> None:
    first, second = together(streamed, 2, "saes", SMALL)
    assert (list(first), list(second)) == ([SITES[0], SITES[2]], [SITES[1]])
    alone = prepare(OneAfterTheOther(2), assign(SITES, SMALL))
    assert alone.n_steps == 1200 // SMALL.batch_size
    steps(alone, 15)
    assert differing(states(alone), {site: (first | second)[site] for site in SITES}) == []


def test_a_stream_over_replicas_is_one_process_that_accumulates() -> None:
    config = replace(SMALL, architecture="batchtopk")
    found = together(streamed, 2, "data", config)
    assert differing(found[0], found[1]) == []
    alone = as_micro_batches(prepare(OneAfterTheOther(2), assign(SITES[1:2], config)), 2)
    steps(alone, 15)
    assert differing(states(alone), found[0]) == []


def test_ranks_read_all_of_the_text_once() -> None:
    sources = [shared_stream(Ranks(rank, 3), n_tokens=None) for rank in range(3)]
    read = [batch.input_ids for source in sources for batch in source.own.tokens]
    whole = {tuple(row) for row in token_ids().tolist()}
    assert sorted(tuple(row) for ids in read for row in ids.tolist()) == sorted(whole)
    assert {source.n_rows() for source in sources} == {80 * 16}
    with pytest.raises(UserError, match=r"every process a batch of its own\. It gives 20 of `text_batch_size`=4"):
        shared_stream(Ranks(0, 21), n_tokens=None)


def test_the_dearest_are_dealt_first() -> None:
    shapes = {f"{d_sae}": SAEShape(d_in=64, d_sae=d_sae, k=8) for d_sae in (512, 4096, 1024, 2048, 600)}
    owners = dealt(shapes, n_ranks=2, batch_size=128)
    assert owners == {"512": 1, "4096": 0, "1024": 1, "2048": 1, "600": 1}
    assert list(owners) == list(shapes)


# --- latents over ranks ---------------------------------------------------------------------------------------------


def sharded(ranks: Ranks, config: SAEConfig) -> Any:
    prepared = prepared_with(config, spread_of("latents", ranks))
    losses = steps(prepared, N_STEPS)
    [learner] = prepared.learners.values()
    params = learner.params
    return losses, learner.finish().state_dict(), params["b_dec"], learner.dead_share(), len(params["W_enc"])


@pytest.mark.parametrize(("size", "revival"), [(2, "lift"), (4, "ghost")])
def test_one_sae_over_ranks_is_the_sae_of_one_process(size: int, revival: str) -> None:
    config = replace(SMALL, revival=revival, k=7, expansion_factor=4)  # pyright: ignore[reportArgumentType]
    found = together(sharded, size, config)
    assert [one[4] for one in found] == [4 * WIDTH // size] * size
    for other in found[1:]:
        assert differing(found[0][:4], other[:4]) == []
    alone = prepared_with(config)
    losses = steps(alone, N_STEPS)
    [learner] = alone.learners.values()
    assert learner.dead_share() == found[0][3] > 0  # revival had work
    assert losses == pytest.approx(found[0][0], abs=1e-5)
    for name, tensor in learner.finish().state_dict().items():
        torch.testing.assert_close(found[0][1][name], tensor, rtol=0, atol=2e-4)


class Asked(Ranks):
    """Rank 1 of 3, whose peers' values are given."""

    def __init__(self, others: list[Tensor]) -> None:
        super().__init__(1, 3)
        self.others = others

    def equal_gathered(self, tensor: Tensor) -> Tensor:
        return torch.stack([self.others[0], tensor, self.others[1]])


def test_of_equal_values_the_lower_latent_wins() -> None:
    low, high = torch.tensor([[5.0, 1.0, 0.0]]), torch.tensor([[5.0, 2.0, 2.0]])
    shard = SimpleNamespace(ranks=Asked([low, high]), rule=SimpleNamespace(k=3))
    own = torch.tensor([[2.0, 2.0]])  # 5, 5, and one of four that are 2: the first of this rank
    assert LatentShard._winners(shard, own).tolist() == [[True, False]]  # pyright: ignore[reportArgumentType]
    own = torch.tensor([[5.0, 5.0]])  # four that are 5: those of rank 0 and this one
    assert LatentShard._winners(shard, own).tolist() == [[True, True]]  # pyright: ignore[reportArgumentType]
    own = torch.tensor([[1.0, 0.5]])
    assert LatentShard._winners(shard, own).tolist() == [[False, False]]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("settings", "size", "said"),
    [
        ({"architecture": "batchtopk"}, 2, r'`parallel` "latents" is for architecture "topk"\. Got \'batchtopk\''),
        ({"revival": "resample"}, 2, r'`revival` "resample" needs all latents in one place'),
        ({"expansion_factor": 1}, 33, "needs latents for every process. Got 32 for 33"),
    ],
)
def test_what_cannot_be_shared_by_latents(settings: dict[str, Any], size: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        prepared_with(replace(SMALL, **settings, num_epochs=1), spread_of("latents", Ranks(0, size)))


# --- which way ------------------------------------------------------------------------------------------------------


def test_auto_deals_out_where_there_is_one_for_every_rank() -> None:
    def kind(n_sites: int, size: int, wanted: Any = "auto") -> str:
        given = assign(SITES[:n_sites], SMALL)
        widths = dict.fromkeys(SITES, WIDTH)
        return chosen_spread(given, widths=widths, ranks=Ranks(0, size), wanted=wanted, device=CPU).kind

    assert [kind(3, 3), kind(3, 4), kind(1, 2), kind(1, 2, "latents"), kind(3, 2, "data")] == [
        "saes", "data", "data", "latents", "data",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"multiple of the number of processes\. Got 48 with 5\. Give 50\."):
        kind(1, 5)
    given = chosen_spread(assign(SITES, SMALL), widths={}, ranks=ALONE, wanted="data", device=CPU)
    assert given.ranks is ALONE and all(given.trains(site) for site in SITES)


# --- checkpoints ----------------------------------------------------------------------------------------------------


def recording(folder: Path, **more: Any) -> Recording:
    return Recording(folder=folder, checkpoint_every=f"{HALF} steps", progress=False, log_every_steps=5, **more)


def trained(ranks: Ranks, kind: str, folder: Path, resume: bool) -> Any:
    owners = {site: number % ranks.size for number, site in enumerate(SITES)}
    sites = SITES if kind == "saes" else SITES[:1]
    prepared = prepared_with(SMALL, spread_of(kind, ranks, owners), sites=sites)
    result = train(prepared, recording(folder, resume=resume))
    return states(prepared), result.dead, result.layer_rows


def loaded(ranks: Ranks, kind: str, folder: Path) -> dict[str, Any]:
    """Whole states, as a rank gets them from a checkpoint."""
    owners = {site: number % ranks.size for number, site in enumerate(SITES)}
    sites = SITES if kind == "saes" else SITES[:1]
    prepared = prepared_with(SMALL, spread_of(kind, ranks, owners), sites=sites)
    found, _ = restored(load_checkpoint(folder / "checkpoints"), prepared.learners, ranks)
    for key, learner in prepared.learners.items():
        learner.load_state(found[key])
    return {key: learner.state() for key, learner in prepared.learners.items()}


@pytest.mark.parametrize("kind", ["data", "saes", "latents"])
def test_a_checkpoint_goes_on_on_any_number_of_ranks(kind: str, tmp_path: Path) -> None:
    whole = together(trained, 2, kind, tmp_path, False)
    assert whole[0][1:] == whole[1][1:]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == N_STEPS // 5
    assert checkpoint_steps(tmp_path / "checkpoints") == [HALF]
    again = together(trained, 2, kind, tmp_path, True)
    assert differing([one[0] for one in whole], [one[0] for one in again]) == []
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == N_STEPS // 5

    alone = loaded(ALONE, kind, tmp_path)
    assert {state["n_steps_done"] for state in alone.values()} == {HALF}
    parts = together(loaded, 4, kind, tmp_path)
    if kind == "latents":
        [own] = alone.values()
        for name in ("W_enc", "W_dec", "b_enc"):
            got = torch.cat([part[SITES[0]]["params"][name] for part in parts])
            assert torch.equal(got, own["params"][name])
        moments = torch.cat([part[SITES[0]]["optimizer"]["rows"]["W_dec"]["second"] for part in parts])
        assert torch.equal(moments, own["optimizer"]["rows"]["W_dec"]["second"])
        assert torch.equal(torch.cat([p[SITES[0]]["last_fired_step"] for p in parts]), own["last_fired_step"])
        assert all(torch.equal(p[SITES[0]]["dead_latents"], own["dead_latents"]) for p in parts)
    else:
        found = {key: state for part in parts for key, state in part.items()}
        assert differing(alone, {key: found[key] for key in alone}) == []


def test_one_processs_checkpoint_goes_on_on_ranks(tmp_path: Path) -> None:
    trained(ALONE, "data", tmp_path, False)
    alone = loaded(ALONE, "data", tmp_path)
    assert differing(alone, together(loaded, 2, "data", tmp_path)[1]) == []
    halves = together(loaded, 2, "latents", tmp_path)
    joined = torch.cat([half[SITES[0]]["params"]["W_dec"] for half in halves])
    assert torch.equal(joined, alone[SITES[0]]["params"]["W_dec"])


def test_a_damaged_part_is_noticed(tmp_path: Path) -> None:
    together(trained, 2, "data", tmp_path, False)
    folder = tmp_path / "checkpoints" / f"step-{HALF}"
    part = next(path for path in sorted((folder / "tensors").iterdir()) if path.suffix == ".distcp")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(UserError, match=f"All in .* are damaged: step-{HALF}"):
        load_checkpoint(tmp_path / "checkpoints")


# --- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    documents = [f"the {n} quick foxes jump over {n * n} lazy dogs. " * 5 for n in range(60)]
    path.write_text("\n".join(json.dumps({"text": one}) for one in documents))
    return path


def run_config(model: Path, text: Path, out: Path, **more: Any) -> TrainConfig:
    given = {
        "model": str(model), "data": str(text), "sites": ("layers.0", "layers.1"), "n_tokens": 48 * 40, "out": out,
        "context_tokens": 32, "buffer_tokens": 800, "sae": SMALL, "device": "cpu", "lm_dtype": "fp32",
        "log_every_steps": 1, "checkpoint_every": "10 steps", "held_out_rows": 64, "report": False,
    }  # fmt: skip
    return TrainConfig(**(given | more))


def whole_run(ranks: Ranks, config: TrainConfig) -> list[str]:
    return list(train_run(config, progress=True, ranks=ranks)[1].saes)


def wait_for(folder: Path, ranks: list[Any]) -> None:
    while not checkpoint_steps(folder / "checkpoints"):
        assert all(one.is_alive() for one in ranks), "ended before a checkpoint was there"
        time.sleep(0.002)


def logged_steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def ended(ranks: list[Any], folder: Path) -> tuple[list[int], list[str]]:
    for one in ranks:
        one.join(30)
    said = [(folder / f"said-{rank}").read_text() for rank in range(len(ranks))]
    shutil.rmtree(folder)
    return [one.exitcode for one in ranks], said


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are read from /proc")
def test_no_thread_of_the_ranks_is_left_when_the_interpreter_ends(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from strata.distributed.ranks import joined_ranks\n"
        "def n(): return sum('gloo' in p.read_text() for p in Path('/proc/self/task').glob('*/comm'))\n"
        "with joined_ranks() as ranks:\n"
        "    import torch.distributed.checkpoint\n"
        "    ranks.wait_for_all()\n"
        "    within = n()\n"
        "Path(__file__).with_name(f'{ranks.rank}.txt').write_text(f'{within > 0} {n()}')\n"
    )
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["True 0"] * 2


def test_torchrun_trains_a_suite(model_folder: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "strata"),
        *("train", "--model", str(model_folder), "--data", str(text), "--sites", "layers.0", "layers.1", "layers.2"),
        *("--n-tokens", "960", "--context-tokens", "32", "--sae.batch-size", "48", "--sae.expansion-factor", "2"),
        *("--sae.k", "4", "--sae.text-batch-size", "4", "--buffer-tokens", "800", "--device", "cpu"),
        *("--lm-dtype", "fp32", "--log-every-steps", "1", "--no-report", "--out", str(out)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(out)]
    assert done.stderr.count("training should take") == 1
    assert "Warning" not in done.stderr
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["n_processes"], record["parallel"]) == ("trained", 2, "saes")
    assert list(record["saes"]) == list(record["dead"]) == SITES
    assert logged_steps(out) == list(range(1, 21))
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert list(last["sites"]) == list(last["held_out"]) == SITES
    for site in SITES:
        assert strata.SAE.load(out / "sae" / site).d_sae == 2 * WIDTH
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize("kind", ["saes", "data"])
def test_a_lost_rank_leaves_a_checkpoint_that_goes_on(
    kind: str, model_folder: Path, text: Path, tmp_path: Path
) -> None:
    config = run_config(model_folder, text, tmp_path / "run", parallel=kind)
    ranks, folder = started(whole_run, 2, config)
    wait_for(tmp_path / "run", ranks)
    ranks[1].kill()
    codes, said = ended(ranks, folder)
    assert codes == [2, -signal.SIGKILL], said
    [sentence] = [line for line in said[0].splitlines() if line.startswith("strata:")]
    assert "Another process of this training was lost" in sentence
    assert "--resume goes on from the last checkpoint" in sentence
    assert "Traceback" not in said[0]
    [step, *_] = checkpoint_steps(tmp_path / "run" / "checkpoints")
    assert load_checkpoint(tmp_path / "run" / "checkpoints").step == step
    resumed = replace(config, resume=True)
    # On another number of processes than it was begun with, one among them.
    saes = whole_run(ALONE, resumed) if kind == "saes" else together(whole_run, 4, resumed)[0]
    assert saes == ["layers.0", "layers.1"]
    assert logged_steps(tmp_path / "run") == list(range(1, 41))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "trained"


def test_all_ranks_stop_after_the_same_step(model_folder: Path, text: Path, tmp_path: Path) -> None:
    config = run_config(model_folder, text, tmp_path / "stopped", keep_buffer=True)
    ranks, folder = started(whole_run, 2, config)
    wait_for(tmp_path / "stopped", ranks)
    os.kill(ranks[1].pid, signal.SIGTERM)  # one of them is enough
    codes, said = ended(ranks, folder)
    assert codes == [143, 143], said[0]
    [sentence] = [line for line in said[0].splitlines() if line.startswith("strata:")]
    [step, *_] = checkpoint_steps(tmp_path / "stopped" / "checkpoints")
    assert f"stopped at step {step} of 40" in sentence
    assert "strata:" not in said[1]
    together(whole_run, 2, replace(config, resume=True))
    together(whole_run, 2, replace(config, out=tmp_path / "whole"))
    for site in ("layers.0", "layers.1"):
        found, wanted = (strata.SAE.load(tmp_path / name / "sae" / site) for name in ("stopped", "whole"))
        assert differing(found.state_dict(), wanted.state_dict()) == []
    assert logged_steps(tmp_path / "stopped") == list(range(1, 41))


def refused(ranks: Ranks, config: TrainConfig) -> None:
    train_run(config, ranks=ranks)


def test_an_error_of_all_is_said_once(model_folder: Path, text: Path, tmp_path: Path) -> None:
    config = run_config(model_folder, text, tmp_path, activations="collected")
    ranks, folder = started(refused, 2, replace(config, out=tmp_path / "run"))
    codes, said = ended(ranks, folder)
    assert codes == [2, 2], said
    assert "`activations` must be \"stream\" or a store for several processes. Got 'collected' with 2." in said[0]
    assert "strata:" not in said[1]
    assert not (tmp_path / "run").exists()


def test_without_torchrun_there_is_one_rank() -> None:
    with joined_ranks() as ranks:
        assert ranks is ALONE
        assert ranks.is_first and ranks.largest(3) == 3 and ranks.gathered_objects("x") == ["x"]
        ranks.wait_for_all()
    x = torch.randn(3, 2)
    assert torch.equal(ALONE.ordered_sum(x), x)
    assert [torch.equal(one, x) for one in ALONE.gathered(x)] == [True]


def sums(ranks: Ranks) -> tuple[Tensor, list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(ranks.rank)
    x = torch.randn(5, 3, generator=generator) * 10**ranks.rank
    uneven = torch.arange(ranks.rank * 4).view(-1, 2).to(torch.int64)
    return x, ranks.gathered(uneven), ranks.ordered_sum(x)


def test_sums_are_in_the_order_of_ranks() -> None:
    found = together(sums, 4)
    expected = found[0][0]
    for x, _, _ in found[1:]:
        expected = expected + x
    for _, uneven, total in found:
        assert torch.equal(total, expected)
        assert [len(one) for one in uneven] == [0, 2, 4, 6]
        assert torch.equal(uneven[2], torch.arange(8).view(4, 2))
