"""Text that no training sees: sequences of held-out documents."""

from typing import Any

import torch

from strata.activations.harvest import token_stream
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenBatch

_CHOICE = 32  # tokens read for each that is taken


def held_out_batches(
    lm: LanguageModel, data: Any, *, n_tokens: int, context_tokens: int, text_batch_size: int
) -> list[TokenBatch]:
    """Packed sequences of held-out documents, about `n_tokens` tokens; none if the text has no such document.

    They are taken at equal distances from up to 32 times as many tokens, so that they come from many documents.

    Args:
        lm: whose tokenizer is used.
        data: anything that `open_texts` takes and that can be read again.
        n_tokens: how many are wanted.
        context_tokens: length of the sequences.
        text_batch_size: sequences per batch.
    """
    tokens = token_stream(lm, data, context_tokens=context_tokens, text_batch_size=text_batch_size, split="held_out")
    read: list[TokenBatch] = []
    n_read = 0
    for batch in tokens:
        read.append(batch)
        n_read += batch.input_ids.numel()
        if n_read >= _CHOICE * n_tokens:
            break
    if not read:
        return []
    n_seqs = sum(len(batch.input_ids) for batch in read)
    wanted = min(n_seqs, max(1, n_tokens // context_tokens))
    chosen = torch.linspace(0, n_seqs - 1, wanted).long()
    parts = [torch.cat([getattr(b, part) for b in read])[chosen] for part in ("input_ids", "attention_mask", "is_row")]
    pieces = (torch.split(part, text_batch_size) for part in parts)
    return [TokenBatch(*batch) for batch in zip(*pieces, strict=True)]
