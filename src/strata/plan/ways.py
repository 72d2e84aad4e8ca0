"""The ways of a training that a plan compares: sources of rows, SAEs per layer and per group, numbers of devices."""

from dataclasses import dataclass
from typing import Any

from strata.amounts import counted
from strata.plan.pricing import Pricing
from strata.plan.quote import Quote, device_counts
from strata.plan.rows import STORE_TYPES, Source
from strata.plan.saes import layer_saes


@dataclass(frozen=True, kw_only=True)
class Ways:
    """All quotes of a plan.

    Attributes:
        described: the training as it was described, for 1, 2, 4 … devices.
        sources: the same SAEs on one device: streaming, collected in memory, a store of each type.
        groups: SAEs on all layers, by their number per config (1 … layers) the quotes for 1, 2, 4 … devices; empty
            where the layers are not known, and for transcoders, which have no groups.
    """

    described: list[Quote]
    sources: list[Quote]
    groups: dict[int, list[Quote]]

    def as_json(self) -> dict[str, Any]:
        """All numbers."""
        return {
            "described": [quote.as_json() for quote in self.described],
            "sources": [quote.as_json() for quote in self.sources],
            "groups": {str(k): [quote.as_json() for quote in quotes] for k, quotes in self.groups.items()},
        }


def ways_of(pricing: Pricing, source: Source) -> Ways:
    """All ways of a training.

    Args:
        pricing: of it.
        source: that was described.
    """
    subject, devices = pricing.subject, device_counts(pricing.options.n_devices)
    exists = subject.store is not None
    described = [_described(pricing, source, n_devices=n, exists=exists) for n in devices]
    sources = [described[0]]
    if subject.model.lm is not None:
        named: dict[Source, str] = {"stream": "streaming", "collected": "collected in memory"}
        named |= {dtype: f"store in {dtype}" for dtype in STORE_TYPES if dtype != source or not exists}
        sources += [pricing.quote(name, way) for way, name in named.items() if way != source]
    groups: dict[int, list[Quote]] = {}
    layers = [] if subject.targets else subject.layers
    for k in range(len(layers), 0, -1):
        saes = layer_saes(subject.configs, layers, subject.widths, n_groups=k)
        name = "one SAE per layer" if k == len(layers) else counted(k, "group")
        groups[k] = [pricing.quote(name, source, saes, n_devices=n, exists=exists) for n in devices]
    return Ways(described=described, sources=sources, groups=groups)


def shown_groups(n_layers: int) -> list[int]:
    """The numbers of groups that a table shows: all of a small model, else powers of two and the layers themselves."""
    if n_layers <= 12:
        return list(range(n_layers, 0, -1))
    return [n_layers, *reversed([2**power for power in range(n_layers.bit_length()) if 2**power < n_layers])]


def _described(pricing: Pricing, source: Source, *, n_devices: int, exists: bool) -> Quote:
    way = {"stream": "streaming", "collected": "collected in memory"}.get(source, f"from the store ({source})")
    return pricing.quote(f"as described: {way}", source, n_devices=n_devices, exists=exists)
