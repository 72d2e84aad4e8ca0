"""The controller that brings L0 to k: what it does in one step, and where it ends where L0 answers as that of SAEs."""

import math

import pytest
import torch

from strata.config.train import SAEConfig
from strata.sae.rules.steering import Steering

K = 8


def steering(start: float = 0.1, **settings) -> Steering:
    return Steering(SAEConfig(architecture="relu", k=K, **settings), start=start, device=torch.device("cpu"))


def after(*l0s: float, **settings) -> float:
    """The coefficient when steps had these L0."""
    one = steering(**settings)
    for l0 in l0s:
        one.note(torch.tensor(float(l0)))
    return one.coefficient.item()


def test_it_starts_where_it_is_told_and_rests_where_l0_is_k():
    assert after() == pytest.approx(0.1)
    assert after(K, K, K) == pytest.approx(0.1)


def test_the_coefficient_rises_while_too_many_fire_and_falls_while_too_few():
    assert after(1.2 * K) > 0.1 > after(K / 1.2)
    assert after(1.2 * K, 1.2 * K) > after(1.2 * K)
    assert after(2 * K) > after(1.2 * K)


def test_the_error_is_the_logarithm_of_the_running_l0_over_k():
    """One step: the mean takes a tenth of the new L0; the error counts twice, its integral adds 6 %."""
    error = math.log(0.9 + 0.1 * 1.5)
    assert after(1.5 * K) == pytest.approx(0.1 * math.exp(2.06 * error), rel=1e-5)
    later = math.log(0.9 * (0.9 + 0.1 * 1.5) + 0.1 * 1.5)
    assert after(1.5 * K, 1.5 * K) == pytest.approx(0.1 * math.exp(0.06 * (error + later) + 2 * later), rel=1e-5)


def test_one_wild_step_counts_no_more_than_e_times_k():
    assert after(1e9) == pytest.approx(after(1000 * K)) == pytest.approx(0.1 * math.exp(2.06), rel=1e-4)
    silent = after(*[0.0] * 200)  # finite, though the logarithm of 0 is not
    assert silent == pytest.approx(after(*[0.0] * 199) * math.exp(-0.06), rel=1e-4)


def test_a_fixed_coefficient_stays():
    one = steering(sparsity_coefficient=0.3)
    one.note(torch.tensor(100.0 * K))
    assert one.coefficient.item() == pytest.approx(0.3)


def test_l0_becomes_k():
    """Where L0 falls with the square root of the coefficient, from far away on either side."""
    for start in (1e-3, 1e3):
        one = steering(start=start)
        for _ in range(600):
            one.note(K * one.coefficient.rsqrt())
        assert one.coefficient.item() == pytest.approx(1, rel=0.02)


def test_its_state_is_all_that_it_remembers():
    one, other = steering(), steering(start=7.0)
    for l0 in (3 * K, 2 * K):
        one.note(torch.tensor(float(l0)))
    place = other.coefficient.data_ptr()
    other.load_state(one.state())
    for each in (one, other):
        each.note(torch.tensor(5.0 * K))
    assert torch.equal(one.coefficient, other.coefficient)
    assert other.coefficient.data_ptr() == place, "a recorded step reads it where it was"
