"""Attribution edges: what the features of earlier sites contribute to features of later ones, on a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from strata.errors import UserError, did_you_mean
from strata.interactions.differentiable import sites_of
from strata.interactions.site_code import SiteCode, Sources
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenBatch
from strata.sae.model import SAE, Transcoder
from strata.sae.sinks import Sinks

Upstream = Literal["nearest", "all"]


@dataclass(frozen=True)
class Target:
    """A feature, what it did on the text, and from where.

    Attributes:
        site: where it is.
        latent: its number.
        activation: m, the sum of its activations over the positions that were asked for.
        n_positions: on how many of these it fires.
        sources: by upstream site.
    """

    site: str
    latent: int
    activation: float
    n_positions: int
    sources: dict[str, Sources]

    def rest(self, site: str) -> float:
        """What does not come through a site to first order: the biases on the way, and all that is not linear there."""
        return self.activation - self.sources[site].total


@dataclass(frozen=True)
class Spent:
    """What edges took.

    Attributes:
        n_forwards: forward passes, one for each batch, as far as the last site.
        n_backwards: backward passes, one for each target and batch on which it fires; each from its site to the first
            site whose features are its sources.
        n_forward_tokens: tokens of the forward passes.
        n_backward_tokens: tokens of the backward passes.
    """

    n_forwards: int
    n_backwards: int
    n_forward_tokens: int
    n_backward_tokens: int


@dataclass(frozen=True)
class Edges:
    """What `attribution_edges` finds.

    Attributes:
        targets: in the order in which they were asked for.
        spent: what it took.
    """

    targets: list[Target]
    spent: Spent


NO_EDGES = Edges([], Spent(0, 0, 0, 0))
"""Where none were looked for."""


def attribution_edges(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    targets: Mapping[str, Sequence[int]],
    batches: Sequence[TokenBatch],
    *,
    upstream: Upstream = "nearest",
    positions: Sequence[Bool[Tensor, "batch seq"]] | None = None,
) -> Edges:
    """How much each feature of earlier sites contributes to target features, by gradient × activation.

    A target j at site v has m = Σ over positions of a_j. Where it fires, a_j = s_j (⟨W_enc[:, j], x_v − b_dec⟩ +
    b_enc[j]) with the gate's slope s_j (1, or exp(r_mag) of a Gated SAE); which features fire is held. The edge from
    feature i of site u is Σ over positions of a_i · ⟨∂m/∂x_u, W_dec[i]⟩: to first order, by how much m would fall if i
    were set to zero, the SAE's error and all other features of u held. It is exact where x_v is affine in x_u.
    One backward pass for each target gives the edges from all features, the error and the bias of every upstream site.

    Attention sinks are told from the first batch, site by site (`strata.sae.sinks`), and count as no rows: SAEs are
    trained without them, and so is the index made.

    The values of the forward pass are the model's own. At sites between u and v the gradient passes through features
    and error alike, once: effects are total, not direct.

    Source: Marks et al. 2024, "Sparse feature circuits", §3 (edges).
    Differs: they stop the gradient at the features of sites between, and weigh an edge by the target's effect on
        a task.

    Args:
        lm: the language model.
        saes: site → SAE, at all sites, upstream and downstream.
        targets: site → latents whose edges are wanted.
        batches: the text. Features are looked at on its rows alone.
        upstream: sources of a target: the features of the site before its own (in the order in which the model comes to
            them), or of all sites before.
        positions: for each batch, where m is summed; None is everywhere.

    Raises:
        UserError: fewer than two sites, a transcoder, an unknown site or latent, a target at the first site, no text.
    """
    _check(lm, saes, targets, batches, upstream=upstream)
    sums = {(site, int(latent)): _Sum() for site, latents in targets.items() for latent in latents}
    forward_tokens: list[int] = []
    backward_tokens: list[int] = []
    order: list[str] = []
    sinks: dict[str, Sinks] = {}
    with torch.inference_mode(False):
        for number, batch in enumerate(batches):
            x = sites_of(lm, list(saes), batch)
            order = list(x)
            sinks = sinks or Sinks.told_from_each(x, batch.is_row)
            at = {site: SiteCode(saes[site], own, batch.is_row, sinks[site]) for site, own in x.items()}
            where = batch.is_row if positions is None else batch.is_row & positions[number]
            forward_tokens.append(batch.input_ids.numel())
            for (site, latent), found in sums.items():
                readout, m, n_positions = at[site].readout(latent, where)
                if n_positions == 0:
                    continue
                sites = _before(order, site, upstream)
                gradients = torch.autograd.grad(
                    x[site], [x[u] for u in sites], grad_outputs=readout, retain_graph=True, materialize_grads=True
                )
                backward_tokens.append(batch.input_ids.numel())
                found.add(m, n_positions, {u: at[u].sources(g) for u, g in zip(sites, gradients, strict=True)})
    for site in targets:
        _before(order, site, upstream)  # a target that never fired has not been checked yet
    found = [
        total.target(site, latent, {u: saes[u] for u in _before(order, site, upstream)})
        for (site, latent), total in sums.items()
    ]
    spent = Spent(len(forward_tokens), len(backward_tokens), sum(forward_tokens), sum(backward_tokens))
    return Edges(found, spent)


def _before(order: Sequence[str], site: str, upstream: Upstream) -> list[str]:
    """The sites whose features are sources."""
    before = list(order[: order.index(site)])
    if not before:
        raise UserError(
            f"`targets` must have a site before them. {site!r} is the first of {', '.join(order)}. Add an earlier site."
        )
    return before if upstream == "all" else before[-1:]


class _Sum:
    """Sums over batches of one target."""

    def __init__(self) -> None:
        self.activation, self.n_positions = 0.0, 0
        self.sources: dict[str, Sources] = {}

    def add(self, activation: float, n_positions: int, sources: Mapping[str, Sources]) -> None:
        """Add a batch."""
        self.activation, self.n_positions = self.activation + activation, self.n_positions + n_positions
        for site, new in sources.items():
            if (old := self.sources.get(site)) is not None:
                new = Sources(old.effects + new.effects, old.error + new.error, old.bias + new.bias)
            self.sources[site] = new

    def target(self, site: str, latent: int, upstream: Mapping[str, SAE]) -> Target:
        """What was summed; zeros for a target that never fired."""
        none = {u: Sources(sae.W_dec.new_zeros(sae.d_sae), 0.0, 0.0) for u, sae in upstream.items()}
        return Target(site, latent, self.activation, self.n_positions, none | self.sources)


def _check(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    targets: Mapping[str, Sequence[int]],
    batches: Sequence[TokenBatch],
    *,
    upstream: str,
) -> None:
    if upstream not in get_args(Upstream):
        raise UserError(f"`upstream` must be one of {', '.join(get_args(Upstream))}. Got {upstream!r}.")
    if len(saes) < 2:
        raise UserError(f"`saes` must hold two sites or more for edges between them. Got {len(saes)}. Add a site.")
    for site, sae in saes.items():
        if isinstance(sae, Transcoder):
            raise UserError(f"`saes` must reconstruct their sites. Got a transcoder at {site!r}; leave it out.")
    with lm.attach(saes):  # checks the sites' names and widths
        pass
    if not batches:
        raise UserError("`batches` must hold some text. Got none.")
    if not any(len(latents) for latents in targets.values()):
        raise UserError("`targets` must name at least one feature. Got none. Give them as {site: latents}.")
    for site, latents in targets.items():
        if site not in saes:
            raise UserError(f"`targets` must be features of `saes`. Got {site!r}.{did_you_mean(site, saes)}")
        outside = [int(latent) for latent in latents if not 0 <= latent < saes[site].d_sae]
        if outside:
            raise UserError(
                f"`targets` must be latents in [0, {saes[site].d_sae}) at {site!r}. Got {outside[0]}. Leave it out."
            )
