"""Logit effects: against the derivative of the whole model behind its last site, and by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from strata.errors import UserError
from strata.interpret import logit_effects
from strata.interpret.index_building import build_index
from strata.interpret.index_layout import load_arrays
from strata.interpret.logit_effects import LogitEffects
from strata.lm.model import LanguageModel
from strata.lm.sites import first_tensor
from strata.lm.unembedding import unembedding
from strata.sae.gates import TopK
from strata.sae.model import SAE
from tiny_models import ARCHITECTURES, ENCODERS, VOCABULARY, WIDTH, tiny_model, tiny_tokenizer

STEP = 0.1  # no small one is needed: what the norm divides by is the same on both sides
CAUSAL = [name for name in ARCHITECTURES if name not in ENCODERS]
LAYER_NORM = ("gpt_neox", "gpt2", "bloom", "falcon", "opt")


def exact(architecture: str) -> LanguageModel:
    """With a final norm whose gain is far from equal, and logits that no soft cap bends; in fp64 where that can be."""
    model: Any = tiny_model(architecture)
    model.to(torch.float32 if architecture == "mixtral" else torch.float64)
    if hasattr(model.config, "final_logit_softcapping"):
        model.config.final_logit_softcapping = None
    random = torch.Generator().manual_seed(3)
    norms = [m for n, m in model.named_modules() if "norm" in type(m).__name__.lower() and m.weight.shape == (WIDTH,)]
    for norm in norms:
        norm.weight.data += torch.rand(WIDTH, generator=random)
    return LanguageModel(model)


def behind(lm: LanguageModel, x: Tensor, ids: Tensor) -> Tensor:
    """The logits [vocab] at the last token if the last residual stream there were x."""

    def replaced(module: nn.Module, args: Any, output: Any) -> Any:
        out = first_tensor(output).clone()
        out[:, -1] = x
        return (out, *output[1:]) if isinstance(output, tuple) else out

    handle = lm.model.get_submodule(lm.site(lm.sites[-1]).path).register_forward_hook(replaced)
    try:
        with torch.no_grad():
            return lm.logits(ids)[0, -1]
    finally:
        handle.remove()


@pytest.mark.parametrize("architecture", CAUSAL)
def test_effects_are_the_derivative_of_the_log_probabilities_up_to_a_factor(architecture: str) -> None:
    lm = exact(architecture)
    matrix = unembedding(lm)
    assert matrix is not None
    assert matrix.shape == (VOCABULARY, WIDTH)
    random = torch.Generator().manual_seed(0)
    for seed in range(3):
        ids = torch.randint(2, VOCABULARY, (1, 6), generator=random)
        x = lm.activations(ids, lm.sites[-1])[lm.sites[-1]][0, -1]
        d = torch.randn(WIDTH, generator=random).to(x.dtype)
        # What a norm divides by stays the same for directions across the stream; only that is not linear.
        across = x - x.mean() if architecture in LAYER_NORM else x
        d -= across * (d @ across) / (across @ across)
        more, less = (torch.log_softmax(behind(lm, x + step * d, ids).double(), 0) for step in (STEP, -STEP))
        change = more - less
        change -= change.mean()
        effects = matrix.double() @ d.double()
        factor = (change @ effects) / (effects @ effects)
        assert factor > 0
        torch.testing.assert_close(change, factor * effects, rtol=1e-4, atol=1e-5 * float(change.abs().max()))
        found = LogitEffects.of(d.float()[None], matrix.float(), n=10)
        order = change.argsort(descending=True)
        assert found.top_ids[0].tolist() == order[:10].tolist(), seed
        assert found.bottom_ids[0].tolist() == order.flip(0)[:10].tolist(), seed


@pytest.mark.parametrize("architecture", CAUSAL)
def test_effects_sum_to_nothing_over_the_vocabulary(architecture: str) -> None:
    matrix = unembedding(LanguageModel(tiny_model(architecture)))
    assert matrix is not None
    assert matrix.sum(0).abs().max() < 1e-3
    assert matrix.abs().max() > 0.1


def test_a_layer_norm_takes_the_mean_of_a_direction_away() -> None:
    matrix = unembedding(LanguageModel(tiny_model("gpt2")))
    assert matrix is not None
    assert (matrix @ torch.ones(WIDTH)).abs().max() < 1e-4
    matrix = unembedding(LanguageModel(tiny_model("llama")))
    assert matrix is not None
    assert (matrix @ torch.ones(WIDTH)).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ENCODERS)
def test_an_encoder_whose_head_is_not_linear_has_no_unembedding(architecture: str) -> None:
    # A dense layer and an activation stand between the last residual stream and the decoder.
    assert unembedding(LanguageModel(tiny_model(architecture))) is None


def headless() -> LanguageModel:
    model: Any = AutoModel.from_config(tiny_model("gpt_neox").config)
    return LanguageModel(model, tokenizer=tiny_tokenizer())


def some_sae(*, site: str = "layers.1", d_sae: int = 48, seed: int = 0) -> SAE:
    W = torch.randn(d_sae, WIDTH, generator=torch.Generator().manual_seed(seed))
    return SAE(W_enc=W.t().contiguous(), b_enc=torch.zeros(d_sae), W_dec=W, b_dec=torch.zeros(WIDTH), gate=TopK(4),
               metadata={"site": site})  # fmt: skip


def test_a_model_without_a_head_has_no_effects(tmp_path: Any) -> None:
    lm = headless()
    assert unembedding(lm) is None
    index = build_index(lm, {"layers.1": some_sae()}, ["some text"], folder=tmp_path / "i", progress=False)
    assert index["layers.1"].logit_effects() is None


def test_the_index_has_the_effects_of_each_sae(tmp_path: Any) -> None:
    lm = LanguageModel(tiny_model("llama"), tokenizer=tiny_tokenizer())
    saes = {"layers.0": some_sae(site="layers.0"), "a/layers.2": some_sae(site="layers.2", seed=1, d_sae=20)}
    index = build_index(lm, saes, ["some text"], folder=tmp_path / "i", progress=False)
    matrix = unembedding(lm)
    assert matrix is not None
    for key, sae in saes.items():
        effects = (sae.W_dec @ matrix.t()).numpy()
        found = index[key].logit_effects()
        assert found is not None
        assert found.top_ids.shape == found.bottom_values.shape == (sae.d_sae, 10)
        order = np.argsort(-effects, axis=1)
        assert np.array_equal(found.top_ids, order[:, :10])
        assert np.array_equal(found.bottom_ids, order[:, ::-1][:, :10])
        np.testing.assert_allclose(found.top_values, np.take_along_axis(effects, order[:, :10], 1), rtol=1e-5)
        np.testing.assert_allclose(found.bottom_values, np.take_along_axis(effects, found.bottom_ids, 1), rtol=1e-5)


@pytest.mark.parametrize("n", [1, 7, 50])
def test_few_latents_at_a_time_give_the_same(n: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    random = torch.Generator().manual_seed(0)
    W_dec, matrix = torch.randn(33, 16, generator=random), torch.randn(40, 16, generator=random)
    whole = LogitEffects.of(W_dec, matrix, n=n)
    monkeypatch.setattr(logit_effects, "_CHUNK_ENTRIES", 40 * 5)
    parts = LogitEffects.of(W_dec, matrix, n=n)
    assert whole.top_ids.shape == (33, min(n, 40))
    assert np.array_equal(parts.top_ids, whole.top_ids)
    np.testing.assert_allclose(parts.bottom_values, whole.bottom_values, rtol=1e-5)
    parts.save(tmp_path / "logit_effects.safetensors")
    again = LogitEffects.load(tmp_path / "logit_effects.safetensors")
    assert np.array_equal(again.bottom_ids, parts.bottom_ids)
    assert set(load_arrays(tmp_path / "logit_effects.safetensors")) == set(vars(parts))


def test_a_lost_file_is_said(tmp_path: Any) -> None:
    with pytest.raises(UserError, match="missing or damaged"):
        LogitEffects.load(tmp_path / "logit_effects.safetensors")


def test_a_lost_file_of_an_index_is_not_taken_for_a_model_without_a_head(tmp_path: Any) -> None:
    lm = LanguageModel(tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    index = build_index(lm, {"layers.1": some_sae()}, ["some text"], folder=tmp_path / "i", progress=False)
    (tmp_path / "i" / "layers.1" / "logit_effects.safetensors").unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        index["layers.1"].logit_effects()
