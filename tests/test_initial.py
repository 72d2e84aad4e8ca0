"""The weights at the start: from which rows, of what length, with how many latents that fire."""

import pytest
import torch

from strata.config.layer_groups import Group
from strata.config.train import SAEConfig
from strata.sae.folding import group_spaces_of
from strata.sae.gates import TopK
from strata.sae.group import GroupSAE
from strata.sae.initial import first_rows, one_layer, random_weights
from strata.sae.model import SAE
from strata.sae.rules.base import Batch
from strata.sae.rules.registry import make_rule


def test_the_first_rows_of_a_group_are_normalised_by_their_own_site():
    layers = (torch.arange(60) % 2).to(torch.uint8)
    sample = torch.randn(60, 4) * (1 + layers.unsqueeze(1)) + 5 * layers.unsqueeze(1)
    spaces = group_spaces_of(Group(("layers.0", "layers.1")), sample, layers, centring=True)
    rows, target = first_rows(spaces, sample, None, layers)
    assert target is None
    for number in range(2):
        mine = layers == number
        torch.testing.assert_close(rows[mine], spaces.of_site(number).source.apply(sample[mine]))


@pytest.mark.parametrize("kind", ["sae", "transcoder"])
@pytest.mark.parametrize("k", [1, 8])
def test_the_first_reconstructions_have_the_right_length(kind, k):
    """No factor brings them nearer to what they shall be; also where k is d_sae, and half of the scores are below 0."""
    inputs, target = torch.randn(200, 4), None if kind == "sae" else torch.randn(200, 3)
    params = random_weights(make_rule(SAEConfig(k=k), d_sae=8), inputs, target, seed=0, skip=False)
    found = TopK(k).dense(inputs @ params["W_enc"].t()) @ params["W_dec"]
    wanted = inputs if target is None else target
    assert ((wanted * found).sum() / found.square().sum()).item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("k", [1, 12])
@pytest.mark.parametrize("architecture", ["jumprelu", "relu", "gated"])
def test_k_latents_per_row_fire_from_the_first_step(architecture, k):
    """Also where k is so large a share that the smallest of them is well below 1."""
    inputs = torch.randn(200, 4)
    rule = make_rule(SAEConfig(architecture=architecture, k=k), d_sae=32)
    params = random_weights(rule, inputs, None, seed=0, skip=False)
    batch = Batch(inputs, inputs, torch.ones(200), torch.tensor(200.0), torch.ones(200))
    outcome = rule.step(batch, params, score_dtype=torch.float32)
    assert (outcome.values > 0).sum() / 200 == pytest.approx(k, abs=2 / 200)


def test_training_goes_on_from_the_groups_first_layer():
    weights = {"W_enc": torch.randn(4, 6), "W_dec": torch.randn(6, 4), "b_enc": torch.zeros(6)}
    sites = [f"layers.{number}" for number in range(3)]
    group = GroupSAE({site: SAE(**weights, b_dec=torch.randn(4), gate=TopK(2)) for site in sites})
    assert one_layer(group, None) is group.at("layers.0")
    assert one_layer(group, Group(("layers.1", "layers.2"))) is group.at("layers.1")
    alone = group.at("layers.2")
    assert one_layer(alone, None) is alone
