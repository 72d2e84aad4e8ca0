"""Triton kernels over lists of entries: decoding with the loss's residual, products per entry, sums per latent.

Plain fp32 arithmetic in a fixed order, so that two runs are equal bit for bit. Tiles of [E D] walk over a row's (or a
latent's) entries and over d; no d is padded to a power of two. An entry whose latent is d_sae is padding and counts
nowhere.
"""

# Triton's language has no types: what a kernel is given are pointers and blocks of numbers.
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def weighted_rows(
    amounts, numbers, first, last, matrix, n_numbers, d, column, inside, E: tl.constexpr, D: tl.constexpr
):
    """Σ of amount · matrix[number] over the entries from `first` to before `last`, of the given columns, [D]."""
    total = tl.full([D], 0.0, tl.float32)
    for at in range(first, last, E):
        entry = at + tl.arange(0, E)
        number = tl.load(numbers + entry, mask=entry < last, other=n_numbers)
        listed = number < n_numbers
        amount = tl.load(amounts + entry, mask=listed, other=0.0)
        row = tl.load(matrix + number[:, None] * d + column[None, :], mask=listed[:, None] & inside[None, :], other=0.0)
        total += tl.sum(amount[:, None] * row, 0)
    return total


@triton.jit
@no_type_check
def decode_rows(
    values,
    latents,
    bounds,
    weight,
    target,
    keep,
    out,
    dots,
    d_sae,
    d,
    RESIDUAL: tl.constexpr,
    E: tl.constexpr,
    D: tl.constexpr,
):
    """Of one row what its entries decode to; with RESIDUAL (target − that) · keep, and ⟨that, weight[latent]⟩ of each
    entry while the weight's rows are still in the cache.
    """
    row = tl.program_id(0).to(tl.int64)
    first, last = tl.load(bounds + row), tl.load(bounds + row + 1)
    for left in range(0, d, D):
        column = left + tl.arange(0, D)
        inside = column < d
        found = weighted_rows(values, latents, first, last, weight, d_sae, d, column, inside, E, D)
        if RESIDUAL:
            wanted = tl.load(target + row * d + column, mask=inside, other=0.0)
            found = (wanted - found) * tl.load(keep + row)
        tl.store(out + row * d + column, found, mask=inside)
    if RESIDUAL:
        tl.debug_barrier()  # other threads of this row's program wrote what is read now
        for at in range(first, last, E):
            entry = at + tl.arange(0, E)
            latent = tl.load(latents + entry, mask=entry < last, other=d_sae)
            listed = latent < d_sae
            found_dots = tl.full([E], 0.0, tl.float32)
            for left in range(0, d, D):
                column = left + tl.arange(0, D)
                inside = column < d
                rest = tl.load(out + row * d + column, mask=inside, other=0.0)
                mask = listed[:, None] & inside[None, :]
                found_dots += tl.sum(
                    tl.load(weight + latent[:, None] * d + column[None, :], mask=mask, other=0.0) * rest[None, :], 1
                )
            tl.store(dots + entry, found_dots, mask=listed)


@triton.jit
@no_type_check
def dot_entries(a, bags, weight, latents, out, n_entries, d_sae, d, E: tl.constexpr, D: tl.constexpr):
    """⟨a[bag], weight[latent]⟩ of E entries; 0 for padding."""
    entry = tl.program_id(0).to(tl.int64) * E + tl.arange(0, E)
    latent = tl.load(latents + entry, mask=entry < n_entries, other=d_sae)
    listed = latent < d_sae
    bag = tl.load(bags + entry, mask=listed, other=0)
    found = tl.full([E], 0.0, tl.float32)
    end = d * tl.max(listed.to(tl.int32), 0)  # nothing is left to do where all are padding
    for left in range(0, end, D):
        column = left + tl.arange(0, D)
        mask = listed[:, None] & (column < d)[None, :]
        mine = tl.load(a + bag[:, None] * d + column[None, :], mask=mask, other=0.0)
        found += tl.sum(mine * tl.load(weight + latent[:, None] * d + column[None, :], mask=mask, other=0.0), 1)
    tl.store(out + entry, found, mask=entry < n_entries)


@triton.jit
@no_type_check
def sum_latents(rows, amounts, starts, inputs, out, n_rows, d, E: tl.constexpr, D: tl.constexpr):
    """Σ over one latent's entries of amount · inputs[row], D columns of it."""
    latent = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * D + tl.arange(0, D)
    inside = column < d
    first, last = tl.load(starts + latent), tl.load(starts + latent + 1)
    found = weighted_rows(amounts, rows, first, last, inputs, n_rows, d, column, inside, E, D)
    tl.store(out + latent * d + column, found, mask=inside)
