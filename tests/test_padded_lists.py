"""Selection into lists of fixed length, without the device that they are for.

PyTorch's kernels list what Triton's would (tests/triton_cases.py compares the two); what the rules make of it is here.
"""

import pytest
import torch
from torch import Tensor

from strata.config.train import SAEConfig
from strata.kernels import pytorch, select, triton
from strata.sae.rules.base import Batch, Params, Rule
from strata.sae.rules.registry import make_rule

N_ROWS, D_IN, D_SAE, K = 8, 4, 16, 2
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def precisions(monkeypatch) -> list[torch.dtype]:
    """In which precision scores were asked for."""
    seen: list[torch.dtype] = []

    def above_in(size: int, z: Tensor, W_enc: Tensor, bias: Tensor, floor: Tensor, *, score_dtype: torch.dtype):
        seen.append(score_dtype)
        found = pytorch.above(z, W_enc, bias, floor, score_dtype=score_dtype)
        ends = (0.0, len(z), len(W_enc))
        padded = [
            torch.nn.functional.pad(one, (0, size - len(one)), value=end) for one, end in zip(found, ends, strict=True)
        ]
        return *padded, torch.tensor(len(found[0]))

    monkeypatch.setattr(triton, "above_in", above_in)
    monkeypatch.setattr(select, "lists_are_padded", lambda device: True)
    return seen


def rule_of(architecture: str) -> tuple[Rule, Params]:
    rule = make_rule(SAEConfig(architecture=architecture, k=K), d_sae=D_SAE)
    generator = torch.Generator().manual_seed(1)
    return rule, {"W_enc": torch.randn(D_SAE, D_IN, generator=generator), **rule.own_tensors(torch.tensor(0.5))}


def batch_of(z: Tensor, *, masked: int | None = None) -> Batch:
    keep = torch.ones(len(z))
    if masked is not None:
        keep[masked] = 0
    return Batch(z, z, keep, keep.sum(), torch.ones(len(z)))


def test_batchtopk_finds_the_winners_and_where_the_next_search_starts(precisions):
    rule, params = rule_of("batchtopk")
    assert rule.state() == {}, "before the first list"
    z = torch.randn(N_ROWS, D_IN)
    scores = z @ params["W_enc"].t()
    scores[3] = -1.0  # the row that takes no part
    wanted = scores.flatten().topk(K * (N_ROWS - 1))
    places = []
    for factor in (1.0, 2.0):
        batch = batch_of(factor * z, masked=3)
        pre, entries = rule.look(batch, params, score_dtype=torch.bfloat16)
        won = entries.latents < D_SAE
        found = entries.rows[won] * D_SAE + entries.latents[won]
        assert found.tolist() == wanted.indices.sort().values.tolist()
        torch.testing.assert_close(pre[won].sort().values, factor * wanted.values.sort().values)
        floor = rule.state()["floor"]
        assert floor.item() == pytest.approx(0.9 * factor * wanted.values.min().item(), rel=1e-4)
        places.append(floor.data_ptr())
    assert places[0] == places[1], "a recorded step reads it where it was"
    assert precisions == [torch.bfloat16] * 2


def test_a_checkpoint_holds_the_floor_and_the_length():
    rule, params = rule_of("batchtopk")
    rule.look(batch_of(torch.randn(N_ROWS, D_IN)), params, score_dtype=torch.float32)
    state = rule.state()
    again, _ = rule_of("batchtopk")
    again.load_state(state)
    assert again.state()["capacity"] == state["capacity"]
    assert state["capacity"]["size"] == N_ROWS * D_SAE
    assert torch.equal(again.state()["floor"], state["floor"])
    assert again.state()["floor"].data_ptr() != state["floor"].data_ptr()


@pytest.mark.parametrize(("dense_share", "asked"), [(0.0, []), (2.0, [torch.bfloat16])])
def test_what_is_above_a_floor_is_counted_either_way(dense_share, asked, precisions):
    rule, params = rule_of("relu")
    rule.dense_share = dense_share
    z = torch.randn(N_ROWS, D_IN)
    n_above = int((z @ params["W_enc"].t() + params["b_enc"] > 0).sum())
    assert 0 < n_above < N_ROWS * D_SAE
    pre, _ = rule.look(batch_of(z), params, score_dtype=torch.bfloat16)
    assert int((pre > 0).sum()) == n_above == rule.state()["capacity"]["needed"]
    assert precisions == asked
    again, _ = rule_of("relu")
    again.load_state(rule.state())
    assert again.state()["capacity"] == rule.state()["capacity"]


@pytest.mark.parametrize(
    ("architecture", "steps"),
    [("relu", [32, 48]), ("batchtopk", [48])],  # from 32 on relu works on all entries; at 48 both lists grow
)
def test_a_step_has_other_shapes_where_its_list_grows_or_it_works_on_all_entries(architecture, steps):
    """Of 100 latents more than 6.25 per row are too many for a list; the first one for four rows holds 272 entries."""
    rule = make_rule(SAEConfig(architecture=architecture, k=1), d_sae=100)
    rule.capacity.fit(4, k=1, d_sae=100, device=CPU)
    assert rule.capacity.size == 272
    changed = []
    for step in range(1, 65):
        rule.capacity.note(torch.tensor(40 if step <= 16 else 300))
        if rule.look_at_capacity():
            changed.append(step)
    assert changed == steps
    assert rule.capacity.size == 400
