"""A Hugging Face tokenizer seen as what packing needs: texts to ids, the ids that frame a sequence, a fingerprint."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from strata.errors import UserError


def special_token_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that stand for no text: `all_special_ids`, and added tokens marked special (Llama 3's headers, say)."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset([*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)])


@dataclass(frozen=True)
class Frame:
    """What stands around the texts' tokens in a packed sequence.

    Attributes:
        prefix: ids that start every sequence: what the tokenizer itself puts before every text (``[CLS]``, a BOS).
        suffix: ids that end every sequence: what it puts behind every text (``[SEP]``).
        separator: the id before every document (at a sequence's start only where there is no prefix), None for
            tokenizers without special tokens.
        pad: the id that fills the last sequence; the model never attends to it.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    separator: int | None
    pad: int


class Encoder:
    """Texts to token ids without special tokens, in batches.

    Of a fast tokenizer it holds a copy of the backend: a setting of truncation or padding that the user's object picks
    up elsewhere cuts nothing here, and both can be used from two threads.

    Args:
        tokenizer: a Hugging Face tokenizer, fast or slow.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = _copy_backend(tokenizer)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, one int64 array [n_tokens] per text; empty texts give empty arrays.

        The text of a special token (``<|endoftext|>``) becomes that special token, as the tokenizer does by default;
        chat templates need that, and it is never a row.
        """
        if self._backend is not None:
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
            return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        encoded = self._tokenizer(texts, add_special_tokens=False, verbose=False, return_attention_mask=False)
        return [np.array(ids, dtype=np.int64) for ids in encoded["input_ids"]]

    def frame(self) -> Frame:
        """How this tokenizer frames a text, found by tokenising one with and without special tokens."""
        tokenizer = self._tokenizer
        bare = self.encode(["a"])[0].tolist()
        if self._backend is not None:
            framed = self._backend.encode("a", add_special_tokens=True).ids
        else:
            framed = tokenizer("a", add_special_tokens=True)["input_ids"]
        starts = [i for i in range(len(framed) - len(bare) + 1) if framed[i : i + len(bare)] == bare] if bare else []
        prefix = tuple(framed[: starts[0]]) if starts else ()
        suffix = tuple(framed[starts[0] + len(bare) :]) if starts else ()
        ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id)
        # `is not None`: id 0 is a special token like any other. A suffix is how the model saw texts end.
        separator = next((number for number in [*suffix, *ids] if number is not None), None)
        pads = (tokenizer.pad_token_id, separator, *prefix, 0)
        return Frame(prefix, suffix, separator, next(number for number in pads if number is not None))

    def describe(self) -> dict[str, Any]:
        """What the run folder keeps; ``fingerprint`` is the SHA-256 of all that decides how it tokenises."""
        tokenizer = self._tokenizer
        if self._backend is not None:
            content = self._backend.to_str()
        else:
            content = json.dumps(sorted({**tokenizer.get_vocab(), **tokenizer.get_added_vocab()}.items()))
        name = str(getattr(tokenizer, "name_or_path", ""))
        return {
            # Of a folder only its name: where it lies on this machine says nothing to whom the SAE is given.
            "name": Path(name).name if Path(name).is_absolute() else name,
            "class": type(tokenizer).__name__,
            "fingerprint": f"sha256:{hashlib.sha256(content.encode()).hexdigest()}",
            "vocab_size": len(tokenizer),
            "special_tokens": {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())},
        }


def check_context(tokenizer: Any, frame: Frame, context_tokens: int) -> None:
    """That sequences of this length have room for text and are not longer than the tokenizer's model takes.

    Raises:
        UserError: they are not.
    """
    least = max(2, len(frame.prefix) + len(frame.suffix) + 1)
    most = tokenizer.model_max_length or 10**9
    if not least <= context_tokens <= most:
        # Tokenizers without a limit have a huge number there.
        upper = f"[{least}, {most}]" if most < 10**9 else f"{least} or more"
        raise UserError(
            f"`context_tokens` must be in {upper} for this tokenizer. Got {context_tokens}. Choose another length"
            f"{', or set `tokenizer.model_max_length` if the model takes more' if context_tokens > most else ''}."
        )


def _copy_backend(tokenizer: Any) -> Any:
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return None
    try:
        copy = Tokenizer.from_str(backend.to_str())
    except Exception:  # noqa: BLE001  parts written in Python cannot be copied, the library raises a bare Exception
        return None
    copy.no_truncation()
    copy.no_padding()
    return copy
