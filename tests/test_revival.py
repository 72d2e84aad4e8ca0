"""Revival terms against autograd, and the identities that define them (design, section 5)."""

import pytest
import torch

from strata.config import SAEConfig
from strata.sae import revival
from strata.sae.learner import Learner


def problem(n_rows: int = 20, d_in: int = 8, n_dead: int = 11, scale: float = 1.0):
    z, residual = torch.randn(n_rows, d_in), torch.randn(n_rows, d_in)
    W_enc, W_dec = torch.randn(n_dead, d_in) * scale, torch.nn.functional.normalize(torch.randn(n_dead, d_in), dim=1)
    return z, residual, revival.DeadLatents(torch.arange(n_dead), W_enc, W_dec, torch.randn(n_dead) * scale)


def with_gradients(dead: revival.DeadLatents) -> revival.DeadLatents:
    W_enc, W_dec, bias = (t.clone().requires_grad_() for t in (dead.W_enc, dead.W_dec, dead.bias))
    return revival.DeadLatents(dead.latents, W_enc, W_dec, bias)


def assert_gradients(found: revival.DeadGradients, leaves: revival.DeadLatents):
    torch.testing.assert_close(found.W_enc, leaves.W_enc.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.W_dec, leaves.W_dec.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.b_enc, leaves.bias.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n_dead", [2, 4, 11])
def test_auxk_has_autograds_gradients(n_dead):
    z, residual, dead = problem(n_dead=n_dead)
    leaves = with_gradients(dead)
    pre = z @ leaves.W_enc.t() + leaves.bias
    top = pre.relu().topk(min(4, n_dead))
    code = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    error = residual - code @ leaves.W_dec
    term = 0.5 * min(n_dead / 4, 1) * error.square().sum() / (residual - residual.mean(0)).square().sum()
    term.backward()
    found = revival.auxk(z, residual, dead, loss=torch.tensor(1.0), coefficient=0.5)
    assert found.value == pytest.approx(term.item(), rel=1e-5)
    assert_gradients(found, leaves)
    assert found.W_enc.abs().sum() > 0, "AuxK must train the encoder too"


def test_auxk_of_a_perfect_reconstruction_is_zero():
    z, residual, dead = problem()
    found = revival.auxk(z, torch.zeros_like(residual), dead, loss=torch.tensor(0.0), coefficient=1.0)
    assert found.value == 0
    assert bool(torch.isfinite(found.W_enc).all())


def test_ghost_has_autograds_gradients_and_the_losss_value():
    z, residual, dead = problem()
    loss = torch.tensor(0.37)
    leaves = with_gradients(dead)
    pre = z @ leaves.W_enc.t() + leaves.bias
    g = torch.exp(pre) @ leaves.W_dec
    scaled = g * (residual.norm(dim=1) / (2 * g.norm(dim=1))).detach().unsqueeze(1)
    torch.testing.assert_close(scaled.norm(dim=1), residual.norm(dim=1) / 2)
    term = (residual - scaled).square().mean()
    (term * (loss / term).detach()).backward()
    found = revival.ghost(z, residual, dead, loss=loss, coefficient=1.0)
    assert found.value == pytest.approx(loss.item(), rel=1e-5)
    assert_gradients(found, leaves)


def test_ghost_does_not_overflow():
    z, residual, dead = problem(scale=1e4)
    found = revival.ghost(z, residual, dead, loss=torch.tensor(1.0), coefficient=1.0)
    assert all(bool(torch.isfinite(t).all()) for t in (found.W_enc, found.W_dec, found.b_enc, found.value))


@pytest.mark.parametrize("method", ["auxk", "ghost"])
def test_only_dead_latents_get_the_terms_gradient(method):
    torch.manual_seed(1)
    x = torch.randn(256, 8)
    config = SAEConfig(expansion_factor=16, k=2, batch_size=256, revival=method, dead_feature_window=1, lr=1e-3)
    learner = Learner(config, n_steps=100, sample=x)
    for _ in range(20):
        learner.step(x)
    assert 0 < learner.dead_share() < 1
    seen = {}
    learner._revive = lambda u, r, gradients, loss: (
        seen.update({n: g.clone() for n, g in gradients.items()}),
        type(learner)._revive(learner, u, r, gradients, loss),
    )[1]
    updates = {}
    learner.optimizer.step = lambda gradients, lr: updates.update(gradients)
    learner.n_steps_done = 20  # a step at which the list of dead latents is renewed
    learner.step(x)
    dead = torch.zeros(128, dtype=torch.bool)
    dead[learner.dead_latents] = True
    assert bool(dead.any())
    for name in ("W_enc", "W_dec", "b_enc"):
        assert torch.equal(updates[name][~dead], seen[name][~dead])
        assert not torch.equal(updates[name][dead], seen[name][dead])
    assert torch.equal(updates["b_dec"], seen["b_dec"])


def test_nothing_dead_nothing_changed():
    x = torch.randn(64, 8)
    results = []
    for method in ("none", "auxk", "ghost"):
        learner = Learner(SAEConfig(expansion_factor=2, k=8, batch_size=64, revival=method), n_steps=10, sample=x)
        for _ in range(10):
            learner.step(x)
        results.append(learner.params["W_enc"])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_use_ghost_grads_alone_selects_ghost_gradients():
    assert SAEConfig(use_ghost_grads=True).revival_method() == "ghost"
    assert SAEConfig().revival_method() == "auxk"
    with pytest.raises(ValueError, match="use_ghost_grads"):
        SAEConfig(use_ghost_grads=True, revival="auxk")
