"""What is done to a site's activations, as values: a direction, a mode, a strength, and at which positions."""

import math
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from strata.errors import UserError, did_you_mean
from strata.sae.group import GroupSAE
from strata.sae.model import SAE, Transcoder

Mode = Literal["add", "clamp", "min_clamp", "ablate", "project_out"]
Unit = Literal["absolute", "max_activation", "norm"]
Positions = Literal["all", "generated", "prompt"]
Number = int | float

SETS_LATENT = ("clamp", "min_clamp", "ablate")
"""Modes that change a latent and so need a feature."""
NO_STRENGTH = ("ablate", "project_out")
"""Modes that are done or not, without a strength."""


def norms(vectors: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows"]:
    """The length of each vector."""
    return cast("Tensor", torch.linalg.vector_norm(vectors, dim=-1))  # torch gives it no type


@dataclass(frozen=True, eq=False)
class Feature:
    """A latent of an SAE with its decoder direction.

    Attributes:
        sae: the SAE of the site that is steered; of a `GroupSAE` the site's own is taken.
        latent: its number in [0, d_sae).

    Raises:
        UserError: no such latent, or a transcoder, whose latents write to another site than they read.
    """

    sae: SAE | GroupSAE
    latent: int

    def __post_init__(self) -> None:
        if isinstance(self.sae, Transcoder):
            raise UserError("A feature that steers must be an SAE's. Got a transcoder's. Train an SAE at the site.")
        if not 0 <= self.latent < self.sae.d_sae:
            raise UserError(
                f"`latent` must be in [0, {self.sae.d_sae}), the SAE's latents. Got {self.latent}. Choose another."
            )

    def sae_at(self, site: str) -> SAE:
        """The SAE itself, or that of a group's layer.

        Raises:
            UserError: the group has no such layer.
        """
        return self.sae.at(site) if isinstance(self.sae, GroupSAE) else self.sae

    @property
    def vector(self) -> Float[Tensor, " d_in"]:
        """The decoder's row."""
        return self.sae.W_dec[self.latent].detach()


@dataclass(frozen=True, kw_only=True)
class Strength:
    """How much: a number times a unit.

    Attributes:
        value: the number; negative ones turn an addition round.
        unit: ``absolute`` multiplies the vector as it is (for a feature, whose direction has norm one, it is in the
            units of the activations); ``max_activation`` counts the largest activation of the feature over a corpus;
            ``norm`` counts the mean norm of the site's activations, along the vector's direction.
        size: of one unit: that largest activation, that mean norm; 1 for ``absolute``.

    Raises:
        UserError: an unknown unit, a number that is not finite, or a size that is not positive.
    """

    value: Number
    unit: Unit = "absolute"
    size: Number = 1.0

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise UserError(
                f"`unit` must be one that there is. Got {self.unit!r}.{did_you_mean(self.unit, get_args(Unit))}"
            )
        if not math.isfinite(self.value):
            raise UserError(f"`strength` must be finite. Got {self.value}. Give another.")
        if not (self.size > 0 and math.isfinite(self.size)):
            raise UserError(
                f"`size` of the unit {self.unit!r} must be positive and finite. Got {self.size}: a feature that never"
                " fired has no maximum. Choose another feature, or unit absolute."
            )
        if self.unit == "absolute" and self.size != 1:
            raise UserError(f"`size` must be 1 for the unit absolute. Got {self.size}. Multiply the value with it.")

    @property
    def amount(self) -> float:
        """The number in the units of the activations."""
        return float(self.value) * float(self.size)


@dataclass(frozen=True, kw_only=True, eq=False)
class Intervention:
    """One change of a site's activations h, along a vector v that is a feature's direction W_dec[i] or free.

    ``add``          h + α·v; with the unit ``norm`` v has norm one
    ``clamp``        h + (c − f_i)·W_dec[i], which is the SAE's reconstruction with f_i = c, plus its error
    ``min_clamp``    h + (max(f_i, c) − f_i)·W_dec[i]
    ``ablate``       clamp with c = 0
    ``project_out``  h − ⟨h, v̂⟩·v̂, v̂ of norm one

    Attributes:
        site: where.
        direction: a `Feature`, or a vector [d_in] (difference of means, contrastive activation addition).
        mode: which of these.
        strength: α or c; not used by ``ablate`` and ``project_out``.
        positions: all tokens, those of the prompt, or those generated after it.

    Raises:
        UserError: a mode that needs a feature with a free vector, a unit that needs one, a negative clamp (latents
            are never negative), or a vector that is no direction.
    """

    site: str
    direction: Feature | Tensor
    mode: Mode = "add"
    strength: Strength = field(default_factory=lambda: Strength(value=1.0))
    positions: Positions = "all"

    def __post_init__(self) -> None:
        for name, given, kind in (("mode", self.mode, Mode), ("positions", self.positions, Positions)):
            if given not in get_args(kind):
                raise UserError(
                    f"`{name}` must be one that there is. Got {given!r}.{did_you_mean(given, get_args(kind))}"
                )
        if not isinstance(self.direction, Feature):
            self._check_vector(self.direction)
        if self.mode in ("clamp", "min_clamp") and self.strength.value < 0:
            raise UserError(
                f"`strength` must be 0 or more for mode {self.mode}, since latents are never negative. Got"
                f" {self.strength.value}. Use mode add to push the other way."
            )

    @property
    def vector(self) -> Float[Tensor, " d_in"]:
        """v as it is multiplied: of norm one where the mode or the unit wants that."""
        v = self.direction.vector if isinstance(self.direction, Feature) else self.direction.detach()
        unit_length = self.mode == "project_out" or (self.mode == "add" and self.strength.unit == "norm")
        return v / norms(v.float()).to(v.dtype) if unit_length else v

    @property
    def does_nothing(self) -> bool:
        """Whether it is an addition of strength 0, which leaves the model alone to the last bit."""
        return self.mode == "add" and self.strength.amount == 0

    def _check_vector(self, vector: Tensor) -> None:
        if self.mode in SETS_LATENT:
            raise UserError(f"`mode` {self.mode} must come with a feature. Got a free vector. Use add or project_out.")
        if self.strength.unit == "max_activation":
            raise UserError("`unit` max_activation must come with a feature. Got a free vector. Use norm or absolute.")
        if vector.ndim != 1 or not vector.is_floating_point() or not bool(torch.isfinite(vector).all()):
            raise UserError(f"`direction` must be a finite vector [d_in]. Got {vector.dtype} {list(vector.shape)}.")
        if not bool(vector.any()):
            raise UserError("`direction` must not be zero. Got a vector of zeros. The texts it comes from are alike.")
