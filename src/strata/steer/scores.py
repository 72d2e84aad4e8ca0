"""How good a steered text is: does it have the concept, and would the model that is not steered have written it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from strata.lm.generation import padded
from strata.lm.model import LanguageModel
from strata.steer.concepts import Concept
from strata.steer.generation import Generation

_TEXTS_AT_ONCE = 16


@dataclass(frozen=True)
class Scores:
    """Of generations, one number each.

    Attributes:
        concept: 1 where the text that was written has the concept, else 0.
        nats: mean negative log-probability per token written, under the model that is not steered, after the prompt
            alone (a prefix of the method is not shown to it); 0 where nothing was written.
        n_tokens: written.
        distinct: share of the pairs of neighbouring tokens that differ from all other pairs in the text; 1 for texts of
            fewer than two tokens. Low is repetition, which perplexity does not punish.
    """

    concept: Float[Tensor, " texts"]
    nats: Float[Tensor, " texts"]
    n_tokens: Float[Tensor, " texts"]
    distinct: Float[Tensor, " texts"]

    def fluency(self, unsteered_nats: float) -> Float[Tensor, " texts"]:
        """exp(−max(0, nats − unsteered)), in [0, 1]: the perplexity of what the model writes by itself over that of
        the text, at most 1; 0 where nothing was written.

        Args:
            unsteered_nats: the mean of what the model writes by itself on the same prompts.
        """
        return torch.where(self.n_tokens > 0, (-(self.nats - unsteered_nats).clamp_min(0.0)).exp(), 0.0)

    def combined(self, unsteered_nats: float) -> Float[Tensor, " texts"]:
        """Harmonic mean of concept and fluency, in [0, 1]; 0 where one is 0."""
        fluency = self.fluency(unsteered_nats)
        return 2 * self.concept * fluency / (self.concept + fluency).clamp_min(1e-12)

    @property
    def mean_nats(self) -> float:
        """Per token over all texts; 0 where none has a token."""
        return float((self.nats * self.n_tokens).sum() / self.n_tokens.sum().clamp_min(1.0))


def scores(
    lm: LanguageModel, written: Sequence[Generation], concept: Concept, *, prompts: Sequence[Sequence[int]]
) -> Scores:
    """Judge generations.

    Args:
        lm: the language model, not steered.
        written: by some method.
        concept: that was wanted.
        prompts: token ids that stood before, without the method's prefix.
    """
    return Scores(
        concept=torch.tensor([float(concept.in_text(one.text)) for one in written]),
        nats=negative_log_likelihood(lm, [one.token_ids for one in written], prompts=prompts),
        n_tokens=torch.tensor([float(len(one.token_ids)) for one in written]),
        distinct=torch.tensor([distinct_pairs(one.token_ids) for one in written]),
    )


@torch.no_grad()
def negative_log_likelihood(
    lm: LanguageModel, written: Sequence[Sequence[int]], *, prompts: Sequence[Sequence[int]]
) -> Float[Tensor, " texts"]:
    """Mean over the tokens of each text of −log p(token | prompt and the tokens before), in nats; 0 for empty texts.

    Args:
        lm: the model that judges.
        written: token ids.
        prompts: token ids before each, at least one.
    """
    found: list[Tensor] = []
    for first in range(0, len(written), _TEXTS_AT_ONCE):
        some = [list(one) for one in written[first : first + _TEXTS_AT_ONCE]]
        before = [list(one) for one in prompts[first : first + _TEXTS_AT_ONCE]]
        ids, _ = padded([a + b for a, b in zip(before, some, strict=True)], pad=0, side="right")
        n, start = torch.tensor([len(one) for one in some]), torch.tensor([len(one) - 1 for one in before])
        columns = torch.arange(ids.shape[1] - 1)
        predicts = (columns >= start[:, None]) & (columns < (start + n)[:, None])
        log_p = lm.logits(ids)[:, :-1][predicts.to(lm.device)].float().log_softmax(-1).cpu()
        nats = -log_p.gather(-1, ids[:, 1:][predicts][:, None])[:, 0]
        of_text = predicts.nonzero()[:, 0]
        found.append(torch.zeros(len(some)).index_add(0, of_text, nats) / n.clamp_min(1))
    return torch.cat(found)


def distinct_pairs(token_ids: Sequence[int]) -> float:
    """Share of neighbouring pairs of tokens that are different ones; 1 for fewer than two tokens."""
    pairs = list(itertools.pairwise(token_ids))
    return len(set(pairs)) / len(pairs) if pairs else 1.0
