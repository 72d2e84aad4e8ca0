"""How costs grow with the size of the model that is interpreted, and where two of them cross."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from strata.errors import UserError

SMALLEST, LARGEST = 1.0, 1e30  # parameters; crossings are looked for in between
Cheaper = Literal["above", "below", "always", "never", "equal"]


@dataclass(frozen=True, kw_only=True)
class Law:
    """FLOPs against a model's size n: flops·(n/size)^exponent, and if the features are given, ·log F(n)/log F(size).

    F(n) = n_features·n/size: the features grow as the parameters do.

    Attributes:
        flops: at `size`.
        size: parameters of the model at which the FLOPs are known.
        exponent: of n.
        n_features: at `size`, at least 2, if the law has a factor log F(n); None if it has none.
    """

    flops: int | float
    size: int | float
    exponent: Fraction
    n_features: int | float | None = None

    def __post_init__(self) -> None:
        for name, value in (("flops", self.flops), ("size", self.size)):
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"`Law.{name}` must be positive and finite. Got {value}. Give another.")
        if self.n_features is not None and not (self.n_features >= 2 and math.isfinite(self.n_features)):
            raise UserError(
                f"`Law.n_features` must be finite and at least 2, for the logarithm. Got {self.n_features}."
                " Leave it out where there is no logarithm."
            )

    def at(self, size: int | float) -> float:
        """FLOPs for a model of this many parameters.

        Raises:
            UserError: a law with a logarithm, and at this size there would be one feature or none.
        """
        if self.n_features is not None and self.n_features * size <= self.size:
            raise UserError(
                f"A law with a logarithm needs more than one feature. Got a size of {size:.3g}, which has"
                f" {self.n_features * size / self.size:.3g}. Take a larger one."
            )
        return math.exp(self.log_at(math.log(size)))

    def log_at(self, log_size: float) -> float:
        """The logarithm of the FLOPs at the logarithm of a size."""
        away = log_size - math.log(self.size)
        power = math.log(self.flops) + float(self.exponent) * away
        if self.n_features is None:
            return power
        log_features = math.log(self.n_features)
        return power + math.log((log_features + away) / log_features)

    @property
    def growth(self) -> str:
        """In words, for example "n^(5/3)" or "n^2 log n"."""
        logarithm = "" if self.n_features is None else " log n"
        if not self.exponent:
            return logarithm.strip() or "constant"
        if self.exponent == 1:
            return f"n{logarithm}"
        power = self.exponent.numerator if self.exponent.denominator == 1 else f"({self.exponent})"
        return f"n^{power}{logarithm}"


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where one cost is less than another, for models of 1 to 10^30 parameters.

    Attributes:
        cheaper: on which side of `size` the first one is the cheaper; "always", "never" or "equal" without a crossing.
        size: parameters at which they are equal; None without a crossing.
    """

    cheaper: Cheaper
    size: float | None = None


def crossing(one: Law, other: Law) -> Crossing:
    """The size at which two costs are equal: in closed form for powers, by bisection in log n with a logarithm.

    A law with a logarithm and another power can cross twice, once where there are only a handful of features (below
    F = e^(1/|difference of the exponents|)); sizes that small are left out.

    Raises:
        UserError: both laws have a logarithm.
    """
    if one.n_features is not None and other.n_features is not None:
        raise UserError("`crossing` takes one law with a logarithm at most. Got two. Compare each with a power.")

    def excess(log_size: float) -> float:
        return one.log_at(log_size) - other.log_at(log_size)

    low, high = max(math.log(SMALLEST), _log_start(one, other)), math.log(LARGEST)
    gap = float(one.exponent - other.exponent)
    powers = one.n_features is None and other.n_features is None
    ends = excess(low), excess(high)
    if powers and not gap:
        ends = (0.0, 0.0) if math.isclose(one.at(one.size), other.at(one.size), rel_tol=1e-12) else (ends[0], ends[0])
    if max(ends) <= 0 or min(ends) >= 0:
        return Crossing(cheaper="equal" if ends == (0.0, 0.0) else "always" if max(ends) <= 0 else "never")
    root = low - ends[0] / gap if powers else _root(excess, low, high)
    return Crossing(cheaper="above" if ends[0] > 0 else "below", size=math.exp(root))


def _log_start(one: Law, other: Law) -> float:
    """From where on the laws' ratio only rises or only falls, and there are at least two features."""
    law = one if one.n_features is not None else other
    if law.n_features is None:
        return -math.inf
    gap = float(one.exponent - other.exponent) * (1 if law is one else -1)
    fewest = max(math.log(2), -1 / gap if gap < 0 else 0.0)
    return fewest + math.log(law.size) - math.log(law.n_features)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    falls = function(low) > 0
    while high - low > 1e-12 * max(1.0, abs(high)):
        middle = (low + high) / 2
        if (function(middle) > 0) == falls:
            low = middle
        else:
            high = middle
    return (low + high) / 2
