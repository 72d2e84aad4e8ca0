"""The kernels in Triton, for CUDA devices; under Triton's interpreter (TRITON_INTERPRET=1) for a CPU, to test them.

`backend.Kernels` says what each function does. What is compiled is in `triton_select`, `triton_rows` and `triton_adam`;
here is what runs around it. Nothing here but `above` waits for the device. Lists may be padded: an entry whose latent
is d_sae counts nowhere (`padded`).
"""

import contextlib
import functools
import importlib.util
import math
import os
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.kernels import pytorch
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

# Scores of one chunk of rows: well inside the second-level cache of a large GPU (50 MB on an H200).
_CHUNK_BYTES = 32 * 2**20
_MOST_GROUPS = 8192  # of the two-level top-k, and of its candidates: what a program holds in registers
_ENTRIES, _COLUMNS = 16, 128  # of a tile: 2,048 numbers, 16 registers of each of 128 threads
_SCORES = 1024  # of a tile of scores
_PROGRAMS_PER_PROCESSOR = 8  # that walk over the latents in `adam_rows_`; not measured


def available() -> bool:
    """Whether Triton is installed, with a CUDA device or its interpreter to run on."""
    can_run = os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available()
    return can_run and importlib.util.find_spec("triton") is not None


def topk(
    z: Rows, W_enc: Weight, bias: Bias, k: int, *, score_dtype: torch.dtype
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """See `backend.Kernels.topk`. The vendor's matrix product, and one kernel that reads its scores from the cache.

    Where more groups would be needed than a program can hold (k above 8,192, or k and d_sae both large), `pytorch.topk`
    does it, with the rescoring here.
    """
    n_rows, d_sae = len(z), len(W_enc)
    values = z.new_empty(n_rows, k)
    latents = torch.empty(n_rows, k, dtype=torch.int64, device=z.device)
    for start, part in pytorch.scores(z, W_enc, bias, dtype=score_dtype, chunk_bytes=_CHUNK_BYTES):
        here = slice(start, start + len(part))
        if _groups(d_sae, k) is None:
            found, latents[here] = pytorch.topk_rows(part, k)
            values[here] = found
        else:
            _topk_of_rows(part, k, values=values[here], latents=latents[here])
    if score_dtype != z.dtype:
        rows = torch.arange(n_rows, device=z.device).repeat_interleave(k)
        values = _rescored(z, W_enc, bias, rows=rows, latents=latents.view(-1)).view_as(values)
    return values, latents


def product(z: Rows, W_enc: Weight, bias: Bias, *, score_dtype: torch.dtype) -> None:
    """See `backend.Kernels.product`."""
    for _ in pytorch.scores(z, W_enc, bias, dtype=score_dtype, chunk_bytes=_CHUNK_BYTES):
        pass


def _groups(d_sae: int, k: int) -> tuple[int, int] | None:
    """Number of groups of the two-level top-k and their members; None where a program cannot hold them.

    A power of two near √(k·d_sae), where both levels are about as large.
    """
    n_groups = _power_of_two(max(k, round(math.sqrt(k * d_sae)), 16))
    size = -(-d_sae // n_groups)
    fits = n_groups <= _MOST_GROUPS and _power_of_two(k) * _power_of_two(size) <= _MOST_GROUPS
    return (n_groups, size) if fits else None


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _topk_of_rows(scores: Tensor, k: int, *, values: Tensor, latents: Tensor) -> None:
    from strata.kernels import triton_select

    n_rows, d_sae = scores.shape
    shape = _groups(d_sae, k)
    assert shape is not None, "asked before"
    groups = torch.empty(n_rows, k, dtype=torch.int32, device=scores.device)
    with _on(scores):
        triton_select.topk_of_rows[(n_rows,)](
            *(scores, groups, values, latents, d_sae, k, shape[1]),
            N_GROUPS=shape[0],
            K=_power_of_two(k),
            SIZE=_power_of_two(shape[1]),
            SHIFT=0 if scores.dtype == torch.float32 else 16,
            **_launched(scores, n_warps=4 if shape[0] <= 2048 else 8),
        )


def above(
    z: Rows, W_enc: Weight, bias: Bias, floor: Float[Tensor, "..."], *, score_dtype: torch.dtype
) -> tuple[PerEntry, Places, Places]:
    """See `backend.Kernels.above`. Waits for the device, once or twice; a step calls `above_in` instead."""
    capacity = max(1024, 64 * len(z))
    while True:
        *lists, n_found = above_in(capacity, z, W_enc, bias, floor, score_dtype=score_dtype)
        if int(n_found) <= capacity:
            break
        capacity = int(n_found)
    pre, rows, latents = lists
    listed = (latents < len(W_enc)).nonzero().squeeze(1)
    return pre[listed], rows[listed], latents[listed]


def above_in(
    capacity: int, z: Rows, W_enc: Weight, bias: Bias, floor: Float[Tensor, "..."], *, score_dtype: torch.dtype
) -> tuple[PerEntry, Places, Places, Int[Tensor, ""]]:
    """What is above a floor, as `above`, in lists of fixed length, without waiting for the device.

    Args:
        capacity: length of the lists.
        z: inputs.
        W_enc: encoder.
        bias: of it.
        floor: one for all latents (0-d) or one for each.
        score_dtype: precision of the product; below fp32 what is near the floor is computed again.

    Returns:
        pre-activations (0 for padding), rows (ascending; n_rows after the last), latents (d_sae for padding, which may
        stand between others), and how many places were wanted. Where these are more than `capacity`, what came last
        is missing.
    """
    n_rows, d_sae = len(z), len(W_enc)
    exact = score_dtype == z.dtype
    limit = (floor if exact else pytorch.lowered(floor, z, W_enc, bias, score_dtype=score_dtype)).contiguous()
    pre = z.new_zeros(capacity)
    rows = torch.full((capacity,), n_rows, dtype=torch.int64, device=z.device)
    latents = torch.full((capacity,), d_sae, dtype=torch.int64, device=z.device)
    n_found = torch.zeros((), dtype=torch.int64, device=z.device)
    for start, part in pytorch.scores(z, W_enc, bias, dtype=score_dtype, chunk_bytes=_CHUNK_BYTES):
        n_found = _list_above(part, limit, n_found, first_row=start, lists=(pre, rows, latents))
    if not exact:
        pre = _rescored(z, W_enc, bias, rows=rows, latents=latents)
        kept = (latents < d_sae) & (pre > (floor[latents.clamp_max(d_sae - 1)] if floor.ndim else floor))
        pre, latents = torch.where(kept, pre, 0.0), torch.where(kept, latents, d_sae)
    return pre, rows, latents, n_found


def _list_above(
    scores: Tensor, limit: Tensor, n_before: Tensor, *, first_row: int, lists: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Write a chunk's entries behind those before it; gives how many there are now."""
    from strata.kernels import triton_select

    n_rows, d_sae = scores.shape
    counts = torch.empty(n_rows, dtype=torch.int64, device=scores.device)
    constants = {"PER_LATENT": limit.ndim, "TILE": min(_SCORES, _power_of_two(d_sae)), **_launched(scores)}
    with _on(scores):
        triton_select.count_above[(n_rows,)](scores, limit, counts, d_sae, **constants)
        ends = counts.cumsum(0) + n_before
        triton_select.list_above[(n_rows,)](
            scores, limit, ends - counts, *lists, first_row, d_sae, len(lists[0]), **constants
        )
    return ends[-1]


def _rescored(z: Tensor, W_enc: Tensor, bias: Tensor, *, rows: Tensor, latents: Tensor) -> Tensor:
    """Pre-activations of the given entries only, in fp32."""
    return dot(z, rows, W_enc, latents) + bias[latents.clamp_max(len(bias) - 1)]


def decode(
    values: PerEntry, latents: Places, starts: RowStarts, weight: Weight, *, end: Tensor | None = None
) -> Float[Tensor, "rows d_in"]:
    """See `backend.Kernels.decode`. `end` is where the last row's entries end, 0-d; the list's end if left out."""
    out = weight.new_empty(len(starts), weight.shape[1])
    _decode_rows(values, latents, starts, weight, end=end, out=out, target=out, keep=out, dots=None)
    return out


def residual(
    values: PerEntry,
    rows: Places,
    latents: Places,
    starts: RowStarts,
    weight: Weight,
    target: Rows,
    keep: Float[Tensor, " rows"],
    *,
    end: Tensor | None = None,
) -> tuple[Rows, PerEntry]:
    """See `backend.Kernels.residual`, in one kernel; `end` as for `decode`. Padding has the product 0."""
    out, dots = torch.empty_like(target), torch.zeros_like(values)
    _decode_rows(values, latents, starts, weight, end=end, out=out, target=target, keep=keep, dots=dots)
    return out, dots


def _decode_rows(
    values: Tensor,
    latents: Tensor,
    starts: Tensor,
    weight: Tensor,
    *,
    end: Tensor | None,
    out: Tensor,
    target: Tensor,
    keep: Tensor,
    dots: Tensor | None,
) -> None:
    from strata.kernels import triton_rows

    if len(starts) == 0:
        return
    last = starts.new_full((1,), len(values)) if end is None else end.view(1)
    with _on(weight):
        triton_rows.decode_rows[(len(starts),)](
            *(values, latents, torch.cat([starts, last]), weight, target, keep, out, out if dots is None else dots),
            *weight.shape,
            RESIDUAL=dots is not None,
            E=_ENTRIES,
            D=_COLUMNS,
            **_launched(weight),
        )


def dot(a: Float[Tensor, "bags d"], bags: Places, weight: Float[Tensor, "d_sae d"], latents: Places) -> PerEntry:
    """See `backend.Kernels.dot`. Padding has the product 0."""
    from strata.kernels import triton_rows

    out = a.new_empty(len(latents))
    if len(latents):
        with _on(weight):
            triton_rows.dot_entries[(-(-len(latents) // _ENTRIES),)](
                *(a, bags, weight, latents, out, len(latents)),
                *weight.shape,
                E=_ENTRIES,
                D=_COLUMNS,
                **_launched(weight),
            )
    return out


def by_latent(latents: Places, d_sae: int) -> tuple[Places, LatentStarts]:
    """See `backend.Kernels.by_latent`: the vendor's stable radix sort, over 16 bits where they are enough. Padding
    comes last, behind the end of the last latent.
    """
    narrow = torch.int16 if d_sae < 2**15 - 1 else torch.int32
    ordered, order = torch.sort(latents.to(narrow), stable=True)
    every = torch.arange(d_sae + 1, dtype=narrow, device=latents.device)
    return order, torch.searchsorted(ordered, every)


def row_sums(listed: ByLatent) -> Float[Tensor, "d_sae d"]:
    """See `backend.Kernels.row_sums`."""
    from strata.kernels import triton_rows

    inputs = listed.inputs
    d_sae, d = len(listed.starts) - 1, inputs.shape[1]
    columns = min(_COLUMNS, _power_of_two(d))
    out = inputs.new_empty(d_sae, d)
    lists = (listed.rows, listed.amounts, listed.starts, inputs)
    with _on(inputs):
        triton_rows.sum_latents[(d_sae, -(-d // columns))](
            *lists, out, len(inputs), d, E=_ENTRIES, D=columns, **_launched(inputs)
        )
    return out


@torch.no_grad()
def adam_rows_(
    held: AdamRows, listed: ByLatent, beside: WholeRows, *, rate: Float[Tensor, ""], step: Int[Tensor, ""]
) -> None:
    """See `backend.Kernels.adam_rows_`.

    Differs: of latents without a gradient nothing is read or written, not even a norm.
    """
    from strata.kernels import triton_adam

    weight = held.weight
    d_sae, d = weight.shape
    shares = torch.stack([1 - beta ** step.float() for beta in BETAS])
    n_programs = min(d_sae, _n_programs(weight.device))
    scratch = weight.new_empty(n_programs, d)
    with _on(weight):
        triton_adam.adam_latents[(n_programs,)](
            *(weight, held.first, held.second, held.last_step),
            *(listed.rows, listed.amounts, listed.starts, listed.inputs, beside.rows, beside.number_of),
            *(rate, step, shares, scratch, len(listed.inputs), d_sae, d),
            BETA_FIRST=BETAS[0],
            BETA_SECOND=BETAS[1],
            LOG_FIRST=math.log2(BETAS[0]),
            LOG_SECOND=math.log2(BETAS[1]),
            EPS=EPS,
            UNIT=held.unit_rows,
            E=_ENTRIES,
            D=_COLUMNS,
            **_launched(weight),
        )


@functools.cache
def _n_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return 2  # the interpreter: more than one, so that sharing out is tested
    properties = cast(Any, torch.cuda.get_device_properties(device))  # PyTorch states no types for it
    return _PROGRAMS_PER_PROCESSOR * int(properties.multi_processor_count)


def _launched(tensor: Tensor, *, n_warps: int = 4) -> dict[str, Any]:
    """Options of a launch: multiply and add are one instruction, whatever Triton's default becomes."""
    return {"enable_fp_fusion": True, "num_warps": n_warps} if tensor.is_cuda else {}


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
