"""Greedy continuations by a causal language model of `transformers`: batches, the tokens that end a text, settings of
the call's own.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@torch.no_grad()
def continued(
    model: Any,
    ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    ends: frozenset[int],
    pad: int,
    use_cache: bool = True,
    processors: Sequence[Any] = (),
) -> list[list[int]]:
    """What a model writes after prompts, all in one batch, always the likeliest token.

    Prompts are padded on the left, and pads are not attended to. Nothing of the checkpoint's own generation settings
    takes part: see `own_settings`.

    Args:
        model: a causal language model of `transformers`; it runs on its device.
        ids: the prompts' tokens; none is empty.
        max_new_tokens: where to stop at the latest; at least 1.
        ends: tokens that end a text, e.g. `end_ids`.
        pad: what fills up the batch, e.g. `pad_id`.
        use_cache: keep keys and values; without them every token runs the whole text again, to the same end.
        processors: of scores (`LogitsProcessor` of `transformers`), before the likeliest is taken.

    Returns:
        For each prompt the tokens behind it, without the one that ended it.
    """
    from transformers import LogitsProcessorList

    batch, is_token = padded(ids, pad=pad, side="left")
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "use_cache": use_cache, "pad_token_id": pad,
                                "eos_token_id": sorted(ends) or None}  # fmt: skip
    with own_settings(model, **settings) as how:
        out = model.generate(
            input_ids=batch.to(model.device),
            attention_mask=is_token.long().to(model.device),
            generation_config=how,
            logits_processor=LogitsProcessorList(processors),
        )
    return [until(row, ends) for row in out[:, batch.shape[1] :].tolist()]


@contextmanager
def own_settings(model: Any, **settings: Any) -> Generator[Any, None, None]:
    """Generation settings for one call, in place of the checkpoint's, which come back when the block ends.

    `generate` fills each setting that is left open from `model.generation_config`: repetition penalties, n-grams that
    may not repeat, tokens that are suppressed or forced, least lengths. So it is replaced for the call.

    Args:
        model: a causal language model of `transformers`.
        **settings: of its `GenerationConfig`; all others have that class's defaults, sampling is off.

    Yields:
        The `GenerationConfig`, to be given to `generate`.
    """
    from transformers import GenerationConfig

    before = model.generation_config
    how = GenerationConfig(**{"do_sample": False, "num_beams": 1, **settings})
    model.generation_config = how
    try:
        yield how
    finally:
        model.generation_config = before


def end_ids(model: Any, tokenizer: "PreTrainedTokenizerBase | None") -> frozenset[int]:
    """The tokens that end a text: those of the checkpoint's generation settings, else the tokenizer's; maybe none."""
    stated: Any = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if stated is None and tokenizer is not None:
        stated = tokenizer.eos_token_id
    if stated is None:
        return frozenset()
    return frozenset(cast(list[int], stated) if isinstance(stated, list) else [stated])


def pad_id(tokenizer: "PreTrainedTokenizerBase | None", *, ends: frozenset[int]) -> int:
    """What fills a batch on the left: the tokenizer's own, else a token that ends a text, else 0. It is never attended
    to, so any token will do.
    """
    stated: Any = None if tokenizer is None else tokenizer.pad_token_id
    return min(ends, default=0) if stated is None else int(stated)


def padded(
    ids: Sequence[Sequence[int]], *, pad: int, side: Literal["left", "right"]
) -> tuple[Int[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]:
    """Sequences of several lengths as one batch, and where in it their tokens are.

    Args:
        ids: the sequences.
        pad: fills up.
        side: where pads stand; on the right a causal model needs to be told nothing of them.
    """
    n = torch.tensor([len(one) for one in ids])
    longest = int(n.max())
    columns = torch.arange(longest)
    is_token = columns >= longest - n[:, None] if side == "left" else columns < n[:, None]
    batch = torch.full(is_token.shape, pad)
    batch[is_token] = torch.tensor([i for one in ids for i in one])
    return batch, is_token


def until(row: Sequence[int], ends: frozenset[int]) -> list[int]:
    """The tokens before the first that ends a text."""
    return list(row[: next((place for place, token in enumerate(row) if token in ends), len(row))])
