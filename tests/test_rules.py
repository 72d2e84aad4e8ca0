"""Learning rules at work: where their tensors begin, which way a step goes, what steers them, what finishing takes."""

import pytest
import torch
from torch import Tensor

from strata.config.train import SAEConfig
from strata.kernels import select
from strata.kernels.entries import DenseEntries, SparseEntries
from strata.kernels.gradient import matrix
from strata.sae.rules.base import Batch, Params, Rule
from strata.sae.rules.registry import RULES, make_rule
from strata.sae.rules.steering import Steering
from strata.sae.rules.threshold import ThresholdRule

every_rule = pytest.mark.parametrize("architecture", sorted(RULES))
every_threshold_rule = pytest.mark.parametrize("architecture", ["jumprelu", "relu", "gated"])


def batch_of(z: Tensor, *, keep: Tensor | None = None) -> Batch:
    keep = torch.ones(len(z)) if keep is None else keep
    return Batch(z, z, keep, keep.sum(), torch.ones(len(z)))


def firing(n_active: int, *, n_rows: int = 2) -> Tensor:
    """Rows in which the first n_active of 4 latents fire with the value 2, where encoder and decoder change nothing."""
    return 2.0 * (torch.arange(4) < n_active).float().repeat(n_rows, 1)


def begun(architecture: str, *, dense_share: float) -> tuple[ThresholdRule, Params]:
    """A rule of 4 latents whose encoder and decoder change nothing; its biases are 0, thresholds 1."""
    rule = make_rule(SAEConfig(architecture=architecture, k=1), d_sae=4)
    assert isinstance(rule, ThresholdRule)
    rule.dense_share = dense_share
    own = {name: torch.zeros_like(tensor) for name, tensor in rule.own_tensors(torch.tensor(1.0)).items()}
    return rule, {"W_enc": torch.eye(4), "W_dec": torch.eye(4), **own}


def rule_of(architecture: str) -> Rule:
    return make_rule(SAEConfig(architecture=architecture, k=2), d_sae=4)


@every_rule
def test_tensors_begin_where_the_scores_are_each_latent_with_its_own(architecture):
    away = rule_of(architecture).own_tensors(torch.ones((), device="meta"))
    assert {tensor.device.type for tensor in away.values()} == {"meta"}
    for name, tensor in rule_of(architecture).own_tensors(torch.tensor(0.75)).items():
        others = tensor[1:].clone()
        tensor[0].add_(1)
        assert torch.equal(tensor[1:], others), name


def test_gated_begins_with_magnitudes_that_are_the_scores():
    own = rule_of("gated").own_tensors(torch.tensor(0.75))
    assert {name: tensor.tolist() for name, tensor in own.items()} == {
        "b_gate": [-0.75] * 4, "b_mag": [0.0] * 4, "r_mag": [0.0] * 4,
    }  # fmt: skip


def test_without_rows_the_threshold_is_0_where_the_weights_are():
    gate, _ = rule_of("batchtopk").finished({"b_enc": torch.zeros(4, device="meta")}, None)
    assert [tensor.device.type for tensor in gate.parameters()] == ["meta"]
    gate, _ = rule_of("batchtopk").finished({"b_enc": torch.zeros(4)}, None)
    assert [tensor.tolist() for tensor in gate.parameters()] == [[0.0] * 4]


def test_a_step_works_on_all_latents_where_the_last_one_listed_too_many():
    """More than half of them; what is exactly 0 does not count."""
    rule, params = begun("relu", dense_share=0.5)
    found = []
    for n_active in (3, 2, 3, 1):
        batch = batch_of(firing(n_active))
        outcome = rule.step(batch, params, score_dtype=torch.float32)
        rule.after_step(outcome, batch)
        found.append((type(outcome.entries), rule.looks_at_all))
    assert found == [(SparseEntries, True), (DenseEntries, False), (SparseEntries, True), (DenseEntries, False)]
    assert "capacity" not in rule.state(), "lists are as long as they need be"


@pytest.mark.parametrize("dense_share", [0.0, 2.0])
@every_threshold_rule
def test_the_coefficient_is_steered_by_the_l0_of_the_step(architecture, dense_share):
    """Three latents fire in each of the two rows that count."""
    rule, params = begun(architecture, dense_share=dense_share)
    batch = batch_of(firing(3, n_rows=3), keep=torch.tensor([1.0, 1.0, 0.0]))
    rule.after_step(rule.step(batch, params, score_dtype=torch.float32), batch)
    wanted = Steering(rule.config, start=rule.start_coefficient, device=torch.device("cpu"))
    wanted.note(torch.tensor(3.0))
    assert torch.equal(rule.coefficient, wanted.coefficient)
    assert rule.coefficient > rule.start_coefficient


def test_matryoshka_where_the_longer_prefix_adds_nothing():
    config = SAEConfig(architecture="matryoshka", k=1, matryoshka_prefixes=(0.5, 1.0))
    W = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    params = {"W_enc": W, "W_dec": 0.5 * W, "b_enc": torch.zeros(4)}
    batch = batch_of(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))  # decoded as half of that by both prefixes
    outcome = make_rule(config, d_sae=4).step(batch, params, score_dtype=torch.float32)
    assert outcome.loss.item() == (1 + 1.5**2) / 4
    assert outcome.penalty == 0
    assert matrix(outcome.gradients["W_dec"]).tolist() == [[-2 * 2 / 4, 0], [0, -2 * 3 * 1.5 / 4], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("architecture", "within"),
    [("batchtopk", 0.01), ("matryoshka", 0.01), ("relu", 0.01), ("gated", 0.01), ("jumprelu", 0.5)],
)
def test_finishing_lists_as_many_entries_as_memory_is_counted_for(architecture, within, monkeypatch):
    """JumpReLU's are those above a quarter of their thresholds, of which it is only known about how many they are."""
    rule = make_rule(SAEConfig(architecture=architecture, k=2), d_sae=64)
    W_enc = torch.nn.functional.normalize(torch.randn(64, 8), dim=1)
    params = {"W_enc": W_enc, **rule.own_tensors(torch.tensor(1.86))}  # above which 2 of 64 scores lie
    lengths, above = [], select.select_above

    def counted(*given, **named):
        pre, entries = above(*given, **named)
        lengths.append(len(pre))
        return pre, entries

    monkeypatch.setattr(select, "select_above", counted)
    rule.finished(params, batch_of(torch.randn(128, 8)))
    assert lengths == [pytest.approx(128 * rule.n_searched_per_row, rel=within)]
