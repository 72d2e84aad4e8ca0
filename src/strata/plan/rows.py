"""What a row costs until it is in a training batch: the language model, disks, copies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from strata.activations.quantization import STORE_DTYPES, bytes_per_row
from strata.costs.step import Rates
from strata.plan.saes import PlannedSAE

StoreType = Literal["fp32", "bf16", "fp16", "int8"]
Source = Literal["stream", "collected"] | StoreType
"""Where rows come from: made while training, made before and kept in memory, or a store of a type."""

_TO_DEVICE_BYTES_PER_SECOND = 25e9  # PCIe 4 with 16 lanes, four fifths of it: an assumption
_CACHED_SHARE = 0.5  # of the memory: a store below it is read from the disk once, then from the system's cache


def store_type(dtype: str) -> StoreType:
    """A store's type, one of `STORE_DTYPES`."""
    return next(known for known in get_args(StoreType) if known == dtype)


STORE_TYPES: tuple[StoreType, ...] = tuple(store_type(dtype) for dtype in STORE_DTYPES)


@dataclass(frozen=True, kw_only=True)
class RowShape:
    """What a token leaves.

    Attributes:
        widths: of every site that is read, in the order of reading.
        n_numbers: of all that a training batch holds of it: of a group one layer's row, of sites that several SAEs
            share one row.
    """

    widths: Mapping[str, int]
    n_numbers: int

    @property
    def n_kept(self) -> int:
        """Numbers of all that is kept of it where rows are collected: every site's row, of groups too."""
        return sum(self.widths.values())

    def stored_bytes(self, dtype: str) -> int:
        """Of a token on disk."""
        return sum(bytes_per_row(dtype, d_in) for d_in in self.widths.values())


def row_shape(saes: Sequence[PlannedSAE], widths: Mapping[str, int], *, targets: Sequence[str] = ()) -> RowShape:
    """What some SAEs need of a token.

    Args:
        saes: all that are trained side by side.
        widths: of every site that they may read.
        targets: sites that transcoders predict.
    """
    reads = dict.fromkeys([*(sae.sites for sae in saes), *((site,) for site in targets)])
    sites = dict.fromkeys(site for read in reads for site in read)
    return RowShape(widths={site: widths[site] for site in sites}, n_numbers=sum(widths[read[0]] for read in reads))


def copied_bytes(shape: RowShape, source: Source, *, itemsize: int) -> float:
    """Bytes that a row moves in memory, reads and writes together.

    Into the shuffle buffer (or a store's window) and out of it, or out of the collected rows, each once read and once
    written.
    """
    size = itemsize if source == "stream" else 4
    return float((2 if source == "collected" else 4) * size * shape.n_numbers)


def waiting_seconds(
    shape: RowShape,
    source: Source,
    rates: Rates,
    *,
    forward: float | None,
    itemsize: int,
    n_rows: int,
    n_epochs: int = 1,
) -> dict[str, float | None]:
    """Seconds per row that the training waits for it, nothing overlapping.

    Args:
        shape: of the row.
        source: where it comes from; collecting is not in it.
        rates: of the machine.
        forward: seconds of the language model per token; None where it is not known.
        itemsize: bytes of a number as the language model gives it.
        n_rows: rows of an epoch.
        n_epochs: over which the reading of a store that fits the system's cache spreads.

    Returns:
        ``language model``, ``disk`` and ``copies``, those of them that there are.
    """
    seconds: dict[str, float | None] = {}
    if source == "stream":
        seconds["language model"] = forward
    elif source != "collected":
        n_bytes = shape.stored_bytes(source)
        cached = n_bytes * n_rows <= _CACHED_SHARE * rates.memory_bytes
        seconds["disk"] = n_bytes / rates.disk_read_bytes_per_second / (n_epochs if cached else 1)
    copies = copied_bytes(shape, source, itemsize=itemsize) / rates.copy_bytes_per_second
    if rates.device_bytes and source != "stream":
        copies += 4 * shape.n_numbers / _TO_DEVICE_BYTES_PER_SECOND
    return {**seconds, "copies": copies}
