"""What a law of scaling says of widths and tokens: the best ones for a budget, and where more stops to help."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from strata.costs.scaling_law import Cost, Law

Budgets = Float[np.ndarray, " budgets"]

_GRID = 400
_WIDEST = math.log(1e30)  # latents; wider than that is no end
_STEP = math.log(2) / 8
_LEAST_EXPONENT = 1e-6  # an exponent below it is 0 as far as a fit can tell


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Width and tokens that belong together.

    Attributes:
        n_latents: width; infinite where there is none.
        n_tokens: rows to train on.
        flops: what that costs.
        loss: FVU that the law says.
        at_edge: the best width was the smallest or the largest that the budget allows: the law has no optimum within.
    """

    n_latents: float
    n_tokens: float
    flops: float
    loss: float
    at_edge: bool = False


def best_within(law: Law, budget: float, *, k: float, cost: Cost) -> Allocation:
    """The width whose loss is least for so many FLOPs, the tokens being what the width leaves of them.

    Found in one dimension, ln n: a grid from k latents to where one token is left, then a search around its best.

    Args:
        law: fitted.
        budget: FLOPs, more than one token at k latents costs.
        k: active latents per row.
        cost: of a token.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_width: Any) -> Any:
        width = np.exp(log_width)
        return law.loss(width, budget / cost.per_token(width, k), k)

    left = budget - cost.per_token(0.0, k)
    widths = np.linspace(math.log(k), math.log(max(left / (2 * cost.d_in), k * 1.001)), _GRID)
    place = int(np.argmin(loss(widths)))
    around = widths[max(place - 1, 0)], widths[min(place + 1, _GRID - 1)]
    found: Any = minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-7})
    width = float(np.exp(found.x))
    tokens = budget / cost.per_token(width, k)
    edge = place in (0, _GRID - 1)
    return Allocation(
        n_latents=width, n_tokens=tokens, flops=budget, loss=float(law.loss(width, tokens, k)), at_edge=edge
    )


def has_optimum(law: Law) -> bool:
    """Whether both width and tokens lower the loss, so that a budget has a best split."""
    return math.isfinite(law.a) and math.isfinite(law.b) and min(law.alpha, law.beta) > _LEAST_EXPONENT


def at_optimum(law: Law, n_latents: Any, *, k: float, cost: Cost) -> tuple[Any, Any, Any]:
    """Tokens for which these widths are the best ones, what both cost, and the loss there: numbers or arrays.

    Along a budget t·c(n) a step in ln n takes s = 2·d·n/c(n) of a step in ln t; at the best width both are worth the
    same: α·W − δ·T = s·β·T for the width's and the tokens' terms W and T, so T = α·W/(s·β + δ).

    Args:
        law: with an optimum (`has_optimum`).
        n_latents: widths.
        k: active latents per row.
        cost: of a token.
    """
    per_token = cost.per_token(n_latents, k)
    share = 2.0 * cost.d_in * n_latents / per_token
    of_width = law.of_width(n_latents, k)
    of_tokens = law.alpha * of_width / (share * law.beta + law.delta)
    with np.errstate(over="ignore"):
        tokens = np.exp(np.log(law.of_tokens(1.0, n_latents, k) / of_tokens) / law.beta)
        return tokens, tokens * per_token, law.irreducible(k) + of_width + of_tokens


def frontier(law: Law, budgets: Budgets, *, k: float, cost: Cost) -> tuple[Budgets, Budgets, Budgets]:
    """Best width, tokens and loss of many budgets at once, read off a fine curve of widths; NaN without an optimum.

    Args:
        law: fitted.
        budgets: FLOPs.
        k: active latents per row.
        cost: of a token.
    """
    if not has_optimum(law):
        nothing = np.full_like(budgets, np.nan)
        return nothing, nothing, nothing
    widths = np.arange(math.log(k), math.log(1e15), _STEP)
    _, flops, _ = at_optimum(law, np.exp(widths), k=k, cost=cost)
    known = np.isfinite(flops) & (flops > 0)
    order = np.argsort(flops[known])
    logs = np.log(flops[known])[order]
    width = np.exp(np.interp(np.log(budgets), logs, widths[known][order], left=math.log(k)))
    tokens = budgets / cost.per_token(width, k)
    return width, tokens, law.loss(width, tokens, k)


def flat_from(law: Law, *, k: float, cost: Cost, gain: float) -> Allocation:
    """The width from which on doubling it, with the tokens that belong to it, lowers the loss by less than a share.

    Args:
        law: fitted.
        k: active latents per row.
        cost: of a token.
        gain: the share of the loss at that width, e.g. 0.01.

    Returns:
        The width, k at least, with its tokens; an infinite one where the law never flattens or has no optimum.
    """
    endless = Allocation(n_latents=math.inf, n_tokens=math.inf, flops=math.inf, loss=float(law.irreducible(k)))
    if not has_optimum(law):
        return endless

    def gained(log_width: Any) -> Any:
        now = at_optimum(law, np.exp(log_width), k=k, cost=cost)[2]
        return 1 - at_optimum(law, 2 * np.exp(log_width), k=k, cost=cost)[2] / now

    widths = np.arange(math.log(k), _WIDEST, _STEP)
    steep = np.flatnonzero(gained(widths) >= gain)
    if len(steep) and steep[-1] == len(widths) - 1:
        return endless
    if len(steep):
        from scipy.optimize import brentq

        low, high = float(widths[steep[-1]]), float(widths[steep[-1] + 1])
        root: Any = brentq(lambda log_width: gained(log_width) - gain, low, high)
        width = math.exp(root)
    else:
        width = float(k)
    tokens, flops, loss = (float(value) for value in at_optimum(law, width, k=k, cost=cost))
    return Allocation(n_latents=width, n_tokens=tokens, flops=flops, loss=loss)
