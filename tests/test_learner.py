"""An SAE in training: what it learns, what it saves, identities of its normalisation."""

import pytest
import torch

from strata.config.train import SAEConfig
from strata.kernels.pytorch import unit_rows_
from strata.sae import metrics
from strata.sae.learner import Learner
from strata.sae.normalization import GroupNormalization, Normalization
from strata.sae.optim import Schedule, auto_learning_rate
from strata.shapes import SparseCode

D_IN, N_FEATURES = 32, 64


def dictionary() -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.nn.functional.normalize(torch.randn(N_FEATURES, D_IN, generator=generator), dim=1)


def known_rows(n_rows: int, *, seed: int, n_active: int = 3) -> torch.Tensor:
    """Rows made of 3 of 64 known features each, with an offset and a scale of their own."""
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(n_rows, N_FEATURES, generator=generator).topk(n_active).indices
    code = torch.zeros(n_rows, N_FEATURES).scatter_(1, active, torch.rand(n_rows, n_active, generator=generator) + 0.5)
    return 20 * code @ dictionary() + 100


@pytest.fixture(scope="module")
def trained() -> Learner:
    config = SAEConfig(expansion_factor=2, k=3, batch_size=512, lr=5e-3)
    learner = Learner(config, n_steps=600, sample=known_rows(4096, seed=1))
    for step in range(600):
        learner.step(known_rows(512, seed=100 + step))
    return learner


def test_recovers_a_known_dictionary(trained: Learner):
    found = (trained.finish().W_dec @ dictionary().t()).abs().amax(0)
    assert found.mean() > 0.9


def test_explains_held_out_rows(trained: Learner):
    x = known_rows(2000, seed=2)
    sae = trained.finish()
    assert metrics.fvu(x, sae(x)) < 0.1
    assert metrics.l0(sae.encode_sparse(x).values) <= 3


def test_finished_sae_has_unit_decoder_rows_and_the_learners_reconstruction(trained: Learner):
    sae = trained.finish()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.d_sae), rtol=0, atol=1e-5)
    x = known_rows(100, seed=3)
    p, norm = trained.params, trained.normalization
    z = norm.apply(x)
    gate, _ = trained.rule.finished(p, None)
    code = gate.dense((z - p["b_dec"]) @ p["W_enc"].t() + p["b_enc"])
    z_hat = code @ p["W_dec"] + p["b_dec"]
    torch.testing.assert_close(sae(x), z_hat * norm.scale + norm.mean, rtol=1e-4, atol=1e-3)


def test_every_way_to_encode_gives_the_same(trained: Learner):
    sae, x = trained.finish(), known_rows(24, seed=4)
    dense = sae.encode(x)
    torch.testing.assert_close(sae.encode_sparse(x).dense(), dense)
    torch.testing.assert_close(sae.encode(x.view(2, 3, 4, D_IN)), dense.view(2, 3, 4, -1))
    torch.testing.assert_close(sae.encode(x[0]), dense[0])
    asked = x.clone().requires_grad_()
    torch.testing.assert_close(sae.encode(asked).detach(), dense, rtol=1e-4, atol=1e-4)
    sae(asked).sum().backward()
    assert asked.grad is not None
    assert bool(asked.grad.abs().sum() > 0)
    torch.testing.assert_close(sae.decode(sae.encode_sparse(x)), sae.decode(dense), rtol=1e-4, atol=1e-3)


def test_scaling_the_activations_scales_the_sae():
    """Powers of two are exact in floating point, so the training is the same, bit for bit."""
    x = known_rows(512, seed=5)
    results = []
    for factor in (1.0, 4.0):
        learner = Learner(SAEConfig(expansion_factor=2, k=3, batch_size=512), n_steps=20, sample=x * factor)
        for _ in range(20):
            learner.step(x * factor)
        results.append(learner.finish())
    assert torch.equal(results[0].W_enc, results[1].W_enc)
    assert torch.equal(results[0](x) * 4, results[1](x * 4))


@pytest.mark.parametrize("revival", ["lift", "auxk", "ghost", "resample", "none"])
def test_ten_and_ten_steps_are_twenty(revival):
    config = SAEConfig(expansion_factor=4, k=3, batch_size=64, revival=revival, dead_feature_window=2)
    sample = known_rows(256, seed=6)
    straight = Learner(config, n_steps=20, sample=sample)
    broken = Learner(config, n_steps=20, sample=sample)
    batches = [known_rows(64, seed=200 + i) for i in range(20)]
    for batch in batches:
        straight.step(batch)
    for batch in batches[:10]:
        broken.step(batch)
    resumed = Learner(config, n_steps=20, sample=known_rows(256, seed=9))
    resumed.load_state(broken.state())
    for batch in batches[10:]:
        resumed.step(batch)
    for name, tensor in straight.params.items():
        assert torch.equal(tensor, resumed.params[name])
    assert torch.equal(straight.last_fired_step, resumed.last_fired_step)


def test_warm_start_begins_where_the_sae_is(trained: Learner):
    sae, x = trained.finish(), known_rows(4096, seed=8)
    again = Learner(trained.config, n_steps=10, sample=x, init=sae).finish()
    torch.testing.assert_close(again(x[:64]), sae(x[:64]), rtol=1e-4, atol=1e-2)
    with pytest.raises(ValueError, match="expansion_factor=2"):
        Learner(SAEConfig(expansion_factor=4, k=3), n_steps=10, sample=x, init=sae)


def test_dead_share_counts_latents_that_are_silent_for_longer_than_the_window():
    x = known_rows(64, seed=10)
    learner = Learner(SAEConfig(expansion_factor=64, k=1, batch_size=64, dead_feature_window=5), n_steps=50, sample=x)
    for _ in range(5):
        learner.step(x)
    assert learner.dead_share() == 0
    learner.step(x)
    assert 0.9 < learner.dead_share() < 1


def test_statistics_tell_outliers_drift_and_what_is_silent_in_a_step():
    config = SAEConfig(expansion_factor=2, k=3, batch_size=512)
    learner = Learner(config, n_steps=100, sample=known_rows(4096, seed=1))
    x = known_rows(512, seed=2)
    learner.step(x)
    first = learner.statistics()
    fired = metrics_of_last_step(learner, 1)
    assert first["silent_step_share"] == pytest.approx(1 - fired)
    assert first["outlier_share"] == 0
    assert first["relative_length"] == pytest.approx(1, abs=0.1)

    norm = learner.normalization
    outlying, rest = norm.median + 30 * (x[:128] - norm.median), norm.median + 2 * (x[128:] - norm.median)
    for _ in range(3):
        learner.step(torch.cat([outlying, rest]))
    second = learner.statistics()
    assert second["outlier_share"] == pytest.approx(128 / 512, abs=1e-6)
    assert second["relative_length"] == pytest.approx(2 * first["relative_length"], rel=0.1)  # outliers left out
    assert second["silent_step_share"] == pytest.approx(1 - metrics_of_last_step(learner, 4))
    assert learner.statistics()["outlier_share"] == 0  # nothing since the last reading


def metrics_of_last_step(learner: Learner, number: int) -> float:
    """Share of latents that fired in a step, which is the last one."""
    assert learner.n_steps_done == number
    return (learner.last_fired_step == number).float().mean().item()


class TestNormalization:
    def test_mean_is_zero_and_mean_square_is_one(self):
        x = torch.randn(5000, 16) * 7 + torch.arange(16)
        z = Normalization.estimate(x).apply(x)
        torch.testing.assert_close(z.mean(0), torch.zeros(16), rtol=0, atol=1e-4)
        assert z.square().sum(1).mean() == pytest.approx(16, rel=1e-4)

    def test_sinks_do_not_count(self):
        x = torch.randn(5000, 16)
        sinks = torch.full((20, 16), 1000.0)
        norm = Normalization.estimate(torch.cat([x, sinks]))
        assert norm.scale == pytest.approx(1, abs=0.05)
        assert bool(norm.is_sink(sinks).all())
        assert not bool(norm.is_sink(x).any())

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_bad_numbers_are_refused(self, bad):
        x = torch.randn(100, 4)
        x[3, 2] = bad
        with pytest.raises(ValueError, match=r"layers\.3 holds NaN or infinity"):
            Normalization.estimate(x, site="layers.3")

    def test_constant_and_single_rows_are_refused(self):
        with pytest.raises(ValueError, match="All rows"):
            Normalization.estimate(torch.ones(10, 4))
        with pytest.raises(ValueError, match="All rows"):
            Normalization.estimate(torch.ones(10, 4), centring=False)
        with pytest.raises(ValueError, match="at least 2 rows"):
            Normalization.estimate(torch.ones(1, 4))
        assert Normalization.estimate(torch.tensor([[1.0], [3.0]])).scale == pytest.approx(1)

    @pytest.mark.parametrize("unit", [1.0, 2.0**-20, 2.0**20])
    def test_a_sink_is_farther_than_ten_median_distances(self, unit):
        x = torch.tensor([[1.0]] * 50 + [[3.0]] + [[5.0]] * 50 + [[-17.0], [23.0], [-18.0], [24.0]])
        norm, edge = Normalization.estimate(unit * x), unit * torch.tensor([[23.0], [-17.0], [23.1], [-17.1]])
        assert (norm.median.item(), norm.sink_radius) == (3 * unit, 20 * unit)
        assert norm.is_sink(edge).tolist() == [False, False, True, True]
        assert norm.mean.item() == pytest.approx(3 * unit)
        assert norm.scale == pytest.approx(unit * ((100 * 2**2 + 2 * 20**2) / 103) ** 0.5)  # without the two beyond
        distances = norm.distance(unit * torch.tensor([[3.0], [9.0], [-7.0]]))
        assert distances.tolist() == [0, 6 * unit, 10 * unit]
        assert norm.relative(distances).tolist() == pytest.approx([0, 3, 5])

    def test_where_most_rows_are_equal_none_is_a_sink(self):
        x = torch.cat([torch.zeros(60, 3), torch.full((40, 3), 50.0)])
        norm = Normalization.estimate(x)
        assert norm.sink_radius == float("inf")
        assert not bool(norm.is_sink(1e6 * x).any())
        assert bool((norm.relative(norm.distance(x)) == 0).all())
        torch.testing.assert_close(norm.mean, torch.full((3,), 20.0))

    def test_without_centring_the_mean_stays_in(self):
        x = torch.randn(500, 16) + 3
        norm = Normalization.estimate(x, centring=False)
        assert norm.mean.tolist() == [0.0] * 16
        assert norm.scale == pytest.approx(x.square().mean().sqrt().item(), rel=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_row_is_taken_away_after_the_scale(self, dtype):
        x, minus = (torch.randn(500, 16) * 7 + 3).to(dtype), torch.randn(16)
        norm = Normalization.estimate(x)
        z = norm.apply(x)
        assert z.dtype == norm.mean.dtype == torch.float32
        torch.testing.assert_close(z, (x.float() - norm.mean) / norm.scale)
        torch.testing.assert_close(norm.apply(x, minus=minus), z - minus, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("centring", [True, False])
    def test_a_groups_rows_are_normalised_by_their_own_site(self, centring):
        layer = (torch.arange(600) % 3).to(torch.uint8)
        x = torch.randn(600, 8) * (layer + 1).unsqueeze(1) + 5 * layer.unsqueeze(1)
        x[:3] = 1e4  # a sink at each site
        group = GroupNormalization.estimate(x, layer, sites=["a", "b", "c"], centring=centring)
        minus = torch.randn(8)
        for number in range(3):
            mine = layer == number
            alone, own = Normalization.estimate(x[mine], centring=centring), group.of_site(number)
            assert (own.scale, own.sink_radius) == pytest.approx((alone.scale, alone.sink_radius))
            assert isinstance(own.scale, float)
            assert isinstance(own.sink_radius, float)
            assert torch.equal(own.mean, alone.mean)
            assert torch.equal(own.median, alone.median)
            rows = group.of(layer)
            torch.testing.assert_close(rows.apply(x)[mine], alone.apply(x[mine]))
            torch.testing.assert_close(rows.apply(x, minus=minus)[mine], alone.apply(x[mine], minus=minus))
            assert torch.equal(rows.is_sink(x)[mine], alone.is_sink(x[mine]))
            distances = alone.distance(x[mine])
            torch.testing.assert_close(rows.relative(rows.distance(x))[mine], alone.relative(distances))
        assert torch.equal(group.mean, GroupNormalization.estimate(x, layer, sites=["a", "b", "c"]).mean) == centring
        with pytest.raises(ValueError, match="All rows of b"):
            GroupNormalization.estimate(torch.where(layer.unsqueeze(1) == 1, 4.0, x), layer, sites=["a", "b", "c"])


class TestOptimiser:
    def test_schedule_rises_stays_and_falls(self):
        config = SAEConfig(lr=1.0, warmup="10 steps", decay="20%", batch_size=10)
        schedule = Schedule(config, d_sae=64, n_steps=100)
        rates = [schedule.at(step) for step in range(100)]
        assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
        assert set(rates[10:80]) == {1.0}
        assert rates[80:] == pytest.approx([(20 - i) / 20 for i in range(20)])
        tokens = Schedule(SAEConfig(lr=1.0, warmup="100 tokens", decay="0%", batch_size=10), d_sae=64, n_steps=100)
        assert (tokens.at(4), tokens.at(9), tokens.at(99)) == pytest.approx((0.5, 1.0, 1.0))

    def test_learning_rate_falls_with_width_and_rises_with_the_batch(self):
        base = auto_learning_rate(d_sae=2**16, batch_size=1024)
        assert auto_learning_rate(d_sae=2**18, batch_size=1024) == pytest.approx(base / 2)
        assert auto_learning_rate(d_sae=2**16, batch_size=4096) == pytest.approx(base * 2)

    def test_zero_rows_become_unit_vectors(self):
        weight = torch.randn(6, 4)
        weight[2] = 0
        unit_rows_(weight)
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(6))


def test_sparse_code_as_dense():
    code = SparseCode(torch.tensor([[1.0, 0.0], [2.0, 3.0]]), torch.tensor([[2, 0], [1, 3]]), 4)
    assert code.dense().tolist() == [[0, 0, 1, 0], [0, 2, 0, 3]]
