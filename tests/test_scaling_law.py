"""Laws of scaling: fits find what was put in, say what they cannot know, and optima are where a search finds them."""

import math
from typing import Any

import numpy as np
import pytest

from strata.costs.flops import sae_step_flops
from strata.costs.scaling_fit import (
    bootstrap,
    bootstrap_compute,
    fit_compute,
    fit_law,
    interval,
    predicted_interval,
    resampled,
)
from strata.costs.scaling_law import Cost, Law, Points, envelope
from strata.costs.scaling_optimum import at_optimum, best_within, flat_from, frontier, has_optimum
from strata.errors import UserError

TRUE = Law(e=math.log(0.12), epsilon=0.3, a=math.log(2), alpha=0.5, gamma=0.1, b=math.log(60), beta=0.6, kappa=0.15)
COUPLED = Law(e=-2.1, epsilon=0.3, a=0.7, alpha=0.5, gamma=0.1, b=2.0, beta=0.6, kappa=0.2, delta=0.25)
WIDTHS, TOKENS, KS = (768, 1536, 3072, 6144), (62_500, 125_000, 250_000, 500_000), (16, 32, 64)
COST = Cost(d_in=192)


def sweep(law: Law, *, noise: float = 0.0, seed: int = 0, widths: Any = WIDTHS, ks: Any = KS) -> Points:
    """Losses of a whole grid by a law, each with its own error."""
    grid = np.array([(n, t, k) for n in widths for t in TOKENS for k in ks], dtype=float)
    n, t, k = (column.copy() for column in grid.T)
    scatter = np.exp(noise * np.random.default_rng(seed).standard_normal(len(grid)))
    return Points(n_latents=n, n_tokens=t, k=k, loss=law.loss(n, t, k) * scatter)


def read(law: Law, name: str) -> float:
    return float(law.irreducible(32.0)) if name == "irreducible" else getattr(law, name)


def test_the_law_is_its_formula() -> None:
    by_hand = 0.12 * 32**-0.3 + 2 * 1000**-0.5 * 32**-0.1 + 60 * 5000**-0.6 * 32**-0.15
    assert float(TRUE.loss(1000, 5000, 32)) == pytest.approx(by_hand)
    assert float(COUPLED.of_tokens(5000, 1000, 32)) == pytest.approx(math.exp(2) * 5000**-0.6 * 1000**0.25 * 32**-0.2)
    assert Law.from_json(TRUE.as_json()) == TRUE
    assert Law(b=1.0).as_json()["a"] is None
    assert Law.from_json(Law(b=1.0).as_json()) == Law(b=1.0)


def test_the_cost_of_a_token_is_the_steps() -> None:
    assert COST.per_token(3072, 32) == sae_step_flops(192, 3072, 32)
    assert Cost(d_in=192, forward_flops=7e6).per_token(3072, 32) == sae_step_flops(192, 3072, 32) + 7e6
    points = sweep(TRUE)
    assert points.flops(COST)[0] == 62_500 * sae_step_flops(192, 768, 16)


def test_without_noise_the_parameters_come_back() -> None:
    fit = fit_law(sweep(TRUE))
    for name in fit.free:
        assert getattr(fit.law, name) == pytest.approx(getattr(TRUE, name), rel=1e-4), name
    assert fit.free == ("e", "epsilon", "a", "alpha", "gamma", "b", "beta", "kappa")
    assert fit.n_points == 48
    assert fit.n_agreeing > 1
    coupled = fit_law(sweep(COUPLED), form="coupled")
    assert coupled.law.delta == pytest.approx(0.25, rel=1e-3)
    assert coupled.law.beta == pytest.approx(0.6, rel=1e-3)


def test_the_better_form_is_told_by_its_criterion() -> None:
    for law, coupled_is_better in ((TRUE, False), (COUPLED, True)):
        points = sweep(law, noise=0.004)
        additive, coupled = fit_law(points, form="additive"), fit_law(points, form="coupled")
        assert (coupled.aicc < additive.aicc) == coupled_is_better


def standard_errors(law: Law, names: Any, *, noise: float) -> dict[str, float]:
    """What the linear theory of least squares says of a whole grid: noise · √diag((JᵀJ)⁻¹), J by differences."""
    points, step = sweep(law), 1e-5

    def logs(changed: Law) -> Any:
        return np.log(changed.loss(points.n_latents, points.n_tokens, points.k))

    by_name = [vars(law) | {name: getattr(law, name) + step} for name in names]
    slopes = np.stack([(logs(Law(**changed)) - logs(law)) / step for changed in by_name], axis=1)
    return dict(zip(names, noise * np.sqrt(np.diag(np.linalg.inv(slopes.T @ slopes))), strict=True))


def test_intervals_hold_the_truth_and_are_as_wide_as_they_have_to_be() -> None:
    """Few sweeps tell coverage roughly, and width well. benchmarks/scaling_coverage.py measures coverage on 60."""
    names, n_draws, noise = ("epsilon", "alpha", "gamma", "beta", "kappa"), 12, 0.003
    edges = []
    for seed in range(n_draws):
        points = sweep(TRUE, noise=noise, seed=seed)
        fit = fit_law(points)
        draws = bootstrap(points, fit, n_samples=40, seed=100 + seed)
        edges.append([interval([read(one.law, name) for one in draws]) for name in (*names, "irreducible")])
    low, high = np.moveaxis(np.array(edges), -1, 0)  # [draws names]
    true = np.array([read(TRUE, name) for name in (*names, "irreducible")])
    assert ((low <= true) & (true <= high)).mean() > 0.75
    errors = standard_errors(TRUE, ("e", "a", "b", *names), noise=noise)
    widths = np.median(high - low, axis=0)[:-1] / [2 * 1.645 * errors[name] for name in names]
    assert 0.65 < widths.min() < widths.max() < 1.2, widths
    assert 0.75 < widths.mean() < 1, widths


def test_a_larger_run_is_foretold_with_its_interval() -> None:
    points = sweep(TRUE, noise=0.003, seed=1)
    draws = bootstrap(points, fit_law(points), n_samples=20, seed=0)
    at = (12_288.0, 1_000_000.0, 32.0)
    low, high = predicted_interval(draws, at, seed=0)
    assert low < float(TRUE.loss(*at)) < high
    assert 0.003 < (high - low) / low < 0.05  # not narrower than the scatter of one measurement


def test_one_wild_point_does_not_decide() -> None:
    points = sweep(TRUE, noise=0.002)
    loss = points.loss.copy()
    loss[7] *= 1.5
    wild = Points(n_latents=points.n_latents, n_tokens=points.n_tokens, k=points.k, loss=loss)
    assert fit_law(wild).law.alpha == pytest.approx(fit_law(points).law.alpha, abs=0.05)


def test_what_was_not_swept_is_absent() -> None:
    fit = fit_law(sweep(TRUE, widths=(768,), ks=(32,)))
    assert fit.free == ("e", "b", "beta")
    assert fit.law.a == -math.inf
    assert not has_optimum(fit.law)
    assert fit.law.irreducible(32.0) == pytest.approx(TRUE.irreducible(32.0) + TRUE.of_width(768.0, 32.0), rel=1e-3)
    assert flat_from(fit.law, k=32.0, cost=COST, gain=0.01).n_latents == math.inf


def test_no_irreducible_loss_is_told_from_none() -> None:
    none = Law(a=math.log(2), alpha=0.3, gamma=0.1, b=math.log(60), beta=0.6)
    n_told = 0
    for seed in range(4):
        points = sweep(none, noise=0.003, seed=seed)
        draws = bootstrap(points, fit_law(points), n_samples=20, seed=0)
        low, _ = interval([float(one.law.irreducible(32.0)) for one in draws])
        n_told += low < 0.01 * float(points.loss.min())
    assert n_told >= 2
    exact = sweep(none)
    assert float(fit_law(exact).law.irreducible(32.0)) < 1e-3 * float(exact.loss.min())


def test_points_drawn_anew_keep_every_value() -> None:
    points = sweep(TRUE)
    drawn = list(resampled(points, n_samples=10, seed=0))
    for one in drawn:
        assert len(one) == len(points)
        for name in ("n_latents", "n_tokens", "k"):
            assert set(getattr(one, name)) == set(getattr(points, name))
        assert np.array_equal(np.sort(one.n_tokens), np.sort(points.n_tokens))  # as many of each budget
    assert any(not np.array_equal(one.loss, points.loss) for one in drawn)
    again = list(resampled(points, n_samples=10, seed=0))
    assert all(np.array_equal(one.loss, other.loss) for one, other in zip(drawn, again, strict=True))


def test_what_cannot_be_fitted_is_refused() -> None:
    points = sweep(TRUE)
    with pytest.raises(UserError, match=r"A law with 8 parameters needs more points than that. Got 8"):
        fit_law(points.only(np.array([0, 5, 10, 15, 20, 27, 38, 47])))
    bad = Points(n_latents=points.n_latents, n_tokens=points.n_tokens, k=points.k, loss=points.loss * 0)
    with pytest.raises(UserError, match="losses above 0 and finite"):
        fit_law(bad)


def test_the_envelope_holds_the_best_for_each_price() -> None:
    flops, loss = np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([5.0, 4.5, 4.0, 4.2, 3.0])
    assert envelope(flops, loss) == [0, 2, 4]


def test_the_law_of_compute_finds_its_floor() -> None:
    flops = np.geomspace(1e9, 1e13, 9)
    fit = fit_compute(flops, 0.05 + 30 * flops**-0.25)
    assert fit is not None
    assert math.exp(fit.law.e) == pytest.approx(0.05, rel=1e-3)
    assert fit.law.beta == pytest.approx(0.25, rel=1e-3)
    assert fit.law.b == pytest.approx(math.log(30), rel=1e-3)
    assert fit_compute(flops[:3], flops[:3] ** -0.25) is None
    points = sweep(TRUE, noise=0.003, ks=(32,))
    found = fit_compute(points.flops(COST), points.loss)
    assert found is not None
    draws = bootstrap_compute(points, COST, found, n_samples=20, seed=0)
    low, high = interval([one.law.beta for one in draws])
    assert low <= found.law.beta <= high


@pytest.mark.parametrize("law", [TRUE, COUPLED])
@pytest.mark.parametrize("forward", [0.0, 5e6])
def test_the_optimum_is_where_a_search_finds_it(law: Law, forward: float) -> None:
    cost, budget = Cost(d_in=192, forward_flops=forward), 3e13
    best = best_within(law, budget, k=32.0, cost=cost)
    widths = np.geomspace(100, 1e6, 200_001)
    losses = law.loss(widths, budget / cost.per_token(widths, 32), 32)
    assert best.n_latents == pytest.approx(float(widths[np.argmin(losses)]), rel=1e-3)
    assert best.loss == pytest.approx(float(losses.min()), rel=1e-9)
    assert best.n_tokens * cost.per_token(best.n_latents, 32) == pytest.approx(budget)
    assert not best.at_edge
    tokens, flops, loss = at_optimum(law, best.n_latents, k=32.0, cost=cost)  # the closed form
    assert float(tokens) == pytest.approx(best.n_tokens, rel=1e-3)
    assert (float(flops), float(loss)) == pytest.approx((budget, best.loss), rel=1e-3)
    n, t, low = frontier(law, np.array([budget]), k=32.0, cost=cost)
    assert (n[0], t[0], low[0]) == pytest.approx((best.n_latents, best.n_tokens, best.loss), rel=2e-3)


def test_where_the_loss_is_flat_by_hand() -> None:
    """Without the cost of k the tokens' term is α/β of the width's, so that along the optimum
    L(n) = E + (1 + α/β)·A·n^(−α); doubling takes (1 − 2^(−α)) of the second part.
    """
    law = Law(e=math.log(0.05), a=math.log(2), alpha=0.5, b=math.log(60), beta=0.6)
    k, gain = 1e-6, 0.01
    part = 0.05 * gain / (1 - 2**-0.5 - gain)
    width = ((1 + 0.5 / 0.6) * 2 / part) ** 2
    flat = flat_from(law, k=k, cost=COST, gain=gain)
    assert flat.n_latents == pytest.approx(width, rel=1e-6)
    tokens = (60 / ((0.5 / 0.6) * 2 * width**-0.5)) ** (1 / 0.6)
    assert flat.n_tokens == pytest.approx(tokens, rel=1e-6)
    assert flat.flops == pytest.approx(2 * 192 * width * tokens, rel=1e-6)
    assert flat.loss == pytest.approx(0.05 + part, rel=1e-6)
    assert flat_from(law, k=k, cost=COST, gain=0.05).n_latents < flat.n_latents


def test_without_a_floor_it_is_never_flat() -> None:
    endless = Law(a=0.0, alpha=0.5, b=1.0, beta=0.6)
    found = flat_from(endless, k=32.0, cost=COST, gain=0.01)
    assert (found.n_latents, found.flops) == (math.inf, math.inf)
    shallow = Law(a=0.0, alpha=0.001, b=1.0, beta=0.6)  # each doubling gains 0.07 %
    assert flat_from(shallow, k=32.0, cost=COST, gain=0.01).n_latents == 32


def test_intervals_may_have_no_end() -> None:
    assert interval([1.0] * 50 + [math.inf] * 50) == (1.0, math.inf)
    assert all(math.isnan(edge) for edge in interval([]))
