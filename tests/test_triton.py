"""The Triton kernels: compiled for a GPU that need not be there, run by Triton's interpreter, and on a real device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from strata.config.train import SAEConfig
from strata.errors import UserError
from strata.kernels.capacity import Capacity
from strata.sae.graphed import GraphedSteps, Recordable, are_recorded
from strata.sae.learner import Learner

pytest.importorskip("triton", reason="the extra `triton` is not installed")

HERE = Path(__file__).parent


def run_cases(marked: str = "", **environment: str) -> None:
    """Run tests/triton_cases.py in a process of its own: the interpreter is chosen when Triton is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_cases.py")]
    command += ["-m", marked]
    given = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    given.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(command, env=given, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_cases_under_the_interpreter():
    run_cases("not slow", TRITON_INTERPRET="1")


@pytest.mark.slow
def test_the_other_cases_under_the_interpreter():
    run_cases("slow", TRITON_INTERPRET="1")


@pytest.mark.gpu
def test_cases_on_the_device():
    run_cases(TRITON_INTERPRET="0")


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu_that_is_not_here():
    """To machine code of compute capability 9.0, with the constants of the issue's first GPU case."""
    code = (HERE / "triton_compiled.py").read_text()
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": os.environ["STRATA_CACHE"]}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == ["topk_of_rows"] * 2 + ["count_above"] * 2 + ["list_above"] * 2 + [
        *["decode_rows"] * 2,
        *["adam_latents"] * 2,
        *["dot_entries", "sum_latents"],
    ]


class TestCapacity:
    """How long a list is, read late and always at the same steps."""

    def fitted(self) -> Capacity:
        return Capacity().fit(10, k=2, d_sae=1000, device=torch.device("cpu"))

    def test_a_list_that_was_too_short_grows_once_and_says_so(self):
        capacity = self.fitted()
        assert capacity.size == 10 * (4 * 2 + 64)
        grew = []
        for step in range(40):
            capacity.note(torch.tensor(2000 if step < 3 else 5))
            grew.append(capacity.look())
        assert grew.index(True) == 31
        assert sum(grew) == 1
        assert capacity.size == 3000
        assert len(capacity.lines) == 1
        assert "2,000 entries did not fit a list of 720" in capacity.lines[0]

    def test_it_never_grows_beyond_all_entries(self):
        capacity = self.fitted()
        capacity.note(torch.tensor(9000))
        for _ in range(32):
            capacity.look()
        assert capacity.size == 10 * 1000

    def test_without_padded_lists_nothing_is_looked_at(self):
        assert not any(Capacity().look() for _ in range(50))

    @pytest.mark.parametrize("stop", [5, 16, 20])
    def test_stopped_and_resumed_it_is_the_same(self, stop):
        whole, first, second = self.fitted(), self.fitted(), Capacity()
        for step in range(60):
            if step == stop:
                second.load_state(first.state())
                second.fit(10, k=2, d_sae=1000, device=torch.device("cpu"))
                first = second
            for one in (whole, first):
                one.note(torch.tensor(100 * step))
                one.look()
        assert first.state() == whole.state()


class Sums:
    """A step that adds its rows' sum, times a rate that the host writes, to a number on the device."""

    def __init__(self, device: torch.device, *, new_shapes_after: int = 10**9, reads_back: bool = False) -> None:
        self.device, self.total, self.rate = device, torch.zeros((), device=device), torch.zeros((), device=device)
        self.n_done, self.n_device_steps = 0, 0
        self.new_shapes_after, self.reads_back = new_shapes_after, reads_back

    def before_device_step(self) -> None:
        self.rate.fill_(float(self.n_done))

    def device_step(self, x, target, layer) -> None:
        self.n_device_steps += 1
        added = x.sum() if target is None else x.sum() * target.sum()
        if self.reads_back:
            added = torch.full_like(added, added.item())
        self.total += self.rate * added

    def after_device_step(self, x, target, layer) -> bool:
        self.n_done += 1
        return self.n_done == self.new_shapes_after

    def new_lines(self) -> list[str]:
        return [f"{self.n_done} done"]


def total_of(sums: Sums, n_steps: int) -> tuple[float, GraphedSteps]:
    steps = GraphedSteps(sums)
    for step in range(n_steps):
        n_rows = 2 if step == n_steps - 1 else 3  # the last batch is short
        steps.step(torch.full((n_rows, 2), 1.0 + step, device=sums.device))
    return sums.total.item(), steps


WANTED = sum(step * (1 + step) * 6 for step in range(11)) + 11 * 12 * 4


def test_without_a_gpu_steps_run_as_they_are():
    sums = Sums(torch.device("cpu"))
    assert total_of(sums, 12)[0] == WANTED
    assert sums.n_device_steps == 12


def test_a_learners_steps_in_three_parts_are_its_steps():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))
    learners = [
        Learner(SAEConfig(expansion_factor=4, k=2, batch_size=64, dead_feature_window=2), n_steps=30, sample=x)
        for _ in range(2)
    ]
    assert isinstance(learners[0], Recordable)
    steps = GraphedSteps(learners[1])
    for _ in range(30):
        learners[0].step(x)
        steps.step(x)
    assert learners[1].n_steps_done == 30
    assert all(torch.equal(learners[1].params[name], tensor) for name, tensor in learners[0].params.items())
    assert steps.new_lines() == []


def test_steps_are_not_recorded_without_cuda():
    assert not are_recorded(torch.device("cpu"))


def test_the_variable_that_turns_recording_off_is_0_or_1(monkeypatch):
    monkeypatch.setenv("STRATA_CUDA_GRAPH", "no")
    with pytest.raises(UserError, match=r"`STRATA_CUDA_GRAPH` must be 0 or 1\. Got 'no'"):
        are_recorded(torch.device("cpu"))


@pytest.mark.gpu
class TestRecordedSteps:
    def test_a_learner_replayed_is_the_learner_step_by_step(self, monkeypatch):
        x = torch.randn(256, 16, generator=torch.Generator().manual_seed(5)).cuda()
        config = SAEConfig(expansion_factor=8, k=2, batch_size=256, dead_feature_window=2)
        found = []
        for wanted in ("0", "1"):
            monkeypatch.setenv("STRATA_CUDA_GRAPH", wanted)
            learner = Learner(config, n_steps=40, sample=x)
            steps = GraphedSteps(learner)
            for _ in range(40):
                steps.step(x)
            assert steps.new_lines() == []
            found.append(learner.params)
        assert all(torch.equal(found[1][name], tensor) for name, tensor in found[0].items())

    def test_they_are_replayed_with_what_the_host_writes(self):
        sums = Sums(torch.device("cuda"))
        found, steps = total_of(sums, 12)
        assert found == WANTED
        assert sums.n_device_steps == 3 + 1 + 1  # warm-up, the recording, the short batch
        assert steps.new_lines() == ["12 done"]

    def test_they_are_recorded_again_when_their_shapes_change(self):
        sums = Sums(torch.device("cuda"), new_shapes_after=6)
        assert total_of(sums, 12)[0] == WANTED
        assert sums.n_device_steps == 2 * (3 + 1) + 1

    def test_what_cannot_be_recorded_runs_as_it_is_with_a_line(self):
        found, steps = total_of(Sums(torch.device("cuda"), reads_back=True), 12)
        assert found == WANTED
        assert "could not be recorded" in steps.new_lines()[0]
