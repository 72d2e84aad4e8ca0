"""What it cost to train a language model, from its parameters and the tokens that it was trained on."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from strata.errors import UserError

FLOPS_PER_PARAMETER = 6.0  # two forward, four backward, per parameter and token
_STATED = "stated by its authors"
_COMPUTED = "computed from the steps and the batch that its authors state"


@dataclass(frozen=True, kw_only=True)
class KnownTokens:
    """How many tokens a family of models was trained on.

    Attributes:
        n_tokens: seen in pre-training, repetitions counted.
        family: its name.
        source: where the number stands.
        sure: how sure it is, in words.
        at_least: whether the authors say that it was this much or more.
    """

    n_tokens: float
    family: str
    source: str
    sure: str = _STATED
    at_least: bool = False


def pretraining_flops(n_parameters: int | float, n_tokens: int | float) -> float:
    """FLOPs of a language model's training: 6·N·tokens.

    A forward multiplies each token with each parameter once (2 FLOPs), a backward costs twice that. Attention's own
    products, which grow with the context, are left out, as is what is computed again to save memory.
    Source: Kaplan et al. 2020, arXiv 2001.08361, section 2.1; Hoffmann et al. 2022, arXiv 2203.15556.

    Args:
        n_parameters: N; of a model with experts those that are active for a token.
        n_tokens: of the training, repetitions counted.

    Raises:
        UserError: one of them is not positive and finite.

    Differs: Kaplan et al. count N without embeddings; Hoffmann et al., as here, with them.
    """
    for name, value in (("n_parameters", n_parameters), ("n_tokens", n_tokens)):
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f"`{name}` must be positive and finite. Got {value}. Give the model's number.")
    return FLOPS_PER_PARAMETER * n_parameters * n_tokens


def known_training_tokens(model: str) -> KnownTokens | None:
    """The tokens of a model's pre-training, if its family is listed here.

    Args:
        model: "demo" or a Hugging Face id, in any case. Variants by the same authors (instruct, chat, quantised) count
            as the model they were made from; what is added after pre-training is not in the number.

    Returns:
        None if it is not listed: a name that only resembles one, a local folder, or authors who do not say.
    """
    return next((known for pattern, known in _FAMILIES if pattern.fullmatch(model.strip().lower())), None)


def _listed() -> Iterator[tuple[re.Pattern[str], KnownTokens]]:
    for known, *patterns in _TABLE:
        for pattern, n_tokens in patterns:
            yield re.compile(pattern), replace(known, n_tokens=float(n_tokens))


def _family(family: str, source: str, *, sure: str = _STATED, at_least: bool = False) -> KnownTokens:
    return KnownTokens(n_tokens=math.nan, family=family, source=source, sure=sure, at_least=at_least)


_LLAMA = r"(meta-llama|unsloth|nousresearch)/(meta-)?llama"
_QUANTISED = r"(-fp8|-awq|-gptq-int[48])?"
_QWEN3 = r"qwen/qwen3-(0\.6b|1\.7b|4b|8b|14b|32b|30b-a3b|235b-a22b)(-base|(-instruct|-thinking)-2507)?" + _QUANTISED
_TABLE = (
    (
        _family("the embedded model", "its README.md: 3,600 steps of 2,048 tokens", sure="counted when it was trained"),
        ("demo", 7_372_800),
    ),
    (
        _family("Pythia", "arXiv 2304.01373: 143,000 steps of 2,097,152 tokens", sure=_COMPUTED),
        (r"eleutherai/pythia-(14m|31m|70m|160m|410m|1b|1\.4b|2\.8b|6\.9b|12b)(-deduped)?", 299_892_736_000),
    ),
    (
        _family("GPT-Neo", "its model cards"),
        ("eleutherai/gpt-neo-125m", 300e9),
        (r"eleutherai/gpt-neo-1\.3b", 380e9),
        (r"eleutherai/gpt-neo-2\.7b", 420e9),
    ),
    (_family("GPT-J", "its model card"), ("eleutherai/gpt-j-6b", 402e9)),
    (_family("Llama", "arXiv 2302.13971"), ("huggyllama/llama-(7|13)b", 1e12), ("huggyllama/llama-(30|65)b", 1.4e12)),
    (_family("Llama 2", "arXiv 2307.09288"), (_LLAMA + "-2-(7|13|70)b(-chat)?(-hf)?", 2e12)),
    (_family("Llama 3", "its model card", at_least=True), (_LLAMA + "-3-(8|70)b(-instruct)?", 15e12)),
    (
        _family("Llama 3.1", "arXiv 2407.21783 and its model card", at_least=True),
        (_LLAMA + r"-3\.1-(8|70)b(-instruct)?(-fp8)?", 15e12),
    ),
    (_family("Llama 3.1", "arXiv 2407.21783"), (_LLAMA + r"-3\.1-405b(-instruct)?(-fp8)?", 15.6e12)),
    (
        _family("Llama 3.2", "its model card: up to this many; pruned from and taught by larger models"),
        (_LLAMA + r"-3\.2-[13]b(-instruct)?", 9e12),
    ),
    (_family("Llama 3.3", "its model card", at_least=True), (_LLAMA + r"-3\.3-70b-instruct", 15e12)),
    (
        _family("Gemma", "arXiv 2403.08295"),
        (r"google/gemma-2b(-it)?", 3e12),
        (r"google/gemma-7b(-it)?", 6e12),
    ),
    (
        _family("Gemma 2", "arXiv 2408.00118; 2B and 9B were taught by a larger model"),
        (r"google/gemma-2-2b(-it|-jpn-it)?", 2e12),
        (r"google/gemma-2-9b(-it)?", 8e12),
        (r"google/gemma-2-27b(-it)?", 13e12),
    ),
    (
        _family("Gemma 3", "arXiv 2503.19786; taught by a larger model"),
        (r"google/gemma-3-1b-(pt|it)", 2e12),
        (r"google/gemma-3-4b-(pt|it)", 4e12),
        (r"google/gemma-3-12b-(pt|it)", 12e12),
        (r"google/gemma-3-27b-(pt|it)", 14e12),
    ),
    (
        _family("Qwen2", "arXiv 2407.10671"),
        (r"qwen/qwen2-0\.5b(-instruct)?" + _QUANTISED, 12e12),
        (r"qwen/qwen2-(1\.5b|7b|72b)(-instruct)?" + _QUANTISED, 7e12),
    ),
    (
        _family("Qwen2.5", "arXiv 2412.15115: about this many"),
        (r"qwen/qwen2\.5-(0\.5b|1\.5b|3b|7b|14b|32b|72b)(-instruct)?" + _QUANTISED, 18e12),
    ),
    (_family("Qwen3", "arXiv 2505.09388: about this many"), (_QWEN3, 36e12)),
    (
        _family("OLMo 2", "arXiv 2501.00656, first stage"),
        (r"allenai/olmo-2-1124-7b(-instruct|-sft|-dpo)?", 4e12),
        (r"allenai/olmo-2-1124-13b(-instruct|-sft|-dpo)?", 5e12),
    ),
    (
        _family("SmolLM", "its model cards"),
        (r"huggingfacetb/smollm-(135m|360m)(-instruct)?", 600e9),
        (r"huggingfacetb/smollm-1\.7b(-instruct)?", 1e12),
    ),
    (
        _family("SmolLM2", "arXiv 2502.02737 and its model cards"),
        (r"huggingfacetb/smollm2-135m(-instruct)?", 2e12),
        (r"huggingfacetb/smollm2-360m(-instruct)?", 4e12),
        (r"huggingfacetb/smollm2-1\.7b(-instruct)?", 11e12),
    ),
    (
        _family("TinyLlama", "arXiv 2401.02385"),
        (r"tinyllama/tinyllama-1\.1b-(chat-v1\.0|intermediate-step-1431k-3t)", 3e12),
    ),
    (
        _family("Falcon", "arXiv 2311.16867"),
        (r"tiiuae/falcon-7b(-instruct)?", 1.5e12),
        (r"tiiuae/falcon-40b(-instruct)?", 1e12),
        (r"tiiuae/falcon-180b(-chat)?", 3.5e12),
    ),
    (_family("DeepSeek-V3", "arXiv 2412.19437"), (r"deepseek-ai/deepseek-v3(-base)?", 14.8e12)),
)
_FAMILIES = tuple(_listed())
