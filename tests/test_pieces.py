"""Steps that do not fit into the memory are repeated in smaller pieces, with one line."""

import pytest
import torch

from strata.config.train import SAEConfig
from strata.errors import UserError, is_out_of_memory
from strata.sae.learner import Learner


def learner() -> Learner:
    config = SAEConfig(expansion_factor=8, k=4, batch_size=64, dead_feature_window=2)
    rows = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    return Learner(config, n_steps=10, sample=rows)


def fails_above(made: Learner, n_rows: int, error: BaseException) -> None:
    step = made.rule.step

    def limited(batch, *args, **kwargs):
        if len(batch.keep) > n_rows:
            raise error
        return step(batch, *args, **kwargs)

    made.rule.step = limited


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_step_that_does_not_fit_is_repeated_in_halves_and_said_once(error):
    x = torch.randn(64, 16)
    whole, halved = learner(), learner()
    fails_above(halved, 20, error)
    for _ in range(3):
        whole.step(x)
        halved.step(x)
    assert halved.pieces.n_rows == 16
    lines = halved.new_lines()
    assert [line.split(";")[0] for line in lines] == [
        "out of memory: a step now works on 32 rows at a time (64 before)",
        "out of memory: a step now works on 16 rows at a time (64 before)",
    ]
    assert halved.new_lines() == []
    for name, tensor in whole.params.items():
        torch.testing.assert_close(halved.params[name], tensor, rtol=1e-4, atol=1e-5)


def test_other_errors_pass():
    made = learner()
    fails_above(made, 20, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        made.step(torch.randn(64, 16))
    assert made.pieces.n_rows is None
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_one_row_that_does_not_fit_is_the_end():
    made = learner()
    fails_above(made, 0, MemoryError())
    with pytest.raises(UserError, match=r"The SAE's step must fit into the memory. It does not with one row at a time"):
        made.step(torch.randn(64, 16))
