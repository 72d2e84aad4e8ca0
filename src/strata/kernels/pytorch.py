"""The kernels in PyTorch alone: for every device, and what the faster ones are measured and tested against.

`backend.Kernels` says what each function does.
"""

from collections.abc import Iterator
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.kernels.operands import (
    BETAS,
    EPS,
    AdamRows,
    Bias,
    ByLatent,
    LatentStarts,
    PerEntry,
    Places,
    Rows,
    RowStarts,
    Weight,
    WholeRows,
)
from strata.shapes import lengths

# Scores of one chunk of rows live in a buffer of at most this many bytes. It bounds the memory; chunks of 6 to 100 MB
# took the same time within the noise (docs/LOG.md).
_CHUNK_BYTES = 24 * 2**20
# How many rounding errors of a typical product are allowed for below a floor, in `lowered`: each is some 0.3 of these.
_MARGIN = 4.0


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


def topk_rows(scores: Float[Tensor, "rows d_sae"], k: int) -> tuple[Tensor, Tensor]:
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


def scores(
    z: Rows, W_enc: Weight, bias: Bias, *, dtype: torch.dtype, chunk_bytes: int = _CHUNK_BYTES
) -> Iterator[tuple[int, Float[Tensor, "chunk d_sae"]]]:
    """Pre-activations z·W_encᵀ + bias chunk by chunk: the number of its first row, and a buffer that the next chunk
    overwrites.

    Args:
        z: inputs.
        W_enc: encoder.
        bias: of it.
        dtype: precision of the product.
        chunk_bytes: most that the buffer holds, but for a single row.
    """
    weight, inputs, offset = W_enc.to(dtype), z.to(dtype), bias.to(dtype)
    n_rows, d_sae = len(z), len(W_enc)
    chunk = max(1, min(n_rows, chunk_bytes // (d_sae * weight.element_size())))
    buffer = torch.empty(chunk, d_sae, dtype=dtype, device=z.device)
    for start in range(0, n_rows, chunk):
        part = inputs[start : start + chunk]
        out = buffer[: len(part)]
        torch.addmm(offset, part, weight.t(), out=out)
        yield start, out


def topk(
    z: Rows, W_enc: Weight, bias: Bias, k: int, *, score_dtype: torch.dtype
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """See `backend.Kernels.topk`."""
    found = [topk_rows(part, k) for _, part in scores(z, W_enc, bias, dtype=score_dtype)]
    if not found:
        return z.new_zeros(0, k), torch.zeros(0, k, dtype=torch.int64, device=z.device)
    values, latents = torch.cat([v for v, _ in found]), torch.cat([i for _, i in found])
    if score_dtype == z.dtype:
        return values, latents
    rows = torch.arange(len(z), device=z.device).repeat_interleave(k)
    return rescored(z, W_enc, bias, rows=rows, latents=latents.view(-1)).view_as(values), latents


def product(z: Rows, W_enc: Weight, bias: Bias, *, score_dtype: torch.dtype) -> None:
    """See `backend.Kernels.product`."""
    for _ in scores(z, W_enc, bias, dtype=score_dtype):
        pass


def above(
    z: Rows, W_enc: Weight, bias: Bias, floor: Float[Tensor, "..."], *, score_dtype: torch.dtype
) -> tuple[PerEntry, Places, Places]:
    """See `backend.Kernels.above`."""
    exact = score_dtype == z.dtype
    limit = floor if exact else lowered(floor, z, W_enc, bias, score_dtype=score_dtype)
    pre, rows, latents = [z.new_zeros(0)], [_no_places(z)], [_no_places(z)]
    for start, part in scores(z, W_enc, bias, dtype=score_dtype):
        places = (part > limit).view(-1).nonzero().squeeze(1)
        row = places // len(W_enc)
        rows.append(row + start)
        latents.append(places - row * len(W_enc))
        pre.append(part.view(-1)[places].to(z.dtype))
    found = torch.cat(pre), torch.cat(rows), torch.cat(latents)
    if exact:
        return found
    values = rescored(z, W_enc, bias, rows=found[1], latents=found[2])
    kept = (values > (floor[found[2]] if floor.ndim else floor)).nonzero().squeeze(1)
    return values[kept], found[1][kept], found[2][kept]


def lowered(floor: Float[Tensor, "..."], z: Rows, W_enc: Weight, bias: Bias, *, score_dtype: torch.dtype) -> Bias:
    """Of each latent the score from which on it is computed again, because what its score says of its place above or
    below the floor may be rounding: bf16 keeps 8 bits.

    Scores near the floor, the bias and the limit itself are rounded by their own size; the factors of the product by
    that of its terms, of which ‖W_enc[latent]‖ times the inputs' root mean square is the typical sum, however small the
    score.

    Returns:
        the limits, in `score_dtype`.
    """
    step = torch.finfo(score_dtype).eps  # rounding errs by half of it at most
    terms = z.square().mean().sqrt() * lengths(W_enc)
    margin = step * (floor.abs() + bias.abs() + _MARGIN * terms)
    return (floor - margin).to(score_dtype)


def rescored(z: Rows, W_enc: Weight, bias: Bias, *, rows: Places, latents: Places) -> PerEntry:
    """Pre-activations of the given entries only, in fp32."""
    return dot(z, rows, W_enc, latents) + bias[latents]


def decode(values: PerEntry, latents: Places, starts: RowStarts, weight: Weight) -> Float[Tensor, "rows d_in"]:
    """See `backend.Kernels.decode`."""
    return torch.nn.functional.embedding_bag(latents, weight, starts, per_sample_weights=values, mode="sum")


def residual(
    values: PerEntry,
    rows: Places,
    latents: Places,
    starts: RowStarts,
    weight: Weight,
    target: Rows,
    keep: Float[Tensor, " rows"],
) -> tuple[Rows, PerEntry]:
    """See `backend.Kernels.residual`."""
    left = (target - decode(values, latents, starts, weight)) * keep.unsqueeze(1)
    return left, dot(left, rows, weight, latents)


def dot(a: Float[Tensor, "bags d"], bags: Places, weight: Float[Tensor, "d_sae d"], latents: Places) -> PerEntry:
    """See `backend.Kernels.dot`: the per-sample-weights backward of `embedding_bag`, without an [entries d] gather."""
    unused = latents.new_zeros(1)  # offsets: the bags are named entry by entry
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(a, weight, latents, unused, bags, 0)


def by_latent(latents: Places, d_sae: int) -> tuple[Places, LatentStarts]:
    """See `backend.Kernels.by_latent`."""
    order = torch.sort(latents.to(torch.int32), stable=True).indices
    ends = torch.bincount(latents, minlength=d_sae).cumsum(0)
    return order, torch.cat([ends.new_zeros(1), ends])


def row_sums(listed: ByLatent) -> Float[Tensor, "d_sae d"]:
    """See `backend.Kernels.row_sums`."""
    return torch.nn.functional.embedding_bag(
        listed.rows, listed.inputs, listed.starts[:-1], per_sample_weights=listed.amounts, mode="sum"
    )


@torch.no_grad()
def adam_rows_(
    held: AdamRows, listed: ByLatent, beside: WholeRows, *, rate: Float[Tensor, ""], step: Int[Tensor, ""]
) -> None:
    """See `backend.Kernels.adam_rows_`."""
    weight, first, second = held.weight, held.first, held.second
    gradient = row_sums(listed)
    is_beside = beside.number_of >= 0
    if len(beside.rows):
        whole = beside.rows[beside.number_of.clamp_min(0).long()]
        gradient += torch.where(is_beside.unsqueeze(1), whole, 0.0)
    touched = (listed.starts[1:] > listed.starts[:-1]) | is_beside
    if held.unit_rows:
        along = cast(Tensor, torch.linalg.vecdot(gradient, weight))  # PyTorch states no types for it
        gradient.addcmul_(weight, along.unsqueeze(1), value=-1)
    passed = (step - held.last_step).float()
    keep_first, keep_second = (torch.where(touched, beta**passed, 1.0).unsqueeze(1) for beta in BETAS)
    share = touched.float().unsqueeze(1)
    first.mul_(keep_first).addcmul_(gradient, share, value=1 - BETAS[0])
    second.mul_(keep_second).addcmul_(gradient.square_(), share, value=1 - BETAS[1])
    first_share, second_share = (1 - beta ** step.float() for beta in BETAS)
    moved = (first / first_share).div_((second / second_share).sqrt_().add_(EPS)).mul_(rate * share)
    weight.sub_(moved)
    held.last_step.copy_(torch.where(touched, step, held.last_step))
    if held.unit_rows:
        unit_rows_(weight)


@torch.no_grad()
def unit_rows_(weight: Tensor) -> None:
    """Scale the rows of [d_sae d_in] to unit norm in place; a zero row becomes a unit vector of the axes, never NaN."""
    norms = lengths(weight)
    empty = norms == 0
    latents = torch.arange(len(weight), device=weight.device)
    weight.index_put_((latents, latents % weight.shape[1]), empty.to(weight.dtype), accumulate=True)
    weight.div_(torch.where(empty, 1.0, norms).unsqueeze(1))


def _no_places(z: Tensor) -> Tensor:
    return torch.zeros(0, dtype=torch.int64, device=z.device)
