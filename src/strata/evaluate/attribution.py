"""Which features a prediction rests on: attribution patching of SAE features, for all features of all sites at once."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from strata.errors import UserError, did_you_mean
from strata.evaluate.answer_margin import (
    Edit,
    Prompts,
    answer_margins,
    check_circuit_input,
    check_positive,
    check_ran,
    prompts_of,
)
from strata.evaluate.tasks.base import TaskPairs
from strata.kernels.entries import SparseEntries
from strata.lm.model import LanguageModel
from strata.sae.model import SAE

METHODS = ("attribution", "integrated")

# Mean latents of all sites and positions together. Everything else is as large as the code or the activations.
_MEANS_BYTES = 2 * 2**30

Grid = Float[Tensor, "batch seq d_in"]


@dataclass(frozen=True)
class SiteAttribution:
    """What the features of one site, and what its SAE misses, contribute; and what they are on average.

    Attributes:
        effects: per feature, the change of m when its corrupt values replace its clean ones, [d_sae], in nats. Negative
            where the feature speaks for the answer.
        error_effect: the same of the SAE's error, as a whole.
        mean_latents: mean per position of the features over clean and corrupt prompts, [seq d_sae].
        mean_error: mean per position of x − x̂ over the same prompts, [seq d_in].
    """

    effects: Float[Tensor, " d_sae"]
    error_effect: float
    mean_latents: Float[Tensor, "seq d_sae"]
    mean_error: Float[Tensor, "seq d_in"]

    @property
    def total(self) -> float:
        """Features and error together: the change of m when the whole site is patched, as far as it is linear."""
        return self.effects.double().sum().item() + self.error_effect

    def strongest(self, n_features: int) -> Int[Tensor, " n_features"]:
        """The features of largest |effect|, strongest first; all of them where there are fewer."""
        return self.effects.abs().topk(min(n_features, len(self.effects))).indices


@dataclass(frozen=True)
class Attribution:
    """What `attribute` finds.

    Attributes:
        sites: site → its features' effects and means.
        m_clean: mean over pairs of logit(answer) − logit(wrong) after the clean prompt, in nats.
        m_corrupt: the same after the corrupt prompt.
        n_pairs: over how many pairs the means are.
    """

    sites: dict[str, SiteAttribution]
    m_clean: float
    m_corrupt: float
    n_pairs: int


def attribute(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    pairs: TaskPairs,
    *,
    method: str = "attribution",
    n_steps: int = 10,
    batch_size: int = 32,
) -> Attribution:
    """The indirect effect of every feature, and of every SAE's error, on m = logit(answer) − logit(wrong).

    At each site x = x̂(f) + ε. Patching feature i from the clean prompt to the corrupt one, ε and all other features of
    that site held, changes m by about (f_i corrupt − f_i clean)·∂m/∂f_i, ∂m/∂f_i = ⟨∂m/∂x, W_dec[i]⟩; patching ε by
    about ⟨∂m/∂x, ε corrupt − ε clean⟩. Summed over positions, mean over pairs. The values of the forward pass are the
    model's own. What follows the site responds as the model does: at later sites features and errors both change (the
    gradient passes straight through them), once. So the effects of a site add up to the first-order effect of patching
    that site, and for a residual site, in front of which nothing leads past it, to m(corrupt) − m(clean): exactly
    where m is linear in the site (with ``"integrated"`` where it is quadratic), else about.

    At special tokens, where SAEs do not stand, a site is all error.

    Source: Marks et al. 2024, "Sparse feature circuits", §3; Nanda 2023, "Attribution patching"; Sundararajan et al.
    2017, "Axiomatic attribution", for integrated gradients.
    Differs: Group-SAE's code sends the gradient at later sites on twice, through x and through x̂; and both its
    integrated gradients (11 points divided by 10) and those of Marks et al. (left ends of 10 steps) miss the integral
    of a quadratic m, which the midpoints used here hit.

    Args:
        lm: a causal language model.
        saes: site → SAE.
        pairs: clean and corrupt prompts.
        method: ``"attribution"``, the gradient at the clean prompt: two forward passes and one backward pass for all
            features of all sites. ``"integrated"``, the mean gradient at (s + ½)/n_steps of the way from the clean to
            the corrupt activations, one site at a time: two forward passes, and `n_steps` of each kind per site.
        n_steps: points of ``"integrated"``.
        batch_size: pairs per forward pass. Besides a batch's activations (with what a backward pass needs), its logits
            and its sparse codes, only the means stay, seq·d_sae numbers per site, 2 GB at most for all.

    Raises:
        UserError: an unknown method; n_steps or batch_size below 1; no pairs or SAEs; a transcoder; means of over 2 GB;
            a model that does not predict the next token; SAEs that do not fit their sites.
    """
    check_circuit_input(lm, saes, pairs, batch_size=batch_size)
    check_positive("n_steps", n_steps)
    if method not in METHODS:
        raise UserError(f"`method` must be a way to attribute. Got {method!r}.{did_you_mean(method, METHODS)}")
    n_positions = pairs.clean_ids.shape[1]
    _check_memory(saes, n_positions)
    with torch.inference_mode(False), torch.no_grad():
        sums = {site: _Sums(sae, n_positions) for site, sae in saes.items()}
        m_clean = m_corrupt = 0.0
        for clean, corrupt in prompts_of(lm, pairs, batch_size=batch_size):
            end = _run(lm, corrupt, list(saes))
            start = _run(lm, clean, list(saes), with_gradient=method == "attribution")
            m_clean, m_corrupt = m_clean + start.m, m_corrupt + end.m
            for site, found in sums.items():
                gradient = start.gradients.get(site)
                if gradient is None:
                    gradient = _mean_gradient(lm, clean, site, start.x[site], end.x[site], n_steps=n_steps)
                found.add(gradient, start.x[site], is_row=clean.is_row, sign=-1)
                found.add(gradient, end.x[site], is_row=corrupt.is_row, sign=1)
    n_pairs = len(pairs)
    sites = {site: found.mean(n_pairs) for site, found in sums.items()}
    return Attribution(sites, m_clean / n_pairs, m_corrupt / n_pairs, n_pairs)


@dataclass(frozen=True)
class _Run:
    """One pass: Σ m over the batch, and per site x and, where it was wanted, ∂m/∂x."""

    m: float
    x: dict[str, Tensor]
    gradients: dict[str, Tensor]


def _run(lm: LanguageModel, prompts: Prompts, sites: list[str], *, with_gradient: bool = False) -> _Run:
    """The model as it is. Its graph begins at the first of the sites, as no weight needs a gradient."""
    seen: dict[str, Tensor] = {}

    def read(site: str) -> Edit:
        def edit(x: Tensor) -> Tensor:
            seen[site] = x.detach().requires_grad_() if with_gradient and not x.requires_grad else x
            return seen[site].clone()  # some models write into what a sub-block returned

        return edit

    with torch.set_grad_enabled(with_gradient):
        m = answer_margins(lm, prompts, {site: read(site) for site in sites}).sum()
    check_ran(sites, seen)
    x = {site: seen[site] for site in sites}
    gradients = torch.autograd.grad(m, list(x.values()), materialize_grads=True) if with_gradient else ()
    return _Run(
        m.item(), {site: own.detach() for site, own in x.items()}, dict(zip(sites, gradients, strict=with_gradient))
    )


def _mean_gradient(lm: LanguageModel, prompts: Prompts, site: str, start: Grid, end: Grid, *, n_steps: int) -> Grid:
    """Mean of ∂m/∂x on the way from `start` to `end`, which is straight in (f, ε) as it is in x: decoding is affine."""
    total = torch.zeros_like(start, dtype=torch.promote_types(start.dtype, torch.float32))
    for step in range(n_steps):
        x = torch.lerp(start, end, (step + 0.5) / n_steps).requires_grad_()
        with torch.enable_grad():
            m = answer_margins(lm, prompts, {site: lambda own, x=x: x.clone()}).sum()
        total += torch.autograd.grad(m, x)[0]
    return total / n_steps


class _Sums:
    """Sums over the pairs of one site's effects, latents and errors."""

    def __init__(self, sae: SAE, n_positions: int) -> None:
        self.sae = sae
        self.effects = sae.W_dec.new_zeros(sae.d_sae)
        self.error_effect = 0.0
        self.latents = sae.W_dec.new_zeros(n_positions, sae.d_sae)
        self.errors = sae.W_dec.new_zeros(n_positions, sae.d_in)
        self.n_rows = sae.W_dec.new_zeros(n_positions, 1)

    def add(self, gradient: Grid, x: Grid, *, is_row: Bool[Tensor, "batch seq"], sign: int) -> None:
        """Add ± f·∂m/∂f and ± ⟨∂m/∂x, ε⟩ of one side of some pairs, and that side to the means."""
        sae, n_positions = self.sae, x.shape[1]
        gradient, x = (given.to(sae.device, sae.dtype) for given in (gradient, x))
        rows = is_row.to(sae.device)[..., None]
        code = sae.encode_sparse(x)
        error = x - sae.decode(code) * rows
        values = (code.values * rows).reshape(-1)
        entries = SparseEntries.of_topk(code.indices.flatten(0, 1), sae.d_sae)
        slopes = entries.dot(gradient.flatten(0, 1).contiguous(), sae.W_dec)
        self.effects += sign * entries.sum_by_latent(values * slopes)
        self.error_effect += sign * float((gradient * error).sum())
        places = entries.rows % n_positions * sae.d_sae + entries.latents
        self.latents.view(-1).index_add_(0, places, values)
        self.errors += (error * rows).sum(0)
        self.n_rows += rows.sum(0)

    def mean(self, n_pairs: int) -> SiteAttribution:
        """The mean effects over pairs, and the means over all prompts; 0 at positions that are never rows."""
        n_rows = self.n_rows.clamp(min=1)
        return SiteAttribution(
            effects=self.effects / n_pairs,
            error_effect=self.error_effect / n_pairs,
            mean_latents=self.latents.div_(n_rows),
            mean_error=self.errors / n_rows,
        )


def _check_memory(saes: Mapping[str, SAE], n_positions: int) -> None:
    needed_bytes = sum(n_positions * sae.d_sae * sae.W_dec.element_size() for sae in saes.values())
    if needed_bytes > _MEANS_BYTES:
        raise UserError(
            f"`saes` must be so few that the mean latents of all of them ({n_positions} positions × d_sae) take at "
            f"most {_MEANS_BYTES / 2**30:.3g} GB. Got {needed_bytes / 2**30:.3g} GB; take fewer sites, narrower SAEs "
            "or shorter prompts."
        )
