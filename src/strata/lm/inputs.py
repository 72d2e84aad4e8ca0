"""Token ids on their way into a model: what is wrong with them is said before the model runs."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from strata.errors import UserError


def vocabulary_size(model: Any) -> int:
    """Rows of the model's input embedding: ids below it can be looked up."""
    return int(model.get_input_embeddings().weight.shape[0])


def max_positions(model: Any) -> int | None:
    """The longest sequence the configuration allows, in tokens; None where it states none (ALiBi)."""
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(stated, int) or stated < 1:
        return None
    # RoBERTa and its kin number positions from padding_idx + 1 and count the unused ones in max_position_embeddings.
    offsets = (
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None
    )
    return stated - next(offsets, 0)


def checked_ids(
    input_ids: Tensor | Sequence[Any], *, vocabulary: int, positions: int | None
) -> Int[Tensor, "batch seq"]:
    """Token ids as an int64 tensor.

    Args:
        input_ids: ``[batch seq]``, a tensor or lists of equal length.
        vocabulary: ids have to be in ``[0, vocabulary)``.
        positions: the longest sequence allowed; None for any.

    Raises:
        UserError: another shape or type, empty, ids outside the vocabulary, too long.
    """
    ids = _as_tensor(input_ids)
    if ids.ndim != 2:
        raise UserError(f"`input_ids` must be [batch seq]. Got shape {list(ids.shape)}. For one text give [ids].")
    if ids.numel() == 0:
        raise UserError(f"`input_ids` must hold at least one token. Got shape {list(ids.shape)}.")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise UserError(f"`input_ids` must be whole numbers. Got {ids.dtype}. Tokenise the text first.")
    if positions is not None and ids.shape[1] > positions:
        raise UserError(
            f"`input_ids` must have at most {positions} positions for this model. Got {ids.shape[1]}. Split the text."
        )
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= vocabulary:
        wrong = lowest if lowest < 0 else highest
        raise UserError(
            f"`input_ids` must be in [0, {vocabulary}), the vocabulary. Got {wrong}. Use this model's tokenizer."
        )
    return ids.long()


def checked_mask(
    attention_mask: Tensor | Sequence[Any] | None, *, batch: int, seq: int
) -> Bool[Tensor, "batch seq"] | None:
    """The attention mask as a Bool tensor, or None if none was given.

    Raises:
        UserError: another shape than the token ids.
    """
    if attention_mask is None:
        return None
    mask = _as_tensor(attention_mask, setting="attention_mask")
    if mask.shape != (batch, seq):
        raise UserError(f"`attention_mask` must have the shape of `input_ids`, {[batch, seq]}. Got {list(mask.shape)}.")
    return mask.bool()


def _as_tensor(given: Tensor | Sequence[Any], *, setting: str = "input_ids") -> Tensor:
    if isinstance(given, Tensor):
        return given
    try:
        return torch.tensor(given)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"`{setting}` must be a tensor [batch seq] or lists of whole numbers of equal length. "
            "Got lists that make no such tensor. Pad them and give an `attention_mask`."
        ) from error
