"""Centring and one scalar: the space z = (x − μ)/σ in which SAEs are trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from strata.errors import UserError
from strata.shapes import lengths

# A row is an attention sink when it lies more than this many times the median distance from the median row.
_SINK_FACTOR = 10.0


@dataclass(frozen=True)
class Normalization:
    """A site's frozen statistics, in the units of the model's activations; or, for rows of several sites, those of
    each row.

    Attributes:
        mean: μ, the mean of the rows that are no sinks.
        scale: σ, a scalar such that the mean of ‖(x − μ)/σ‖² is d_in.
        median: the per-dimension median row, from which sinks are told.
        sink_radius: a row farther than this from the median is a sink.
    """

    mean: Float[Tensor, "*rows d_in"]
    scale: float | Float[Tensor, "rows 1"]
    median: Float[Tensor, "*rows d_in"]
    sink_radius: float | Float[Tensor, " rows"]

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
        distance = lengths(x - median)
        radius = _SINK_FACTOR * distance.median().item()
        kept = x[distance <= radius] if radius > 0 else x
        mean = kept.mean(0) if centring else torch.zeros_like(median)
        scale = (kept - mean).square().mean().sqrt().item()
        if scale == 0 or bool((kept == kept[0]).all()):
            raise UserError(f"Activations must differ from row to row. All rows of {site} are equal. Look at the text.")
        return cls(mean=mean, scale=scale, median=median, sink_radius=radius if radius > 0 else float("inf"))

    def apply(
        self, x: Float[Tensor, "rows d_in"], *, minus: Float[Tensor, " d_in"] | None = None
    ) -> Float[Tensor, "rows d_in"]:
        """z = (x − μ)/σ in fp32, less a row where one is given (in one pass more, not two)."""
        centred = x.float() - self.mean
        if minus is None:
            return centred.mul_(1 / self.scale)
        factor = 1 / self.scale if isinstance(self.scale, Tensor) else centred.new_full((), 1 / self.scale)
        return torch.addcmul(minus.neg(), centred, factor, out=centred)

    def is_sink(self, x: Float[Tensor, "rows d_in"]) -> Bool[Tensor, " rows"]:
        """Which rows are attention sinks: masked in training, and reported apart in evaluation."""
        return self.distance(x) > self.sink_radius

    def distance(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, " rows"]:
        """How far each row lies from the median row."""
        return lengths(x.float() - self.median)

    def relative(self, distance: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """Distances over the median one at the time of the estimate (0 where that was none): a tenth of the radius."""
        return distance * (_SINK_FACTOR / self.sink_radius)


@dataclass(frozen=True)
class GroupNormalization:
    """The statistics of each site of a group: layers differ in mean and length, so each row is normalised by its own.

    Attributes:
        mean: μ of each site.
        scale: σ of each site.
        median: of each site.
        sink_radius: of each site.
    """

    mean: Float[Tensor, "sites d_in"]
    scale: Float[Tensor, " sites"]
    median: Float[Tensor, "sites d_in"]
    sink_radius: Float[Tensor, " sites"]

    @classmethod
    def estimate(
        cls,
        x: Float[Tensor, "rows d_in"],
        layer: UInt8[Tensor, " rows"],
        *,
        sites: Sequence[str],
        centring: bool = True,
    ) -> "GroupNormalization":
        """Estimate from shuffled rows of all sites.

        Args:
            x: rows.
            layer: for each the number, within the group, of the site that it is from.
            sites: their names, for errors.
            centring: False leaves the means in.

        Raises:
            UserError: as `Normalization.estimate`, for the rows of any site.
        """
        found = [
            Normalization.estimate(x[layer == number], site=site, centring=centring)
            for number, site in enumerate(sites)
        ]
        return cls(
            mean=torch.stack([one.mean for one in found]),
            scale=torch.tensor([one.scale for one in found], device=x.device),
            median=torch.stack([one.median for one in found]),
            sink_radius=torch.tensor([one.sink_radius for one in found], device=x.device),
        )

    def of(self, layer: UInt8[Tensor, " rows"]) -> Normalization:
        """The statistics of each row."""
        places = layer.int()
        return Normalization(
            mean=self.mean[places],
            scale=self.scale[places].unsqueeze(1),
            median=self.median[places],
            sink_radius=self.sink_radius[places],
        )

    def of_site(self, number: int) -> Normalization:
        """The statistics of one site."""
        return Normalization(
            mean=self.mean[number],
            scale=self.scale[number].item(),
            median=self.median[number],
            sink_radius=self.sink_radius[number].item(),
        )
