"""The fast step's kernels in pure PyTorch, for CPU and CUDA alike: one dense product, then only what fired.

Every function equals `kernels.reference` in values and gradients (`tests/test_kernels.py`). Weights are held feature by
feature, [d_sae d_in], so that a latent's row is contiguous.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Weight = Float[Tensor, "d_sae d_in"]
Rows = Float[Tensor, "rows d_in"]
Values = Float[Tensor, "rows k"]
Indices = Int[Tensor, "rows k"]

# Scores of one chunk of rows live in a buffer of at most this many bytes. It bounds the memory; chunks of 6 to 100 MB
# took the same time within the noise (docs/LOG.md).
_CHUNK_BYTES = 24 * 2**20


@dataclass(frozen=True)
class TransposedCode:
    """A batch's code listed by latent instead of by row.

    Attributes:
        rows: for each entry of the code, sorted by latent, the row it came from, [rows·k].
        entries: for each of them its place in the flattened [rows k] arrays, [rows·k].
        starts: for each latent where its entries begin, [d_sae].
    """

    rows: Int[Tensor, " entries"]
    entries: Int[Tensor, " entries"]
    starts: Int[Tensor, " d_sae"]


def group_size(d_sae: int, k: int) -> int:
    """Size of the groups of latents in the two-level top-k: the power of two that divides d_sae and is nearest to
    √(d_sae/k).

    The work per row is about d_sae/size for the first level and k·size for the second. Returns 1 where groups cannot
    help.
    """
    best = 1
    size = 2
    while d_sae % size == 0 and d_sae // size >= k and size * size * k <= 2 * d_sae:
        best = size
        size *= 2
    return best


def topk_rows(scores: Float[Tensor, "rows d_sae"], k: int) -> tuple[Values, Indices]:
    """The k largest of each row, exactly, in no particular order, in one streaming pass over the scores.

    The k largest of a row lie in the k groups with the largest maxima: at most k groups can hold a member of the top k,
    and each such group's maximum is at least the k-th largest value. Groups are strided (latent j belongs to group j
    mod n_groups), so that the maximum over a group's members runs along contiguous memory.
    """
    n_rows, d_sae = scores.shape
    size = group_size(d_sae, k)
    if size == 1:
        return scores.topk(k, dim=-1, sorted=False)
    n_groups = d_sae // size
    grouped = scores.view(n_rows, size, n_groups)
    groups = grouped.amax(1).topk(k, dim=-1, sorted=False).indices
    candidates = grouped.gather(2, groups.unsqueeze(1).expand(-1, size, -1)).view(n_rows, size * k)
    values, places = candidates.topk(k, dim=-1, sorted=False)
    return values, (places // k) * n_groups + groups.gather(1, places % k)


def select_topk(
    z: Rows, W_enc: Weight, bias: Float[Tensor, " d_sae"], k: int, *, score_dtype: torch.dtype = torch.float32
) -> tuple[Values, Indices]:
    """The k largest pre-activations z·W_encᵀ + bias of every row, without holding [rows d_sae].

    Args:
        z: normalised activations, fp32.
        W_enc: encoder, a row per latent, fp32.
        bias: the encoder's bias with the decoder's folded in, b_enc − W_enc b_dec.
        k: entries per row, in [1, d_sae].
        score_dtype: precision of the product that selects. Below fp32 the winners are computed again in fp32.

    Returns:
        pre-activations of the winners in fp32 (negative ones included) and their latents.
    """
    exact = score_dtype == torch.float32
    weight, inputs = (W_enc, z) if exact else (W_enc.to(score_dtype), z.to(score_dtype))
    n_rows, d_sae = len(z), len(W_enc)
    chunk = max(1, min(n_rows, _CHUNK_BYTES // (d_sae * weight.element_size())))
    scores = torch.empty(chunk, d_sae, dtype=score_dtype, device=z.device)
    offset = bias.to(score_dtype)
    found = []
    for start in range(0, n_rows, chunk):
        part = inputs[start : start + chunk]
        out = scores[: len(part)]
        torch.addmm(offset, part, weight.t(), out=out)
        found.append(topk_rows(out, k))
    if not found:
        return z.new_zeros(0, k), torch.zeros(0, k, dtype=torch.int64, device=z.device)
    values, indices = torch.cat([v for v, _ in found]), torch.cat([i for _, i in found])
    return (values, indices) if exact else (pick_pre(z, W_enc, bias, indices), indices)


def pick_pre(z: Rows, W_enc: Weight, bias: Float[Tensor, " d_sae"], indices: Indices) -> Values:
    """Pre-activations of the given latents only, in fp32: z·W_enc[j] + bias[j]."""
    return rowwise_dot(z, W_enc, indices) + bias[indices]


def rowwise_dot(a: Rows, weight: Weight, indices: Indices) -> Values:
    """⟨a_row, weight[j]⟩ for each row's k latents j, by the per-sample-weights backward of `embedding_bag`: no [rows k
    d_in] gather.
    """
    n_rows, k = indices.shape
    flat = indices.reshape(-1)
    offsets = torch.arange(0, n_rows * k, k, device=a.device)
    bag_of = torch.arange(n_rows, device=a.device).repeat_interleave(k)
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(a, weight, flat, offsets, bag_of, 0)
    return dots.view(n_rows, k)


def decode(values: Values, indices: Indices, W_dec: Weight) -> Rows:
    """Σ_k values·W_dec[indices] per row (no bias)."""
    return torch.nn.functional.embedding_bag(indices, W_dec, per_sample_weights=values, mode="sum")


def transpose_code(indices: Indices, d_sae: int) -> TransposedCode:
    """Sort the code's entries by latent, once for all gradients of a step."""
    k = indices.shape[1]
    flat = indices.reshape(-1).to(torch.int32)
    entries = torch.sort(flat, stable=True).indices
    counts = torch.bincount(flat, minlength=d_sae)
    return TransposedCode(rows=entries // k, entries=entries, starts=counts.cumsum(0) - counts)


def weight_gradient(weights: Values, inputs: Rows, code: TransposedCode) -> Weight:
    """Σ_rows weights[row, j]·inputs[row] for every latent j: the gradient of decoder (inputs = ∂L/∂ẑ) and encoder
    (inputs = z).
    """
    ordered = weights.reshape(-1)[code.entries]
    return torch.nn.functional.embedding_bag(
        code.rows, inputs, offsets=code.starts, per_sample_weights=ordered, mode="sum"
    )
