"""The activations of several sites in one pass, each of them part of the next ones' graph."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from strata.errors import UserError
from strata.lm.hooks import hooked
from strata.lm.model import LanguageModel
from strata.lm.sites import as_grid, first_tensor, with_first
from strata.lm.tokens import TokenBatch


class _AllSeen(Exception):
    """The last site has been read: the rest of the forward pass is not needed."""


def sites_of(lm: LanguageModel, sites: Sequence[str], batch: TokenBatch) -> dict[str, Float[Tensor, "batch seq d_in"]]:
    """x at the sites, in the order in which the model comes to them; its graph begins at the first of them.

    Args:
        lm: the language model; it runs no further than the last of the sites.
        sites: which.
        batch: the text.

    Raises:
        UserError: a site takes no part in the forward pass.
    """
    n_seqs, seq = batch.input_ids.shape
    seen: dict[str, Tensor] = {}

    def read(site: str, module: nn.Module, args: Any, output: Any) -> Any:
        own = first_tensor(output)
        x = as_grid(own, batch=n_seqs, seq=seq, site=site)
        seen[site] = x if x.requires_grad else x.detach().requires_grad_()
        if len(seen) == len(sites):
            raise _AllSeen
        out = seen[site].clone().reshape(own.shape)  # some models write into what a sub-block returned
        return with_first(output, out)

    readers = [(lm.model.get_submodule(lm.site(site).path), partial(read, site)) for site in sites]
    with hooked(readers), suppress(_AllSeen), torch.enable_grad():
        lm.logits(batch.input_ids, attention_mask=batch.attention_mask)
    unseen = [site for site in sites if site not in seen]
    if unseen:
        raise UserError(
            f"`saes` must stand where the forward pass comes through. {unseen[0]!r} took no part; leave it out."
        )
    return seen
