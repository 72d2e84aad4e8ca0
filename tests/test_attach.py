"""SAEs in a running model: identities, gradients, masks, decoding with a cache, and that nothing stays behind."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from strata.errors import UserError
from strata.lm.model import LanguageModel
from strata.shapes import SparseCode
from tiny_models import ARCHITECTURES, N_LAYERS, VOCABULARY, WIDTH, shared_language_model, tiny_model


class FakeSAE(nn.Module):
    """Two latents per coordinate, its positive and its negative part: exact, and with half of its latents at zero.

    Attributes:
        scale: what the reconstruction is multiplied with; 1 is the identity, 0 ablates.
        with_autograd: whether the sparse code is found with autograd, or without as in a fast kernel.
    """

    def __init__(self, d_in: int = WIDTH, *, scale: float = 1.0, with_autograd: bool = True) -> None:
        super().__init__()
        self.d_in, self.d_sae, self.scale, self.with_autograd = d_in, 2 * d_in, scale, with_autograd
        self.W_enc = nn.Parameter(torch.cat([torch.eye(d_in), -torch.eye(d_in)], dim=1), requires_grad=False)

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.W_enc).relu()

    def encode_sparse(self, x: Tensor) -> SparseCode:
        assert x.dtype == self.W_enc.dtype
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.with_autograd):
            top = self.encode(x).topk(self.d_in, dim=-1)
            return SparseCode(top.values, top.indices, self.d_sae)

    def decode(self, latents: SparseCode) -> Tensor:
        return self.scale * latents.dense() @ self.W_enc.t()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these wait for a second thread longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def some_ids(batch: int = 2, seq: int = 7) -> Tensor:
    return torch.randint(2, VOCABULARY, (batch, seq))


def n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def ablated_by_hand(lm: LanguageModel, site: str, ids: Tensor) -> Tensor:
    def zero(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0

    hook = lm.model.get_submodule(lm.site(site).path).register_forward_hook(zero)
    logits = lm.logits(ids)
    hook.remove()
    return logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("part", ["", ".attn", ".mlp"])
def test_identities(architecture: str, part: str) -> None:
    lm = shared_language_model(architecture)
    ids, site, before = some_ids(), f"layers.1{part}", n_hooks(lm.model)
    clean, x = lm.logits(ids), lm.activations(ids, site)[site]

    with lm.attach({site: FakeSAE()}) as run:
        torch.testing.assert_close(lm.logits(ids), clean, rtol=1e-5, atol=1e-5)
    assert run.codes[site].values.shape == (2, 7, WIDTH)
    torch.testing.assert_close(run.inputs[site], x, rtol=0, atol=0)

    with lm.attach({site: FakeSAE(scale=0.0)}):
        ablated = lm.logits(ids)
    torch.testing.assert_close(ablated, ablated_by_hand(lm, site, ids), rtol=1e-5, atol=1e-5)
    assert (ablated - clean).abs().max() > 1e-3

    with lm.attach({site: FakeSAE(scale=0.3)}, keep_error=True):
        torch.testing.assert_close(lm.logits(ids), clean, rtol=0, atol=0)
    torch.testing.assert_close(lm.logits(ids), clean, rtol=0, atol=0)
    assert n_hooks(lm.model) == before


@pytest.mark.parametrize("with_autograd", [True, False])
@pytest.mark.parametrize("keep_error", [True, False])
def test_gradient_of_a_latent_is_its_effect(with_autograd: bool, keep_error: bool) -> None:
    """Against a finite difference along its decoder direction, at the first of two sites, through the second SAE."""
    lm = LanguageModel(tiny_model("gpt2").double())  # an architecture that stays in fp64 throughout
    ids = some_ids()
    sae, later = (FakeSAE(with_autograd=with_autograd, scale=scale).double() for scale in (1.0, 0.5))
    with lm.attach({"layers.0": sae, "layers.1": later}, keep_error=keep_error) as run:
        lm.logits(ids)[0, -1, 5].backward()
        code = run.codes["layers.0"]
        x = run.inputs["layers.0"]
    gradient = code.values.grad
    assert gradient is not None and run.codes["layers.1"].values.grad is not None
    latent = int(code.indices[0, 2, 0])
    step = 1e-6 * sae.W_enc[:, latent]
    # With the error kept as a constant the second SAE passes on only its reconstruction's change.
    error = lm.activations(ids, "layers.1")["layers.1"] * 0.5 if keep_error else torch.zeros_like(x)

    def metric(sign: int) -> float:
        moved = x.clone()
        moved[0, 2] += sign * step
        path0, path1 = (lm.model.get_submodule(lm.site(f"layers.{i}").path) for i in (0, 1))
        hooks = [
            path0.register_forward_hook(lambda *_: moved),
            path1.register_forward_hook(lambda module, args, output: later(output) + error),
        ]
        later.forward = lambda h: later.decode(later.encode_sparse(h))
        with torch.no_grad():
            value = float(lm.logits(ids)[0, -1, 5])
        for hook in hooks:
            hook.remove()
        return value

    numeric = (metric(1) - metric(-1)) / 2e-6
    assert abs(numeric) > 1e-6
    assert float(gradient[0, 2, 0]) == pytest.approx(numeric, rel=1e-4)


def test_trainable_saes_get_gradients() -> None:
    lm = LanguageModel(tiny_model("gpt2"))
    for with_autograd in (True, False):
        sae = FakeSAE(with_autograd=with_autograd).requires_grad_(True)
        with lm.attach({"layers.1": sae}):
            lm.logits(some_ids()).square().mean().backward()
        assert sae.W_enc.grad is not None and sae.W_enc.grad.abs().sum() > 0


def test_without_gradient_nothing_is_tracked() -> None:
    lm = LanguageModel(tiny_model("gpt2"))
    with lm.attach({"layers.1": FakeSAE()}) as run, torch.no_grad():
        assert not lm.logits(some_ids()).requires_grad
    assert not run.codes["layers.1"].values.requires_grad
    with lm.attach({"layers.1": FakeSAE()}), torch.inference_mode():
        lm.logits(some_ids())


@pytest.mark.parametrize("site", ["layers.1", "layers.1.mlp", "layers.1.attn"])
@pytest.mark.parametrize("architecture", ["gpt_neox", "opt"])
def test_mask_keeps_the_own_activations(architecture: str, site: str) -> None:
    lm = shared_language_model(architecture)
    ids = some_ids()
    before = n_hooks(lm.model)
    mask = torch.ones(ids.shape, dtype=torch.bool)
    mask[:, 0] = False
    own = lm.activations(ids, site)[site]
    with lm.attach({site: FakeSAE(scale=0.0)}, mask=mask) as run:
        seen = lm.activations(ids, site)[site]
        torch.testing.assert_close(seen[:, 0], own[:, 0], rtol=0, atol=0)
        assert seen[:, 1:].abs().max() == 0
        run.mask = ~mask
        seen = lm.activations(ids, site)[site]
        torch.testing.assert_close(seen[:, 1:], own[:, 1:], rtol=0, atol=0)
        assert seen[:, 0].abs().max() == 0
        with pytest.raises(UserError, match=r"`mask` must have the shape of the forward pass, \[2, 3\]\. Got \[2, 7\]"):
            lm.logits(ids[:, :3])
        run.mask = None
        assert lm.activations(ids, site)[site].abs().max() == 0
    assert n_hooks(lm.model) == before


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt2", "gemma2", "mistral", "mixtral", "opt"])
def test_generation_with_a_cache_equals_generation_without(architecture: str) -> None:
    lm = LanguageModel(tiny_model(architecture))
    ids = some_ids(2, 5)
    lm.model.generation_config.eos_token_id = None
    settings = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with lm.attach({"layers.0": FakeSAE(scale=0.4), "layers.1.mlp": FakeSAE(scale=-2.0)}) as run:
        cached = lm.model.generate(ids, use_cache=True, **settings)
        assert run.codes["layers.0"].values.shape[1] == 1  # only the newest token ran
        plain = lm.model.generate(ids, use_cache=False, **settings)
        assert run.codes["layers.0"].values.shape[1] == 8
        scores = lm.logits(cached)[:, 4:-1]
    assert torch.equal(cached, plain)
    assert torch.equal(scores.argmax(-1), cached[:, 5:])
    assert not torch.equal(cached, lm.model.generate(ids, use_cache=True, **settings))


def test_nested_contexts_and_reading_inside() -> None:
    lm = LanguageModel(tiny_model("gpt_neox"))
    ids = some_ids()
    both = {"layers.0": FakeSAE(scale=0.5), "layers.1": FakeSAE(scale=0.5)}
    with lm.attach(both):
        expected = lm.logits(ids)
    with lm.attach({"layers.0": both["layers.0"]}) as outer, lm.attach({"layers.1": both["layers.1"]}) as inner:
        torch.testing.assert_close(lm.logits(ids), expected, rtol=0, atol=0)
        seen = lm.activations(ids, lm.sites)
    assert list(outer.codes) == ["layers.0"] and list(inner.codes) == ["layers.1"]
    torch.testing.assert_close(seen["layers.1"], inner.inputs["layers.1"] * 0.5)


def test_hooks_are_removed_when_something_fails() -> None:
    lm = LanguageModel(tiny_model("gpt2"))
    ids = some_ids()
    clean = lm.logits(ids)
    with pytest.raises(ZeroDivisionError), lm.attach({"layers.1": FakeSAE()}):
        1 / 0  # noqa: B018
    broken = FakeSAE()
    broken.decode = lambda latents: 1 / 0
    with pytest.raises(ZeroDivisionError), lm.attach({"layers.1": broken}):
        lm.logits(ids)
    assert n_hooks(lm.model) == 0
    torch.testing.assert_close(lm.logits(ids), clean, rtol=0, atol=0)


def test_the_saes_dtype_and_the_models_differ() -> None:
    lm = LanguageModel(tiny_model("gpt_neox").bfloat16())
    ids = some_ids()
    clean = lm.logits(ids)
    with lm.attach({"layers.1": FakeSAE(scale=0.3)}, keep_error=True) as run:
        out = lm.logits(ids)
        assert out.dtype == torch.bfloat16 and run.codes["layers.1"].values.dtype == torch.float32
        torch.testing.assert_close(out, clean, rtol=0, atol=0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            lm.logits(ids)
        assert run.codes["layers.1"].values.dtype == torch.float32


def test_tuples_stay_tuples() -> None:
    lm = LanguageModel(tiny_model("falcon"))  # its blocks return (hidden states, attention weights)
    kinds = []
    with lm.attach({"layers.1": FakeSAE()}):
        block = lm.model.get_submodule(lm.site("layers.1").path)
        hook = block.register_forward_hook(lambda module, args, output: kinds.append((type(output), len(output))))
        lm.logits(some_ids())
        hook.remove()
    assert kinds == [(tuple, 2)]


def test_inputs_as_embeddings_and_by_position() -> None:
    lm = LanguageModel(tiny_model("opt"))
    ids = some_ids()
    with lm.attach({"layers.1.mlp": FakeSAE(scale=0.2)}) as run:
        expected = lm.logits(ids)
        torch.testing.assert_close(lm.model(ids).logits, expected, rtol=0, atol=0)
        embedded = lm.model.get_input_embeddings()(ids)
        torch.testing.assert_close(lm.model(inputs_embeds=embedded).logits, expected, rtol=0, atol=0)
        assert run.codes["layers.1.mlp"].values.shape == (2, 7, WIDTH)


def test_mistakes_are_told() -> None:
    lm = LanguageModel(tiny_model("gpt2"))
    with pytest.raises(UserError, match="`site` must be"), lm.attach({f"layers.{N_LAYERS}": FakeSAE()}):
        pass
    with (
        pytest.raises(UserError, match=f"d_in=5 at 'layers.1', which is {WIDTH} wide"),
        lm.attach({"layers.1": FakeSAE(5)}),
    ):
        pass
    path = "transformer.h.1.mlp.c_fc"  # whose width shows only when it runs
    with pytest.raises(UserError, match=f"d_in={WIDTH} at '{path}'"), lm.attach({path: FakeSAE()}):
        lm.logits(some_ids())
    same = {"layers.1": FakeSAE(), "transformer.h.1": FakeSAE()}
    with pytest.raises(UserError, match="are the same place"), lm.attach(same):
        pass
    assert n_hooks(lm.model) == 0
