"""One way to do a training, with its price: operations, bytes, memory, disk, seconds, money."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from strata.amounts import sized
from strata.config.plan import PlanOptions
from strata.plan.rows import Source

COLLECTING = "collecting: "
"""How the parts of `Quote.seconds` begin that a store costs once, however often it is trained from."""


@dataclass(frozen=True, kw_only=True)
class Excess:
    """Something that does not fit.

    Attributes:
        what: "RAM", "device memory" or "disk".
        part: what most of it is for.
        needed_bytes: of it.
        there_bytes: that there are.
    """

    what: str
    part: str
    needed_bytes: float
    there_bytes: float

    def __str__(self) -> str:
        needed, there = sized(self.needed_bytes, "B"), sized(self.there_bytes, "B")
        return f"it takes {needed} of {self.what} and there are {there}; most of it is for the {self.part}"


@dataclass(frozen=True, kw_only=True)
class Quote:
    """What one way costs.

    Attributes:
        name: in words.
        source: where rows come from.
        n_devices: that share the work.
        n_saes: SAEs that are trained.
        n_sites: sites that they cover.
        lm_flops: of the language model's passes over training rows; None where the model is not known.
        sae_flops: of the SAE steps.
        n_bytes: that travel between memory or disk and processors.
        ram_bytes: by part, at the peak.
        device_bytes: by part, at the peak, of the fullest device; empty without one.
        disk_bytes: by part, at the peak.
        seconds: by part; None where one is not known. Parts of collecting a store begin with `COLLECTING`.
        price_per_second: of all devices together; None without a price.
        excesses: what does not fit; nothing if it does.
    """

    name: str
    source: Source
    n_devices: int = 1
    n_saes: int
    n_sites: int
    lm_flops: float | None
    sae_flops: float
    n_bytes: float
    ram_bytes: Mapping[str, float]
    device_bytes: Mapping[str, float] = field(default_factory=dict[str, float])
    disk_bytes: Mapping[str, float]
    seconds: Mapping[str, float | None]
    price_per_second: float | None = None
    excesses: tuple[Excess, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether memory and disk suffice."""
        return not self.excesses

    @property
    def total_seconds(self) -> float | None:
        """Of one training, collecting included; None where a part is not known."""
        return self.seconds_of(1)

    def seconds_of(self, n_trainings: int) -> float | None:
        """Of several trainings from the same activations, which are collected once; None where a part is not known."""
        total = 0.0
        for part, spent in self.seconds.items():
            if spent is None:
                return None
            total += spent if part.startswith(COLLECTING) else n_trainings * spent
        return total

    @property
    def price(self) -> float | None:
        """Of one training."""
        total = self.total_seconds
        return None if total is None or self.price_per_second is None else total * self.price_per_second

    def as_json(self) -> dict[str, Any]:
        """All numbers."""
        return {
            "name": self.name,
            "source": self.source,
            "n_devices": self.n_devices,
            "n_saes": self.n_saes,
            "n_sites": self.n_sites,
            "lm_flops": self.lm_flops,
            "sae_flops": self.sae_flops,
            "n_bytes": self.n_bytes,
            "ram_bytes": dict(self.ram_bytes),
            "device_bytes": dict(self.device_bytes),
            "disk_bytes": dict(self.disk_bytes),
            "seconds": dict(self.seconds),
            "total_seconds": self.total_seconds,
            "price": self.price,
            "fits": self.fits,
            "reasons": [str(excess) for excess in self.excesses],
        }


def price_per_second(options: PlanOptions, *, n_devices: int = 1) -> float | None:
    """Of all devices together; None without a price."""
    per_hour = options.price_per_hour
    return None if per_hour == "none" else n_devices * per_hour / 3600


def device_counts(most: int) -> list[int]:
    """1, 2, 4 … and the most itself."""
    powers = [2**power for power in range(int(math.log2(most)) + 1)]
    return sorted({*powers, most})
