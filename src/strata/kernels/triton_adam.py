"""The Triton kernel that ends a step: gradient, projection, Adam and norm by latent, with no gradient matrix."""

# Triton's language has no types: what a kernel is given are pointers and blocks of numbers.
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from typing import no_type_check

import triton
import triton.language as tl

from strata.kernels.triton_rows import weighted_rows


@triton.jit
@no_type_check
def _to_unit_norm(weight, latent, d, norm, D: tl.constexpr):
    """Divide a latent's row by its norm; one without direction becomes a unit vector of the axes."""
    for left in range(0, d, D):
        column = left + tl.arange(0, D)
        inside = column < d
        mine = tl.load(weight + latent * d + column, mask=inside, other=0.0)
        axis = (column == latent % d).to(tl.float32)
        mine = tl.where(norm == 0, axis, mine / tl.where(norm == 0, 1.0, norm))
        tl.store(weight + latent * d + column, mine, mask=inside)


@triton.jit
@no_type_check
def _gradient(
    weight,
    rows,
    amounts,
    first,
    last,
    inputs,
    beside,
    whole,
    scratch,
    latent,
    n_rows,
    d,
    UNIT: tl.constexpr,
    E: tl.constexpr,
    D: tl.constexpr,
):
    """Write a latent's gradient, its entries' and its whole row if `whole` is not negative, to the program's row of
    `scratch`; gives the part of it along the weight's row, 0 without UNIT.
    """
    along = tl.full([D], 0.0, tl.float32)
    for left in range(0, d, D):
        column = left + tl.arange(0, D)
        inside = column < d
        found = weighted_rows(amounts, rows, first, last, inputs, n_rows, d, column, inside, E, D)
        given = inside & (whole + 0 * column >= 0)
        found += tl.load(beside + tl.maximum(whole, 0) * d + column, mask=given, other=0.0)
        tl.store(scratch + column, found, mask=inside)
        if UNIT:
            along += found * tl.load(weight + latent * d + column, mask=inside, other=0.0)
    return tl.sum(along, 0)


@triton.jit
@no_type_check
def _step(
    weight,
    first_moment,
    second_moment,
    scratch,
    latent,
    d,
    projection,
    keep_first,
    keep_second,
    share_first,
    share_second,
    rate,
    BETA_FIRST: tl.constexpr,
    BETA_SECOND: tl.constexpr,
    EPS: tl.constexpr,
    UNIT: tl.constexpr,
    D: tl.constexpr,
):
    """Adam on one latent's row, with the gradient in `scratch`; gives the square of the row's norm afterwards."""
    squares = tl.full([D], 0.0, tl.float32)
    for left in range(0, d, D):
        column = left + tl.arange(0, D)
        inside = column < d
        place = latent * d + column
        mine = tl.load(weight + place, mask=inside, other=0.0)
        gradient = tl.load(scratch + column, mask=inside, other=0.0)
        if UNIT:
            gradient -= projection * mine
        mean = tl.load(first_moment + place, mask=inside, other=0.0)
        mean = mean * keep_first + gradient * (1 - BETA_FIRST)
        square = tl.load(second_moment + place, mask=inside, other=0.0)
        square = square * keep_second + gradient * gradient * (1 - BETA_SECOND)
        mine -= rate * (mean / share_first) / (tl.sqrt(square / share_second) + EPS)
        tl.store(first_moment + place, mean, mask=inside)
        tl.store(second_moment + place, square, mask=inside)
        tl.store(weight + place, mine, mask=inside)
        squares += tl.where(inside, mine * mine, 0.0)
    return tl.sum(squares, 0)


@triton.jit
@no_type_check
def adam_latents(
    weight,
    first_moment,
    second_moment,
    last_step,
    rows,
    amounts,
    starts,
    inputs,
    beside,
    number_of,
    rate,
    step,
    shares,
    scratch,
    n_rows,
    d_sae,
    d,
    BETA_FIRST: tl.constexpr,
    BETA_SECOND: tl.constexpr,
    LOG_FIRST: tl.constexpr,
    LOG_SECOND: tl.constexpr,
    EPS: tl.constexpr,
    UNIT: tl.constexpr,
    E: tl.constexpr,
    D: tl.constexpr,
):
    """Gradient, projection, Adam and norm of the latents that have a gradient, one after the other: each program takes
    every n-th latent. The gradient of the latent at hand lies in the program's own row of `scratch`, [programs d].

    `shares` are 1 − β₁ᵗ and 1 − β₂ᵗ; LOG_FIRST and LOG_SECOND the betas' logarithms to base 2. A latent in all rows is
    one program's work: it lasts as long as its list.
    """
    program = tl.program_id(0).to(tl.int64)
    own = scratch + program * d
    now = tl.load(step)
    pace, share_first, share_second = tl.load(rate), tl.load(shares), tl.load(shares + 1)
    for number in range(tl.program_id(0), d_sae, tl.num_programs(0)):
        latent = program * 0 + number  # in 64 bits
        first, last = tl.load(starts + latent), tl.load(starts + latent + 1)
        whole = tl.load(number_of + latent).to(tl.int64)
        if (last > first) | (whole >= 0):
            along = _gradient(
                weight, rows, amounts, first, last, inputs, beside, whole, own, latent, n_rows, d, UNIT, E, D
            )
            passed = (now - tl.load(last_step + latent)).to(tl.float32)
            tl.debug_barrier()  # before another thread writes the step or reads the scratch
            keep_first, keep_second = tl.exp2(passed * LOG_FIRST), tl.exp2(passed * LOG_SECOND)
            squares = _step(
                weight, first_moment, second_moment, own, latent, d, along, keep_first, keep_second,
                share_first, share_second, pace, BETA_FIRST, BETA_SECOND, EPS, UNIT, D,
            )  # fmt: skip
            tl.store(last_step + latent, now)
            if UNIT:
                tl.debug_barrier()
                _to_unit_norm(weight, latent, d, tl.sqrt(squares), D)
            tl.debug_barrier()  # before the scratch is written again
