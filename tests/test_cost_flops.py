"""Counted FLOPs of a language model's forward, against what torch counts while it runs."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from strata.costs.flops import active_experts, forward_flops, sae_step_flops
from strata.errors import UserError
from strata.lm.flops import forward_flops_of
from strata.lm.model import LanguageModel
from strata.lm.outline import outline
from tiny_models import ARCHITECTURES, N_LAYERS, tiny_model

SITES = ("layers.0", f"layers.{N_LAYERS - 1}", "layers.1.mlp")
SHAPES = ((1, 48), (3, 16))  # sequences, tokens of each
OTHERS: dict[str, dict[str, Any]] = {  # latent attention, shared experts, a dense layer before; many small experts
    "deepseek_v3": {
        "intermediate_size": 48, "moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "n_group": 2, "topk_group": 1, "first_k_dense_replace": 0, "q_lora_rank": 16, "kv_lora_rank": 16,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 12, "num_key_value_heads": 4,
    },
    "qwen3_moe": {
        "moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 2, "head_dim": 8,
        "num_key_value_heads": 2,
    },
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 8, "num_key_value_heads": 2},
}  # fmt: skip


def eager(model: Any) -> LanguageModel:
    """With attention and experts as plain products, which the counter sees; it does not know fused ones."""
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    return LanguageModel(model)


def counted(lm: LanguageModel, site: str, *, batch: int, context: int) -> float:
    """FLOPs per token that torch sees, without the rotary angles, which are a product too: of the model once."""
    ids = torch.randint(2, 300, (batch, context))
    with FlopCounterMode(display=False) as counter:
        lm.activations(ids, [site])
    by_module = counter.get_flop_counts()
    rotary = sum(sum(ops.values()) for name, ops in by_module.items() if re.search(r"rotary_emb$", name))
    return (counter.get_total_flops() - rotary) / (batch * context)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_of_every_architecture_they_are_those_that_torch_counts(architecture: str) -> None:
    lm = eager(tiny_model(architecture))
    for site in SITES:
        for batch, context in SHAPES:
            found = forward_flops_of(lm, [site], context_tokens=context)
            assert found == counted(lm, site, batch=batch, context=context), (site, context)


@pytest.mark.parametrize("architecture", OTHERS)
def test_of_latent_attention_and_small_experts_too(architecture: str) -> None:
    common = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    config = AutoConfig.for_model(architecture, **common, **special, **OTHERS[architecture])
    lm = eager(AutoModelForCausalLM.from_config(config).eval())
    for batch, context in SHAPES:
        found = forward_flops_of(lm, ["layers.1"], context_tokens=context)
        assert found == pytest.approx(counted(lm, "layers.1", batch=batch, context=context), rel=1e-12)


def test_each_token_passes_its_own_experts_however_they_are_run() -> None:
    """One after the other ("eager") or gathered per token ("batched_mm"): 2 of 3 multiply each token. What runs by
    default (grouped products) does the same, and the counter does not see it.
    """
    lm = eager(tiny_model("mixtral"))
    one_by_one = counted(lm, "layers.0", batch=2, context=32)
    lm.model.set_experts_implementation("batched_mm")
    assert counted(lm, "layers.0", batch=2, context=32) == one_by_one
    assert forward_flops_of(lm, ["layers.0"], context_tokens=32) == one_by_one
    assert active_experts(lm.model.config) == 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_outline_has_those_of_the_real_model(architecture: str, tmp_path: Any) -> None:
    model = tiny_model(architecture)
    model.config.save_pretrained(tmp_path)
    drawn, real = outline(str(tmp_path)), LanguageModel(model)
    for sites in (["layers.1"], ["layers.2.attn", "layers.0"]):
        expected = forward_flops_of(real, sites, context_tokens=100)
        assert forward_flops_of(drawn, sites, context_tokens=100) == expected > 0


def test_a_site_inside_attention_counts_the_whole_block() -> None:
    """The pass ends before the feed-forward part of the last block: less is run than is counted, never more."""
    lm = eager(tiny_model("llama"))
    run = counted(lm, "layers.1.attn", batch=1, context=16)
    whole = forward_flops_of(lm, ["layers.1.attn"], context_tokens=16)
    assert forward_flops_of(lm, ["layers.0"], context_tokens=16) < run < whole
    assert whole - run == 2 * 3 * 32 * 48  # gate, up and down


def test_they_end_with_the_block_of_the_deepest_site() -> None:
    lm = LanguageModel(tiny_model("gpt_neox"))
    blocks = [lm.model.get_submodule(f"gpt_neox.layers.{i}") for i in range(N_LAYERS)]
    for sites, n_blocks in (
        (["layers.0"], 1),
        (["layers.1", "layers.0"], 2),
        (["layers.0", "layers.1.mlp"], 2),
        (["gpt_neox.layers.1.attention.dense"], 2),
        (["gpt_neox.final_layer_norm"], N_LAYERS),
    ):
        expected = forward_flops(blocks[:n_blocks], lm.model.config, context_tokens=10)
        assert forward_flops_of(lm, sites, context_tokens=10) == expected, sites
    with pytest.raises(UserError, match=r"Did you mean 'layers\.2'"):
        forward_flops_of(lm, ["layers.20"], context_tokens=10)


def test_the_formula_and_the_errors() -> None:
    neox: Any = tiny_model("gpt_neox")
    width, inner = neox.config.hidden_size, neox.config.intermediate_size
    blocks = [neox.get_submodule(f"gpt_neox.layers.{i}") for i in range(N_LAYERS)]
    expected = N_LAYERS * (2 * (4 * width**2 + 2 * width * inner) + 4 * 10 * width)
    assert forward_flops(blocks, neox.config, context_tokens=10) == expected
    with pytest.raises(UserError, match="names no num_attention_heads"):
        forward_flops(blocks, torch.nn.Linear(1, 1), context_tokens=10)
    block = tiny_model("mixtral").get_submodule("model.layers.0")
    without = SimpleNamespace(num_attention_heads=4, hidden_size=width)
    with pytest.raises(UserError, match="needs the number of active experts"):
        forward_flops([block], without, context_tokens=10)


def test_the_step_of_an_sae() -> None:
    assert sae_step_flops(768, 12_288, 32) == 2 * 768 * 12_288 + 10 * 32 * 768
