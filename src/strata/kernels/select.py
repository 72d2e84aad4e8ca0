"""Selection: the one dense product of a step, and which of its scores become entries. The scores themselves never
live longer than a chunk of rows.

Weights are held feature by feature, [d_sae d_in], so that a latent's row is contiguous.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.kernels.entries import SparseEntries, dot

Weight = Float[Tensor, "d_sae d_in"]
Rows = Float[Tensor, "rows d_in"]
Bias = Float[Tensor, " d_sae"]
Values = Float[Tensor, "rows k"]
Indices = Int[Tensor, "rows k"]

# Scores of one chunk of rows live in a buffer of at most this many bytes. It bounds the memory; chunks of 6 to 100 MB
# took the same time within the noise (docs/LOG.md).
_CHUNK_BYTES = 24 * 2**20
# How far below a floor scores in less than fp32 are looked at again; bf16 keeps 8 bits of scores of order 1 to 10.
_MARGIN = 0.05
_GUESS_ROWS = 256


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


def scores(
    z: Rows, W_enc: Weight, bias: Bias, *, dtype: torch.dtype
) -> Iterator[tuple[int, Float[Tensor, "chunk d_sae"]]]:
    """Pre-activations z·W_encᵀ + bias chunk by chunk: the number of its first row, and a buffer that the next chunk
    overwrites.
    """
    weight, inputs, offset = W_enc.to(dtype), z.to(dtype), bias.to(dtype)
    n_rows, d_sae = len(z), len(W_enc)
    chunk = max(1, min(n_rows, _CHUNK_BYTES // (d_sae * weight.element_size())))
    buffer = torch.empty(chunk, d_sae, dtype=dtype, device=z.device)
    for start in range(0, n_rows, chunk):
        part = inputs[start : start + chunk]
        out = buffer[: len(part)]
        torch.addmm(offset, part, weight.t(), out=out)
        yield start, out


def select_topk(
    z: Rows, W_enc: Weight, bias: Bias, k: int, *, score_dtype: torch.dtype = torch.float32
) -> tuple[Values, Indices]:
    """The k largest pre-activations z·W_encᵀ + bias of every row, without holding [rows d_sae].

    Args:
        z: inputs, fp32.
        W_enc: encoder, a row per latent, fp32.
        bias: the encoder's bias.
        k: entries per row, in [1, d_sae].
        score_dtype: precision of the product that selects. Below fp32 the winners are computed again in fp32.

    Returns:
        pre-activations of the winners in fp32 (negative ones included) and their latents.
    """
    found = [topk_rows(part, k) for _, part in scores(z, W_enc, bias, dtype=score_dtype)]
    if not found:
        return z.new_zeros(0, k), torch.zeros(0, k, dtype=torch.int64, device=z.device)
    values, indices = torch.cat([v for v, _ in found]), torch.cat([i for _, i in found])
    if score_dtype == z.dtype:
        return values, indices
    entries = SparseEntries.of_topk(indices, len(W_enc))
    return rescore(z, W_enc, bias, entries).view_as(indices), indices


def select_above(
    z: Rows,
    W_enc: Weight,
    bias: Bias,
    floor: Bias | Float[Tensor, ""] | float,
    *,
    score_dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, " entries"], SparseEntries]:
    """All pre-activations z·W_encᵀ + bias above a floor, without holding [rows d_sae].

    Args:
        z: inputs, fp32.
        W_enc: encoder, a row per latent, fp32.
        bias: the encoder's bias.
        floor: one for all latents, or one for each.
        score_dtype: precision of the product. Below fp32 entries near the floor are computed again in fp32, so that
            exactly the right ones stay.

    Returns:
        the pre-activations in fp32 and the entries, in the order of rows, then latents.
    """
    exact = score_dtype == z.dtype
    floor = torch.as_tensor(floor, dtype=z.dtype, device=z.device)
    limit = floor if exact else (floor - _MARGIN).to(score_dtype)
    pre, rows, latents = [], [], []
    for start, part in scores(z, W_enc, bias, dtype=score_dtype):
        places = (part > limit).view(-1).nonzero().squeeze(1)
        row = places // len(W_enc)
        rows.append(row + start)
        latents.append(places - row * len(W_enc))
        pre.append(part.view(-1)[places])
    if not pre:
        empty = torch.zeros(0, dtype=torch.int64, device=z.device)
        return z.new_zeros(0), SparseEntries(empty, empty, 0, len(W_enc))
    entries = SparseEntries(torch.cat(rows), torch.cat(latents), len(z), len(W_enc))
    if exact:
        return torch.cat(pre), entries
    values = rescore(z, W_enc, bias, entries)
    return keep_entries(values, entries, values > (entries.per_entry(floor) if floor.ndim else floor))


def select_batch_topk(
    z: Rows,
    W_enc: Weight,
    bias: Bias,
    *,
    n_entries: int,
    keep: Float[Tensor, " rows"],
    floor: Float[Tensor, ""] | None = None,
    score_dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, " entries"], SparseEntries, Float[Tensor, ""]]:
    """The n_entries largest positive pre-activations of a whole batch, without holding [rows d_sae].

    What lies above a guessed floor is listed, and the list is cut at its n_entries-th largest. A guess that was too
    high is repeated lower. Entries equal to the smallest winner all win.

    Args:
        z: inputs, fp32.
        W_enc: encoder, a row per latent, fp32.
        bias: the encoder's bias.
        n_entries: how many are wanted.
        keep: 0 for rows that take no part.
        floor: a guess below which no winner is expected, such as a bit less than the last batch's threshold; the
            result does not depend on it.
        score_dtype: precision of the product; see `select_above`.

    Returns:
        pre-activations of the winners in fp32, the entries, and the smallest winner (0 if fewer are positive).
    """
    factor = 2
    while True:
        if floor is None:
            floor = _guess(z[:_GUESS_ROWS], W_enc, bias, n_per_row=factor * n_entries / max(len(z), 1))
        floor = floor.clamp_min(0)
        pre, entries = select_above(z, W_enc, bias, floor, score_dtype=score_dtype)
        pre = torch.where(keep[entries.rows] > 0, pre, 0.0)
        enough = int((pre > 0).sum()) >= n_entries
        if enough or bool(floor == 0):
            break
        floor, factor = None, 4 * factor
    place = len(pre) - n_entries + 1
    threshold = pre.kthvalue(place).values if enough and n_entries else pre.new_zeros(())
    kept, entries = keep_entries(pre, entries, (pre >= threshold) & (pre > 0))
    return kept, entries, threshold


def _guess(z: Rows, W_enc: Weight, bias: Bias, *, n_per_row: float) -> Float[Tensor, ""]:
    """A floor above which a few rows have about n_per_row entries each; 0 where that is most of them."""
    if n_per_row * 2 >= len(W_enc):
        return bias.new_zeros(())
    pre = torch.addmm(bias, z, W_enc.t()).view(-1)
    return pre.topk(max(1, int(n_per_row * len(z))), sorted=False).values.min()


def keep_entries(
    values: Float[Tensor, " entries"], entries: SparseEntries, kept: Tensor
) -> tuple[Float[Tensor, " kept"], SparseEntries]:
    """The entries where `kept` is True, with their values."""
    places = kept.nonzero().squeeze(1)
    left = SparseEntries(entries.rows[places], entries.latents[places], entries.n_rows, entries.d_sae)
    return values[places], left


def rescore(z: Rows, W_enc: Weight, bias: Bias, entries: SparseEntries) -> Float[Tensor, " entries"]:
    """Pre-activations of the given entries only, in fp32."""
    return dot(z, entries.rows, W_enc, entries.latents) + bias[entries.latents]
