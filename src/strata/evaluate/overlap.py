"""How many features two SAEs have in common."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from strata.errors import UserError
from strata.sae.model import SAE

SAME_FEATURE_COSINE = 0.7
_PRODUCT_BYTES = 64 * 2**20

Cosines = Float[Tensor, " latents"]
Numbers = Int[Tensor, " latents"]


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
        raise UserError(f"Features are compared at one site. Got SAEs with d_in={a.d_in} and d_in={b.d_in}.")
    ours = normalize(a.W_dec.float(), dim=1)
    theirs = normalize(b.W_dec.to(a.device).float(), dim=1)
    cosines, partners = _nearest(ours, theirs)
    _, back = _nearest(theirs, ours)
    mutual = back[partners] == torch.arange(len(ours), device=partners.device)
    return int((mutual & (cosines >= threshold)).sum()) / min(a.d_sae, b.d_sae)


def _nearest(ours: Float[Tensor, "latents d_in"], theirs: Float[Tensor, "others d_in"]) -> tuple[Cosines, Numbers]:
    """For each of ours the largest cosine and whose it is, a few rows of the product at a time."""
    size = max(1, _PRODUCT_BYTES // (4 * len(theirs)))
    found = [(part @ theirs.t()).max(1) for part in ours.split(size)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
