"""The optimiser of an SAE's tensors: it is Adam, each tensor at its own rate, and what a checkpoint holds of it."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from strata.config.train import SAEConfig
from strata.kernels.gradient import RowGradient
from strata.sae.optim import UnitRowAdam, auto_learning_rate
from strata.sae.row_adam import RowAdam
from strata.sae.rules.registry import make_rule

RATES = {"W_enc": 1.0, "W_dec": 4.0, "b_dec": 1.0, "W_skip": 1.0, "b_enc": 10.0}


def tensors() -> dict[str, Tensor]:
    """A transcoder's of 3 latents, whose decoder rows lie along the first axis."""
    W_dec = torch.tensor([[1.0, 0.0]]).repeat(3, 1)
    others = {"b_dec": torch.zeros(2), "W_skip": torch.zeros(2, 2), "b_enc": torch.zeros(3)}
    return {"W_enc": torch.zeros(3, 2), "W_dec": W_dec, **others}


def across(params: dict[str, Tensor], amount: float = -1.0) -> dict[str, Tensor]:
    """A gradient of the same amount everywhere, but along the decoder's rows."""
    gradients = {name: torch.full_like(tensor, amount) for name, tensor in params.items()}
    gradients["W_dec"][:, 0] = 0
    return gradients


def optimizer_of(params: dict[str, Tensor]) -> UnitRowAdam:
    return UnitRowAdam(params, rates=make_rule(SAEConfig(k=2), d_sae=3).rates)


def test_every_tensor_learns_at_its_own_rate():
    """Adam's first step moves every number by one learning rate; the decoder's rows are normalised afterwards."""
    params = tensors()
    optimizer = optimizer_of(params)
    optimizer.step(across(params), lr=1e-3)
    moved = {**params, "W_dec": params["W_dec"][:, 1] / params["W_dec"][:, 0]}
    for name, rate in RATES.items():
        assert optimizer.rate_of(name, 1e-3) == pytest.approx(rate * 1e-3)
        wanted = torch.full_like(moved[name], rate * 1e-3)
        torch.testing.assert_close(moved[name], wanted, rtol=1e-3, atol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_where_every_latent_is_listed_in_every_step_it_is_adam():
    params = {"W_enc": torch.randn(5, 3), "W_dec": nn.functional.normalize(torch.randn(5, 3), dim=1)}
    params["b_dec"] = torch.randn(3)
    twins = {name: nn.Parameter(params[name].clone()) for name in ("W_enc", "b_dec")}
    adam = torch.optim.Adam(twins.values(), lr=0.0)
    optimizer = UnitRowAdam(params, rates={})
    for step in range(5):
        gradients = {name: torch.randn_like(tensor) for name, tensor in params.items()}
        lr = 0.05 / (step + 1)
        for name, twin in twins.items():
            twin.grad = gradients[name].clone()
        adam.param_groups[0]["lr"] = lr
        adam.step()
        optimizer.step(gradients, lr=lr)
    for name, twin in twins.items():
        torch.testing.assert_close(params[name], twin.detach(), rtol=1e-4, atol=1e-5)


def test_a_row_remembers_when_it_was_last_listed():
    weight = torch.randn(3, 2)
    before, rows = weight.clone(), RowAdam(weight, unit_rows=False)
    for step, latents in ((1, [0, 2]), (2, [2])):
        gradient = RowGradient(latents=torch.tensor(latents), rows=torch.ones(len(latents), 2))
        rows.step(gradient, rate=0.1, step=step)
    state = rows.state()
    assert state["last_step"].dtype == torch.int32
    assert state["last_step"].tolist() == [1, 0, 2]
    assert torch.equal(weight[1], before[1])
    for moment, share in (("first", 0.1), ("second", 0.001)):
        kept = [1.0, 0.0, 1.0 + (1 - share)]  # steps that each row was in, the earlier one decayed
        torch.testing.assert_close(state[moment], share * torch.tensor(kept).unsqueeze(1).expand(3, 2))


def test_a_checkpoint_holds_the_learning_rate_as_a_number():
    """Where a step is recorded the device reads it from a tensor."""
    params = tensors()
    optimizer = optimizer_of(params)
    optimizer.step(across(params), lr=torch.tensor(1e-3))
    rates = [group["lr"] for group in optimizer.state()["adam"]["param_groups"]]
    assert [type(rate) for rate in rates] == [float] * 3
    assert rates == pytest.approx([1e-3, 1e-3, 1e-2])  # b_dec, W_skip, b_enc


def test_a_checkpoint_of_another_device_goes_on_here():
    params = tensors()
    optimizer = optimizer_of(params)
    optimizer.step(across(params), lr=1e-3)
    state, there = deepcopy(optimizer.state()), deepcopy(params)
    for group in state["adam"]["param_groups"]:
        group["capturable"] = True  # as on CUDA
    again = optimizer_of(there)
    again.load_state(state)
    assert [group["capturable"] for group in again.adam.param_groups] == [False] * 3
    for one, own in ((optimizer, params), (again, there)):
        one.step(across(own, 2.0), lr=1e-3)
    for name, tensor in params.items():
        assert torch.equal(there[name], tensor), name


def test_the_learning_rate_where_none_is_given():
    assert auto_learning_rate(d_sae=2**14, batch_size=4096) == pytest.approx(1.53e-3)
    assert auto_learning_rate(d_sae=2**12, batch_size=1024) == pytest.approx(1.53e-3)
    assert auto_learning_rate(d_sae=16, batch_size=4096) == 1e-2, "the highest"
