"""Centring and one scalar: the space z = (x − μ)/σ in which SAEs are trained."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from strata.errors import UserError

# A row is an attention sink when it lies more than this many times the median distance from the median row (design,
# section 5).
_SINK_FACTOR = 10.0


@dataclass(frozen=True)
class Normalization:
    """A site's frozen statistics, in the units of the model's activations.

    Attributes:
        mean: μ, the mean of the rows that are no sinks.
        scale: σ, a scalar such that the mean of ‖(x − μ)/σ‖² is d_in.
        median: the per-dimension median row, from which sinks are told.
        sink_radius: a row farther than this from the median is a sink.
    """

    mean: Float[Tensor, " d_in"]
    scale: float
    median: Float[Tensor, " d_in"]
    sink_radius: float

    @classmethod
    def estimate(
        cls, x: Float[Tensor, "rows d_in"], *, site: str = "the activations", centring: bool = True
    ) -> "Normalization":
        """Estimate from shuffled rows.

        Args:
            x: rows in any float type; some 2^16 are plenty.
            site: whose rows these are, for errors.
            centring: False leaves the mean in: μ is 0.

        Raises:
            UserError: a row holds NaN or infinity, there are fewer than two rows, or all rows are equal.
        """
        x = x.float()
        if not bool(torch.isfinite(x).all()):
            raise UserError(
                f"Activations must be finite numbers. {site} holds NaN or infinity. Load the language model in fp32"
                f" or bf16."
            )
        if len(x) < 2:
            raise UserError(
                f"Activations must have at least 2 rows to be normalised. {site} has {len(x)}. Give more text."
            )
        median = x.median(0).values
        distance = (x - median).norm(dim=1)
        radius = _SINK_FACTOR * distance.median().item()
        kept = x[distance <= radius] if radius > 0 else x
        mean = kept.mean(0) if centring else torch.zeros_like(median)
        scale = (kept - mean).square().mean().sqrt().item()
        if scale == 0 or bool((kept == kept[0]).all()):
            raise UserError(f"Activations must differ from row to row. All rows of {site} are equal. Look at the text.")
        return cls(mean=mean, scale=scale, median=median, sink_radius=radius if radius > 0 else float("inf"))

    def apply(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
        """z = (x − μ)/σ in fp32."""
        return (x.float() - self.mean).mul_(1 / self.scale)

    def is_sink(self, x: Float[Tensor, "rows d_in"]) -> Bool[Tensor, " rows"]:
        """Which rows are attention sinks: masked in training, and reported apart in evaluation."""
        return (x.float() - self.median).norm(dim=1) > self.sink_radius
