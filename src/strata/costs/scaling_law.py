"""Laws of how an SAE's loss falls with its width, its sparsity and the tokens it is trained on, and their price."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from strata.costs.flops import sae_step_flops

Numbers = Float[np.ndarray, " points"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a token costs in training.

    Attributes:
        d_in: width of the rows.
        forward_flops: of the language model, per token, where rows are streamed for this SAE alone; 0 of a store.
    """

    d_in: int
    forward_flops: float = 0.0

    def per_token(self, n_latents: Any, k: Any) -> Any:
        """FLOPs per token, 2·d·n + 10·k·d and the forward: numbers or arrays."""
        fired = sae_step_flops(self.d_in, 0, 1) * k
        return 2.0 * self.d_in * n_latents + fired + self.forward_flops


@dataclass(frozen=True, kw_only=True)
class Points:
    """Measured losses, one for each training.

    Attributes:
        n_latents: widths of the SAEs.
        n_tokens: rows that they were trained on.
        k: active latents per row.
        loss: FVU on held-out rows, above 0.
    """

    n_latents: Numbers
    n_tokens: Numbers
    k: Numbers
    loss: Numbers

    def __len__(self) -> int:
        return len(self.loss)

    def only(self, which: Any) -> "Points":
        """Those of a mask or of some numbers, which may repeat."""
        return Points(
            n_latents=self.n_latents[which], n_tokens=self.n_tokens[which], k=self.k[which], loss=self.loss[which]
        )

    def flops(self, cost: Cost) -> Numbers:
        """What each took."""
        return self.n_tokens * cost.per_token(self.n_latents, self.k)


@dataclass(frozen=True, kw_only=True)
class Law:
    """L(n, t, k) = exp(e − ε ln k) + exp(a − α ln n − γ ln k) + exp(b − β ln t − κ ln k + δ ln n): n latents,
    t tokens.

    The first term stays however wide and long is trained; the second falls with width, the third with tokens. Exponents
    are at least 0. A term that a sweep cannot show (one width, one number of tokens) is absent: its e, a or b is −∞.

    Source: the form of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.3), with the sparsity of Gao et al. 2024
        (arXiv 2406.04093). Only the form: every number comes from a fit to one's own runs.
    Differs: κ and δ are in neither. κ, how the tokens' term falls with k, is clearly above 0 in our own sweep
        (docs/scaling.md). δ are the tokens that each latent more asks for; δ = 0 is the "additive" form.

    Attributes:
        e: of the irreducible term at k = 1, by logarithm.
        epsilon: how it falls with k.
        a: of the width's term at n = k = 1, by logarithm.
        alpha: how it falls with width.
        gamma: how it falls with k.
        b: of the tokens' term at t = n = k = 1, by logarithm.
        beta: how it falls with tokens.
        kappa: how it falls with k.
        delta: how it rises with width.
    """

    e: float = -math.inf
    epsilon: float = 0.0
    a: float = -math.inf
    alpha: float = 0.0
    gamma: float = 0.0
    b: float = -math.inf
    beta: float = 0.0
    kappa: float = 0.0
    delta: float = 0.0

    def irreducible(self, k: Any) -> Any:
        """The loss that stays at this k."""
        return np.exp(self.e - self.epsilon * np.log(k))

    def of_width(self, n_latents: Any, k: Any) -> Any:
        """The loss that more latents would take away."""
        return np.exp(self.a - self.alpha * np.log(n_latents) - self.gamma * np.log(k))

    def of_tokens(self, n_tokens: Any, n_latents: Any, k: Any) -> Any:
        """The loss that more tokens would take away."""
        at_one_token = self.b + self.delta * np.log(n_latents) - self.kappa * np.log(k)
        return np.exp(at_one_token - self.beta * np.log(n_tokens))

    def loss(self, n_latents: Any, n_tokens: Any, k: Any) -> Any:
        """L(n, t, k) of numbers or arrays."""
        return self.irreducible(k) + self.of_width(n_latents, k) + self.of_tokens(n_tokens, n_latents, k)

    def as_json(self) -> dict[str, float | None]:
        """By name; None is an absent term."""
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, found: dict[str, float | None]) -> "Law":
        """What `as_json` gave."""
        return cls(**{name: -math.inf if value is None else value for name, value in found.items()})


def envelope(flops: Numbers, loss: Numbers) -> list[int]:
    """The numbers of the points that no other beats with as little compute or less, from the cheapest on."""
    kept: list[int] = []
    for place in np.lexsort((loss, flops)).tolist():
        if not kept or loss[place] < loss[kept[-1]]:
            kept.append(place)
    return kept
