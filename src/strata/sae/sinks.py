"""Attention sinks: the rows of a text that no SAE has seen in training, and no mean or maximum should be taken over."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from strata.sae.normalization import Normalization

LEAST_ROWS = 64
"""Of fewer rows nobody can tell which are far from most: all are then kept."""


@dataclass(frozen=True)
class Sinks:
    """Which rows of a site are attention sinks, told from the first rows of a text and then frozen.

    As in training and in the index: rows farther from the median row than ten times the median distance. In many models
    a text's first token is one, and so long that it would decide a mean over all tokens.

    Attributes:
        normalization: of these rows; none where they were too few.
    """

    normalization: tuple[Normalization, ...]

    @classmethod
    def told_from(cls, rows: Float[Tensor, "rows d_in"], *, site: str) -> "Sinks":
        """From some rows, sinks among them.

        Raises:
            UserError: they are not finite, or all the same.
        """
        return cls((Normalization.estimate(rows, site=site),) if len(rows) >= LEAST_ROWS else ())

    @classmethod
    def told_from_each(
        cls, x: Mapping[str, Float[Tensor, "batch seq _"]], is_row: Bool[Tensor, "batch seq"]
    ) -> "dict[str, Sinks]":
        """Of several sites, from the activations of a batch.

        Args:
            x: site → activations.
            is_row: where they count.
        """
        return {site: cls.told_from(own.detach()[is_row.to(own.device)].float(), site=site) for site, own in x.items()}

    def spared(self, x: Float[Tensor, "*rows d_in"]) -> Bool[Tensor, " *rows"]:
        """Which rows are none."""
        kept = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        for one in self.normalization:
            kept &= ~one.is_sink(x.reshape(-1, x.shape[-1])).view(x.shape[:-1])
        return kept
