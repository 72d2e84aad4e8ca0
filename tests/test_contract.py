"""The public contract, as a user would type it: names, arguments, shapes and promises."""

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import strata

K = 16
SMALL = strata.SAEConfig(expansion_factor=2, k=K, batch_size=256, text_batch_size=8)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def lm() -> strata.LanguageModel:
    return strata.LanguageModel("demo")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Python source, one document longer than the model's context and some short ones."""
    source = (Path(sysconfig.get_path("stdlib")) / "textwrap.py").read_text(encoding="utf-8")
    return [source[:12_000], *(f"for i in range({i}):\n    print(i)\n" for i in range(20))]


@pytest.fixture(scope="module")
def acts(lm: strata.LanguageModel, texts: list[str]) -> strata.Activations:
    return strata.collect_activations(lm, texts, sites=["layers.3"])


@pytest.fixture(scope="module")
def sae(acts: strata.Activations) -> strata.SAE:
    return strata.Trainer(SMALL, progress=False).train(acts)


def same_weights(a: strata.SAE, b: strata.SAE) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("W_enc", "b_enc", "W_dec", "b_dec"))


def n_tokens(lm: strata.LanguageModel, texts: list[str]) -> int:
    assert lm.tokenizer is not None
    return sum(len(lm.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)


# --- the language model ---------------------------------------------------------------------------------------------


def test_the_embedded_model_has_eight_residual_sites(lm: strata.LanguageModel) -> None:
    assert lm.sites == [f"layers.{i}" for i in range(8)]
    assert lm.tokenizer is not None


def test_a_loaded_model_is_taken_with_its_tokenizer(lm: strata.LanguageModel) -> None:
    again = strata.LanguageModel(lm.model, tokenizer=lm.tokenizer)
    assert again.sites == lm.sites
    assert again.tokenizer is lm.tokenizer


def test_activations_are_the_residual_stream_after_the_named_block(lm: strata.LanguageModel) -> None:
    input_ids = torch.randint(5, 4000, (2, 7))
    found = lm.activations(input_ids, sites=["layers.3"])
    with torch.no_grad():
        hidden = lm.model(input_ids=input_ids, output_hidden_states=True).hidden_states
    assert list(found) == ["layers.3"]
    assert found["layers.3"].shape == (2, 7, 192)
    assert not found["layers.3"].requires_grad
    torch.testing.assert_close(found["layers.3"], hidden[4])


def test_activations_run_no_further_than_needed(lm: strata.LanguageModel) -> None:
    ran: list[int] = []
    blocks = lm.model.gpt_neox.layers
    hooks = [block.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(blocks)]
    try:
        lm.activations(torch.zeros(1, 4, dtype=torch.long), sites=["layers.3", "layers.1"])
    finally:
        for hook in hooks:
            hook.remove()
    assert 2 in ran
    assert max(ran) <= 3


# --- collecting -----------------------------------------------------------------------------------------------------


def test_collected_activations_are_rows(acts: strata.Activations) -> None:
    rows = acts["layers.3"]
    assert isinstance(rows, Tensor)
    assert rows.ndim == 2
    assert rows.shape[1] == 192


@pytest.mark.parametrize("context_tokens", [None, 33])
def test_long_texts_are_split_never_cut(lm: strata.LanguageModel, texts: list[str], context_tokens: int | None) -> None:
    rows = strata.collect_activations(lm, texts, sites=["layers.0"], context_tokens=context_tokens)["layers.0"]
    assert len(rows) == n_tokens(lm, texts)  # each token once; separators and pads are no rows


def test_the_first_rows_are_those_of_a_plain_forward(lm: strata.LanguageModel) -> None:
    assert lm.tokenizer is not None
    text = "def f(x):\n    return x + 1\n"
    end = lm.tokenizer.eos_token_id
    ids = torch.tensor([[end, *lm.tokenizer(text, add_special_tokens=False)["input_ids"]]])
    wanted = lm.activations(ids, sites=["layers.3"])["layers.3"][0, 1:]
    got = strata.collect_activations(lm, [text], sites=["layers.3"], lm_dtype="fp32")["layers.3"]
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_sites_left_out_are_the_middle_layer(lm: strata.LanguageModel) -> None:
    assert list(strata.collect_activations(lm, ["x = 1\n" * 20])) == ["layers.3"]


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_collected_rows_have_the_wanted_type_and_train(lm: strata.LanguageModel, name: str, dtype: torch.dtype) -> None:
    acts = strata.collect_activations(lm, ["import os\n" * 300], sites=["layers.1"], dtype=name, n_tokens=600)
    assert acts["layers.1"].dtype == dtype
    assert len(acts["layers.1"]) == 600
    assert strata.Trainer(SMALL, progress=False).train(acts).W_enc.dtype == torch.float32


def test_several_sites_come_from_the_same_tokens(lm: strata.LanguageModel, acts: strata.Activations, texts: list[str]):
    both = strata.collect_activations(lm, texts, sites=["layers.1", "layers.3"])
    assert set(both) == {"layers.1", "layers.3"}
    assert torch.equal(both["layers.3"], acts["layers.3"])


# --- training -------------------------------------------------------------------------------------------------------


def test_example_of_pre_collected_training(acts: strata.Activations) -> None:
    config = strata.SAEConfig(expansion_factor=16, k=64, num_epochs=1, batch_size=256, dead_feature_window=500)
    sae = strata.Trainer(config).train(acts)
    assert isinstance(sae, strata.SAE)
    assert (sae.d_in, sae.d_sae) == (192, 16 * 192)
    assert (sae.encode(acts["layers.3"][:50]) > 0).sum(1).max() <= 64


def test_example_of_streaming_training(lm: strata.LanguageModel, texts: list[str]) -> None:
    sae = lm.train_sae(
        dataset=[texts[0][:5000]],
        site="layers.3",
        config=strata.SAEConfig(
            expansion_factor=32,
            k=128,
            num_epochs=3,
            batch_size=64,
            text_batch_size=32,
            dead_feature_window=1000,
            use_ghost_grads=True,
        ),
    )
    assert isinstance(sae, strata.SAE)
    assert (sae.d_in, sae.d_sae) == (192, 32 * 192)


def test_training_explains_the_activations(sae: strata.SAE, acts: strata.Activations) -> None:
    from strata.sae.metrics import explained_variance

    x = acts["layers.3"]
    longer = strata.Trainer(
        strata.SAEConfig(expansion_factor=2, k=K, batch_size=256, num_epochs=6), progress=False
    ).train(acts)
    assert explained_variance(x, sae(x)) > 0.3
    assert explained_variance(x, longer(x)) > explained_variance(x, sae(x))


def test_a_bare_tensor_trains_like_the_activations_it_is(sae: strata.SAE, acts: strata.Activations) -> None:
    x = acts["layers.3"].clone()
    from_tensor = strata.Trainer(SMALL, progress=False).train(x)
    assert same_weights(from_tensor, sae)
    assert torch.equal(x, acts["layers.3"])  # training reads


def test_the_seed_decides(sae: strata.SAE, acts: strata.Activations) -> None:
    from dataclasses import replace

    assert not same_weights(strata.Trainer(replace(SMALL, seed=1), progress=False).train(acts), sae)


def test_ghost_gradients_are_not_auxk(acts: strata.Activations) -> None:
    def trained(**given: object) -> strata.SAE:
        config = strata.SAEConfig(
            expansion_factor=4,
            k=2,
            batch_size=64,
            dead_feature_window=5,
            **given,  # type: ignore[arg-type]
        )
        return strata.Trainer(config, progress=False).train(acts["layers.3"][:2000])

    ghost = trained(use_ghost_grads=True)
    assert same_weights(ghost, trained(revival="ghost"))
    assert not same_weights(ghost, trained())


def test_the_site_left_out_is_the_middle_layer(lm: strata.LanguageModel, texts: list[str]) -> None:
    without = lm.train_sae(dataset=texts, config=SMALL, progress=False)
    assert same_weights(without, lm.train_sae(dataset=texts, site="layers.3", config=SMALL, progress=False))


def test_both_modes_give_the_same_quality(lm: strata.LanguageModel, acts: strata.Activations, texts: list[str]) -> None:
    from strata.sae.metrics import fvu

    config = strata.SAEConfig(expansion_factor=1, k=K, batch_size=256, num_epochs=3, text_batch_size=8)
    x = acts["layers.3"]
    collected = strata.Trainer(config, progress=False).train(acts)
    streamed = lm.train_sae(dataset=iter(texts), site="layers.3", config=config, progress=False)
    assert abs(float(fvu(x, collected(x))) - float(fvu(x, streamed(x)))) < 0.05


def test_a_suite_trains_every_site_in_one_pass(lm: strata.LanguageModel, texts: list[str]) -> None:
    passes: list[int] = []
    hook = lm.model.get_input_embeddings().register_forward_hook(lambda *_: passes.append(1))
    try:
        suite = strata.train_suite(lm, texts, sites=["layers.3", "layers.1"], config=SMALL, progress=False)
        n_for_two = len(passes)
        alone = lm.train_sae(dataset=texts, site="layers.1", config=SMALL, progress=False)
    finally:
        hook.remove()
    assert list(suite) == ["layers.3", "layers.1"]
    assert len(passes) == 2 * n_for_two
    assert same_weights(suite["layers.1"], alone)


def test_a_suite_without_sites_takes_every_layer_and_token_ids(lm: strata.LanguageModel) -> None:
    ids = torch.randint(5, 4000, (20, 32))
    config = strata.SAEConfig(expansion_factor=1, k=4, batch_size=128)
    suite = strata.train_suite(lm, ids, config=config, progress=False)
    assert list(suite) == lm.sites
    assert all(sae.d_sae == 192 for sae in suite.values())


def test_warm_start_goes_on_from_where_it_was(sae: strata.SAE, acts: strata.Activations) -> None:
    from dataclasses import replace

    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    x = acts["layers.3"]
    same = strata.Trainer(replace(SMALL, lr=1e-12), init=sae, progress=False).train(x)
    torch.testing.assert_close(same(x), sae(x), rtol=1e-3, atol=1e-2 * float(x.std()))
    tuned = strata.Trainer(SMALL, init=sae, progress=False).train(x)
    assert (tuned(x) - x).square().mean() < (sae(x) - x).square().mean()
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())


# --- the SAE --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (0,)])
def test_an_sae_takes_any_leading_shape(sae: strata.SAE, acts: strata.Activations, leading: tuple[int, ...]) -> None:
    n = torch.Size(leading).numel()
    flat = acts["layers.3"][:n]
    x = flat.view(*leading, 192)
    latents, code = sae.encode(x), sae.encode_sparse(x)
    assert latents.shape == (*leading, sae.d_sae)
    assert isinstance(code, strata.SparseCode)
    assert code.values.shape == code.indices.shape == (*leading, K)
    torch.testing.assert_close(code.dense(), latents)
    assert sae.decode(latents).shape == sae.decode(code).shape == sae(x).shape == x.shape
    torch.testing.assert_close(sae.decode(latents), sae(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.decode(code), sae(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae(x).view(n, 192), sae(flat), rtol=1e-4, atol=1e-4)


def test_the_code_is_the_definition_of_topk_on_raw_activations(sae: strata.SAE, acts: strata.Activations) -> None:
    x = acts["layers.3"][:64]
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    kept = pre.topk(K, dim=1)
    wanted = torch.zeros_like(pre).scatter(1, kept.indices, kept.values.relu())
    torch.testing.assert_close(sae.encode(x), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae(x), wanted @ sae.W_dec + sae.b_dec, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.d_sae))


def test_encode_is_differentiable_and_the_same_with_gradients(sae: strata.SAE, acts: strata.Activations) -> None:
    x = acts["layers.3"][:8].clone().requires_grad_()
    latents = sae.encode(x)
    torch.testing.assert_close(latents.detach(), sae.encode(x.detach()), rtol=1e-4, atol=1e-4)
    sae(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_save_and_load_are_bit_equal(sae: strata.SAE, acts: strata.Activations, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "sae"
    sae.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    assert json.loads((folder / "cfg.json").read_text())["architecture"] == "topk"
    loaded = strata.SAE.load(folder)
    x = acts["layers.3"][:100]
    assert same_weights(loaded, sae)
    assert torch.equal(loaded.encode(x), sae.encode(x))
    assert torch.equal(loaded(x), sae(x))
    assert strata.SAE.load(str(folder)).d_sae == sae.d_sae  # a str will do too


# --- the model with SAEs in it --------------------------------------------------------------------------------------


def test_attach_with_the_error_kept_changes_nothing_but_gives_codes(lm: strata.LanguageModel, sae: strata.SAE) -> None:
    input_ids = torch.randint(5, 4000, (2, 6))
    with torch.no_grad():
        clean = lm.model(input_ids=input_ids).logits
        x = lm.activations(input_ids, sites=["layers.3"])["layers.3"]
        with lm.attach({"layers.3": sae}, keep_error=True) as run:
            kept = lm.model(input_ids=input_ids).logits
            code = run.codes["layers.3"]
        with lm.attach({"layers.3": sae}):
            replaced = lm.model(input_ids=input_ids).logits
        after = lm.model(input_ids=input_ids).logits
    torch.testing.assert_close(kept, clean, rtol=1e-4, atol=1e-3)
    assert code.values.shape == (2, 6, K)
    torch.testing.assert_close(code.dense(), sae.encode(x), rtol=1e-3, atol=1e-3)
    assert (replaced - clean).abs().max() > 0.01
    assert torch.equal(after, clean)


def test_attach_removes_its_hooks_when_the_block_fails(lm: strata.LanguageModel, sae: strata.SAE) -> None:
    input_ids = torch.randint(5, 4000, (1, 4))
    with torch.no_grad():
        clean = lm.model(input_ids=input_ids).logits
        with pytest.raises(ZeroDivisionError), lm.attach({"layers.3": sae}):
            raise ZeroDivisionError
        assert torch.equal(lm.model(input_ids=input_ids).logits, clean)


def test_attach_is_safe_with_a_cache(lm: strata.LanguageModel, sae: strata.SAE) -> None:
    prompt = torch.randint(5, 4000, (1, 5))
    with torch.no_grad(), lm.attach({"layers.3": sae}):
        cached, plain = (
            lm.model.generate(prompt, max_new_tokens=4, do_sample=False, use_cache=use_cache)
            for use_cache in (True, False)
        )
    assert torch.equal(cached, plain)


# --- metrics --------------------------------------------------------------------------------------------------------


def test_metrics_of_the_mean_and_of_perfection() -> None:
    from strata.sae.metrics import cosine, explained_variance, fvu, l2_ratio, mse, relative_reconstruction_bias

    x = torch.randn(100, 7) * torch.arange(1, 8) + 3
    mean = x.mean(0).expand_as(x)
    assert explained_variance(x, x).item() == 1
    assert explained_variance(x, x).shape == ()
    assert explained_variance(x, mean).item() == pytest.approx(0, abs=1e-6)
    assert fvu(x, mean).item() == pytest.approx(1, abs=1e-6)
    assert mse(x, x + 1).item() == pytest.approx(7, rel=1e-5)  # summed over d_in
    assert cosine(x, 2 * x).item() == pytest.approx(1)
    assert l2_ratio(x, x / 2).item() == pytest.approx(0.5)
    assert relative_reconstruction_bias(x, x / 2).item() == pytest.approx(0.5)


def test_scores_of_the_language_model() -> None:
    from strata.sae.metrics import ce_loss_score, delta_ce_percent, kl_div_score

    assert ce_loss_score(ce_zero=9.0, ce_sae=3.0, ce_clean=1.0) == pytest.approx(0.75)
    assert kl_div_score(kl_zero=4.0, kl_sae=1.0) == pytest.approx(0.75)
    assert delta_ce_percent(ce_sae=3.0, ce_clean=2.0) == pytest.approx(50)
