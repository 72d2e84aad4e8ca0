"""What gates do exactly at their thresholds, where nothing fires, and with tensors that nobody trains."""

import math

import pytest
import torch

from strata.config.train import SAEConfig
from strata.kernels.entries import DenseEntries
from strata.sae.gates import Gate, Gated, JumpReLU, ReLU, TopK
from strata.sae.model import SAE
from strata.sae.rules.base import Batch
from strata.sae.rules.registry import make_rule


def gate_of(name: str, *, d_sae: int = 3) -> Gate:
    zeros = torch.zeros(d_sae)
    return {
        "topk": TopK(2),
        "standard": ReLU(),
        "jumprelu": JumpReLU(zeros + 0.5),
        "gated": Gated(r_mag=zeros, b_mag=zeros + 1, b_gate=zeros.clone()),
    }[name]


def sae_with(gate: Gate, *, b_enc: float = 0.0) -> SAE:
    return SAE(
        W_enc=torch.randn(4, 3), b_enc=torch.full((3,), b_enc), W_dec=torch.randn(3, 4), b_dec=torch.ones(4), gate=gate
    )


@pytest.mark.parametrize("name", ["topk", "standard", "jumprelu", "gated"])
def test_no_tensor_of_an_sae_asks_for_a_gradient(name):
    sae = sae_with(gate_of(name))
    tensors = dict(sae.named_parameters())
    assert tensors.keys() == {"W_enc", "b_enc", "W_dec", "b_dec", *(f"gate.{own}" for own in sae.gate.tensors)}
    assert [own for own, tensor in tensors.items() if tensor.requires_grad] == []


def test_at_its_threshold_a_latent_does_not_fire():
    jumprelu = JumpReLU(torch.tensor([0.0, 1.0, 1.0]))
    assert jumprelu.dense(torch.tensor([[0.0, 1.0, 1.5]])).tolist() == [[0, 0, 1.5]]
    gated = gate_of("gated")  # the value is pre + 1 where the gate is open
    assert gated.dense(torch.tensor([[0.0, 0.5, -0.5]])).tolist() == [[0, 1.5, 0]]


def test_at_its_threshold_a_latent_does_not_fire_in_training_either():
    rule = make_rule(SAEConfig(architecture="jumprelu", k=1), d_sae=2)
    values = rule.values(torch.tensor([[1.0, 1.5]]), DenseEntries(1, 2), {"log_threshold": torch.zeros(2)})
    assert values.tolist() == [[0, 1.5]]


def test_a_magnitude_of_0_is_no_value():
    rule = make_rule(SAEConfig(architecture="gated", k=1), d_sae=3)
    params = {"r_mag": torch.zeros(3), "b_gate": torch.zeros(3), "b_mag": torch.full((3,), -1.0)}
    pre = torch.tensor([[0.5, 1.0, 1.5]])
    assert rule.has_value(pre, DenseEntries(1, 3), params).tolist() == [[False, False, True]]


@pytest.mark.parametrize("name", ["standard", "jumprelu", "gated"])
def test_where_nothing_fires_a_code_has_one_empty_place_in_each_row(name):
    sae, x = sae_with(gate_of(name), b_enc=-1000.0), torch.randn(5, 4)
    code = sae.encode_sparse(x)
    assert code.values.tolist() == [[0.0]] * 5
    assert code.dense().tolist() == [[0.0] * 3] * 5
    assert torch.equal(sae(x), torch.ones(5, 4)), "b_dec alone"


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka", "jumprelu"])
def test_the_smallest_winner_of_the_last_rows_fires_too(architecture):
    """The scores are 1 2 3 4 and 10 20 30 40, exactly: the six largest are to fire, for k = 3 in each of two rows."""
    z = torch.tensor([[1.0], [10.0]])
    params = {"W_enc": torch.tensor([[1.0], [2.0], [3.0], [4.0]]), "b_enc": torch.zeros(4)}
    params["log_threshold"] = torch.zeros(4)
    rule = make_rule(SAEConfig(architecture=architecture, k=3), d_sae=4)
    gate, b_enc = rule.finished(params, Batch(z, z, torch.ones(2), torch.tensor(2.0), torch.ones(2)))
    fires = gate.dense(z @ params["W_enc"].t() + b_enc) > 0
    assert fires.tolist() == [[False, False, True, True], [True] * 4]


def test_thresholds_of_0_are_trained_on_from_a_little_above():
    rule = make_rule(SAEConfig(architecture="jumprelu", k=1), d_sae=2)
    own = rule.from_gate(JumpReLU(torch.tensor([0.0, 2.0])), torch.zeros(2))
    assert own is not None
    assert own["log_threshold"].tolist() == pytest.approx([math.log(1e-6), math.log(2)])


@pytest.mark.parametrize("architecture", ["jumprelu", "gated"])
def test_training_goes_on_without_the_history_of_a_gate_that_autograd_trained(architecture):
    rule = make_rule(SAEConfig(architecture=architecture, k=1), d_sae=3)
    own = rule.from_gate(gate_of(architecture).requires_grad_(), torch.zeros(3))
    assert own is not None
    assert [name for name, tensor in own.items() if tensor.requires_grad] == []
