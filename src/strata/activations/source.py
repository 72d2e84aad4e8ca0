"""The one small interface through which both modes feed the trainer."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

SiteRows = dict[str, Float[Tensor, "rows _"]]
"""Rows by site; the same row of every site comes from the same token."""


@runtime_checkable
class ShuffledRows(Protocol):
    """Rows of one run in their shuffled order."""

    def sample(self, n_rows: int, *, site: str) -> Float[Tensor, "rows _"]:
        """At most n_rows shuffled rows of a site, for normalisation; they are still trained on afterwards."""
        ...

    def batches(self, start_step: int = 0) -> Iterator[SiteRows]:
        """One batch per step, from `start_step` on exactly those that an uninterrupted run would see."""
        ...

    def state(self, step: int) -> dict[str, Any]:
        """What spares `batches(step)` the work of finding its place again; empty where there is none to spare."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Be where `state` was taken; `batches` with its step then goes on at once."""
        ...


@runtime_checkable
class RowSource(Protocol):
    """Activations to train on: collected before, or made while training."""

    sites: list[str]

    def d_in(self, site: str) -> int:
        """Width of a site's rows."""
        ...

    def n_rows(self) -> int:
        """Rows of each site in one epoch."""
        ...

    def shuffled(self, *, batch_size: int, n_epochs: int, seed: int) -> ShuffledRows:
        """The rows of `n_epochs` epochs in batches of `batch_size`; an incomplete last batch is left out."""
        ...

    def describe(self) -> dict[str, Any]:
        """Model, text and fingerprints, JSON-able, for the run folder."""
        ...
