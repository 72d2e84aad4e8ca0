"""Each metric at the points that define it: the perfect reconstruction, the mean predictor, a shrunken copy, and one
example small enough to be done by hand.
"""

import pytest
import torch

from strata.sae import metrics


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(50, 6) * torch.arange(1.0, 7.0) + 3


def test_a_perfect_reconstruction(x):
    assert metrics.fvu(x, x) == 0
    assert metrics.explained_variance(x, x) == 1
    assert metrics.mse(x, x) == 0
    for metric in (metrics.cosine, metrics.l2_ratio, metrics.relative_reconstruction_bias):
        assert metric(x, x).item() == pytest.approx(1)


def test_the_mean_predictor_explains_nothing(x):
    mean = x.mean(0).expand_as(x)
    assert metrics.fvu(x, mean).item() == pytest.approx(1)
    assert metrics.explained_variance(x, mean).item() == pytest.approx(0, abs=1e-6)
    one_number = torch.full_like(x, x.mean().item())  # the mean is taken per dimension, so this is worse
    assert metrics.explained_variance(x + torch.arange(6) * 10, one_number) < 0


def test_variance_knows_neither_offset_nor_scale(x):
    x_hat = x + torch.randn_like(x)
    wanted = metrics.fvu(x, x_hat).item()
    assert 0 < wanted < 1
    assert metrics.fvu(4 * x + 7, 4 * x_hat + 7).item() == pytest.approx(wanted, rel=1e-5)
    assert metrics.explained_variance(x, x_hat).item() == pytest.approx(1 - wanted, rel=1e-5)


def test_a_shrunken_copy(x):
    """Its direction is right, its length is not."""
    assert metrics.cosine(x, x / 2).item() == pytest.approx(1)
    assert metrics.l2_ratio(x, x / 2).item() == pytest.approx(1 / 2)
    assert metrics.relative_reconstruction_bias(x, x / 2).item() == pytest.approx(1 / 2)
    assert metrics.cosine(x, -x).item() == pytest.approx(-1)


def test_errors_are_summed_over_dimensions_and_averaged_over_rows():
    x, x_hat = torch.tensor([[3.0, 4.0, 0.0], [0.0, 2.0, 0.0]]), torch.tensor([[3.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    assert metrics.mse(x, x_hat).item() == pytest.approx((16 + (4 + 4)) / 2)
    assert metrics.fvu(x, x_hat).item() == pytest.approx((16 + 8) / (2 * 1.5**2 + 2 * 1))
    assert metrics.cosine(x, x_hat).item() == pytest.approx((3 / 5 + 0) / 2)
    assert metrics.l2_ratio(x, x_hat).item() == pytest.approx((3 / 5 + 2 / 2) / 2)
    assert metrics.relative_reconstruction_bias(x, x_hat).item() == pytest.approx((9 + 4) / 9)


def test_l0_counts_what_is_above_zero():
    assert metrics.l0(torch.tensor([[0.0, 0.1, 7.0], [0.0, 0.0, -2.0]])).item() == pytest.approx(2 / 2)


def test_scores_of_the_language_models_loss():
    """1 where the SAE changes nothing, 0 where it is as bad as zeros, between them in proportion."""
    assert metrics.ce_loss_score(ce_zero=9.0, ce_sae=3.0, ce_clean=3.0) == 1
    assert metrics.ce_loss_score(ce_zero=9.0, ce_sae=9.0, ce_clean=3.0) == 0
    assert metrics.ce_loss_score(ce_zero=9.0, ce_sae=4.5, ce_clean=3.0) == pytest.approx(0.75)
    assert metrics.kl_div_score(kl_zero=8.0, kl_sae=0.0) == 1
    assert metrics.kl_div_score(kl_zero=8.0, kl_sae=8.0) == 0
    assert metrics.kl_div_score(kl_zero=8.0, kl_sae=2.0) == pytest.approx(0.75)
    assert metrics.delta_ce_percent(ce_sae=3.0, ce_clean=3.0) == 0
    assert metrics.delta_ce_percent(ce_sae=3.3, ce_clean=3.0) == pytest.approx(10)
