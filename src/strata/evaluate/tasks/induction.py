"""A task without a language: random tokens that begin to repeat."""

from collections.abc import Iterator
from random import Random
from typing import Any

from strata.evaluate.tasks.base import IdPair, Task, document_start
from strata.lm.tokenization import Encoder, special_token_ids

_RANDOM_TOKENS = 16
_REPEATED_TOKENS = 4


def _draw(tokenizer: Any, random: Random) -> Iterator[IdPair | None]:
    """Olsson et al. 2022 (arXiv 2209.11895): … A B … A is followed by B.

    Sixteen different random tokens, then four successive ones of them again, A the last; in the corrupt prompt B is
    another token. Specials are never among them. B is in the prompt, so the pair is a matter of copying alone.
    """
    special = special_token_ids(tokenizer)
    tokens = [number for number in range(len(tokenizer)) if number not in special]
    start = document_start(Encoder(tokenizer))
    while len(tokens) > _RANDOM_TOKENS:
        *first, wrong = random.sample(tokens, _RANDOM_TOKENS + 1)
        follower = random.randrange(_REPEATED_TOKENS, _RANDOM_TOKENS)
        other = [*first[:follower], wrong, *first[follower + 1 :]]
        again = first[follower - _REPEATED_TOKENS : follower]
        yield IdPair((*start, *first, *again), (*start, *other, *again), first[follower], wrong)


INDUCTION = Task(
    "Random tokens begin to repeat: what followed the last one before? In the corrupt prompt another token did.",
    f"more than {_RANDOM_TOKENS} tokens of text",
    _draw,
)
"""Any tokenizer can express it. The embedded model hardly copies at random: it is right in 0.58 of the prompts."""
