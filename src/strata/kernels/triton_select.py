"""Triton kernels that read a chunk of scores: the k largest of each row, and all that are above a floor.

Scores come from the vendor's matrix product, a chunk of rows at a time that stays in the second-level cache.
"""

# Triton's language has no types: what a kernel is given are pointers and blocks of numbers.
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

# `no_type_check` keeps jaxtyping's import hook from wrapping what Triton compiles.
from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _keys(scores, SHIFT: tl.constexpr):
    """Integers in the order of the scores; with SHIFT 16 of scores that hold no more than bf16's bits. NaN is largest,
    as for `torch.topk`. The lowest integer is left for places that hold no score.
    """
    bits = scores.to(tl.float32).to(tl.int32, bitcast=True)
    ordered = tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF) >> SHIFT
    return tl.maximum(ordered, 1 - (1 << (31 - SHIFT)))


@triton.jit
@no_type_check
def _winners(keys, k, SHIFT: tl.constexpr):
    """Which are the k largest of [n] keys: exactly k, the first of those that tie.

    The k-th largest is found bit by bit from the highest.
    """
    n_positive = tl.sum((keys >= 0).to(tl.int32), 0)
    kth = tl.where(n_positive >= k, 0, -(1 << (31 - SHIFT)))
    for place in range(31 - SHIFT):
        higher = kth + (1 << (30 - SHIFT - place))
        n_above = tl.sum((keys >= higher).to(tl.int32), 0)
        kth = tl.where(n_above >= k, higher, kth)
    above, tied = keys > kth, keys == kth
    room = k - tl.sum(above.to(tl.int32), 0)
    return above | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= room))


@triton.jit
@no_type_check
def topk_of_rows(
    scores,
    groups,
    values,
    latents,
    d_sae,
    k,
    size,
    N_GROUPS: tl.constexpr,
    K: tl.constexpr,
    SIZE: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """The k largest of a row: the k groups with the largest maxima, then the k largest of these groups' members.

    Latent j belongs to group j mod N_GROUPS. At most k - 1 groups have a maximum above the k-th largest one, and the
    chosen groups hold k members that reach it; so they hold the k largest, ties included. N_GROUPS, K and SIZE are
    powers of two, at least k and `size`, the members of a group.
    """
    row = tl.program_id(0).to(tl.int64)
    lowest = -(1 << (31 - SHIFT))
    group = tl.arange(0, N_GROUPS)
    largest = tl.full([N_GROUPS], lowest, tl.int32)
    for member in range(size):
        latent = member * N_GROUPS + group
        known = latent < d_sae
        score = tl.load(scores + row * d_sae + latent, mask=known, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.where(known, _keys(score, SHIFT), lowest))
    won = _winners(largest, k, SHIFT)
    place = tl.cumsum(won.to(tl.int32), 0) - 1
    tl.store(groups + row * k + place, group, mask=won)
    tl.debug_barrier()

    candidate = tl.arange(0, K * SIZE)
    slot = candidate % K
    group_of = tl.load(groups + row * k + slot, mask=slot < k, other=0)
    latent = (candidate // K) * N_GROUPS + group_of
    known = (slot < k) & (latent < d_sae)
    score = tl.load(scores + row * d_sae + latent, mask=known, other=0.0).to(tl.float32)
    won = _winners(tl.where(known, _keys(score, SHIFT), lowest), k, SHIFT)
    place = tl.cumsum(won.to(tl.int32), 0) - 1
    tl.store(values + row * k + place, score, mask=won)
    tl.store(latents + row * k + place, latent.to(tl.int64), mask=won)


@triton.jit
@no_type_check
def count_above(scores, limit, counts, d_sae, PER_LATENT: tl.constexpr, TILE: tl.constexpr):
    """How many scores of a row are above a limit, one for all latents or one for each."""
    row = tl.program_id(0).to(tl.int64)
    found = tl.full([TILE], 0, tl.int32)
    for first in range(0, d_sae, TILE):
        latent = first + tl.arange(0, TILE)
        known = latent < d_sae
        score = tl.load(scores + row * d_sae + latent, mask=known, other=0.0).to(tl.float32)
        bound = tl.load(limit + latent * PER_LATENT, mask=known, other=0.0).to(tl.float32)
        found += (known & (score > bound)).to(tl.int32)
    tl.store(counts + row, tl.sum(found, 0).to(tl.int64))


@triton.jit
@no_type_check
def list_above(
    scores,
    limit,
    places,
    values,
    rows,
    latents,
    first_row,
    d_sae,
    capacity,
    PER_LATENT: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write what `count_above` counted to a row's places in the list, in the order of latents; what lies beyond the
    list's capacity is left out.
    """
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(places + row)
    for first in range(0, d_sae, TILE):
        latent = first + tl.arange(0, TILE)
        known = latent < d_sae
        score = tl.load(scores + row * d_sae + latent, mask=known, other=0.0).to(tl.float32)
        bound = tl.load(limit + latent * PER_LATENT, mask=known, other=0.0).to(tl.float32)
        above = (known & (score > bound)).to(tl.int32)
        mine = place + tl.cumsum(above, 0) - 1
        fits = (above > 0) & (mine < capacity)
        tl.store(values + mine, score, mask=fits)
        tl.store(rows + mine, tl.full([TILE], 0, tl.int64) + first_row + row, mask=fits)
        tl.store(latents + mine, latent.to(tl.int64), mask=fits)
        place += tl.sum(above, 0).to(tl.int64)
