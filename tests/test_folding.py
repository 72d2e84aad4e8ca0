"""Weights between the normalised space and the model's own scale: what is copied, how it lies in memory, and where."""

from copy import deepcopy

import pytest
import torch

from strata.config.layer_groups import Group
from strata.sae.folding import Spaces, fold_group, group_spaces_of, spaces_of, unfold
from strata.sae.gates import JumpReLU, TopK
from strata.sae.model import SAE, Transcoder
from strata.sae.normalization import Normalization

GROUP = Group(("layers.0", "layers.1"))


def sae_of(kind: str, *, laid_out: str) -> SAE:
    """With matrices that lie in memory row by row, as in a file, or column by column, as some that training made."""

    def matrix(n_rows: int, n_columns: int) -> torch.Tensor:
        return torch.randn(n_rows, n_columns) if laid_out == "by rows" else torch.randn(n_columns, n_rows).t()

    gate = JumpReLU(torch.rand(6))
    weights = {"W_enc": matrix(4, 6), "b_enc": torch.randn(6), "W_dec": matrix(6, 4), "b_dec": torch.randn(4)}
    return SAE(**weights, gate=gate) if kind == "sae" else Transcoder(**weights, gate=gate, W_skip=matrix(4, 4))


@pytest.mark.parametrize("laid_out", ["by rows", "by columns"])
@pytest.mark.parametrize("kind", ["sae", "transcoder"])
def test_weights_to_train_on_are_copies_that_lie_row_by_row(kind, laid_out):
    """The kernels are given addresses."""
    source, target = (Normalization.estimate(scale * torch.randn(50, 4)) for scale in (2.0, 3.0))
    sae = sae_of(kind, laid_out=laid_out)
    before = deepcopy(sae.state_dict())
    params, gate, b_enc = unfold(sae, Spaces(source, None if kind == "sae" else target))
    ratio = 1 if kind == "sae" else source.scale / target.scale
    torch.testing.assert_close(params["W_enc"], ratio * sae.W_enc.t())
    for name, tensor in {**params, "b_enc": b_enc, **dict(gate.named_parameters())}.items():
        assert tensor.is_contiguous(), name
        tensor.zero_()
    for name, tensor in sae.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_weights_to_train_on_are_where_the_rows_are():
    away = torch.zeros(4, device="meta")
    elsewhere = Normalization(mean=away, scale=2.0, median=away, sink_radius=1.0)
    params, gate, b_enc = unfold(sae_of("sae", laid_out="by rows"), Spaces(elsewhere))
    found = [*params.values(), *gate.parameters(), b_enc]
    assert [tensor.device.type for tensor in found] == ["meta"] * 5


def test_a_finished_group_is_a_copy():
    params = {"W_enc": torch.randn(6, 4), "b_enc": torch.randn(6), "b_dec": torch.randn(4)}
    params["W_dec"] = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    layers = (torch.arange(40) % 2).to(torch.uint8)
    spaces = group_spaces_of(GROUP, torch.randn(40, 4) + 3 * layers.unsqueeze(1), layers, centring=True)
    finished = [(TopK(2), params["b_enc"])] * 2
    group = fold_group(params, spaces, finished, metadata={site: {} for site in GROUP.sites})
    before = deepcopy(group.state_dict())
    for tensor in params.values():
        tensor.add_(1)
    for name, tensor in group.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_without_centring_the_means_of_both_sites_stay_in():
    x, y = torch.randn(50, 4) + 3, torch.randn(50, 5) - 2
    for centring in (True, False):
        spaces = spaces_of(x, y, site="layers.3", target_site="layers.4", centring=centring)
        for one, rows in ((spaces.source, x), (spaces.output, y)):
            torch.testing.assert_close(one.mean, centring * rows.mean(0))
