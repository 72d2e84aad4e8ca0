"""Memory and disk as planned, against the peaks of fresh processes and against files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from strata.activations.harvest import collect_activations
from strata.checkpoint import save_checkpoint
from strata.config.layer_groups import Group
from strata.config.plan import PlanOptions
from strata.config.train import SAEConfig, TrainConfig
from strata.costs.memory import (
    PROCESS_BYTES,
    ModelInMemory,
    RowsInMemory,
    evaluation_memory,
    evaluation_pieces,
    examples_memory,
    forward_bytes,
    training_memory,
)
from strata.costs.step import SAEShape
from strata.costs.tensors import checkpoint_bytes, folder_bytes
from strata.lm.model import LanguageModel
from strata.lm.outline import outline
from strata.plan.rates import HARDWARE
from strata.plan.training import plan_training
from strata.run_folder import save_saes
from strata.sae.learner import Learner

D_IN, WEIGHT_BYTES, CONTEXT = 192, 4.0 * 5_147_136, 256  # of the embedded model
TOLERANCE = 0.15

# Prints the peak of a process that has done nothing but load, and then its peak after a training; bytes.
PROGRAM = """
import ctypes, json, resource, sys
from strata.memory import keep_freed_memory
keep_freed_memory()
CURRENT, FUTURE, ON_FAULT = 1, 2, 4  # sys/mman.h: what was touched stays, even where the system reclaims idle pages
if sys.platform == "linux":
    ctypes.CDLL(None).mlockall(CURRENT | FUTURE | ON_FAULT)
import torch
torch.set_num_threads(1)
from strata.activations.harvest import token_stream
from strata.config.train import SAEConfig, TrainConfig
from strata.lm.model import LanguageModel
from strata.report.run import train_and_report

def peak():
    if sys.platform == "linux":  # ru_maxrss would begin at that of the process that started this one
        status = open("/proc/self/status").read()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

given = json.loads(sys.argv[1])
lm = LanguageModel("demo")
batch = next(iter(token_stream(lm, "stdlib", context_tokens=256, text_batch_size=1, split="train")))
lm.activations(batch.input_ids, "layers.7")
del lm
before = peak()
config = TrainConfig(**{**given, "sae": SAEConfig(**given["sae"]), "sites": tuple(given["sites"])})
train_and_report(config, progress=False)
print(before, peak())
"""
QUIET = {"report": False, "checkpoint_every": "100%", "held_out_every": "100%", "held_out_rows": 512}
ALL = [f"layers.{i}" for i in range(8)]
CASES: dict[str, dict[str, Any]] = {
    "streamed": {"n_tokens": 8192, "sites": ["layers.3"], "sae": {"expansion_factor": 192, "batch_size": 2048}},
    "streamed, wider": {"n_tokens": 8192, "sites": ["layers.1"], "sae": {"expansion_factor": 512, "batch_size": 4096}},
    "streamed, a large buffer": {
        "n_tokens": 69_632, "sites": ALL, "sae": {"expansion_factor": 8, "batch_size": 16_384, "k": 16},
    },
    "collected": {
        "n_tokens": 65_536, "sites": ["layers.3"], "sae": {"expansion_factor": 128, "batch_size": 16_384},
        "activations": "collected",
    },
    "collected, side by side": {
        "n_tokens": 32_768, "sites": ALL, "sae": {"expansion_factor": 48, "batch_size": 8192},
        "activations": "collected",
    },
    "JumpReLU": {
        "n_tokens": 8192, "sites": ["layers.3"],
        "sae": {"architecture": "jumprelu", "expansion_factor": 64, "batch_size": 1024},
    },
    "BatchTopK": {
        "n_tokens": 8192, "sites": ["layers.3"],
        "sae": {"architecture": "batchtopk", "expansion_factor": 128, "batch_size": 1024},
    },
    "groups": {
        "n_tokens": 8192, "sites": ["middle"], "groups": "[[0, 1, 2], [3, 4, 5]]",
        "sae": {"expansion_factor": 128, "batch_size": 2048},
    },
    "streamed, with its report": {
        "n_tokens": 8192, "sites": ["layers.7"], "sae": {"batch_size": 2048, "text_batch_size": 16}, "report": True,
        "held_out_tokens": 4096,
    },
    "the recipe on two layers": {
        "n_tokens": 69_632, "sites": ["layers.0", "layers.1"], "sae": {}, "report": True,
    },
    "the same, collected": {
        "n_tokens": 69_632, "sites": ["layers.0", "layers.1"], "sae": {}, "report": True, "activations": "collected",
    },
    "a report on one batch": {
        "n_tokens": 8192, "sites": ["layers.7"], "sae": {"batch_size": 2048}, "report": True, "held_out_tokens": 8192,
    },
}  # fmt: skip
QUICK = ("streamed", "streamed, with its report")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_the_peak_of_a_training_is_the_predicted_one(case: str, tmp_path: Path) -> None:
    check_peak({**QUIET, **CASES[case], "out": str(tmp_path / "run")})


@pytest.mark.parametrize("report", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_peak_of_a_training_on_a_store_is_the_predicted_one(report: bool, tmp_path: Path) -> None:
    store, lm = tmp_path / "store", LanguageModel("demo")
    collect_activations(lm, "stdlib", ["layers.1"], n_tokens=32_768, store=store, context_tokens=CONTEXT,
                        progress=False)  # fmt: skip
    settings = {"activations": str(store), "sites": ["layers.1"], "report": report, "held_out_rows": 0,
                "sae": {"expansion_factor": 64, "batch_size": 4096}}  # fmt: skip
    check_peak({**QUIET, **settings, "out": str(tmp_path / "run")})


def check_peak(settings: dict[str, Any]) -> None:
    """That the plan's memory is that of a run: but for the process before it begins, which is another elsewhere."""
    process, peak = peaks(settings)
    parts = planned(settings)
    assert process - WEIGHT_BYTES == pytest.approx(parts["process"], rel=0.3)
    parts |= {"process": process - WEIGHT_BYTES}
    assert sum(parts.values()) == pytest.approx(peak, rel=TOLERANCE), parts
    assert peak > 1.2 * process, "nothing to predict"


def peaks(settings: dict[str, Any]) -> tuple[float, float]:
    """Resident bytes at the peak of a fresh process, before and after it trains.

    Where the process may not keep its pages, a system short of memory may take idle ones away meanwhile.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(settings)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    before, after = map(float, found.stdout.split())
    return before, after


def planned(settings: dict[str, Any]) -> dict[str, float]:
    """What `strata plan` says of a run's memory."""
    config = TrainConfig(**{**settings, "sae": SAEConfig(**settings["sae"]), "sites": tuple(settings["sites"])})
    numbers, _ = plan_training(config, PlanOptions(), HARDWARE["cpu-2-cores"])
    return numbers["ways"]["described"][0]["ram_bytes"]


def shape(config: SAEConfig, *, d_in: int, n_sites: int = 1, d_out: int | None = None) -> SAEShape:
    d_sae, gate = config.d_sae(d_in), config.architecture
    return SAEShape(d_in=d_in, d_sae=d_sae, k=config.k, architecture=gate, n_sites=n_sites, d_out=d_out)


def learner(config: SAEConfig, *, d_in: int, n_sites: int, d_out: int | None) -> Learner:
    """One that has done a step on as many rows as thresholds are set on, and one more."""
    n_rows = config.batch_size
    x, target = torch.randn(n_rows, d_in), None if d_out is None else torch.randn(n_rows, d_out)
    group = Group(tuple(f"layers.{i}" for i in range(n_sites))) if n_sites > 1 else None
    layer = None if group is None else torch.randint(n_sites, (n_rows,), dtype=torch.uint8)
    options: dict[str, Any] = {"target_sample": target, "target_site": None if target is None else "layers.9"}
    found = Learner(config, n_steps=10, sample=x, site="layers.0", group=group, layers=layer, **options)
    found.step(x, target, layer)
    return found


@pytest.mark.parametrize(
    ("architecture", "n_sites", "d_out"),
    [
        ("topk", 1, None), ("batchtopk", 1, None), ("matryoshka", 1, None), ("jumprelu", 1, None), ("relu", 1, None),
        ("gated", 1, None), ("topk", 3, None), ("topk", 1, 48), ("jumprelu", 1, 48),
    ],
)  # fmt: skip
def test_files_are_as_large_as_predicted(architecture: Any, n_sites: int, d_out: int | None, tmp_path: Path) -> None:
    config = SAEConfig(architecture=architecture, expansion_factor=32, k=8, batch_size=8192)
    made = [shape(config, d_in=32, n_sites=n_sites, d_out=d_out)] * 2
    learners = [learner(config, d_in=32, n_sites=n_sites, d_out=d_out) for _ in made]
    state = {str(number): one.state() for number, one in enumerate(learners)}
    save_checkpoint(tmp_path / "checkpoints", step=1, state=state)
    save_saes(tmp_path, {f"sae-{number}": one.finish() for number, one in enumerate(learners)})
    assert checkpoint_bytes(made) == pytest.approx(n_bytes(tmp_path / "checkpoints"), rel=0.05)
    assert folder_bytes(made) == pytest.approx(n_bytes(tmp_path / "sae"), rel=0.05)


def n_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_parts_are_those_of_the_largest_phase() -> None:
    wide = SAEShape(d_in=4096, d_sae=65_536, k=64)
    weights = 4 * 2 * 4096 * 65_536
    none = RowsInMemory(row_bytes=400.0)
    one = training_memory([wide], batch_size=4096, rows=none)
    many = training_memory([wide] * 8, batch_size=4096, rows=none)
    assert one["weights and optimiser"] == pytest.approx(3 * weights, rel=0.001)
    assert one["finished copies"] == pytest.approx(weights, rel=0.001)  # there is no gradient that would take as much
    busy = training_memory([SAEShape(d_in=512, d_sae=2048, k=64)], batch_size=65_536, rows=none)
    rows, entries = 65_536 * 8 * 4 * 512, 65_536 * 64 * 2 * 44
    assert busy["step"] == pytest.approx(rows + entries, rel=0.05)
    assert many["weights and optimiser"] == pytest.approx(8 * 3 * weights, rel=0.001)
    assert many["finished copies"] == pytest.approx(8 * weights, rel=0.001)
    collected = RowsInMemory(row_bytes=400.0, kept_rows=10_000_000)
    joining = training_memory([SAEShape(d_in=100, d_sae=100, k=1)], batch_size=1, rows=collected)
    assert joining["joining of rows"] == 4 * 100 * 10_000_000
    assert joining["rows"] == pytest.approx(400 * 10_000_000, rel=0.1)


def test_without_saes_rows_and_the_language_model_are_left() -> None:
    rows = RowsInMemory(row_bytes=400.0, buffer_rows=10, token_bytes=5.0)
    parts = training_memory([], batch_size=1, rows=rows, model=ModelInMemory(weight_bytes=3.0, forward_bytes=4.0))
    assert list(parts)[:5] == ["process", "language model", "forward", "tokens", "rows"]
    assert parts.pop("process") == PROCESS_BYTES
    assert sum(parts.values()) == pytest.approx(3 + 4 + 5 + 10 * 400, rel=0.1)


def test_a_pass_grows_with_its_tokens_and_with_what_is_read() -> None:
    lm = outline("demo")
    alone = forward_bytes(lm, tokens=1000)
    assert alone == 1000 * 1.5 * 4 * (4 * D_IN + 2 * 4 * D_IN)  # in and out of the activation function, 4·d wide
    assert forward_bytes(lm, tokens=2000) == 2 * alone
    assert forward_bytes(lm, tokens=1000, row_bytes=100.0) == alone + 100_000
    assert forward_bytes(lm, tokens=1000, number_bytes=2.0) == alone / 2


def test_an_evaluation_holds_the_logits_of_a_piece_and_what_they_are_compared_with() -> None:
    assert evaluation_pieces(32_768, batch_tokens=8192, context_tokens=256, vocabulary_size=4096) == (8192, 4)
    assert evaluation_pieces(5000, batch_tokens=8192, context_tokens=256, vocabulary_size=4096) == (4864, 2)
    assert evaluation_pieces(100, batch_tokens=64, context_tokens=64, vocabulary_size=10**9) == (64, 2)
    assert evaluation_pieces(100, batch_tokens=64, context_tokens=32, vocabulary_size=0) == (64, 2)
    saes = [SAEShape(d_in=10, d_sae=100, k=2)] * 3
    given: dict[str, Any] = {"model": ModelInMemory(weight_bytes=3.0, forward_bytes=4.0), "piece_tokens": 1000}
    one = evaluation_memory(saes, n_pieces=1, vocabulary_size=10_000, **given)
    several = evaluation_memory(saes, n_pieces=9, vocabulary_size=10_000, **given)
    half = evaluation_memory(saes, n_pieces=9, vocabulary_size=10_000, number_bytes=2.0, **given)
    softmax = 3 * 2**24
    assert [parts["logits"] - softmax for parts in (one, several, half)] == [12e7, 18e7, 15e7]
    assert one["finished SAEs"] == 3 * 4 * (100 * (2 * 10 + 1) + 10)
    rows_alone = evaluation_memory(saes, n_pieces=1, vocabulary_size=0, **given)
    assert rows_alone["logits"] == 0 < rows_alone["encoding"]


def test_examples_of_features_grow_with_the_firings_of_a_shard() -> None:
    given: dict[str, Any] = {"model": ModelInMemory(), "batch_tokens": 1024}
    sae = SAEShape(d_in=16, d_sae=65_536, k=8)

    def examples(n_saes: int, *, n_tokens: int) -> float:
        return examples_memory([sae] * n_saes, n_tokens=n_tokens, **given)["examples"]

    assert examples(5, n_tokens=32_768) - examples(1, n_tokens=32_768) == 4 * 8 * 20 * (32_768 + 1024)
    assert examples(1, n_tokens=65_536) < examples(1, n_tokens=10**6) + 1, "more text does not wait: it is written"
    assert examples(1, n_tokens=65_536) > examples(1, n_tokens=8192)
