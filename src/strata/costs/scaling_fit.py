"""Fitting laws of scaling to measured losses: robust, from many starts, with intervals from points drawn anew."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from strata.costs.scaling_law import Cost, Law, Numbers, Points, envelope
from strata.errors import UserError

Form = Literal["additive", "coupled"]

_HUBER = 0.01  # residuals of ln L beyond this count linearly: about one hundredth of the loss
_MOST_EXPONENT = 4.0
_LEAST_TERM, _MOST_TERM = 14.0, 1.0  # bounds of a term at the centre, in powers of e below the least, above the largest
_AGREE = 1e-3  # starts whose objectives differ by less, relatively, found the same
_TRIES = 500
INTERVAL = 0.9
_NAMES = ("e", "epsilon", "a", "alpha", "gamma", "b", "beta", "kappa", "delta")
_TERMS = {"e": 0, "a": 2, "b": 5}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law and how well it was found.

    Attributes:
        law: that fits best.
        form: "additive" (δ = 0) or "coupled".
        free: names of the parameters that were fitted.
        n_points: points that it was fitted to.
        rms: root mean square of ln L − ln L̂, corrected for the parameters.
        aicc: Akaike's criterion for small samples; lower is better. Infinite with hardly more points than parameters.
        n_starts: from where was searched.
        n_agreeing: starts that ended at the best place; one alone may be a local one.
    """

    law: Law
    form: Form
    free: tuple[str, ...]
    n_points: int
    rms: float
    aicc: float
    n_starts: int
    n_agreeing: int


def fit_law(points: Points, *, form: Form = "additive", start: Law | None = None) -> Fit:
    """The law with the least Huber loss of ln L over the points.

    Args:
        points: measured; exponents of what has one value only are 0, and a term without its exponent is absent.
        form: "additive" has δ = 0.
        start: search from here only, for repeated fits of nearly the same points.

    Raises:
        UserError: no more points than parameters, or losses that are not above 0 and finite.
    """
    from scipy.optimize import least_squares

    if not bool((np.isfinite(points.loss) & (points.loss > 0)).all()):
        raise UserError("A law needs losses above 0 and finite. One of the points is not. Leave it out.")
    design = _Design(points, form=form)
    if len(points) <= len(design.free):
        raise UserError(
            f"A law with {len(design.free)} parameters needs more points than that. Got {len(points)}. Add widths,"
            " token budgets or seeds."
        )
    search: Any = least_squares  # SciPy's own types leave out that `jac` may be a function
    found = [
        search(
            design.residuals,
            np.clip(first, design.low + 1e-9, design.high - 1e-9),
            jac=design.jacobian,
            bounds=(design.low, design.high),
            loss="huber",
            f_scale=_HUBER,
            x_scale="jac",
            max_nfev=400,
        )
        for first in design.starts(start)
    ]
    ended = [one for one in found if one.status > 0] or found
    best = min(ended, key=lambda one: one.cost)
    agreeing = sum(bool(one.cost <= best.cost * (1 + _AGREE) + 1e-14) for one in ended)
    return design.fit(best.x, n_starts=len(found), n_agreeing=agreeing)


def resampled(points: Points, *, n_samples: int, seed: int) -> Iterator[Points]:
    """The points drawn anew with replacement, within each token budget, so that every value of every axis stays.

    Args:
        points: measured.
        n_samples: how often.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    strata = [np.flatnonzero(points.n_tokens == tokens) for tokens in np.unique(points.n_tokens)]
    wanted = [len(np.unique(axis)) for axis in (points.n_latents, points.k)]
    for _ in range(n_samples):
        for _ in range(_TRIES):
            drawn = points.only(np.concatenate([rng.choice(rows, size=len(rows)) for rows in strata]))
            if [len(np.unique(axis)) for axis in (drawn.n_latents, drawn.k)] == wanted:
                break
        else:
            drawn = points
        yield drawn


def bootstrap(points: Points, fit: Fit, *, n_samples: int, seed: int) -> list[Fit]:
    """The law fitted to points that are drawn anew: how much of it is chance."""
    drawn = resampled(points, n_samples=n_samples, seed=seed)
    return [fit_law(sample, form=fit.form, start=fit.law) for sample in drawn]


def fit_compute(flops: Numbers, loss: Numbers, *, start: Law | None = None) -> Fit | None:
    """L(C) = L∞ + a·C^(−b) on the lower envelope of points, as a `Law` whose tokens are FLOPs; None of fewer than 4.

    Args:
        flops: compute of each point.
        loss: of each point.
        start: as of `fit_law`.
    """
    lowest = envelope(flops, loss)
    if len(lowest) < 4:
        return None
    ones = np.ones(len(lowest))
    return fit_law(Points(n_latents=ones, n_tokens=flops[lowest], k=ones, loss=loss[lowest]), start=start)


def bootstrap_compute(points: Points, cost: Cost, fit: Fit, *, n_samples: int, seed: int) -> list[Fit]:
    """The same law of points that are drawn anew, each with an envelope of its own; too short ones are left out."""
    drawn = resampled(points, n_samples=n_samples, seed=seed)
    found = (fit_compute(sample.flops(cost), sample.loss, start=fit.law) for sample in drawn)
    return [one for one in found if one is not None]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The middle 90 % of repeated results, which may be infinite; NaN of none."""
    if not len(values):
        return math.nan, math.nan
    edges = np.quantile(np.asarray(values), [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2], method="nearest")
    return float(edges[0]), float(edges[1])


def predicted_interval(fits: Sequence[Fit], at: tuple[float, float, float], *, seed: int) -> tuple[float, float]:
    """Where a new measurement should lie, 90 % of the time: the laws' spread and the scatter of single points.

    Args:
        fits: of `bootstrap`.
        at: latents, tokens and k.
        seed: of the scatter.
    """
    noise = np.random.default_rng(seed).standard_normal((len(fits), 20))
    losses = [one.law.loss(*at) * np.exp(one.rms * row) for one, row in zip(fits, noise, strict=True)]
    return interval(np.concatenate(losses).tolist())


def free_parameters(*, widths: bool, tokens: bool, ks: bool, form: Form) -> tuple[str, ...]:
    """The parameters that points can tell of.

    Args:
        widths: there are several.
        tokens: there are several numbers of them.
        ks: there are several k.
        form: of the law.
    """
    wanted = {
        "e": True,
        "epsilon": ks,
        "a": widths,
        "alpha": widths,
        "gamma": widths and ks,
        "b": tokens,
        "beta": tokens,
        "kappa": tokens and ks,
        "delta": tokens and widths and form == "coupled",
    }
    return tuple(name for name in _NAMES if wanted[name])


class _Design:
    """The least-squares problem of some points, in logarithms around their centre. Vectors are [free] or [points].

    Args:
        points: measured.
        form: of the law.

    Attributes:
        free: names of the parameters to find.
        low: their lower bounds.
        high: their upper bounds.
    """

    def __init__(self, points: Points, *, form: Form) -> None:
        self._form: Form = form
        logs = [np.log(axis) for axis in (points.n_latents, points.n_tokens, points.k)]
        self._center = [float(axis.mean()) for axis in logs]
        n, t, k = (axis - middle for axis, middle in zip(logs, self._center, strict=True))
        one, none = np.ones_like(n), np.zeros_like(n)
        # [parameter term point]: what each parameter adds to the logarithm of each term
        self._slopes = np.array(
            [
                *([one, none, none], [-k, none, none]),
                *([none, one, none], [none, -n, none], [none, -k, none]),
                *([none, none, one], [none, none, -t], [none, none, -k], [none, none, n]),
            ]
        )
        self._target = np.log(points.loss)
        widths, tokens, ks = (len(np.unique(axis)) > 1 for axis in logs)
        self.free = free_parameters(widths=widths, tokens=tokens, ks=ks, form=form)
        self._where = [place for place, name in enumerate(_NAMES) if name in self.free]
        least, most = float(self._target.min()), float(self._target.max())
        terms = np.array([name in _TERMS for name in self.free])
        self.low = np.where(terms, least - _LEAST_TERM, 0.0)
        self.high = np.where(terms, most + _MOST_TERM, _MOST_EXPONENT)

    def starts(self, near: Law | None) -> list[np.ndarray]:
        """Where to search from: all over, or at a law."""
        if near is not None:
            return [self._of_law(near)]
        level = float(np.median(self._target))
        found: list[np.ndarray] = []
        for left, slope in itertools.product((0.1, 0.5, 0.85), (0.15, 0.5)):
            shares = {"e": left, "a": (1 - left) / 2, "b": (1 - left) / 2}
            steep = {"alpha": slope, "beta": slope, "gamma": 0.2, "epsilon": 0.1, "kappa": 0.2, "delta": slope / 2}
            values = {**{name: level + math.log(share) for name, share in shares.items()}, **steep}
            found.append(np.array([values[name] for name in self.free]))
        return found

    def residuals(self, free: np.ndarray) -> np.ndarray:
        """ln L̂ − ln L of each point."""
        logs = self._term_logs(free)
        top = logs.max(axis=0)
        return top + np.log(np.exp(logs - top).sum(axis=0)) - self._target

    def jacobian(self, free: np.ndarray) -> np.ndarray:
        """Its derivatives: the terms' shares of the loss times their slopes."""
        logs = self._term_logs(free)
        shares = np.exp(logs - logs.max(axis=0))
        shares /= shares.sum(axis=0)
        return np.einsum("mp,fmp->pf", shares, self._slopes[self._where])

    def fit(self, free: np.ndarray, *, n_starts: int, n_agreeing: int) -> Fit:
        """What was found, in the law's own units."""
        errors = self.residuals(free)
        n_points, n_free = len(errors), len(self.free)
        left, rss = n_points - n_free, max(float(errors @ errors), 1e-30)
        small = 2 * n_free * (n_free + 1) / (left - 1) if left > 1 else math.inf
        return Fit(
            law=self._law(free),
            form=self._form,
            free=self.free,
            n_points=n_points,
            rms=math.sqrt(rss / left),
            aicc=n_points * math.log(rss / n_points) + 2 * n_free + small,
            n_starts=n_starts,
            n_agreeing=n_agreeing,
        )

    def _term_logs(self, free: np.ndarray) -> np.ndarray:
        logs = np.einsum("f,fmp->mp", free, self._slopes[self._where])
        absent = [row for row, name in enumerate(_TERMS) if name not in self.free]
        logs[absent] = -np.inf
        return logs

    def _law(self, free: np.ndarray) -> Law:
        p: dict[str, Any] = dict(zip(self.free, free.tolist(), strict=True))
        return Law(**(p | self._shift(p, sign=1)))

    def _of_law(self, law: Law) -> np.ndarray:
        p = vars(law)
        return np.array([(p | self._shift(p, sign=-1))[name] for name in self.free])

    def _shift(self, p: dict[str, float], *, sign: int) -> dict[str, float]:
        """Terms at the centre (where all centred logarithms are 0) to terms at 1, or back with sign −1."""
        n, t, k = self._center
        moves = {
            "e": p.get("epsilon", 0.0) * k,
            "a": p.get("alpha", 0.0) * n + p.get("gamma", 0.0) * k,
            "b": p.get("beta", 0.0) * t + p.get("kappa", 0.0) * k - p.get("delta", 0.0) * n,
        }
        return {name: p[name] + sign * move for name, move in moves.items() if name in p}
