"""Recipes: functions that return a run's description. The first word after `strata train` names one.

A docstring states the command, the hardware, the time and the numbers to expect. What was not measured is marked
"predicted", and computed from the formulas of `strata.costs` under these assumptions: one H100 that
reaches 40 % of 990 TFLOP/s in bf16 for all products, the language model's up to its last site and the SAE's dense one;
beside that the optimiser's memory traffic, 24 bytes per weight and step at 3.35 TB/s, with nothing overlapping. Reading
text and evaluating are not in it. Memory is 12 bytes per weight of the SAEs (weights and Adam) and 2 per parameter of
the language model; its activations and the shuffle buffer come on top.
"""

from collections.abc import Callable

from strata.config.train import SAEConfig, TrainConfig

_PILE = "monology/pile-uncopyrighted"
_FINEWEB = "HuggingFaceFW/fineweb:sample-10BT"


def demo() -> TrainConfig:
    """SAEs on every layer of the embedded language model, trained on the Python standard library's source.

    `strata train demo`: no network, no GPU. Time and the numbers to expect stand in docs/quickstart.md.
    """
    sae = SAEConfig(expansion_factor=16, k=32, batch_size=4096)
    return TrainConfig(sites=("all",), n_tokens=320_000, held_out_tokens=8_192, held_out_every="25%", sae=sae)


def default() -> TrainConfig:
    """The middle layer of any model on any text, as the flags say."""
    return TrainConfig()


def fast_testing() -> TrainConfig:
    """One SAE of a small model in seconds, activations collected first: for trying things out.

    `strata train fast-testing`: the embedded model's middle layer, no network, no GPU.
    """
    sae = SAEConfig(expansion_factor=16, k=64, batch_size=256, dead_feature_window=500)
    return TrainConfig(activations="collected", n_tokens=100_000, held_out_tokens=8_192, sae=sae)


def production() -> TrainConfig:
    """One wide SAE of a large model, streaming, with ghost gradients: three epochs in small batches.

    `strata train production --model ID --sites layers.N --data TEXT`; as it stands Qwen3-8B, middle layer, FineWeb.
    Predicted, on one H100: 468,750 steps in at most 1.2 hours, of which 1.0 are the optimiser's traffic if every latent
    fires in every batch of 64 rows (the same rows in batches of 4096: 0.2 hours); 7.25 GFLOP per token for the language
    model, 1.08 per row for the SAE of 131,072 latents; 13 GB for the SAE and 16 GB for the model. L0 is 128 by
    construction.
    """
    sae = SAEConfig(
        expansion_factor=32,
        k=128,
        num_epochs=3,
        batch_size=64,
        text_batch_size=32,
        dead_feature_window=1000,
        use_ghost_grads=True,
    )
    model, sites = "Qwen/Qwen3-8B", ("layers.17",)
    return TrainConfig(
        model=model, data=_FINEWEB, sites=sites, n_tokens=10_000_000, context_tokens=1024, sae=sae, lm_dtype="bf16"
    )


def pythia_160m() -> TrainConfig:
    """SAEs on all twelve layers of Pythia-160M at once, 500 million tokens of the Pile it was trained on.

    `strata train pythia-160m`; reading the Pile's files takes `pip install zstandard`. Predicted, on one H100: 122,070
    steps in 0.2 hours; 0.21 GFLOP per token for the language model, 0.23 per row for the twelve SAEs of 12,288 latents;
    3 GB for these. L0 is 32 by construction.
    """
    sae = SAEConfig(expansion_factor=16, k=32, batch_size=4096)
    return _large("EleutherAI/pythia-160m", _PILE, "all", sae)


def gemma_2_2b() -> TrainConfig:
    """The residual stream after block 12 of 26 of Gemma-2-2B, 500 million tokens of FineWeb.

    `strata train gemma-2-2b`; the model's licence is accepted on its page first. Predicted, on one H100: 122,070 steps
    in 0.9 hours; 2.13 GFLOP per token for the language model's thirteen blocks, 0.17 per row for the SAE of 36,864
    latents; 2 GB for the SAE and 5 GB for the model. L0 is 64 by construction.
    """
    return _large("google/gemma-2-2b", _FINEWEB, "layers.12", SAEConfig(expansion_factor=16, k=64, batch_size=4096))


def qwen3_8b() -> TrainConfig:
    """The residual stream after block 17 of 36 of Qwen3-8B, 500 million tokens of FineWeb.

    `strata train qwen3-8b`. Predicted, on one H100: 122,070 steps in 2.9 hours; 7.25 GFLOP per token for the language
    model's eighteen blocks, 0.54 per row for the SAE of 65,536 latents; 6 GB for the SAE and 16 GB for the model. L0 is
    64 by construction.
    """
    return _large("Qwen/Qwen3-8B", _FINEWEB, "layers.17", SAEConfig(expansion_factor=16, k=64, batch_size=4096))


def llama_3_1_8b() -> TrainConfig:
    """The residual stream after block 15 of 32 of Llama-3.1-8B, 500 million tokens of FineWeb.

    `strata train llama-3.1-8b`; the model's licence is accepted on its page first. Predicted, on one H100: 122,070
    steps in 2.9 hours; 7.25 GFLOP per token for the language model's sixteen blocks, 0.54 per row for the SAE of 65,536
    latents; 6 GB for the SAE and 16 GB for the model. L0 is 64 by construction.
    """
    sae = SAEConfig(expansion_factor=16, k=64, batch_size=4096)
    return _large("meta-llama/Llama-3.1-8B", _FINEWEB, "layers.15", sae)


def _large(model: str, data: str, site: str, sae: SAEConfig) -> TrainConfig:
    return TrainConfig(
        model=model, data=data, sites=(site,), n_tokens=500_000_000, context_tokens=1024, sae=sae, lm_dtype="bf16"
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "demo": demo,
    "default": default,
    "fast-testing": fast_testing,
    "production": production,
    "pythia-160m": pythia_160m,
    "gemma-2-2b": gemma_2_2b,
    "qwen3-8b": qwen3_8b,
    "llama-3.1-8b": llama_3_1_8b,
}
