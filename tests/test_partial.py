"""Starting a language model in the middle: the logits of a full pass, and no work in the blocks before."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from strata.errors import UserError
from strata.lm.model import LanguageModel
from strata.lm.partial import block_outputs, can_start_at, first_needed_block, starting_at
from strata.sae.gates import TopK
from strata.sae.model import SAE
from tiny_models import ARCHITECTURES, ENCODERS, N_LAYERS, WIDTH, shared_language_model, tiny_model

SEQ = 20


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(2, 120, (3, SEQ), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def attended(ids: Tensor) -> Tensor:
    """The last sequence ends in pads."""
    attended = torch.ones_like(ids, dtype=torch.bool)
    attended[-1, 14:] = False
    return attended


def sae() -> SAE:
    W_dec = torch.nn.functional.normalize(torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0)), dim=1)
    return SAE(
        W_enc=W_dec.t().clone(), b_enc=torch.zeros(64), W_dec=W_dec, b_dec=torch.full((WIDTH,), 0.1), gate=TopK(8)
    )


@contextmanager
def counted(lm: LanguageModel) -> Iterator[Counter[str]]:
    """How often attention ran, by block."""
    calls: Counter[str] = Counter()
    handles = []
    for site in lm.sites:
        module = lm.model.get_submodule(lm.site(f"{site}.attn").path)
        handles.append(module.register_forward_hook(lambda *_, name=site: calls.update([name])))
    yield calls
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_the_full_pass(architecture: str, ids: Tensor, attended: Tensor) -> None:
    lm = shared_language_model(architecture)
    hooks = [len(module._forward_hooks) for module in lm.model.modules()]
    mask = attended.clone()
    mask[:, 0] = False
    with torch.no_grad():
        with block_outputs(lm, range(N_LAYERS)) as outputs:
            clean = lm.logits(ids, attention_mask=attended)
        for number, site in enumerate(lm.sites):
            for changed in (site, f"{site}.mlp"):
                start = first_needed_block(lm, changed)
                assert start == (number + 1 if changed == site else number)
                with lm.attach({changed: sae()}, mask=mask) as full:
                    expected = lm.logits(ids, attention_mask=attended)
                if not start:
                    continue
                with (
                    counted(lm) as calls,
                    starting_at(lm, start, outputs[start - 1]),
                    lm.attach({changed: sae()}, mask=mask) as part,
                ):
                    found = lm.logits(ids, attention_mask=attended)
                assert torch.equal(found[attended], expected[attended])
                assert not torch.allclose(found[attended], clean[attended], atol=1e-2)
                assert torch.equal(part.codes[changed].values[attended], full.codes[changed].values[attended])
                assert calls == dict.fromkeys(lm.sites[start:], 1), "skipped blocks do not run at all"
        assert torch.equal(lm.logits(ids, attention_mask=attended), clean)
    assert not any("forward" in module.__dict__ for module in lm.model.modules())
    assert [len(module._forward_hooks) for module in lm.model.modules()] == hooks  # transformers keeps some of its own


@pytest.mark.parametrize("architecture", ["gpt_neox", "bloom"])
def test_under_autocast_it_is_the_same_too(architecture: str, ids: Tensor) -> None:
    lm = shared_language_model(architecture)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        with block_outputs(lm, [1]) as outputs:
            clean = lm.logits(ids)
        with starting_at(lm, 2, outputs[1]):
            assert torch.equal(lm.logits(ids), clean)


def test_gradients_reach_what_it_is_started_with(ids: Tensor) -> None:
    lm = shared_language_model("gpt_neox")
    with torch.no_grad(), block_outputs(lm, [0]) as outputs:
        lm.logits(ids)
    hidden = outputs[0].clone().requires_grad_()
    with starting_at(lm, 1, hidden):
        lm.logits(ids)[:, -1].sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() > 0


def test_everything_is_restored_after_an_error(ids: Tensor) -> None:
    lm = LanguageModel(tiny_model("gpt_neox"))
    block = lm.model.gpt_neox.layers[0]
    own = type(block).forward.__get__(block)
    block.forward = own  # as accelerate does it
    with torch.no_grad():
        clean = lm.logits(ids)
        with pytest.raises(RuntimeError, match="stop"), starting_at(lm, 2, torch.zeros(3, SEQ, WIDTH)):
            raise RuntimeError("stop")
        assert block.__dict__["forward"] is own
        assert "forward" not in lm.model.gpt_neox.layers[1].__dict__
        assert torch.equal(lm.logits(ids), clean)


class Sharing(nn.Module):
    """A block that hands a state past the residual stream, as models do that share keys among layers."""

    def __init__(self, block: nn.Module, state: dict[str, Tensor], *, writes: bool) -> None:
        super().__init__()
        self.block, self.state, self.writes = block, state, writes

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.writes:
            self.state["shared"] = hidden_states.cumsum(1)
            return self.block(hidden_states, *args, **kwargs)
        return self.block(hidden_states + self.state.pop("shared"), *args, **kwargs)


def test_a_model_with_state_beside_the_residual_stream_is_run_whole(ids: Tensor) -> None:
    model: Any = tiny_model("gpt_neox")
    state: dict[str, Tensor] = {}
    layers = model.gpt_neox.layers
    layers[0], layers[1] = Sharing(layers[0], state, writes=True), Sharing(layers[1], state, writes=False)
    lm = LanguageModel(model)
    assert [can_start_at(lm, block) for block in range(N_LAYERS + 2)] == [False, False, True, True, False]
    assert [first_needed_block(lm, site) for site in lm.sites] == [0, 2, 3]
    assert first_needed_block(lm, "layers.2.mlp") == 2
    message = r"`block` must be a block of 1 to 3 at which .* can be started\. Got 1\."
    with pytest.raises(UserError, match=message), starting_at(lm, 1, torch.zeros(3, SEQ, WIDTH)):
        pass


def test_other_places_take_the_whole_model() -> None:
    lm = shared_language_model("gpt_neox")
    assert first_needed_block(lm, "gpt_neox.embed_in") == 0
    assert first_needed_block(lm, "gpt_neox.final_layer_norm") == 0
    assert first_needed_block(lm, "gpt_neox.layers.1") == 2
    assert first_needed_block(lm, "gpt_neox.layers.1.attention.dense") == 1
    with pytest.raises(UserError, match=r"Did you mean 'layers\.2'"):
        first_needed_block(lm, "layers.22")


def test_a_model_without_a_head_cannot_be_started() -> None:
    headless = LanguageModel(tiny_model(ENCODERS[0]).bert)
    assert not can_start_at(headless, 1)


def test_another_texts_stream_is_refused(ids: Tensor) -> None:
    lm = shared_language_model("gpt_neox")
    message = r"`hidden` must have the shape of the text's residual stream, \[3, 20, 32\]\. Got \[1, 20, 32\]\."
    with starting_at(lm, 1, torch.zeros(1, SEQ, WIDTH)), pytest.raises(UserError, match=message):
        lm.logits(ids)
    assert not any("forward" in module.__dict__ for module in lm.model.modules())
