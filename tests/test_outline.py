"""Language models without their weights."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from strata.errors import UserError
from strata.lm.flops import forward_flops_of
from strata.lm.outline import outline
from tiny_models import ARCHITECTURES, save_tiny_model, shared_language_model, tiny_model

LLAMA_405B: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16_384,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "intermediate_size": 53_248,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "torch_dtype": "bfloat16",
}


def write_config(folder: Path, config: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def test_of_405_billion_parameters_it_takes_seconds_and_no_memory(tmp_path: Path) -> None:
    start = time.perf_counter()
    lm = outline(write_config(tmp_path, LLAMA_405B))
    assert lm.n_layers == 126
    assert sum(weight.numel() for weight in lm.model.parameters()) == 405_853_388_800
    assert {weight.device.type for weight in lm.model.parameters()} == {"meta"}
    assert lm.dtype == torch.bfloat16
    assert lm.d_in("layers.60.mlp") == lm.d_in("layers.125") == 16_384
    assert lm.d_in("model.layers.3.self_attn.k_proj") == 8 * 128
    assert lm.d_in("model.layers.2.mlp.act_fn") == 53_248
    per_block = 16_384 * (2 * 16_384 + 2 * 1024) + 3 * 16_384 * 53_248
    expected = 126 * (2 * per_block + 4 * 8192 * 16_384)
    assert forward_flops_of(lm, ["layers.125"], context_tokens=8192) == expected
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_answers_what_the_real_model_answers(architecture: str, tmp_path: Path) -> None:
    tiny_model(architecture).config.save_pretrained(tmp_path)
    real, drawn = shared_language_model(architecture), outline(str(tmp_path))
    assert drawn.model_class == real.model_class
    assert (drawn.sites, drawn.n_layers) == (real.sites, real.n_layers)
    assert (drawn.vocabulary_size, drawn.max_positions) == (real.vocabulary_size, real.max_positions)
    shapes = {name: weight.shape for name, weight in real.model.named_parameters()}
    assert {name: weight.shape for name, weight in drawn.model.named_parameters()} == shapes
    block = real.site("layers.1").path
    for site in [*real.sites, "layers.1.attn", "layers.2.mlp", f"{block}.{norm_of(real, block)}"]:
        assert drawn.site(site) == real.site(site)
        assert drawn.d_in(site) == real.d_in(site), site


def norm_of(lm: Any, block: str) -> str:
    """A module whose width no configuration tells: it has to be traced."""
    modules = lm.model.get_submodule(block).named_modules()
    return next(name for name, module in modules if "norm" in type(module).__name__.lower())


def test_the_embedded_model_with_its_tokenizer() -> None:
    lm = outline("demo", tokenizer=True)
    assert (lm.name, lm.n_layers, lm.d_in(lm.middle_site)) == ("demo", 8, 192)
    assert lm.tokenizer is not None
    assert len(lm.tokenizer("def f(x):")["input_ids"]) > 2
    assert outline("demo").tokenizer is None


def test_the_dtype_is_the_checkpoints(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert outline(str(folder)).dtype == torch.float32
    for dtype in ("bfloat16", "float16"):
        assert outline(write_config(folder, config | {"dtype": dtype})).dtype == getattr(torch, dtype)


def test_what_cannot_be_outlined_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"which has no `config\.json`"):
        outline(str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        outline(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"Hugging Face id that can be loaded\. Got 'no-such-model-anywhere'"):
        outline("no-such-model-anywhere")
    with pytest.raises(UserError, match="Got an encoder-decoder"):
        outline(write_config(tmp_path, {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}))
    with pytest.raises(UserError, match="that can be loaded"):
        outline(write_config(tmp_path, {"model_type": "unheard-of"}))
    lm = outline("demo")
    with pytest.raises(UserError, match=r"Did you mean 'layers\.3'"):
        lm.d_in("layers.30")
    with pytest.raises(UserError, match="must take part in the model's forward pass"):
        lm.d_in("gpt_neox.layers")


def test_a_width_that_needs_numbers_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = outline("demo")
    monkeypatch.setattr(lm.model, "forward", lambda input_ids: input_ids.item())
    with pytest.raises(UserError, match=r"known without the model's weights\. Got 'gpt_neox\.layers\.1\.attention'"):
        lm.d_in("gpt_neox.layers.1.attention")
