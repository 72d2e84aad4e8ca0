"""Text that a language model writes, steered or not: seeded, batched, the same however it is batched."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.errors import UserError
from strata.lm.generation import continued, end_ids, pad_id
from strata.lm.inputs import checked_ids
from strata.lm.model import LanguageModel
from strata.steer.intervention import Intervention, Number
from strata.steer.steering import steered

Prompts = Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Generation:
    """What was written after a prompt.

    Attributes:
        prompt_ids: the prompt's tokens.
        token_ids: what was written, without the token that ended it.
        text: the same as text; empty for a model without tokenizer.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    text: str


class RowSampler:
    """Sampling that is the same for a row whatever stands beside it: a Hugging Face `LogitsProcessor` that leaves only
    the token in which a row's own random number falls, on the scale of summed probabilities.

    Each row has a generator of its own, from the seed and the row's number, so that a batch gives what its prompts
    give alone, and runs of two strengths differ by the strength and not by the draw.

    Args:
        n_rows: prompts in the batch.
        temperature: above 0.
        seed: any whole number.
    """

    def __init__(self, n_rows: int, *, temperature: Number, seed: int) -> None:
        self._temperature = float(temperature)
        self._generators = [torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**63) for row in range(n_rows)]

    def __call__(self, input_ids: Int[Tensor, "batch seq"], scores: Float[Tensor, "batch vocab"]) -> Tensor:
        """0 for the token that was drawn, −inf for the others."""
        summed = (scores.double() / self._temperature).softmax(-1).cumsum(-1)
        draws = torch.cat([torch.rand(1, dtype=torch.float64, generator=one) for one in self._generators])
        # Times the last sum, which is 1 but for rounding: a draw is always below it.
        drawn = torch.searchsorted(summed, draws.to(summed.device)[:, None] * summed[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn.clamp_max(scores.shape[-1] - 1), 0.0)


@torch.no_grad()
def generate(
    lm: LanguageModel,
    prompts: Prompts,
    *,
    interventions: Sequence[Intervention] = (),
    max_new_tokens: int = 64,
    temperature: Number = 0.0,
    seed: int = 0,
    use_cache: bool = True,
) -> list[Generation]:
    """Let the model go on from prompts, with interventions in every pass; all prompts in one batch.

    Prompts are padded on the left; pads are neither attended to nor steered. Built on Hugging Face's `generate`; of
    the checkpoint's own generation settings only the tokens that end a text are kept (`strata.lm.generation`).

    Args:
        lm: a causal language model.
        prompts: texts, tokenised as the model's tokenizer does by default, or token ids.
        interventions: see `strata.steer.steering.steered`.
        max_new_tokens: where to stop at the latest.
        temperature: of sampling; at 0, its limit, the likeliest token is taken.
        seed: of sampling; see `RowSampler`.
        use_cache: keep keys and values; without them every token runs the whole text again, to the same end.

    Raises:
        UserError: no prompt, an empty one, one too long for the model, text without a tokenizer, a model that cannot
            write, or a setting out of range.
    """
    if max_new_tokens < 1:
        raise UserError(f"`max_new_tokens` must be at least 1. Got {max_new_tokens}. Give a larger number.")
    if not 0 <= temperature < float("inf"):
        raise UserError(
            f"`temperature` must be 0 or more and finite. Got {temperature}. Use 0 for the likeliest token."
        )
    if not hasattr(lm.model, "generate") or not lm.model.can_generate():
        raise UserError(f"`model` must be a causal language model to write text. Got {lm.model_class}.")
    ids = prompt_ids(lm, prompts, max_new_tokens=max_new_tokens)
    ends = end_ids(lm.model, lm.tokenizer)
    samplers = [] if temperature == 0 else [RowSampler(len(ids), temperature=temperature, seed=seed)]
    with steered(lm, interventions, prompt_tokens=max(map(len, ids))):
        written = continued(
            lm.model,
            ids,
            max_new_tokens=max_new_tokens,
            ends=ends,
            pad=pad_id(lm.tokenizer, ends=ends),
            use_cache=use_cache,
            processors=samplers,
        )
    texts = [str(lm.tokenizer.decode(row)) if lm.tokenizer is not None else "" for row in written]
    return [Generation(*one) for one in zip(ids, written, texts, strict=True)]


def prompt_ids(lm: LanguageModel, prompts: Prompts, *, max_new_tokens: int = 0) -> list[list[int]]:
    """Token ids of prompts.

    Args:
        lm: whose tokenizer is used.
        prompts: texts or ids.
        max_new_tokens: room that is left behind each.

    Raises:
        UserError: as `generate`.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise UserError(f"`prompts` must be a list with at least one prompt. Got {prompts!r}.")
    if lm.tokenizer is None and any(isinstance(prompt, str) for prompt in prompts):
        raise UserError("`prompts` must be token ids for a model without tokenizer. Got text. Give a tokenizer.")
    tokenizer: Any = lm.tokenizer
    ids = [tokenizer(one)["input_ids"] if isinstance(one, str) else [int(i) for i in one] for one in prompts]
    empty = next((number for number, one in enumerate(ids) if not one), None)
    if empty is not None:
        raise UserError(f"`prompts` must hold at least one token each. Number {empty} is empty. Write some text.")
    for one in ids:
        if lm.max_positions is not None and len(one) + max_new_tokens > lm.max_positions:
            raise UserError(
                f"`prompts` and what is written must have at most {lm.max_positions} tokens for this model. Got"
                f" {len(one)} + {max_new_tokens}. Shorten the prompt, or lower max_new_tokens."
            )
        checked_ids([one], vocabulary=lm.vocabulary_size, positions=lm.max_positions)
    return ids
