"""A model that has learned nothing: the same architecture with the weights of its own initialiser."""

import copy

import torch

from strata.errors import UserError
from strata.lm.model import LanguageModel


def with_random_weights(lm: LanguageModel, *, seed: int = 0) -> LanguageModel:
    """The control that asks what SAEs find in the architecture and the text alone.

    All weights, embeddings too, are drawn anew by the architecture's own initialiser, as before the first step of a
    training; on the CPU, so that a seed gives the same weights on every machine. Tokenizer, device and dtype are those
    of `lm`, which stays as it is.

    What can be compared with the trained model's SAEs: explained variance, FVU, L0, dead share. Losses cannot: this
    model predicts no better than chance, so that nothing done to a site costs it anything (Heap et al. 2025, "Sparse
    Autoencoders Can Interpret Randomly Initialized Transformers", arXiv 2501.17727).

    Differs: that paper samples Gaussian weights in several ways, also matched to the trained ones' statistics, and with
    the trained embeddings kept.

    Args:
        lm: whose architecture is taken.
        seed: of the weights.

    Returns:
        A language model of the name ``<name>:random``.

    Raises:
        UserError: the model is quantised, and its initialiser would make another.
    """
    if getattr(lm.model, "hf_quantizer", None) is not None:
        raise UserError(
            f"`random_weights` needs a model that is not quantised. Got {lm.name!r}. Load it in fp32 or bf16."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = type(lm.model)(copy.deepcopy(lm.model.config))
    found = LanguageModel(drawn.to(device=lm.device, dtype=lm.dtype), tokenizer=lm.tokenizer)
    found.name = f"{lm.name}:random"
    return found
