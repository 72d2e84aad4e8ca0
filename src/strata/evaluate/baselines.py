"""What an SAE is measured against: principal components."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from strata.activations.harvest import forward_dtype, harvest
from strata.activations.source import SiteRows
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenStream
from strata.sae.gates import ReLU
from strata.sae.model import SAE
from strata.sae.normalization import Normalization

FIT_ROWS = 50_000
_NORMALIZATION_ROWS = 4096
_COVARIANCE_BYTES = 2**30  # of the sites that are fitted in one pass


class Covariance:
    """Mean and covariance of a site's rows, one batch at a time, in float64; attention sinks left out.

    Args:
        first: rows from which sinks are told, and around which the sums are taken; they are not added.
        site: whose rows these are, for errors.
    """

    def __init__(self, first: Float[Tensor, "rows d_in"], *, site: str = "the activations") -> None:
        self._sinks = Normalization.estimate(first, site=site)
        d_in = first.shape[1]
        self._n_rows = 0
        self._sum = torch.zeros(d_in, dtype=torch.float64)
        self._products = torch.zeros(d_in, d_in, dtype=torch.float64)

    def add(self, rows: Float[Tensor, "rows d_in"]) -> None:
        """Count these rows in."""
        rows = rows.float()
        shifted = (rows[~self._sinks.is_sink(rows)] - self._sinks.mean).double()
        self._n_rows += len(shifted)
        self._sum += shifted.sum(0).cpu()
        self._products += (shifted.t() @ shifted).cpu()

    def principal_components(self) -> tuple[Float[Tensor, " d_in"], Float[Tensor, "d_in d_in"]]:
        """The mean [d_in] and the directions [d_in d_in], one per row, largest variance first, float64."""
        mean = self._sum / self._n_rows
        centred = self._products / self._n_rows - torch.outer(mean, mean)
        vectors = cast("Tensor", torch.linalg.eigh(centred)[1])  # in columns, the smallest variance first
        return mean + self._sinks.mean.double().cpu(), vectors.t().flip(0)


def pca_sae(
    mean: Float[Tensor, " d_in"], directions: Float[Tensor, "n d_in"], *, metadata: dict[str, Any] | None = None
) -> SAE:
    """Principal components as an SAE, which can be evaluated and attached like any other.

    A component may be negative and a latent may not: each direction is there twice, with both signs, and of the two
    exactly one fires. So L0 is n, d_sae is 2n, and decode(encode(x)) is the projection onto the directions around the
    mean.

    Args:
        mean: of the rows.
        directions: n orthonormal rows.
        metadata: of the SAE.
    """
    both = torch.cat([directions, -directions]).float()
    return SAE(
        W_enc=both.t().contiguous(),
        b_enc=torch.zeros(len(both)),
        W_dec=both,
        b_dec=mean.float(),
        gate=ReLU(),
        metadata=metadata,
    )


def fit_pca(
    lm: LanguageModel,
    tokens: TokenStream,
    *,
    sites: Sequence[str],
    ks: Sequence[int],
    n_rows: int = FIT_ROWS,
    lm_dtype: str = "auto",
) -> dict[int, dict[str, SAE]]:
    """Principal components of every site, fitted on training documents; as many as an SAE has active latents.

    Both may use k numbers per row. An SAE chooses them anew for each row among d_sae, at the price of saying which;
    PCA always uses the same ones, the best linear choice.

    One pass of the language model for all sites, as long as their covariances (8·d_in² bytes a site) fit into 1 GB.

    Args:
        lm: the language model.
        tokens: training documents, read once for every pass.
        sites: where.
        ks: numbers of components; more than d_in are d_in.
        n_rows: how many rows of the training documents are read, if there are as many.
        lm_dtype: precision of the forward.

    Returns:
        k → site → the components as an SAE (`pca_sae`).

    Raises:
        UserError: a text with fewer than two rows.
    """
    fitted: dict[int, dict[str, SAE]] = {k: {} for k in ks}
    for group in _site_groups(lm, sites):
        dtype = forward_dtype(lm, lm_dtype)
        found = _covariances((harvest(lm, batch, group, autocast_dtype=dtype) for batch in tokens), n_rows=n_rows)
        for site in group:
            mean, directions = found[site].principal_components()
            for k in ks:
                n = min(k, len(directions))
                metadata = {"model_name": lm.name, "site": site, "k": n, "training_architecture": "pca"}
                fitted[k][site] = pca_sae(mean, directions[:n], metadata=metadata).to(lm.device)
    return fitted


def _covariances(batches: Iterator[SiteRows], *, n_rows: int) -> dict[str, Covariance]:
    """The covariances of all sites over the first rows of a stream; the very first ones tell the sinks."""
    waiting: list[SiteRows] = []
    found: dict[str, Covariance] = {}
    n_read = 0
    for rows in batches:
        if n_read >= n_rows:
            break
        n_read += len(next(iter(rows.values())))
        waiting.append(rows)
        if not found and n_read < _NORMALIZATION_ROWS:
            continue
        _add(found, waiting)
    _add(found, waiting)
    assert found, "a text has a first document, which is a training one"
    return found


def _add(found: dict[str, Covariance], waiting: list[SiteRows]) -> None:
    for site in waiting[0] if waiting else ():
        if site not in found:
            found[site] = Covariance(torch.cat([rows[site] for rows in waiting]), site=site)
        for rows in waiting:
            found[site].add(rows[site])
    waiting.clear()


def _site_groups(lm: LanguageModel, sites: Sequence[str]) -> Iterator[list[str]]:
    """The sites in order, as many at a time as have covariances that fit into memory together."""
    group: list[str] = []
    n_bytes = 0
    for site in sites:
        size = 8 * lm.d_in(site) ** 2
        if group and n_bytes + size > _COVARIANCE_BYTES:
            yield group
            group, n_bytes = [], 0
        group.append(site)
        n_bytes += size
    yield group
