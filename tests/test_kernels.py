"""The fast path against the dense oracle, in values and gradients."""

import pytest
import torch
from torch import Tensor

from strata.config import SAEConfig
from strata.kernels import pytorch as kernels
from strata.kernels import reference
from strata.sae.learner import Learner

SHAPES = [(1, 4, 8, 1), (7, 6, 48, 5), (64, 16, 256, 8), (33, 12, 60, 60), (5, 3, 17, 4), (128, 32, 1024, 16)]


@pytest.mark.parametrize(("n_rows", "d_in", "d_sae", "k"), SHAPES)
def test_two_level_topk_finds_what_topk_finds(n_rows, d_in, d_sae, k):
    scores = torch.randn(n_rows, d_sae)
    values, indices = kernels.topk_rows(scores, k)
    assert torch.equal(values.sort(-1).values, scores.topk(k).values.sort(-1).values)
    assert torch.equal(scores.gather(1, indices), values)


def test_two_level_topk_with_ties_gives_k_different_latents():
    scores = torch.zeros(9, 256)
    scores[:, ::3] = 1.0
    values, indices = kernels.topk_rows(scores, 8)
    assert bool((values == 1).all())
    assert all(len(set(row)) == 8 for row in indices.tolist())


def test_grouping_is_used_where_it_helps_and_never_too_coarse():
    assert kernels.group_size(6144, 32) == 16
    assert kernels.group_size(17, 4) == 1
    for d_sae in (8, 48, 96, 1000, 3072, 24576):
        for k in (1, 7, 32, d_sae):
            size = kernels.group_size(d_sae, min(k, d_sae))
            assert d_sae % size == 0
            assert d_sae // size >= min(k, d_sae)


def test_rows_are_chunked_without_effect(monkeypatch):
    z, weight, bias = torch.randn(50, 8), torch.randn(64, 8), torch.randn(64)
    whole = kernels.select_topk(z, weight, bias, 4)
    monkeypatch.setattr(kernels, "_CHUNK_BYTES", 64 * 4 * 7)
    chunked = kernels.select_topk(z, weight, bias, 4)
    torch.testing.assert_close(chunked[0], whole[0])
    assert torch.equal(chunked[1].sort(-1).values, whole[1].sort(-1).values)


def test_bf16_selection_gives_fp32_values():
    z, weight, bias = torch.randn(40, 32), torch.randn(512, 32), torch.randn(512)
    values, indices = kernels.select_topk(z, weight, bias, 8, score_dtype=torch.bfloat16)
    exact = z @ weight.t() + bias
    torch.testing.assert_close(values, exact.gather(1, indices))
    wanted = exact.topk(8).indices
    recall = (indices.unsqueeze(2) == wanted.unsqueeze(1)).any(2).float().mean()
    assert recall > 0.9


def oracle(learner: Learner, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the learner's weights by autograd through the dense reference."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in learner.params.items()}
    z = (x - learner.normalization.mean) / learner.normalization.scale
    keep = 1 - learner.normalization.is_sink(x).float()
    code = reference.topk_code(z, leaves["W_enc"].t(), leaves["b_enc"], leaves["b_dec"], learner.config.k)
    loss = reference.reconstruction_loss(z, code @ leaves["W_dec"] + leaves["b_dec"], keep)
    loss.backward()
    return loss.detach(), {name: leaf.grad for name, leaf in leaves.items()}


class Recorder:
    """Stands in for the optimiser and keeps the gradients."""

    def step(self, gradients, *, lr):
        self.gradients = {name: tensor.clone() for name, tensor in gradients.items()}


def trained_learner(d_in: int, expansion: int, k: int, *, x: Tensor, n_steps: int = 20) -> Learner:
    config = SAEConfig(expansion_factor=expansion, k=k, batch_size=len(x), revival="none", lr=1e-2)
    learner = Learner(config, n_steps=n_steps + 1, sample=x)
    for _ in range(n_steps):  # so that no bias is zero any more
        learner.step(x)
    return learner


@pytest.mark.parametrize(
    ("n_rows", "d_in", "expansion", "k"), [(64, 16, 16, 8), (33, 12, 5, 60), (5, 3, 7, 4), (9, 8, 4, 1)]
)
def test_step_has_the_oracles_loss_and_gradients(n_rows, d_in, expansion, k):
    x = torch.randn(n_rows, d_in) * 3 + 5
    learner = trained_learner(d_in, expansion, k, x=x)
    loss, gradients = oracle(learner, x)
    learner.statistics()
    learner.optimizer = recorder = Recorder()
    learner.step(x)
    assert learner.statistics()["fvu"] == pytest.approx(loss.item(), rel=1e-4)
    for name, wanted in gradients.items():
        torch.testing.assert_close(
            recorder.gradients[name], wanted, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_sinks_do_not_train():
    x = torch.randn(64, 8)
    learner = trained_learner(8, 4, 4, x=x)
    with_sink = torch.cat([x, torch.full((1, 8), 500.0)])
    assert learner.normalization.is_sink(with_sink).tolist() == [False] * 64 + [True]
    _, gradients = oracle(learner, x)
    learner.optimizer = recorder = Recorder()
    learner.step(with_sink)
    for name, wanted in gradients.items():
        torch.testing.assert_close(recorder.gradients[name], wanted, rtol=1e-3, atol=1e-6)
