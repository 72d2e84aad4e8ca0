"""The dense oracle: one training step's loss in plain autograd, which judges every fast path in values and
gradients.
"""

from jaxtyping import Float
from torch import Tensor


def topk_code(
    z: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"],
    k: int,
) -> Float[Tensor, "rows d_sae"]:
    """ReLU of the k largest pre-activations (z − b_dec) W_enc + b_enc per row, zero elsewhere (Gao et al. 2024, section
    2.2).
    """
    pre = (z - b_dec) @ W_enc + b_enc
    top = pre.topk(k, dim=-1)
    return pre.new_zeros(pre.shape).scatter(-1, top.indices, top.values.relu())


def reconstruction_loss(
    z: Float[Tensor, "rows d_in"], z_hat: Float[Tensor, "rows d_in"], keep: Float[Tensor, " rows"]
) -> Float[Tensor, ""]:
    """Mean over the kept rows of ‖z − ẑ‖² / d_in. `keep` is 1 for a row that counts and 0 for one that is masked."""
    return ((z - z_hat).square().mean(-1) * keep).sum() / keep.sum()
