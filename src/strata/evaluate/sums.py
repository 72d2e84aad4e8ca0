"""The quality of a reconstruction from one look at each row: sums in float64, as long as rows keep coming."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from strata.errors import UserError
from strata.sae.model import SAE
from strata.sae.normalization import Normalization
from strata.shapes import SparseCode


class VarianceSums:
    """What `strata.sae.metrics.fvu` needs of rows that come in parts.

    Squares are summed about the mean of the first part, not about 0: what is subtracted in the end is then small, and
    nothing cancels, however far from 0 the rows lie (Chan, Golub & LeVeque 1983, "Algorithms for computing the sample
    variance", §1).
    """

    def __init__(self) -> None:
        self.n_rows = 0
        self.error = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)
        self.sums: Tensor | None = None
        self._origin: Tensor | None = None

    def add(self, x: Float[Tensor, "rows d_in"], x_hat: Float[Tensor, "rows d_in"]) -> None:
        """Count rows and their reconstructions in, both fp32; no rows are fine."""
        if len(x) == 0:
            return
        if self._origin is None:
            self._origin = x.mean(0)
        shifted = x - self._origin
        sums = shifted.sum(0, dtype=torch.float64)
        self.n_rows += len(x)
        self.error = self.error.to(x.device) + (x - x_hat).square_().sum(dtype=torch.float64)
        self.sums = sums if self.sums is None else self.sums + sums
        self.squares = self.squares.to(x.device) + shifted.square_().sum(dtype=torch.float64)

    @property
    def variation(self) -> float:
        """Σ‖x − mean‖² over all rows."""
        if self.sums is None:
            return 0.0
        return (self.squares - self.sums.square().sum() / self.n_rows).item()

    def fvu(self) -> float:
        """Fraction of variance unexplained; NaN or infinity where the rows do not vary."""
        return _ratio(self.error.item(), self.variation)


class ReconstructionSums:
    """Everything that `strata.sae.metrics` says of rows and their reconstructions, of rows that come in parts.

    Each number is that of the function of its name on all rows together, to rounding, whatever the parts.
    """

    def __init__(self, d_sae: int) -> None:
        """Start with no rows.

        Args:
            d_sae: number of latents.
        """
        self._kept = VarianceSums()
        self._all = VarianceSums()
        # Of the rows that are no sinks: Σ cosine, Σ ‖x̂‖/‖x‖, Σ ‖x̂‖², Σ ⟨x, x̂⟩, latents above 0.
        self._sums = torch.zeros(5, dtype=torch.float64)
        self._fired = torch.zeros(d_sae, dtype=torch.bool)

    def add(
        self,
        x: Float[Tensor, "rows d_in"],
        x_hat: Float[Tensor, "rows d_in"],
        code: SparseCode,
        *,
        kept: Bool[Tensor, " rows"],
    ) -> None:
        """Count rows in.

        Args:
            x: activations in the model's scale, fp32.
            x_hat: their reconstructions, on any device in any float type.
            code: what was decoded.
            kept: False at attention sinks, which count for ``fvu_with_sinks`` and ``n_sink_rows`` alone.
        """
        x_hat, values, indices = x_hat.to(x), code.values.to(x.device), code.indices.to(x.device)
        self._all.add(x, x_hat)
        if not bool(kept.all()):
            x, x_hat, values, indices = x[kept], x_hat[kept], values[kept], indices[kept]
        self._kept.add(x, x_hat)
        active = values > 0
        self._fired = self._fired.to(x.device)
        self._fired[indices[active]] = True
        parts: list[Tensor] = [
            cosine_similarity(x, x_hat, dim=-1),
            torch.linalg.vector_norm(x_hat, dim=-1) / torch.linalg.vector_norm(x, dim=-1),
            x_hat.square(),
            x * x_hat,
            active,
        ]
        self._sums = self._sums.to(x.device) + torch.stack([part.sum(dtype=torch.float64) for part in parts])

    def numbers(self, *, site: str = "the activations") -> dict[str, Any]:
        """The numbers of all rows.

        Args:
            site: whose rows these are, for errors.

        Returns:
            ``explained_variance fvu mse cosine l0 l2_ratio relative_reconstruction_bias silent_share`` without
            attention sinks; ``n_sink_rows`` and ``fvu_with_sinks`` with them. None where a number is undefined.

        Raises:
            UserError: a row was not finite, or there was none besides sinks.
        """
        n_rows = self._kept.n_rows
        if not math.isfinite(self._all.variation):
            raise UserError(
                f"Activations must be finite numbers. {site} holds NaN or infinity. Load the language model in fp32"
                " or bf16."
            )
        if n_rows == 0:
            raise UserError(f"Rows must hold more than attention sinks. Those of {site} do not. Give more text.")
        sums: list[float] = self._sums.cpu().numpy().tolist()
        cosine, l2_ratio, squares, products, n_active = sums
        fvu = self._kept.fvu()
        numbers = {
            "explained_variance": 1 - fvu,
            "fvu": fvu,
            "mse": self._kept.error.item() / n_rows,
            "cosine": cosine / n_rows,
            "l2_ratio": l2_ratio / n_rows,
            "relative_reconstruction_bias": _ratio(squares, products),
            "l0": n_active / n_rows,
            "silent_share": 1 - self._fired.float().mean().item(),
            "n_sink_rows": self._all.n_rows - n_rows,
            "fvu_with_sinks": self._all.fvu(),
        }
        return {key: value if math.isfinite(value) else None for key, value in numbers.items()}


class SiteSums:
    """The rows of one site as they come, and what the SAEs of several suites make of them.

    Which rows are attention sinks is told from the first ones: `Normalization` is estimated on them and then frozen,
    as in training. Until there are enough, rows and their codes wait in memory.

    Args:
        site: the site's name, for errors.
        saes: suite → its SAE for this site.
        n_first_rows: how many rows sinks are told from; fewer if no more come.
    """

    def __init__(self, site: str, saes: Mapping[str, SAE], *, n_first_rows: int) -> None:
        self._site = site
        self._saes = dict(saes)
        self._sums = {suite: ReconstructionSums(sae.d_sae) for suite, sae in saes.items()}
        self._n_first_rows = n_first_rows
        self._waiting: list[tuple[Tensor, Mapping[str, SparseCode]]] = []
        self._normalization: Normalization | None = None

    def add(self, x: Float[Tensor, "rows d_in"], codes: Mapping[str, SparseCode]) -> None:
        """Count rows in.

        Args:
            x: the site's own activations, in the model's scale.
            codes: suite → what its SAE encodes them to.

        Raises:
            UserError: see `Normalization.estimate`.
        """
        self._waiting.append((x.float(), codes))
        if self._normalization is not None or sum(len(rows) for rows, _ in self._waiting) >= self._n_first_rows:
            self._count()

    def numbers(self, suite: str) -> dict[str, Any]:
        """What `ReconstructionSums.numbers` says of a suite's SAE, on all rows so far."""
        self._count()
        return self._sums[suite].numbers(site=self._site)

    def _count(self) -> None:
        """Those that wait."""
        if self._normalization is None:
            first = torch.cat([x for x, _ in self._waiting])
            self._normalization = Normalization.estimate(first, site=self._site)
        for x, codes in self._waiting:
            kept = ~self._normalization.is_sink(x)
            for suite, sae in self._saes.items():
                self._sums[suite].add(x, sae.decode(codes[suite]), codes[suite], kept=kept)
        self._waiting.clear()


def _ratio(numerator: float, denominator: float) -> float:
    """As tensors divide: NaN where Python would raise."""
    return numerator / denominator if denominator else math.nan
