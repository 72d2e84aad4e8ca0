"""Groups of similar neighbouring layers: how far layers are apart, and how to cut them into groups.

A matrix of distances d [L L] is symmetric, or strictly lower-triangular with zeros elsewhere, as Group-SAE (Ghilardi et
al. 2025, arXiv 2410.21508) publishes it. A group is a list of neighbouring layers' numbers, its diameter the largest
distance in it, 0 for a single layer.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from strata.errors import UserError, did_you_mean
from strata.shapes import lengths

Method = Literal["minmax", "complete", "published"]
Distances = Tensor | np.ndarray | Sequence[Sequence[float]]
Groups = list[list[int]]
_IMPOSSIBLE = np.int64(1 << 61)  # above all sums of diameters, which are whole numbers, so that ties are ties
_SYMMETRY = 1e-5


class NotNeighboursError(UserError):
    """Groups that a method found are not of neighbouring layers."""


def layer_distances(lm: Any, texts: Any, *, n_tokens: int = 100_000, **options: Any) -> Float[Tensor, "layers layers"]:
    """Angular distances of all layers of a language model: see `strata.activations.distances.measured_similarity`.

    Args:
        lm: the language model.
        texts: as `strata.collect_activations` takes them.
        n_tokens: to look at; the first tenth gives the means.
        **options: of the function named.

    Returns:
        d [L L], in units of π: 0 is the same direction, 1 the opposite one.
    """
    from strata.activations.distances import measured_similarity

    return measured_similarity(lm, texts, n_tokens=n_tokens, cka=False, **options).angular


def partition(distances: Distances, n_groups: int, method: str = "minmax") -> Groups:
    """Cut the layers into groups of neighbours.

    Args:
        distances: d [L L].
        n_groups: how many, in [1, L].
        method: "minmax": the smallest worst diameter; among those partitions the smallest sum of diameters (AMAD), then
            the leftmost cuts. "complete": complete linkage on d, merging neighbours only. "published": what Group-SAE's
            code does, complete linkage with the Euclidean distance between rows of the strictly lower-triangular d.

    Returns:
        The groups in the layers' order; every layer is in exactly one.

    Raises:
        UserError: a matrix that is none of distances, n_groups out of range, or an unknown method.
        NotNeighboursError: "published" where it joins layers that are no neighbours.

    Differs: Group-SAE leaves the last layer out before, and nothing keeps its clusters contiguous; here that is an
    error.
    """
    d = checked_distances(distances)
    if method not in _METHODS:
        raise UserError(
            f"`method` must be a way to cut layers into groups. Got {method!r}.{did_you_mean(method, _METHODS)}"
        )
    if not 1 <= n_groups <= len(d):
        raise UserError(f"`n_groups` must be in [1, {len(d)}], the number of layers. Got {n_groups}. Give another.")
    return _METHODS[method](d, n_groups)


def partitions(distances: Distances, method: str = "minmax") -> list[Groups | None]:
    """The partitions into 1, 2, … L groups; None where "published" gives none of neighbours.

    Args:
        distances: d [L L].
        method: as of `partition`, whose errors this raises too.
    """
    d = checked_distances(distances)
    return [_partition_or_none(d, n_groups, method) for n_groups in range(1, len(d) + 1)]


def first_below(amads: Iterable[float | None], threshold: float) -> int:
    """The rule of K* (Group-SAE, section 3): the place of the first AMAD below the threshold.

    Args:
        amads: of the partitions into 1, 2, … L groups, None where there is none; the last is 0.
        threshold: above 0.
    """
    return next(place for place, value in enumerate(amads) if value is not None and value < threshold)


def amad(distances: Distances, groups: Sequence[Sequence[int]]) -> float:
    """Average maximum angular distance, (1/K) Σ_g max_{i,j∈g} d(i,j): the mean diameter of K groups, in units of d.

    A single layer counts 0, so that this number alone rewards single layers: see `worst_diameter` beside it.

    Args:
        distances: d [L L].
        groups: of layers' numbers; every layer in exactly one.

    Raises:
        UserError: a matrix that is none of distances, or groups that leave a layer out or name it twice.
    """
    diameters = _diameters_of(distances, groups)
    return sum(diameters) / len(diameters)


def worst_diameter(distances: Distances, groups: Sequence[Sequence[int]]) -> float:
    """The largest distance within any group; 0 if all are single layers.

    Args:
        distances: d [L L].
        groups: of layers' numbers; every layer in exactly one.

    Raises:
        UserError: as of `amad`.
    """
    return max(_diameters_of(distances, groups))


def checked_distances(distances: Distances) -> Float[Tensor, "layers layers"]:
    """The matrix, symmetric and with a zero diagonal, float64 on the CPU.

    Raises:
        UserError: it is not square, has no layer, holds what is no finite number of at least 0, or is neither symmetric
            nor lower-triangular.
    """
    d = torch.as_tensor(distances).detach().to("cpu", torch.float64)
    if d.ndim != 2 or d.shape[0] != d.shape[1] or len(d) == 0:
        raise UserError(
            f"`distances` must be a square matrix [L L]. Got the shape {list(d.shape)}. Give all layers' pairs."
        )
    if not bool(torch.isfinite(d).all()) or bool((d < 0).any()):
        raise UserError("`distances` must be finite numbers of at least 0. Some are not. Measure them again.")
    lower, upper = d.tril(-1), d.triu(1).T
    if bool(upper.any()) and not bool(torch.isclose(lower, upper, rtol=0, atol=_SYMMETRY).all()):
        raise UserError("`distances` must be symmetric, or strictly lower-triangular. Got neither. Give one triangle.")
    return lower + lower.T


def _partition_or_none(d: Tensor, n_groups: int, method: str) -> Groups | None:
    try:
        return partition(d, n_groups, method)
    except NotNeighboursError:
        return None


def _diameters_of(distances: Distances, groups: Sequence[Sequence[int]]) -> list[float]:
    d = checked_distances(distances)
    named = sorted(layer for group in groups for layer in group)
    if named != list(range(len(d))) or not all(len(group) for group in groups):
        raise UserError(
            f"`groups` must hold each of the {len(d)} layers exactly once, and none may be empty. Got"
            f" {[list(group) for group in groups]}. Add the layers left out as groups of one."
        )
    return [d[list(group)][:, list(group)].max().item() for group in groups]


def _minmax(d: Tensor, n_groups: int) -> Groups:
    """Dynamic programming, from the last layer to the first, in whole numbers."""
    diameter = _diameters(d)
    n_layers = len(diameter)
    end_only = np.full(n_layers + 1, _IMPOSSIBLE)
    end_only[n_layers] = 0
    worst = end_only  # worst[start]: least worst diameter of the layers from start on, in so many groups
    for _ in range(n_groups):
        worst = np.append(np.maximum(diameter, worst).min(axis=1), _IMPOSSIBLE)
    allowed = np.where(diameter <= worst[0], diameter, _IMPOSSIBLE)
    total = [end_only]  # total[k][start]: least sum of diameters, in k groups
    for _ in range(n_groups):
        total.append(np.append(np.minimum((allowed + total[-1]).min(axis=1), _IMPOSSIBLE), _IMPOSSIBLE))
    cuts = [0]
    for left in range(n_groups, 0, -1):  # the leftmost cut with which the rest can still reach the least sum
        start = cuts[-1]
        cuts.append(int(np.argmax(allowed[start] + total[left - 1] == total[left][start])))
    return [list(range(start, end)) for start, end in pairwise(cuts)]


def _diameters(d: Tensor) -> np.ndarray:
    """[L, L + 1]: of the layers start … end − 1, as whole numbers, the largest 2^50; `_IMPOSSIBLE` of none."""
    far = np.rint(d.numpy() / max(d.max().item(), np.finfo(np.float64).tiny) * 2.0**50).astype(np.int64)
    n_layers = len(far)
    found = np.full((n_layers, n_layers + 1), _IMPOSSIBLE)
    found[range(n_layers), range(1, n_layers + 1)] = 0
    for length in range(2, n_layers + 1):
        for start in range(n_layers - length + 1):
            end = start + length
            found[start, end] = max(far[start, end - 1], found[start, end - 1], found[start + 1, end])
    return found


def _complete(d: Tensor, n_groups: int) -> Groups:
    """Merge the two neighbours whose farthest layers are nearest, the leftmost such, until n_groups are left."""
    far, groups = d.numpy(), [[layer] for layer in range(len(d))]
    while len(groups) > n_groups:
        linkage = [far[np.ix_(left, right)].max() for left, right in pairwise(groups)]
        first = int(np.argmin(linkage))
        groups[first : first + 2] = [groups[first] + groups[first + 1]]
    return groups


def _published(d: Tensor, n_groups: int) -> Groups:
    """Complete linkage of the rows of the strictly lower-triangular matrix, by Euclidean distance."""
    rows = d.tril(-1)
    far = lengths(rows[:, None] - rows[None]).numpy()
    np.fill_diagonal(far, np.inf)
    groups: dict[int, list[int]] = {layer: [layer] for layer in range(len(d))}
    while len(groups) > n_groups:
        first, second = sorted(divmod(int(np.argmin(far)), len(d)))
        groups[first] += groups.pop(second)
        far[first] = far[:, first] = np.maximum(far[first], far[second])
        far[first, first] = np.inf
        far[second] = far[:, second] = np.inf
    found = sorted(sorted(group) for group in groups.values())
    if any(group != list(range(group[0], group[-1] + 1)) for group in found):
        raise NotNeighboursError(
            f'`method` "published" must give groups of neighbouring layers. For {n_groups} groups it gives {found}.'
            ' Take "minmax" or "complete", which always do.'
        )
    return found


_METHODS = {"minmax": _minmax, "complete": _complete, "published": _published}
