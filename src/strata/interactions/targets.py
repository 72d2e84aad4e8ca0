"""Which features' sources are looked for, and the text on which they are."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int

from strata.evaluate.attribution import attribute
from strata.evaluate.tasks.base import TaskPairs
from strata.interpret.index import FeatureIndex
from strata.interpret.site_index import SiteIndex
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenBatch
from strata.sae.model import SAE


def some_sequences(index: FeatureIndex, n_tokens: int) -> Int[np.ndarray, " chosen"]:
    """Numbers of sequences at equal distances, as many as hold `n_tokens` tokens (one at least)."""
    wanted = min(index.n_sequences, max(1, n_tokens // index.sequence_tokens))
    return np.linspace(0, index.n_sequences - 1, wanted).round().astype(np.int64)


def text_of(index: FeatureIndex, sequences: Int[np.ndarray, " chosen"], *, batch_sequences: int) -> list[TokenBatch]:
    """Sequences of an index as batches for the language model."""
    ids = torch.from_numpy(index.token_ids[sequences].astype(np.int64))
    parts = (ids, *(torch.from_numpy(mask[sequences]) for mask in (index.is_token, index.is_row)))
    return [TokenBatch(*batch) for batch in zip(*(torch.split(part, batch_sequences) for part in parts), strict=True)]


def prompts_of(lm: LanguageModel, pairs: TaskPairs, *, batch_sequences: int) -> list[TokenBatch]:
    """The clean prompts of a task as batches."""
    special = torch.tensor(sorted(lm.special_token_ids), dtype=torch.long)
    return [
        TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), ~torch.isin(ids, special))
        for ids in torch.split(pairs.clean_ids.cpu(), batch_sequences)
    ]


def heaviest(site: SiteIndex, sequences: Int[np.ndarray, " chosen"], n: int) -> list[int]:
    """The latents whose activations have the largest sum on some sequences, largest first; those that fire at all.

    From the codes of the index, without the language model.
    """
    mass, chosen = np.zeros(site.d_sae), np.zeros(site.index.n_sequences, dtype=bool)
    chosen[sequences] = True
    for shard in site.shards():
        here = chosen[shard.tokens // site.index.sequence_tokens]
        mass += np.bincount(shard.latents[here], weights=shard.values[here], minlength=site.d_sae)
    order = np.argsort(-mass, kind="stable")[:n]
    return [int(latent) for latent in order if mass[latent] > 0]


def most_effective(
    lm: LanguageModel, saes: Mapping[str, SAE], pairs: TaskPairs, *, sites: Sequence[str], n: int
) -> dict[str, list[int]]:
    """At each of some sites, the features with the largest indirect effect on a task's answers.

    See `strata.evaluate.attribution.attribute`: two forward passes and a backward one for all of them.
    """
    found = attribute(lm, saes, pairs).sites
    return {site: found[site].strongest(n).tolist() for site in sites}
