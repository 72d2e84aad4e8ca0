"""Revival terms against autograd, and the identities that define them."""

import pytest
import torch

from strata.config.train import SAEConfig
from strata.kernels.gradient import matrix
from strata.sae import resampling, revival
from strata.sae.learner import Learner
from strata.sae.optim import UnitRowAdam
from strata.sae.rules.base import Batch
from strata.sae.rules.registry import RULES, make_rule

normalize = torch.nn.functional.normalize


def problem(n_rows: int = 20, d_in: int = 8, n_dead: int = 11, scale: float = 1.0, d_out: int | None = None):
    d_out = d_out or d_in
    z, residual = torch.randn(n_rows, d_in), torch.randn(n_rows, d_out)
    W_enc, W_dec = torch.randn(n_dead, d_in) * scale, normalize(torch.randn(n_dead, d_out), dim=1)
    return z, residual, revival.DeadLatents(torch.arange(n_dead), W_enc, W_dec, torch.randn(n_dead) * scale)


def with_gradients(dead: revival.DeadLatents) -> revival.DeadLatents:
    W_enc, W_dec, bias = (t.clone().requires_grad_() for t in (dead.W_enc, dead.W_dec, dead.bias))
    return revival.DeadLatents(dead.latents, W_enc, W_dec, bias)


def assert_gradients(found: revival.DeadGradients, leaves: revival.DeadLatents):
    torch.testing.assert_close(found.W_enc, leaves.W_enc.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.W_dec, leaves.W_dec.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.b_enc, leaves.bias.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("n_dead", "d_out"), [(2, 8), (4, 8), (11, 8), (11, 5), (11, 13)])
def test_auxk_has_autograds_gradients(n_dead, d_out):
    """Also for transcoders, whose residual is as wide as the target."""
    z, residual, dead = problem(n_dead=n_dead, d_out=d_out)
    leaves = with_gradients(dead)
    pre = z @ leaves.W_enc.t() + leaves.bias
    top = pre.relu().topk(min(4, n_dead))
    code = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    error = residual - code @ leaves.W_dec
    term = 0.5 * min(n_dead / 4, 1) * error.square().sum() / (residual - residual.mean(0)).square().sum()
    term.backward()
    found = revival.auxk(revival.Unexplained(z, residual, torch.tensor(1.0)), dead, coefficient=0.5)
    assert found.value == pytest.approx(term.item(), rel=1e-5)
    assert_gradients(found, leaves)
    assert found.W_enc.abs().sum() > 0, "AuxK must train the encoder too"


def test_auxk_of_a_perfect_reconstruction_is_zero():
    z, residual, dead = problem()
    found = revival.auxk(revival.Unexplained(z, torch.zeros_like(residual), torch.tensor(0.0)), dead, coefficient=1.0)
    assert found.value == 0
    assert bool(torch.isfinite(found.W_enc).all())


@pytest.mark.parametrize("d_out", [8, 5, 13])
def test_ghost_has_autograds_gradients_and_the_losss_value(d_out):
    z, residual, dead = problem(d_out=d_out)
    loss = torch.tensor(0.37)
    leaves = with_gradients(dead)
    pre = z @ leaves.W_enc.t() + leaves.bias
    g = torch.exp(pre) @ leaves.W_dec
    scaled = g * (residual.norm(dim=1) / (2 * g.norm(dim=1))).detach().unsqueeze(1)
    torch.testing.assert_close(scaled.norm(dim=1), residual.norm(dim=1) / 2)
    term = (residual - scaled).square().mean()
    (term * (loss / term).detach()).backward()
    found = revival.ghost(revival.Unexplained(z, residual, loss), dead, coefficient=1.0)
    assert found.value == pytest.approx(loss.item(), rel=1e-5)
    assert_gradients(found, leaves)


def test_auxk_does_not_depend_on_how_large_the_residual_is():
    z, residual, dead = problem()
    silent = revival.DeadLatents(dead.latents, dead.W_enc, dead.W_dec, torch.full((11,), -1e4))  # ê = 0
    variance = (residual - residual.mean(0)).square().sum()
    for unit in (1.0, 2.0**-20, 2.0**20):
        found = revival.auxk(revival.Unexplained(z, unit * residual, torch.tensor(1.0)), silent, coefficient=0.5)
        assert found.value.item() == pytest.approx(0.5 * (residual.square().sum() / variance).item(), rel=1e-5)


def test_ghost_looks_at_every_row_by_itself():
    """One row's huge pre-activations do not put out those of the others; one dead latent is enough."""
    z, residual, dead = problem()
    z[0] *= 1e4
    found = revival.ghost(revival.Unexplained(z, residual, torch.tensor(1.0)), dead, coefficient=1.0)
    alone = revival.ghost(revival.Unexplained(z[1:], residual[1:], torch.tensor(1.0)), dead, coefficient=1.0)
    share = found.W_dec.norm() / alone.W_dec.norm()
    assert 0.5 < share < 2, "19 of the 20 rows are the same"
    z, residual, dead = problem(n_dead=1)
    one = revival.ghost(revival.Unexplained(z, residual, torch.tensor(0.3)), dead, coefficient=1.0)
    assert one.value.item() == pytest.approx(0.3)


def test_ghost_does_not_overflow():
    z, residual, dead = problem(scale=1e4)
    found = revival.ghost(revival.Unexplained(z, residual, torch.tensor(1.0)), dead, coefficient=1.0)
    assert all(bool(torch.isfinite(t).all()) for t in (found.W_enc, found.W_dec, found.b_enc, found.value))


@pytest.mark.parametrize("method", sorted(revival.METHODS))
def test_padding_of_the_list_is_no_latent(method):
    """Its bias of −∞ takes it out of the code, and it does not count as dead."""
    z, residual, dead = problem(n_dead=3)
    filler = torch.randn(4, 8)
    padded = revival.DeadLatents(
        torch.cat([dead.latents, torch.full((4,), 99)]), torch.cat([dead.W_enc, filler]),
        torch.cat([dead.W_dec, normalize(filler, dim=1)]), torch.cat([dead.bias, torch.full((4,), -torch.inf)]),
    )  # fmt: skip
    assert (dead.number, padded.number) == (3, 3)
    left = revival.Unexplained(z, residual, torch.tensor(0.4))
    plain, found = (revival.METHODS[method](left, each, coefficient=0.5) for each in (dead, padded))
    torch.testing.assert_close(found.value, plain.value)
    for name in ("W_enc", "W_dec", "b_enc"):
        torch.testing.assert_close(getattr(found, name)[:3], getattr(plain, name), rtol=1e-5, atol=1e-7)
        assert bool((getattr(found, name)[3:] == 0).all())


def test_rows_are_added_to_a_steps_gradients_where_their_latents_are():
    """Also to a gradient that is a matrix; there padding names a latent that there is not, with rows of 0."""
    found = revival.DeadGradients(torch.ones(3, 2), 2 * torch.ones(3, 4), 3 * torch.ones(3), torch.tensor(0.0))
    for rows in (found.W_enc, found.W_dec, found.b_enc):
        rows[2] = 0
    gradients = {"W_enc": torch.ones(5, 2), "W_dec": torch.ones(5, 4), "b_gate": torch.ones(5)}
    found.add_to(gradients, torch.tensor([4, 0, 5]), bias="b_gate")
    assert gradients["W_enc"].tolist() == [[2, 2], [1, 1], [1, 1], [1, 1], [2, 2]]
    assert gradients["W_dec"][:, 0].tolist() == [3, 1, 1, 1, 3]
    assert gradients["b_gate"].tolist() == [4, 1, 1, 1, 4]


@pytest.mark.parametrize("method", sorted(revival.METHODS))
@pytest.mark.parametrize("case", ["none are dead", "nothing is left to explain"])
def test_a_term_without_object_is_zero(method, case):
    z, residual, dead = problem()
    if case == "none are dead":
        dead = revival.DeadLatents(dead.latents, dead.W_enc, dead.W_dec, torch.full((11,), -torch.inf))
    else:
        residual = torch.zeros_like(residual)
    left = revival.Unexplained(z, residual, torch.tensor(0.4))
    found = revival.METHODS[method](left, dead, coefficient=0.5)
    assert found.value == 0
    for gradient in (found.W_enc, found.W_dec, found.b_enc):
        assert bool((gradient == 0).all())


def test_auxk_of_narrow_activations_reconstructs_with_one_latent():
    z, residual, dead = problem(d_in=1)
    leaves = with_gradients(dead)
    pre = (z @ leaves.W_enc.t() + leaves.bias).relu()
    best = pre.topk(1)
    error = residual - torch.zeros_like(pre).scatter(1, best.indices, best.values) @ leaves.W_dec
    (error.square().sum() / (residual - residual.mean(0)).square().sum()).backward()
    assert_gradients(revival.auxk(revival.Unexplained(z, residual, torch.tensor(1.0)), dead, coefficient=1.0), leaves)


def gradients_of_a_step(learner: Learner, x: torch.Tensor) -> dict[str, torch.Tensor]:
    seen = {}
    learner.optimizer.step = lambda gradients, lr: seen.update({n: matrix(g).clone() for n, g in gradients.items()})
    learner.step(x)
    return seen


@pytest.mark.parametrize("architecture", sorted(RULES))
@pytest.mark.parametrize("method", ["auxk", "ghost"])
def test_only_dead_latents_get_the_terms_gradient(method, architecture):
    x = torch.randn(256, 8)

    def learner_with(revival_method: str) -> Learner:
        config = SAEConfig(
            architecture=architecture, expansion_factor=16, k=2, batch_size=256, lr=1e-3, dead_feature_window=1,
            revival=revival_method,
        )  # fmt: skip
        return Learner(config, n_steps=100, sample=x)

    learner, plain = learner_with(method), learner_with("none")
    bias = learner.rule.bias
    for _ in range(20):  # the next step is one at which the list of dead latents is renewed
        learner.params[bias][::3] = -1e3  # dead for certain
        learner.step(x)
    assert 0.3 < learner.dead_share() < 1
    learner.params[bias][::3] = 0  # so that the term's gradients are not 0 by ReLU or underflow
    learner.statistics()
    plain.load_state(learner.state())
    with_term, without = gradients_of_a_step(learner, x), gradients_of_a_step(plain, x)
    statistics, plain_statistics = learner.statistics(), plain.statistics()
    dead = torch.zeros(128, dtype=torch.bool)
    dead[learner.dead_latents] = True
    assert 0 < dead.sum() < 128
    for name in without:
        if name in ("W_enc", "W_dec", bias):
            assert torch.equal(with_term[name][~dead], without[name][~dead])
            assert not torch.equal(with_term[name][dead], without[name][dead])
        else:
            assert torch.equal(with_term[name], without[name]), name
    if method == "ghost":
        assert statistics["loss"] == pytest.approx(plain_statistics["loss"] + statistics["fvu"], rel=1e-4)


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
    assert SAEConfig().revival_method() == "lift"
    with pytest.raises(ValueError, match="use_ghost_grads"):
        SAEConfig(use_ghost_grads=True, revival="auxk")


class TestResampling:
    """Bricken et al. 2023: dead latents start again as rows that are explained badly."""

    def setting(self, architecture: str = "topk"):
        rule = make_rule(SAEConfig(architecture=architecture, expansion_factor=3, k=2), d_sae=12)
        params = {"W_enc": torch.randn(12, 4), "W_dec": normalize(torch.randn(12, 5), dim=1), "b_dec": torch.randn(5)}
        params |= {name: tensor + 0.7 for name, tensor in rule.own_tensors(torch.tensor(0.3)).items()}
        batch = Batch(torch.randn(6, 4), torch.randn(6, 5), torch.ones(6), torch.tensor(6.0), torch.ones(6))
        return rule, params, batch

    @pytest.mark.parametrize("architecture", sorted(RULES))
    def test_dead_latents_become_rows(self, architecture):
        rule, params, batch = self.setting(architecture)
        before = {name: tensor.clone() for name, tensor in params.items()}
        dead, losses = torch.tensor([1, 7, 8]), torch.tensor([0.0, 0.0, 4.0, 0.0, 0.0, 0.0])
        resampling.resample(dead, batch, losses, rule=rule, params=params, seed=0)
        alive = torch.ones(12, dtype=torch.bool)
        alive[dead] = False
        for name, tensor in params.items():
            kept = tensor if name == "b_dec" else tensor[alive]
            assert torch.equal(kept, before[name] if name == "b_dec" else before[name][alive]), name
        row = normalize(batch.inputs[2], dim=0)
        torch.testing.assert_close(params["W_dec"][dead], normalize(batch.target[2], dim=0).expand(3, 5))
        norm = before["W_enc"][alive].norm(dim=1).mean()
        torch.testing.assert_close(params["W_enc"][dead], 0.2 * norm * row.expand(3, 4))
        assert params[rule.bias][dead].tolist() == [0.0] * 3
        if architecture == "jumprelu":
            torch.testing.assert_close(params["log_threshold"][dead], before["log_threshold"][alive][:3])

    def test_rows_are_drawn_by_their_squared_loss(self):
        rule, params, batch = self.setting()
        many = {name: t.repeat(250, *[1] * (t.dim() - 1)) if name != "b_dec" else t for name, t in params.items()}
        rule.d_sae = 3000
        losses = torch.tensor([1.0, 0.0, 3.0, 0.0, 0.0, 0.0])
        resampling.resample(torch.arange(2900), batch, losses, rule=rule, params=many, seed=0)
        drawn = (many["W_dec"][:2900] @ normalize(batch.target[2], dim=0) > 0.999).float().mean()
        assert drawn == pytest.approx(0.9, abs=0.02)

    def test_nothing_to_explain_nothing_changed(self):
        rule, params, batch = self.setting()
        before = {name: tensor.clone() for name, tensor in params.items()}
        resampling.resample(torch.tensor([3]), batch, torch.zeros(6), rule=rule, params=params, seed=0)
        assert all(torch.equal(tensor, before[name]) for name, tensor in params.items())

    def test_the_optimiser_forgets_them(self):
        rule, params, _ = self.setting()
        optimizer = UnitRowAdam(params, rates=rule.rates)
        optimizer.step({name: torch.ones_like(tensor) for name, tensor in params.items()}, lr=1e-3)
        moments = {name: optimizer.adam.state[params[name]]["exp_avg"] for name in ("b_enc", "b_dec")}
        b_dec = moments["b_dec"].clone()
        optimizer.forget(torch.tensor([1, 7]))
        for moment in (optimizer.rows["W_enc"].state()["first"], moments["b_enc"]):
            assert (moment.view(12, -1) == 0).all(1).nonzero().flatten().tolist() == [1, 7]
        assert torch.equal(moments["b_dec"], b_dec)

    def test_it_happens_every_two_windows_until_the_rate_decays(self):
        due = [step for step in range(60) if resampling.due(step, window_steps=5, last_step=40)]
        assert due == [10, 20, 30, 40]

    def test_a_learner_resamples_what_is_dead(self):
        x = torch.randn(256, 8, generator=torch.Generator().manual_seed(5))  # not the seed of the weights
        config = SAEConfig(
            expansion_factor=32, k=1, batch_size=256, revival="resample", dead_feature_window=2, lr=1e-30
        )
        learner = Learner(config, n_steps=100, sample=x)
        for _ in range(4):
            learner.step(x)
        before, share = learner.params["W_dec"].clone(), learner.dead_share()
        dead = learner.last_fired_step == 0
        assert dead.float().mean() == pytest.approx(share)
        assert 0.1 < share < 0.9
        learner.step(x)
        changed = (learner.params["W_dec"] - before).abs().amax(1) > 1e-4
        assert torch.equal(changed, dead)
        assert learner.dead_share() == 0
        cosines = learner.params["W_dec"][dead] @ normalize(learner.normalization.apply(x), dim=1).t()
        assert cosines.amax(1).min() > 0.9999


class TestLift:
    def test_biases_of_the_silent_rise_by_one_learning_rate(self):
        bias = torch.zeros(6)
        revival.lift_(bias, torch.tensor([1, 4]), torch.tensor([1.0, 0.0]), rate=0.5)
        assert bias.tolist() == [0.0, 0.5, 0.0, 0.0, 0.0, 0.0]

    def test_every_latent_fires_again(self):
        """Of 128 latents that compete for one place, those without it get it in their turn; without revival most never
        do.
        """
        x = torch.randn(128, 8, generator=torch.Generator().manual_seed(5))
        never = {}
        for method in ("lift", "none"):
            config = SAEConfig(
                expansion_factor=16, k=1, batch_size=128, revival=method, dead_feature_window=20, decay="0%"
            )
            learner = Learner(config, n_steps=300, sample=x)
            for _ in range(300):
                learner.step(x)
            never[method] = (learner.last_fired_step < 100).float().mean().item()
        assert never["lift"] < 0.05
        assert never["none"] > 0.3
