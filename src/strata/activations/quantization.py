"""How rows lie on disk: as fp32, fp16 or bf16, or as int8 with a scale per row and outlier channels kept apart."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.errors import UserError, did_you_mean

PLAIN_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
STORE_DTYPES = (*PLAIN_DTYPES, "int8")

_LEVELS = 127.0  # int8 from −127 to 127: symmetric, so that the centre is exact
_MOST_OUTLIERS = 1 / 16  # of the channels: 12.5 % more bytes at worst
# Decoded at a time: torch keeps operations on fewer values in the calling thread. Larger ones start a pool of threads
# for every thread that calls, and these get in each other's and the training's way.
_SERIAL_VALUES = 32_767

Parts = dict[str, Tensor]
"""The tensors that hold some rows, by what they hold: "rows", and for int8 "scale" and "outliers"; all [rows ...]."""


@dataclass(frozen=True)
class Plain:
    """Rows as they are, in one of three floating-point types.

    Attributes:
        dtype: "fp32", "fp16" or "bf16".
    """

    dtype: str

    @property
    def parts(self) -> tuple[str, ...]:
        """The rows alone."""
        return ("rows",)

    def encode(self, x: Float[Tensor, "rows d_in"], *, site: str) -> Parts:
        """The rows in that type.

        Raises:
            UserError: rows that are not finite, or too large for fp16.
        """
        check_finite(x, site=site)
        rows = x.to(PLAIN_DTYPES[self.dtype])
        if self.dtype == "fp16" and not bool(rows.isfinite().all()):
            raise UserError(
                f'`dtype` "fp16" is too narrow for the activations of {site}, which reach {x.abs().max().item():.0f}.'
                ' Use dtype="bf16" or "fp32".'
            )
        return {"rows": rows.contiguous()}

    def decode(self, parts: Parts, *, out: Tensor | None = None) -> Float[Tensor, "rows d_in"]:
        """The rows in the stored type, without a copy: `out` is not needed."""
        return parts["rows"]


@dataclass(frozen=True)
class Int8:
    """x ≈ centre + scale · q with q in [−127, 127] and one scale per row; a few channels as fp16 instead.

    A row's scale is set by its largest channel, and in language models that is one of the same few channels in nearly
    every row: around its mean (attention sinks aside), and in fp16, such a channel costs the others nothing.

    Attributes:
        centre: what is subtracted from every row, fp32.
        outliers: the channels kept as fp16, in rising order; their q is 0.
    """

    centre: Float[Tensor, " d_in"]
    outliers: Int[Tensor, " outliers"]

    @property
    def parts(self) -> tuple[str, ...]:
        """The rows' q, their scales, and where there are outlier channels, those."""
        return ("rows", "scale", "outliers") if len(self.outliers) else ("rows", "scale")

    @classmethod
    def fit(cls, x: Float[Tensor, "rows d_in"]) -> "Int8":
        """Centre and outlier channels for rows like these.

        The centre is the median row, which sinks do not move. Channels are kept apart in the order of their spread
        while they are worth their bytes: of 0, 1, 2, 4 … d_in/16 channels those are taken whose squared error is least
        when it is charged what the same bytes would buy if every channel had them (a bit for each: a quarter of it).

        Args:
            x: some thousands of shuffled rows.
        """
        x = x.float()
        centre = x.median(0).values
        distance = (x - centre).abs_()
        d_in = x.shape[1]
        # The mean of magnitudes to the fourth: which channels are often far out, not which are wide.
        size = distance / distance.mean(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        order = size.pow(4).mean(0).argsort(descending=True)
        charged: dict[int, float] = {}
        for n_outliers in _candidates(d_in):
            rest = distance[:, order[n_outliers:]]
            error = (rest.amax(1) / distance.mean(1).clamp_min(torch.finfo(torch.float32).tiny)).square().mean().item()
            charged[n_outliers] = error * 4 ** (8 * n_outliers / d_in)
        best = min(charged, key=lambda n: charged[n])
        return cls(centre=centre, outliers=order[:best].sort().values)

    def encode(self, x: Float[Tensor, "rows d_in"], *, site: str) -> Parts:
        """Centred, scaled and rounded to the nearest.

        Raises:
            UserError: rows that are not finite, or outlier channels too large for fp16.
        """
        check_finite(x, site=site)
        centred = x.float() - self.centre.to(x.device)
        places = self.outliers.to(x.device)
        apart = centred[:, places].half()
        if not bool(apart.isfinite().all()):
            raise UserError(
                f'`dtype` "int8" keeps outlier channels as fp16, which is too narrow for the activations of {site}. Use'
                ' dtype="bf16" or "fp32".'
            )
        centred[:, places] = 0.0
        scale = centred.abs().amax(1) / _LEVELS
        q = (centred / torch.where(scale > 0, scale, 1.0)[:, None]).round_().to(torch.int8)
        parts = {"rows": q, "scale": scale}
        return parts | {"outliers": apart.contiguous()} if len(places) else parts

    def decode(self, parts: Parts, *, out: Float[Tensor, "rows d_in"] | None = None) -> Float[Tensor, "rows d_in"]:
        """The rows, fp32, in `out` where that is given; by the calling thread alone, since several decode at once."""
        q = parts["rows"]
        x = torch.empty(q.shape, dtype=torch.float32) if out is None else out
        n_rows = max(1, _SERIAL_VALUES // x.shape[1])
        pieces = (torch.split(tensor, n_rows) for tensor in (x, q, parts["scale"].reshape(-1, 1)))
        for some, stored, scale in zip(*pieces, strict=True):
            torch.addcmul(self.centre, some.copy_(stored), scale, out=some)
        if "outliers" in parts:
            apart = parts["outliers"].numpy() + self.centre[self.outliers].numpy()
            x.numpy()[:, self.outliers.numpy()] = apart
        return x


Encoding = Plain | Int8
"""A site's way from rows to the tensors of a shard and back."""


def tensor_name(site: str, part: str) -> str:
    """What a shard calls a tensor of a site: as the site where it holds the rows."""
    return site if part == "rows" else f"{site}:{part}"


def check_dtype(dtype: str) -> None:
    """That rows can be stored in this type.

    Raises:
        UserError: they cannot.
    """
    if dtype not in STORE_DTYPES:
        raise UserError(
            f"`dtype` must be one of {', '.join(STORE_DTYPES)}. Got {dtype!r}.{did_you_mean(dtype, STORE_DTYPES)}"
        )


def check_finite(x: Float[Tensor, "rows d_in"], *, site: str) -> None:
    """That rows can be stored at all.

    Raises:
        UserError: some are NaN or infinite.
    """
    if not bool(torch.isfinite(x).all()):
        raise UserError(
            f"Activations must be finite numbers. {site} holds NaN or infinity. Load the language model in fp32 or"
            " bf16."
        )


def bytes_per_row(dtype: str, d_in: int) -> int:
    """What a row of a site takes on disk, in bytes; for int8 without its outlier channels."""
    return d_in + 4 if dtype == "int8" else d_in * PLAIN_DTYPES[dtype].itemsize


def _candidates(d_in: int) -> list[int]:
    most = int(d_in * _MOST_OUTLIERS)
    return [0, *(2**power for power in range(int(math.log2(most)) + 1 if most else 0))]
