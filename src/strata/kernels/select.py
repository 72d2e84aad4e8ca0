"""Selection: the one dense product of a step, and which of its scores become entries. The scores themselves never
live longer than a chunk of rows.

Weights are held feature by feature, [d_sae d_in], so that a latent's row is contiguous.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.kernels import triton
from strata.kernels.backend import kernels
from strata.kernels.capacity import Capacity
from strata.kernels.entries import SparseEntries
from strata.kernels.padded import PaddedEntries

Weight = Float[Tensor, "d_sae d_in"]
Rows = Float[Tensor, "rows d_in"]
Bias = Float[Tensor, " d_sae"]
Values = Float[Tensor, "rows k"]
Indices = Int[Tensor, "rows k"]

_GUESS_ROWS = 256


def lists_are_padded(device: torch.device) -> bool:
    """Whether a step's lists have a fixed length, so that nobody waits for the device to count their entries."""
    return kernels(device) is triton


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
    return kernels(z.device).topk(z, W_enc, bias, k, score_dtype=score_dtype)


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
            the right ones stay.

    Returns:
        the pre-activations in fp32 and the entries, in the order of rows, then latents.
    """
    floor = torch.as_tensor(floor, dtype=z.dtype, device=z.device)
    pre, rows, latents = kernels(z.device).above(z, W_enc, bias, floor, score_dtype=score_dtype)
    return pre, SparseEntries(rows, latents, len(z), len(W_enc))


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


def select_above_in(
    capacity: Capacity,
    z: Rows,
    W_enc: Weight,
    bias: Bias,
    floor: Bias | Float[Tensor, ""],
    *,
    score_dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, " entries"], PaddedEntries]:
    """As `select_above`, in a list of the length that `capacity` says, without waiting for the device."""
    pre, rows, latents, count = triton.above_in(capacity.size, z, W_enc, bias, floor, score_dtype=score_dtype)
    capacity.note(count)
    return pre, PaddedEntries(rows, latents, len(z), len(W_enc))


def select_batch_topk_in(
    capacity: Capacity,
    z: Rows,
    W_enc: Weight,
    bias: Bias,
    *,
    k: int,
    keep: Float[Tensor, " rows"],
    floor: Float[Tensor, ""] | None,
    score_dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, " entries"], PaddedEntries, Float[Tensor, ""]]:
    """As `select_batch_topk` with k entries for each row that counts, without waiting for the device.

    Differs: what a floor that was too high left out stays out, and the next floor is half of it.

    Args:
        capacity: length of the list.
        z: inputs, fp32.
        W_enc: encoder, a row per latent, fp32.
        bias: the encoder's bias.
        k: entries wanted for each row that counts.
        keep: 0 for rows that take no part.
        floor: as it was returned for the last batch; None for the first.
        score_dtype: precision of the product; see `select_above`.

    Returns:
        pre-activations of the winners in fp32 (0 for padding), the entries, and the next floor.
    """
    if floor is None:
        floor = _guess(z[:_GUESS_ROWS], W_enc, bias, n_per_row=2.0 * k)
    floor = floor.clamp_min(0)
    pre, entries = select_above_in(capacity, z, W_enc, bias, floor, score_dtype=score_dtype)
    pre = torch.where(entries.per_row(keep) > 0, pre, 0.0)
    last = (k * keep.sum().long()).clamp(1, len(pre)) - 1
    threshold = pre.sort(descending=True).values.index_select(0, last.view(1)).squeeze(0).clamp_min(0)
    won = (pre >= threshold) & (pre > 0)
    return torch.where(won, pre, 0.0), entries.kept(won), torch.where(threshold > 0, 0.9 * threshold, 0.5 * floor)


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
