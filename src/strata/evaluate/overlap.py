"""How many features SAEs have in common: two of a site, and suites that differ in one thing alone."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from strata.errors import UserError
from strata.evaluate.run_suites import Suite
from strata.log import say
from strata.sae.model import SAE

SAME_FEATURE_COSINE = 0.7
_PRODUCT_BYTES = 64 * 2**20

Cosines = Float[Tensor, " latents"]
Numbers = Int[Tensor, " latents"]


def overlaps(suites: Sequence[Suite], *, progress: bool = True) -> list[dict[str, Any]]:
    """The share of features that suites have in common, for those pairs of which it can be asked.

    These are suites of the same language model that were trained on the same rows (text, context length, number, and
    whence), whose settings are all the same but the seed, and whose groups are the same; or whose settings are all the
    same, one of them layer-wise and the other in groups. The latter have one seed and so set out from the same random
    directions, which the former do not: by that alone they have more in common.

    Returns:
        For each pair ``a``, ``b``, ``differ`` ("seed" or "groups"), ``same_start`` (whether their seeds are equal),
        ``sites`` (site → `shared_share`), ``mean``.
    """
    found: list[dict[str, Any]] = []
    for a, b in itertools.combinations(suites, 2):
        sites = [site for site in a.saes if site in b.saes]
        differ = _difference(a, b)
        if differ is None or not sites:
            continue
        say(f"features in common: {a.name} and {b.name}", shown=progress)
        shares = {site: shared_share(a.saes[site], b.saes[site]) for site in sites}
        start = {"differ": differ, "same_start": differ != "seed"}
        found.append({"a": a.name, "b": b.name, **start, "sites": shares, "mean": sum(shares.values()) / len(shares)})
    return found


def _difference(a: Suite, b: Suite) -> str | None:
    """In what alone two suites differ; None where that is nothing to compare features by."""
    if (a.run.model_key, a.run.rows_key) != (b.run.model_key, b.run.rows_key):
        return None
    unlike = {key for key in a.settings.keys() | b.settings.keys() if a.settings.get(key) != b.settings.get(key)}
    same_groups = a.groups == b.groups or (a.is_layer_wise and b.is_layer_wise)
    if unlike == {"seed"} and same_groups:
        return "seed"
    return "groups" if not unlike and a.is_layer_wise != b.is_layer_wise else None


@torch.no_grad()
def shared_share(a: SAE, b: SAE, *, threshold: float = SAME_FEATURE_COSINE) -> float:
    """The share of features that two SAEs of one site have in common, in [0, 1].

    A feature of one and a feature of the other are the same where each is the other's nearest by the cosine of their
    decoder directions, and that cosine is at least `threshold`. So no feature is counted twice, and the share is the
    same both ways. Dead latents count among those that find no partner.

    Differs: Paulo & Belrose 2025 ("Sparse Autoencoders Trained on the Same Data Learn Different Features", arXiv
    2501.16615) match by the Hungarian algorithm, encoder and decoder, so that every feature gets a partner, and then
    ask for a cosine above 0.7. Mutual nearest neighbours need no assignment of d_sae by d_sae; they can miss a pair
    whose nearest neighbour is a third feature, so that the share is a little lower.

    Args:
        a: an SAE.
        b: another, of the same width; where it has more or fewer latents, the share is of the smaller of the two.
        threshold: the least cosine, in [0, 1].

    Raises:
        UserError: SAEs of activations of different width.
    """
    if a.d_in != b.d_in:
        raise UserError(
            f"Features are compared at one site. Got SAEs with d_in={a.d_in} and d_in={b.d_in}. Give two of one width."
        )
    ours = normalize(a.W_dec.float(), dim=1)
    theirs = normalize(b.W_dec.to(a.device).float(), dim=1)
    cosines, partners = _nearest(ours, theirs)
    _, back = _nearest(theirs, ours)
    mutual = back[partners] == torch.arange(len(ours), device=partners.device)
    return int((mutual & (cosines >= threshold)).sum()) / min(a.d_sae, b.d_sae)


def _nearest(ours: Float[Tensor, "latents d_in"], theirs: Float[Tensor, "others d_in"]) -> tuple[Cosines, Numbers]:
    """For each of ours the largest cosine and whose it is, a few rows of the product at a time."""
    size = max(1, _PRODUCT_BYTES // (4 * len(theirs)))
    found = [(part @ theirs.t()).max(1) for part in torch.split(ours, size)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
