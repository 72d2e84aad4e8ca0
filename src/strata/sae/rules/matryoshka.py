"""Matryoshka over BatchTopK: every prefix of the latents is a dictionary of its own."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.config.train import SAEConfig
from strata.kernels.entries import SparseEntries
from strata.sae.rules.base import Batch, Outcome, Params, weight_gradient
from strata.sae.rules.topk import BatchTopK


class Matryoshka(BatchTopK):
    """BatchTopK over all latents; the loss is the mean over the prefixes of what each one's part of the code leaves
    unexplained (Bussmann et al. 2025).

    Entries are grouped by row and prefix once; one decoding gives what each prefix adds, and sums along the prefixes
    give all reconstructions, all residuals and, from the other end, all gradients.

    Differs: the paper sums over the prefixes; the mean keeps the loss's scale.
    """

    def __init__(self, config: SAEConfig, *, d_sae: int) -> None:
        super().__init__(config, d_sae=d_sae)
        self._ends: Int[Tensor, " prefixes"] | None = None

    def step(self, batch: Batch, params: Params, *, score_dtype: torch.dtype) -> Outcome:
        """Loss and gradients of one batch."""
        pre, entries = self.look(batch, params, score_dtype=score_dtype)
        assert isinstance(entries, SparseEntries)
        values = pre.relu() * entries.per_row(batch.keep)
        n_rows, n_prefixes, W_dec = len(batch.inputs), len(self.config.matryoshka_prefixes), params["W_dec"]
        bags = entries.rows * n_prefixes + self._prefix_of(entries.latents)

        added = self._decode_bags(values, bags, entries, W_dec, n_bags=n_rows * n_prefixes)
        residuals = batch.target.unsqueeze(1) - added.view(n_rows, n_prefixes, -1).cumsum(1)
        residuals *= batch.keep.view(-1, 1, 1)
        d_outputs = residuals * (-2 * batch.share / n_prefixes)
        # A latent of prefix p stands in the reconstructions of p and of all longer ones.
        d_added = d_outputs.flip(1).cumsum(1).flip(1).reshape(n_rows * n_prefixes, -1)

        by_bag = replace(entries, rows=bags, n_rows=n_rows * n_prefixes)
        d_pre = by_bag.dot(d_added, W_dec) * (values > 0)
        d_scores = entries.sum_by_latent(d_pre)
        losses = residuals.square().sum((0, 2)) * batch.share
        return Outcome(
            entries=entries,
            values=values,
            residual=residuals[:, -1],
            loss=losses[-1],
            penalty=losses.mean() - losses[-1],
            d_rows=d_outputs.sum(1),
            slope=torch.ones_like(batch.n_kept),
            d_scores=d_scores,
            gradients={
                "W_enc": weight_gradient(entries, d_pre, batch.inputs),
                "b_enc": d_scores,
                "W_dec": weight_gradient(by_bag, values, d_added),
            },
        )

    def _prefix_of(self, latents: Int[Tensor, " entries"]) -> Int[Tensor, " entries"]:
        """The shortest prefix that holds each latent."""
        ends = [max(1, round(share * self.d_sae)) for share in self.config.matryoshka_prefixes]
        if self._ends is None:  # kept: a copy from the host in every step would be waited for
            self._ends = torch.tensor(ends, device=latents.device)
        return torch.bucketize(latents, self._ends, right=True)

    def _decode_bags(
        self, values: Tensor, bags: Tensor, entries: SparseEntries, W_dec: Tensor, *, n_bags: int
    ) -> Float[Tensor, "bags d_out"]:
        """What the entries of each row and prefix add to the reconstruction."""
        order = torch.sort(bags, stable=True).indices
        sorted_entries = replace(entries, rows=bags[order], latents=entries.latents[order], n_rows=n_bags)
        return sorted_entries.decode(values[order], W_dec)
