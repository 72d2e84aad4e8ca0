"""Activations in memory: rows by site, as `collect_activations` gives them."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.activations.draws import Draws, join, places
from strata.activations.source import SiteRows
from strata.config.layer_groups import Group
from strata.errors import UserError, did_you_mean


class Activations(Mapping[str, Tensor]):
    """Rows of one or more sites; the same row of every site comes from the same token.

    Args:
        rows: for each site a Tensor [rows d_in]; the same number of rows for all.
        origin: model, text and fingerprints, JSON-able.

    Raises:
        UserError: no site, or different numbers of rows.
    """

    def __init__(self, rows: dict[str, Float[Tensor, "rows _"]], *, origin: dict[str, Any] | None = None) -> None:
        counts = {site: len(tensor) for site, tensor in rows.items()}
        if len(set(counts.values())) != 1:
            raise UserError(f"Activations need at least one site and the same number of rows at each. Got {counts}.")
        self._rows = rows
        self.sites = list(rows)
        self.origin = dict(origin or {})

    @classmethod
    def of(cls, given: object) -> "Activations":
        """Activations as they are, or a bare Tensor [rows d_in] as activations of a site without a name.

        Raises:
            UserError: it is neither, or the tensor is not two-dimensional floating point.
        """
        if isinstance(given, Activations):
            return given
        if isinstance(given, Tensor) and given.ndim == 2 and given.is_floating_point():
            return cls({"activations": given})
        shown = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise UserError(f"Training needs Activations or a floating-point Tensor [rows d_in]. Got {shown}.")

    def __getitem__(self, site: str) -> Tensor:
        if site not in self._rows:
            raise UserError(f"No activations of site {site!r} were collected.{did_you_mean(site, self.sites)}")
        return self._rows[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def d_in(self, site: str) -> int:
        """Width of a site's rows."""
        return self[site].shape[1]

    def n_rows(self) -> int:
        """Rows of each site."""
        return len(self._rows[self.sites[0]])

    def shuffled(
        self, *, batch_size: int, n_epochs: int, seed: int, reads: Sequence[str | Group] | None = None
    ) -> "_ShuffledRows":
        """The rows in a new random order every epoch.

        Args:
            batch_size: rows of a batch.
            n_epochs: passes over the rows.
            seed: of the orders.
            reads: sites and groups of layers that are wanted; None is all sites.
        """
        draws = Draws(self.sites if reads is None else reads, seed=seed)
        return _ShuffledRows(self._rows, draws, batch_size=batch_size, n_epochs=n_epochs, seed=seed)

    def describe(self) -> dict[str, Any]:
        """Where the rows come from."""
        return {"mode": "collected", "n_rows": self.n_rows(), **self.origin}


class _ShuffledRows:
    """A permutation per epoch; epochs follow each other without a gap, so that every batch is full."""

    def __init__(self, rows: SiteRows, draws: Draws, *, batch_size: int, n_epochs: int, seed: int) -> None:
        self._rows, self._draws = rows, draws
        self._batch_size, self._n_epochs, self._seed = batch_size, n_epochs, seed
        self._n_rows = len(next(iter(rows.values())))

    def _permutation(self, epoch: int) -> Tensor:
        return torch.randperm(self._n_rows, generator=torch.Generator().manual_seed(self._seed * 1_000_003 + epoch))

    def _take(self, rows: Tensor, *, first: int) -> SiteRows:
        """The rows at some places; `first` is the number of the first of them in the training."""
        found = {site: self._rows[site][rows.to(self._rows[site].device)] for site in self._draws.single_sites}
        for group in self._draws.groups:
            layer = self._draws.layers(group, len(rows), part=[first])
            picked = {site: rows[where] for site, where in places(layer, group).items()}
            parts = {site: self._rows[site][where.to(self._rows[site].device)] for site, where in picked.items()}
            found |= join(group, layer, parts)
        return found

    def sample(self, n_rows: int, *, site: str) -> Tensor:
        rows = self._permutation(0)[:n_rows]
        if site in self._rows:
            return self._rows[site][rows.to(self._rows[site].device)]
        return self._take(rows, first=0)[site]

    def batches(self, start_step: int = 0) -> Generator[SiteRows, None, None]:
        first = start_step * self._batch_size
        epoch, offset = divmod(first, self._n_rows)
        pending = self._permutation(epoch)[offset:] if epoch < self._n_epochs else torch.zeros(0, dtype=torch.int64)
        while True:
            while len(pending) < self._batch_size:
                epoch += 1
                if epoch >= self._n_epochs:
                    return
                pending = torch.cat([pending, self._permutation(epoch)])
            yield self._take(pending[: self._batch_size], first=first)
            pending, first = pending[self._batch_size :], first + self._batch_size

    def state(self, step: int) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        return
