"""How many tokens a text has, without tokenising all of it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata.errors import UserError
from strata.lm.text import open_texts
from strata.lm.tokenization import Encoder

_SAMPLED_CHARACTERS = 1_000_000
_READ_BYTES = 512 * 2**20
_GIVE = "Give --n-tokens."


@dataclass(frozen=True)
class TokenCount:
    """Tokens of a text's training documents.

    Attributes:
        n_tokens: how many.
        source: in words: given, counted or estimated.
    """

    n_tokens: int
    source: str


def is_on_hub(data: str) -> bool:
    """Whether a text's name is that of a Hugging Face dataset."""
    return data != "stdlib" and not Path(data).expanduser().exists() and bool(re.fullmatch(r"[\w.-]+/[\w.:-]+", data))


def count_tokens(data: str, tokenizer: Any, *, split: str = "train") -> TokenCount:
    """Tokens of a local text: its bytes times the tokens per byte of its first documents; exact if these are all.

    Args:
        data: as `strata.lm.text.open_texts` takes it.
        tokenizer: of the language model; None where there is none.
        split: documents to take.

    Raises:
        UserError: a dataset on the hub, no tokenizer, a text above 512 MB, or one that cannot be read.
    """
    if is_on_hub(data):
        raise UserError(
            f'`n_tokens` must be given to plan for a dataset on the hub, which is not downloaded. Got "all" with'
            f" {data!r}. {_GIVE}"
        )
    if tokenizer is None:
        raise UserError(
            f'`n_tokens` must be given to plan for a model without tokenizer files. Got "all" with {data!r}. {_GIVE}'
        )
    encoder, texts = Encoder(tokenizer), open_texts(data, split=split, tokenizer=tokenizer)
    n_bytes = sampled_bytes = n_sampled = n_characters = 0
    for text in texts:
        size = len(text.encode("utf-8", "surrogatepass"))
        n_bytes += size
        if n_characters < _SAMPLED_CHARACTERS:
            n_sampled += len(encoder.encode([text])[0])
            sampled_bytes += size
            n_characters += len(text)
        if n_bytes > _READ_BYTES:
            raise UserError(
                f'`n_tokens` must be given to plan for a text above {_READ_BYTES // 2**20} MiB. Got "all" with'
                f" {data!r}. {_GIVE}"
            )
    if n_sampled == 0:
        raise UserError(f"The text must hold at least one token. {data!r} holds none. Give more text.")
    if sampled_bytes == n_bytes:
        return TokenCount(n_sampled, "counted")
    share = f"{n_sampled / sampled_bytes:.3f} tokens per byte of its first {sampled_bytes / 1e6:.1f} MB"
    return TokenCount(round(n_sampled * n_bytes / sampled_bytes), f"estimated: {n_bytes / 1e6:.1f} MB, {share}")
