"""The text of each token, by itself."""

from typing import Any

_WORD_START = "\u2581"  # how SentencePiece writes the space before a word, which decoding one token alone drops


def token_texts(tokenizer: Any, n_tokens: int) -> list[str]:
    """What each token id stands for, in order.

    A byte that is no text by itself gives U+FFFD. Where decoding drops the space in front of a word (SentencePiece),
    it is put back.

    Args:
        tokenizer: a Hugging Face tokenizer; None gives the ids as numbers.
        n_tokens: ids are below this; those that the tokenizer does not know (padding of the embedding) give "".
    """
    if tokenizer is None:
        return [str(number) for number in range(n_tokens)]
    n_known = min(n_tokens, len(tokenizer))
    texts = tokenizer.batch_decode([[number] for number in range(n_known)], clean_up_tokenization_spaces=False)
    pieces = tokenizer.convert_ids_to_tokens(list(range(n_known)))
    spaced = [_spaced(text, piece) for text, piece in zip(texts, pieces, strict=True)]
    return spaced + [""] * (n_tokens - n_known)


def _spaced(text: str, piece: Any) -> str:
    """A token's text with as many spaces in front as its piece says."""
    if not isinstance(piece, str) or not piece.startswith(_WORD_START):
        return text
    n_spaces = len(piece) - len(piece.lstrip(_WORD_START))
    return " " * n_spaces + text.lstrip(" ")
