"""Selection and sparse products against their dense meaning, and the oracle against numbers found by hand."""

import math

import pytest
import torch

from strata.kernels import pytorch, reference, select
from strata.kernels.entries import DenseEntries, SparseEntries

SHAPES = [(1, 4, 8, 1), (7, 6, 48, 5), (64, 16, 256, 8), (33, 12, 60, 60), (5, 3, 17, 4), (128, 32, 1024, 16)]


@pytest.mark.parametrize(("n_rows", "d_in", "d_sae", "k"), SHAPES)
def test_two_level_topk_finds_what_topk_finds(n_rows, d_in, d_sae, k):
    scores = torch.randn(n_rows, d_sae)
    values, indices = pytorch.topk_rows(scores, k)
    assert torch.equal(values.sort(-1).values, scores.topk(k).values.sort(-1).values)
    assert torch.equal(scores.gather(1, indices), values)


def test_two_level_topk_with_ties_gives_k_different_latents():
    scores = torch.zeros(9, 256)
    scores[:, ::3] = 1.0
    values, indices = pytorch.topk_rows(scores, 8)
    assert bool((values == 1).all())
    assert all(len(set(row)) == 8 for row in indices.tolist())


def test_grouping_is_used_where_it_helps_and_never_too_coarse():
    assert pytorch.group_size(6144, 32) == 16
    assert pytorch.group_size(17, 4) == 1
    for d_sae in (8, 48, 96, 1000, 3072, 24576):
        for k in (1, 7, 32, d_sae):
            size = pytorch.group_size(d_sae, min(k, d_sae))
            assert d_sae % size == 0
            assert d_sae // size >= min(k, d_sae)


def test_rows_are_chunked_without_effect(monkeypatch):
    z, weight, bias = torch.randn(50, 8), torch.randn(64, 8), torch.randn(64)
    whole, above = select.select_topk(z, weight, bias, 4), select.select_above(z, weight, bias, 0.5)
    monkeypatch.setattr(pytorch, "_CHUNK_BYTES", 64 * 4 * 7)
    chunked, chunked_above = select.select_topk(z, weight, bias, 4), select.select_above(z, weight, bias, 0.5)
    torch.testing.assert_close(chunked[0], whole[0])
    assert torch.equal(chunked[1].sort(-1).values, whole[1].sort(-1).values)
    torch.testing.assert_close(chunked_above[0], above[0])
    assert torch.equal(chunked_above[1].rows, above[1].rows)
    assert torch.equal(chunked_above[1].latents, above[1].latents)


def test_bf16_selection_gives_fp32_values():
    z, weight, bias = torch.randn(40, 32), torch.randn(512, 32), torch.randn(512)
    values, indices = select.select_topk(z, weight, bias, 8, score_dtype=torch.bfloat16)
    exact = z @ weight.t() + bias
    torch.testing.assert_close(values, exact.gather(1, indices))
    wanted = exact.topk(8).indices
    recall = (indices.unsqueeze(2) == wanted.unsqueeze(1)).any(2).float().mean()
    assert recall > 0.9


@pytest.mark.parametrize("per_latent", [False, True])
@pytest.mark.parametrize("score_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n_rows", "d_in", "d_sae"), [(1, 4, 8), (40, 32, 512), (5, 3, 17)])
def test_what_is_above_the_floor_is_found_exactly(n_rows, d_in, d_sae, score_dtype, per_latent):
    z, weight, bias = torch.randn(n_rows, d_in), torch.randn(d_sae, d_in) / d_in**0.5, torch.randn(d_sae) * 0.1
    floor = torch.rand(d_sae) if per_latent else 0.6
    values, entries = select.select_above(z, weight, bias, floor, score_dtype=score_dtype)
    exact = z @ weight.t() + bias
    rows, latents = (exact > floor).nonzero(as_tuple=True)
    assert torch.equal(entries.rows, rows)
    assert torch.equal(entries.latents, latents)
    torch.testing.assert_close(values, exact[rows, latents])


def test_nothing_above_the_floor_is_an_empty_list():
    values, entries = select.select_above(torch.randn(6, 4), torch.randn(10, 4), torch.zeros(10), 1e6)
    assert len(values) == 0
    assert entries.decode(values, torch.randn(10, 3)).tolist() == [[0.0] * 3] * 6


class TestEntries:
    """One code as a list and as an array: every product must agree, with empty rows and silent latents among them."""

    @pytest.fixture
    def code(self) -> torch.Tensor:
        code = torch.rand(9, 14) * (torch.rand(9, 14) < 0.3)
        code[4], code[:, 6] = 0, 0
        return code

    def both(self, code: torch.Tensor):
        rows, latents = code.nonzero(as_tuple=True)
        return SparseEntries(rows, latents, *code.shape), code[rows, latents], DenseEntries(*code.shape)

    def test_decode(self, code):
        sparse, values, dense = self.both(code)
        weight = torch.randn(14, 5)
        torch.testing.assert_close(sparse.decode(values, weight), code @ weight)
        torch.testing.assert_close(dense.decode(code, weight), code @ weight)

    def test_weight_gradient(self, code):
        sparse, values, dense = self.both(code)
        inputs = torch.randn(9, 5)
        torch.testing.assert_close(sparse.weight_gradient(values, inputs), code.t() @ inputs)
        torch.testing.assert_close(dense.weight_gradient(code, inputs), code.t() @ inputs)

    def test_products_per_entry(self, code):
        sparse, _, dense = self.both(code)
        a, weight = torch.randn(9, 5), torch.randn(14, 5)
        torch.testing.assert_close(sparse.dot(a, weight), (a @ weight.t())[sparse.rows, sparse.latents])
        torch.testing.assert_close(dense.dot(a, weight), a @ weight.t())

    def test_sums_per_latent_and_firing(self, code):
        sparse, values, dense = self.both(code)
        torch.testing.assert_close(sparse.sum_by_latent(values), code.sum(0))
        torch.testing.assert_close(dense.sum_by_latent(code), code.sum(0))
        assert torch.equal(sparse.fired(values), code.sum(0) > 0)
        assert torch.equal(dense.fired(code), code.sum(0) > 0)


class TestOracle:
    """The judge is judged: two latents, d_in = 1, W_enc = W_dec = 1 and numbers that a reader can check."""

    @pytest.fixture
    def params(self) -> dict[str, torch.Tensor]:
        params = {"W_enc": torch.ones(2, 1), "W_dec": torch.ones(2, 1), "b_dec": torch.zeros(1)}
        params["b_enc"] = torch.tensor([0.0, -1.0])
        return {name: tensor.requires_grad_() for name, tensor in params.items()}

    def test_batchtopk_shares_the_batchs_places_among_its_kept_rows(self, params):
        z = torch.tensor(
            [[5.0], [3.0], [0.5], [90.0]]
        )  # pre: 5 4 | 3 2 | 0.5 -0.5 | 90 89, of which the last is masked
        keep = torch.tensor([True, True, True, False])
        objective = reference.Objective(architecture="batchtopk", k=1)
        found = reference.losses(objective, params, z, keep)
        assert found.total.item() == pytest.approx(((5 - 9) ** 2 + (3 - 3) ** 2 + 0.5**2) / 3)
        assert found.reconstruction == found.total

    def test_jumprelus_straight_through_gradient(self, params):
        theta, bandwidth, coefficient = 2.0, 0.5, 0.25
        params["log_threshold"] = torch.tensor([math.log(theta), math.log(50.0)], requires_grad=True)
        z = torch.tensor([[2.1], [1.8], [4.0]])  # above in the band; below in the band; above beyond it
        objective = reference.Objective(architecture="jumprelu", coefficient=coefficient, bandwidth=bandwidth)
        found = reference.losses(objective, params, z, torch.ones(3, dtype=torch.bool))
        assert found.total.item() == pytest.approx(1.8**2 / 3 + coefficient * 2 / 3)
        found.total.backward()
        d_code = torch.tensor([0.0, -2 * 1.8 / 3])  # ∂loss/∂code of the two in the band
        by_theta = (d_code * -theta / bandwidth).sum() + 2 * coefficient / 3 * (-1 / bandwidth)
        assert params["log_threshold"].grad[0].item() == pytest.approx(theta * by_theta.item(), rel=1e-5)
        assert params["log_threshold"].grad[1] == 0

    def test_at_its_threshold_a_latent_does_not_fire(self, params):
        params["log_threshold"] = torch.zeros(2, requires_grad=True)  # θ = 1, ε = 2: the band is open, (0, 2)
        z = torch.tensor([[1.0], [2.0]])  # pre: 1 0 | 2 1
        objective = reference.Objective(architecture="jumprelu", coefficient=1.0, bandwidth=2.0)
        found = reference.losses(objective, params, z, torch.ones(2, dtype=torch.bool))
        assert found.reconstruction.item() == pytest.approx((1**2 + 0**2) / 2)
        assert found.total.item() == pytest.approx(1 / 2 + 1 / 2)
        found.total.backward()
        # latent 0: only in row 0 in the band, where ∂loss/∂code = −2·1/2; latent 1: only in row 1, which has no error
        assert params["log_threshold"].grad.tolist() == pytest.approx([1 / 2 - 1 / 4, -1 / 4])

    def test_a_gate_at_zero_is_closed(self, params):
        del params["b_enc"]
        params |= {"b_gate": torch.zeros(2), "b_mag": torch.ones(2), "r_mag": torch.zeros(2)}
        found = reference.losses(
            reference.Objective(architecture="gated"), params, torch.zeros(1, 1), torch.ones(1, dtype=torch.bool)
        )
        assert found.reconstruction == 0, "the magnitudes are 1"

    def test_gated_leaves_the_decoder_out_of_the_auxiliary_term(self, params):
        del params["b_enc"]
        params |= {"b_gate": torch.zeros(2), "b_mag": torch.tensor([-9.0, -9.0]), "r_mag": torch.zeros(2)}
        z = torch.tensor([[2.0]])  # both gates are open, both magnitudes relu(2 - 9) = 0
        found = reference.losses(reference.Objective(architecture="gated"), params, z, torch.ones(1, dtype=torch.bool))
        assert found.reconstruction.item() == pytest.approx(4)
        assert found.total.item() == pytest.approx(4 + (2 - 4) ** 2)
        found.total.backward()
        assert params["W_dec"].grad.abs().sum() == 0
        assert params["b_dec"].grad.item() == pytest.approx(
            -2 * 2 - 2 * (4 - 2) * 2
        )  # main term; auxiliary, through two codes

    def test_matryoshka_means_over_prefixes(self, params):
        z = torch.tensor([[3.0]])  # code 3 2: prefix of one reconstructs 3, both 5
        objective = reference.Objective(architecture="matryoshka", k=2, prefixes=(0.5, 1.0))
        found = reference.losses(objective, params, z, torch.ones(1, dtype=torch.bool))
        assert found.total.item() == pytest.approx((0 + 4) / 2)
        assert found.reconstruction.item() == pytest.approx(4)

    def test_a_transcoders_encoder_sees_the_inputs_themselves(self, params):
        with torch.no_grad():
            params["b_dec"].fill_(1.0)
        params["W_skip"] = torch.tensor([[0.5]])
        z, target = torch.tensor([[2.0]]), torch.tensor([[10.0]])
        found = reference.losses(
            reference.Objective(architecture="topk", k=1), params, z, torch.ones(1, dtype=torch.bool), z_target=target
        )
        assert found.total.item() == pytest.approx((10 - 1 - 0.5 * 2 - 2) ** 2)
