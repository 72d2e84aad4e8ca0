"""What a sweep's points cannot tell, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from strata.costs.scaling_fit import Fit, interval
from strata.costs.scaling_law import Points
from strata.costs.scaling_optimum import has_optimum

_NOTHING = 0.01  # an irreducible loss that may be below this share of the smallest measured one is not told from 0
_FLAT_EXPONENT = 0.01
_POOR_RMS = 0.05
_WORDS = {
    "alpha": "how the loss falls with width (α)",
    "beta": "how it falls with tokens (β)",
    "gamma": "how the width's term depends on k (γ)",
    "kappa": "how the tokens' term depends on k (κ)",
    "epsilon": "how the irreducible loss depends on k (ε)",
    "delta": "how the tokens needed depend on width (δ)",
}


def caveats(
    points: Points, fit: Fit, draws: Sequence[Fit], *, k: float, checks: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Every reason to distrust the fit that can be seen in it; none is no proof that it holds.

    Args:
        points: that it was made from.
        fit: the law.
        draws: of `strata.costs.scaling_fit.bootstrap`.
        k: for which it is used.
        checks: of what was left out.
    """
    return [*_too_few(points), *_unidentified(points, fit, draws, k=k), *_unfit(fit, checks)]


def _too_few(points: Points) -> list[str]:
    said: list[str] = []
    axes = {"width": (points.n_latents, "width term"), "number of tokens": (points.n_tokens, "tokens' term")}
    for name, (values, term) in axes.items():
        n = len(np.unique(values))
        if n == 1:
            said.append(f"One {name} only: the {term} is part of the irreducible loss here.")
        elif n == 2:
            said.append(
                f"Two values of {name}: its exponent and the irreducible loss cannot be told apart. Sweep three."
            )
    n_ks = len(np.unique(points.k))
    if n_ks == 1:
        said.append("One k only: the law holds for it alone.")
    elif n_ks == 2:
        said.append("Two values of k: that the loss is a power of k is assumed, not seen. Sweep three.")
    return said


def _unidentified(points: Points, fit: Fit, draws: Sequence[Fit], *, k: float) -> list[str]:
    said: list[str] = []
    low, _ = interval([float(one.law.irreducible(k)) for one in draws])
    if low < _NOTHING * float(points.loss.min()):
        said.append(
            f"The irreducible loss at k = {k:g} cannot be told from 0: its interval goes down to {low:.2g}. What the"
            " law says far beyond the sweep is then open."
        )
    for name, words in _WORDS.items():
        if name in fit.free:
            low, high = interval([getattr(one.law, name) for one in draws])
            if low < _FLAT_EXPONENT:
                said.append(f"These points do not tell {words} from 0: its interval is {low:.2f} to {high:.2f}.")
    without = sum(not has_optimum(one.law) for one in draws) / len(draws)
    if not has_optimum(fit.law):
        said.append("No best width for a budget: the points show no effect of width, or none of tokens.")
    elif without > 0:
        said.append(
            f"In {100 * without:.0f} % of the draws a budget has no best width; intervals of it leave them out."
        )
    return said


def _unfit(fit: Fit, checks: Sequence[Mapping[str, Any]]) -> list[str]:
    said: list[str] = []
    if fit.n_agreeing == 1 and fit.n_starts > 2:
        said.append(f"Of {fit.n_starts} starts one alone found this law: the search may have ended too early.")
    if fit.rms > _POOR_RMS:
        said.append(
            f"The law misses single points by {100 * fit.rms:.0f} % (rms): its form does not describe them well."
        )
    for check in checks:
        n = len(check["points"])
        if check["n_inside"] < n:
            said.append(
                f"Fitted without {check['left_out']}, the law puts {check['n_inside']} of {n} of those measurements"
                f" inside its interval; the worst error is {100 * check['worst_error']:.1f} %."
            )
    if not checks:
        said.append("Too few values to leave the largest run out and check on it: nothing here is tested.")
    return said
