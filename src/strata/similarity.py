"""How alike the layers of a model are, accumulated batch by batch: nothing is kept but sums of [L L] numbers."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

LayerRows = Sequence[Float[Tensor, "rows d_in"]]
"""The same tokens' rows at each layer, in order; any float type."""

# Numbers in the buffer of rows: on a CPU it stays in the cache of one core between writing and multiplying.
_BUFFER_NUMBERS = {"cpu": 1 << 18}
_BUFFER_NUMBERS_ELSEWHERE = 1 << 24
_SMALLEST_SQUARE = 1e-30  # of a row's length: a row that equals the mean has angle ½ to all others, not NaN
_LEAST_ROWS_OF_CKA = 4  # its estimator divides by rows − 3


class AngularDistances:
    """d(p, q): mean over tokens of arccos(cos(a_p − μ_p, a_q − μ_q))/π, in [0, 1]; ½ is at right angles.

    Per token one L×L product of the centred rows, whose diagonal holds their lengths. Rows are multiplied in fp32,
    angles summed in float64. Two layers that are the same up to fp32 rounding are some 1e-4 apart.

    Differs: Group-SAE centres by a moving average that contains the current batch, and counts pads, first tokens and
    attention sinks.

    Args:
        means: μ of each layer, from other tokens than those that are added, or from all of them in a first pass.
        sink_radius: a token whose row lies farther than this from μ at any layer is left out at all; infinite keeps
            all. (`Normalization` measures from the median row: ten radii away that is the same, and this is free.)
    """

    def __init__(
        self, means: Float[Tensor, "layers d_in"], *, sink_radius: Float[Tensor, " layers"] | None = None
    ) -> None:
        self._means = means.float()
        n_layers, d_in = means.shape
        numbers = _BUFFER_NUMBERS.get(means.device.type, _BUFFER_NUMBERS_ELSEWHERE)
        self._buffer = means.new_empty(max(8, numbers // (n_layers * d_in)), n_layers, d_in, dtype=torch.float32)
        radius = means.new_full((n_layers,), torch.inf) if sink_radius is None else sink_radius
        self._limit = radius.to(means.device, torch.float32).square()
        self._angles = torch.zeros(n_layers, n_layers, dtype=torch.float64, device=means.device)
        self._n_rows = torch.zeros((), dtype=torch.int64, device=means.device)

    @property
    def n_rows(self) -> int:
        """Tokens counted so far."""
        return int(self._n_rows)

    @torch.no_grad()
    def add(self, rows: LayerRows) -> None:
        """Count these tokens."""
        for start in range(0, len(rows[0]), len(self._buffer)):
            self._add_some([layer[start : start + len(self._buffer)] for layer in rows])

    def matrix(self) -> Float[Tensor, "layers layers"]:
        """The distances so far, fp32 on the CPU; NaN where there was no token, or one that was not finite."""
        distances = self._angles / (self._n_rows * torch.pi)
        return distances.fill_diagonal_(0).float().cpu()

    def _add_some(self, rows: LayerRows) -> None:
        centred = self._buffer[: len(rows[0])]  # [rows layers d_in]
        for layer, mean in enumerate(self._means):
            torch.sub(rows[layer], mean, out=centred[:, layer])
        gram = torch.bmm(centred, centred.transpose(1, 2))  # [rows layers layers]
        squares = gram.diagonal(dim1=1, dim2=2)
        kept = ~((squares > self._limit) & squares.isfinite()).any(1)  # what is not finite stays, to be seen in the sum
        lengths = squares.clamp_min(_SMALLEST_SQUARE).rsqrt()
        angles = gram.mul_(lengths[:, :, None]).mul_(lengths[:, None]).clamp_(-1, 1).acos_()
        self._angles += torch.where(kept[:, None, None], angles, 0).sum(0, dtype=torch.float64)
        self._n_rows += kept.sum()


class LinearCKA:
    """Linear centred kernel alignment (Kornblith et al. 2019), by minibatches (Nguyen et al. 2021, section 2).

    CKA(p, q) = HSIC(p, q)/√(HSIC(p, p)·HSIC(q, q)), each HSIC the mean over minibatches, weighted by their rows, of the
    unbiased estimator HSIC₁ (Song et al. 2012, equation 5): the same in expectation whatever the size of the
    minibatches. 1 is equal up to rotation and scale, 0 unrelated; the estimate can lie a little outside.

    Args:
        means: of each layer. The estimate does not depend on them; its rounding does.
    """

    def __init__(self, means: Float[Tensor, "layers d_in"]) -> None:
        self._means = means.float()
        self._hsic = torch.zeros(len(means), len(means), dtype=torch.float64, device=means.device)

    @torch.no_grad()
    def add(self, rows: LayerRows) -> None:
        """Count these tokens as one minibatch; memory and work grow with L·rows², so some hundred rows are right.

        Fewer than 4 rows have no estimate and are passed over.
        """
        n = len(rows[0])
        if n < _LEAST_ROWS_OF_CKA:
            return
        centred = [layer.float() - mean for layer, mean in zip(rows, self._means, strict=True)]
        kernels = torch.stack([(layer @ layer.T).fill_diagonal_(0) for layer in centred]).double()  # [layers n n]
        sums = kernels.sum(-1)  # [layers n]
        totals = sums.sum(-1)
        products = kernels.flatten(1) @ kernels.flatten(1).T
        hsic = products + torch.outer(totals, totals) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (sums @ sums.T)
        self._hsic += hsic / (n - 3)  # n·HSIC₁: a minibatch counts by its rows

    def matrix(self) -> Float[Tensor, "layers layers"]:
        """The alignments so far, fp32 on the CPU; NaN where there was no token, or one that was not finite."""
        own = self._hsic.diagonal().sqrt()
        return (self._hsic / torch.outer(own, own)).float().cpu()
