"""Tiny language models with random weights, one per architecture, built from configurations alone."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from strata.lm.model import LanguageModel

N_LAYERS = 3
WIDTH = 32
VOCABULARY = 300  # 256 bytes and room for special tokens
MAX_POSITIONS = 64
END = "<|endoftext|>"

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": MAX_POSITIONS,
}
_GROUPED: dict[str, Any] = {**_COMMON, "num_key_value_heads": 2}
# Configuration per architecture; "bos", "eos" and "pad" are set for all of them in `tiny_model`.
_CONFIGS: dict[str, dict[str, Any]] = {
    "gpt_neox": _COMMON,
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": N_LAYERS, "n_head": 4, "n_positions": MAX_POSITIONS},
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 8},
    "gemma2": {**_GROUPED, "head_dim": 8, "sliding_window": 16},
    "mistral": {**_GROUPED, "sliding_window": 16},
    "phi3": _GROUPED,
    "mixtral": {**_GROUPED, "num_local_experts": 3, "num_experts_per_tok": 2},
    "olmo2": _GROUPED,
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": N_LAYERS, "n_head": 4},
    "falcon": {**_COMMON, "alibi": False},
    "opt": {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": WIDTH},
    "bert": _COMMON,
    "roberta": _COMMON,
}
ENCODERS = ("bert", "roberta")
ARCHITECTURES = tuple(_CONFIGS)


def tiny_model(architecture: str) -> PreTrainedModel:
    """A model with random weights from a fixed seed, in evaluation mode, fp32; token 0 is BOS and EOS, 1 is pad.

    Args:
        architecture: one of `ARCHITECTURES`.
    """
    config = AutoConfig.for_model(
        architecture, **_CONFIGS[architecture], bos_token_id=0, eos_token_id=0, pad_token_id=1
    )
    auto = AutoModelForMaskedLM if architecture in ENCODERS else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = auto.from_config(config)
        for weight in model.parameters():  # with the usual 0.02 blocks change, and tests see, nearly nothing
            weight.data.add_(torch.randn_like(weight) * 0.1)
    return model.eval()


@cache
def shared_language_model(architecture: str) -> LanguageModel:
    """The `LanguageModel` of a tiny model, one for all tests: for those that leave it as it is."""
    return LanguageModel(tiny_model(architecture))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: one token per byte; id 0 is the end of text (and BOS), id 1 the pad."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {END: 0, "<|pad|>": 1, **{symbol: i + 2 for i, symbol in enumerate(alphabet)}}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END, pad_token="<|pad|>")


def save_tiny_model(folder: Path, architecture: str = "gpt_neox", *, tokenizer: bool = True) -> Path:
    """A model's folder as ``save_pretrained`` writes it, with or without a tokenizer."""
    tiny_model(architecture).save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return folder
