"""Steps that do not fit into the memory are repeated in smaller pieces, with one line."""

import pytest
import torch
from torch import Tensor

from strata.config.train import SAEConfig
from strata.errors import UserError, is_out_of_memory
from strata.kernels.entries import SparseEntries
from strata.kernels.gradient import RowGradient, matrix
from strata.sae.learner import Learner
from strata.sae.rules.base import Outcome, joined
from strata.sae.rules.threshold import ThresholdRule

CHOOSING_FROM_ALL = ("batchtopk", "matryoshka")  # from all rows they are given, so that pieces choose otherwise
# with the share of latents above which a step works on all of them: never, and always
LISTED = [(name, 2.0) for name in ("topk", *CHOOSING_FROM_ALL, "jumprelu", "relu", "gated")]
WHOLE = [(name, 0.0) for name in ("jumprelu", "relu", "gated")]


def learner(architecture: str = "topk") -> Learner:
    config = SAEConfig(architecture=architecture, expansion_factor=8, k=4, batch_size=64, dead_feature_window=2)
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


def as_the_optimiser_reads(gradient: RowGradient, weight: Tensor) -> Tensor:
    """The entries' amounts times their inputs, latent by latent."""
    listed = gradient.by_latent(len(weight), weight)
    latents = torch.arange(len(weight)).repeat_interleave(listed.starts.diff())
    return torch.zeros_like(weight).index_add_(0, latents, listed.amounts.unsqueeze(1) * listed.inputs[listed.rows])


def outcomes_of(architecture: str, dense_share: float) -> tuple[Learner, list[Outcome], Outcome]:
    """A learner, the outcomes of a batch's pieces of 24, 24 and 16 rows, the second with a sink, and of the whole."""
    made, x = learner(architecture), torch.randn(64, 16)
    if isinstance(made.rule, ThresholdRule):
        made.rule.dense_share = dense_share
    x[30] = 1e4
    batch = made._batch(x, None, None)
    assert batch.n_kept == 63

    def step(piece) -> Outcome:
        return made.rule.step(piece, made.params, score_dtype=torch.float32)

    return made, [step(piece) for piece in batch.slices(24)], step(batch)


@pytest.mark.parametrize(("architecture", "dense_share"), LISTED + WHOLE)
def test_the_outcome_of_a_batch_is_that_of_its_pieces_in_their_order(architecture, dense_share):
    made, pieces, whole = outcomes_of(architecture, dense_share)
    found = joined(pieces)
    for name in ("values", "residual", "d_rows"):
        assert torch.equal(getattr(found, name), torch.cat([getattr(one, name) for one in pieces])), name
    for name in ("loss", "penalty", "d_scores"):
        torch.testing.assert_close(getattr(found, name), sum(getattr(one, name) for one in pieces))
    entries, n_listed = found.entries, sum(one.entries.n_listed for one in pieces)
    assert (type(entries), entries.n_rows, entries.n_listed) == (type(whole.entries), 64, n_listed)
    if isinstance(entries, SparseEntries):
        rows = [one.entries.rows + first for one, first in zip(pieces, (0, 24, 48), strict=True)]
        assert torch.equal(entries.rows, torch.cat(rows))
        assert torch.equal(entries.latents, torch.cat([one.entries.latents for one in pieces]))
    close = {"rtol": 1e-4, "atol": 1e-6}
    for name, gradient in found.gradients.items():
        wanted = sum(matrix(one.gradients[name]) for one in pieces)
        torch.testing.assert_close(matrix(gradient), wanted, **close)
        if isinstance(gradient, RowGradient):
            torch.testing.assert_close(as_the_optimiser_reads(gradient, made.params[name]), wanted, **close)
        if architecture not in CHOOSING_FROM_ALL:
            torch.testing.assert_close(wanted, matrix(whole.gradients[name]), **close)
