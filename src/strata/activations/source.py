"""The one small interface through which both modes feed the trainer."""

from collections.abc import Generator, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Shaped
from torch import Tensor

from strata.config.layer_groups import Group

SiteRows = dict[str, Shaped[Tensor, "rows ..."]]
"""Rows by site; the same row of every site comes from the same token. Of a group there are its rows, each from one of
its sites, by its name, and which these are by `layers_of(name)` (uint8)."""


def layers_of(group: str) -> str:
    """The key under which lies, for each row of a group, the number within it of the site that the row is from."""
    return f"{group}:layer"


@runtime_checkable
class ShuffledRows(Protocol):
    """Rows of one run in their shuffled order."""

    def sample(self, n_rows: int, *, site: str) -> Shaped[Tensor, "rows ..."]:
        """At most n_rows shuffled rows of a site (or another key of the batches), for normalisation; they are still
        trained on afterwards.
        """
        ...

    def batches(self, start_step: int = 0) -> Generator[SiteRows, None, None]:
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

    def shuffled(
        self, *, batch_size: int, n_epochs: int, seed: int, reads: Sequence[str | Group] | None = None
    ) -> ShuffledRows:
        """The rows of `n_epochs` epochs in batches of `batch_size`; an incomplete last batch is left out.

        Args:
            batch_size: rows per batch.
            n_epochs: passes.
            seed: of the order, and of the layers that a group's rows are drawn from.
            reads: what a batch holds, of sites and groups of them; None is every site.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Model, text and fingerprints, JSON-able, for the run folder."""
        ...
