"""How a feature's activation depends on its pre-activation, where it fires."""

import torch
from jaxtyping import Float
from torch import Tensor

from strata.sae.gates import Gated
from strata.sae.model import SAE


def slopes(sae: SAE) -> Float[Tensor, " d_sae"]:
    """∂(activation)/∂(pre-activation) of each latent where it fires.

    1 for TopK, ReLU and JumpReLU; exp(r_mag) for a Gated SAE, whose value is exp(r_mag)·(pre − b_gate) + b_mag.
    """
    return sae.gate.r_mag.exp() if isinstance(sae.gate, Gated) else torch.ones_like(sae.b_enc)
