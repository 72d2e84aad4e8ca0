"""What is steered: a language model at a site with the site's SAE, what that SAE cost, and what texts do there."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strata.lm.flops import forward_flops_of
from strata.lm.generation import padded
from strata.lm.model import LanguageModel
from strata.sae.model import SAE
from strata.sae.sinks import Sinks
from strata.steer.intervention import norms

_TEXTS_AT_ONCE = 32
_CONTEXT_TOKENS = 128  # for counting attention's products: about the length of texts and generations here


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A language model and the SAE of one of its sites.

    Attributes:
        lm: the language model.
        site: where it is steered.
        sae: the site's SAE, on the model's device.
        sae_training_flops: what training it cost, language model included; see `strata.costs.steering`. NaN where the
            run's record or the model's configuration does not tell.
    """

    lm: LanguageModel
    site: str
    sae: SAE
    sae_training_flops: float

    @cached_property
    def site_flops(self) -> float:
        """FLOPs per token of a forward as far as the site."""
        return forward_flops_of(self.lm, [self.site], context_tokens=_CONTEXT_TOKENS)

    @cached_property
    def model_flops(self) -> float:
        """FLOPs per token of a forward through all blocks and the unembedding."""
        blocks = forward_flops_of(self.lm, self.lm.sites[-1:], context_tokens=_CONTEXT_TOKENS)
        return blocks + 2.0 * self.lm.vocabulary_size * self.sae.d_in

    def read(self, texts: Sequence[str]) -> Iterator[tuple[Float[Tensor, "batch seq d_in"], Bool[Tensor, "batch seq"]]]:
        """Activations at the site for texts, a batch at a time, padded on the right; True where there is a token of
        text. Texts longer than the model takes lose their beginning.
        """
        tokenizer: Any = self.lm.tokenizer
        assert tokenizer is not None
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            whole = [tokenizer(text)["input_ids"] for text in texts[first : first + _TEXTS_AT_ONCE]]
            ids, is_token = padded([one[-(self.lm.max_positions or len(one)) :] for one in whole], pad=0, side="right")
            h = self.lm.activations(ids, self.site)[self.site]
            yield h.float(), (is_token & ~self._special(ids)).to(h.device)

    def _special(self, ids: Int[Tensor, "batch seq"]) -> Bool[Tensor, "batch seq"]:
        return torch.isin(ids, torch.tensor(sorted(self.lm.special_token_ids), dtype=ids.dtype))


@dataclass(frozen=True)
class Means:
    """What a set of texts does at the site.

    Attributes:
        n_tokens: of text, attention sinks among them.
        n_rows: of these, those that are no sinks, over which means and maxima are taken.
        activation: mean.
        last: mean over the texts' last tokens, whatever they are.
        norm: mean norm.
        latents: mean of each latent; empty if no SAE was asked for.
        most: each latent's maximum; empty likewise.
    """

    n_tokens: int
    n_rows: int
    activation: Float[Tensor, " d_in"]
    last: Float[Tensor, " d_in"]
    norm: float
    latents: Float[Tensor, " _"]
    most: Float[Tensor, " _"]


@torch.no_grad()
def means(subject: Subject, texts: Sequence[str], *, with_latents: bool = False) -> Means:
    """One pass over texts; attention sinks are told from the first of them.

    Args:
        subject: where they are read.
        texts: at least one, none of them empty.
        with_latents: encode them too.
    """
    device, d_sae = subject.lm.device, subject.sae.d_sae if with_latents else 0
    total, last = (torch.zeros(subject.sae.d_in, dtype=torch.float64, device=device) for _ in range(2))
    latents = torch.zeros(d_sae, dtype=torch.float64, device=device)
    most = torch.zeros(d_sae, device=device)
    n_tokens, n_rows, norm = 0, 0, 0.0
    sinks: Sinks | None = None
    for h, is_token in subject.read(texts):
        rows = h[is_token]
        sinks = sinks or Sinks.told_from(rows, site=subject.site)
        n_tokens += len(rows)
        rows = rows[sinks.spared(rows)]
        n_rows += len(rows)
        total += rows.double().sum(0)
        columns = torch.arange(h.shape[1], device=device)
        ends = torch.where(is_token, columns, 0).amax(1)
        last += h[torch.arange(len(h), device=device), ends].double().sum(0)
        norm += float(norms(rows).double().sum())
        if with_latents:
            code = subject.sae.encode_sparse(rows)
            latents.index_add_(0, code.indices.flatten(), code.values.flatten().double())
            most.scatter_reduce_(0, code.indices.flatten(), code.values.flatten().float(), "amax")
    mean, at_end = (total / n_rows).float(), (last / len(texts)).float()
    return Means(n_tokens, n_rows, mean, at_end, norm / n_rows, (latents / n_rows).float(), most)
