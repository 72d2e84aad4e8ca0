"""Groups of layers: partitions against brute force and the published ones, distances against their definitions."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from strata.activations.collected import Activations
from strata.activations.distances import layer_similarity, shuffled_rows
from strata.errors import UserError
from strata.grouping import (
    NotNeighboursError,
    amad,
    checked_distances,
    first_below,
    layer_distances,
    partition,
    partitions,
    worst_diameter,
)
from strata.lm.model import LanguageModel
from strata.similarity import AngularDistances, LinearCKA

from tiny_models import tiny_model, tiny_tokenizer  # isort: skip

METHODS = ("minmax", "complete", "published")
PYTHIA = json.loads((Path(__file__).parent / "data" / "pythia-1b-layer-groups.json").read_text(encoding="utf-8"))


def pythia() -> Tensor:
    """The published distances of Pythia-1B, the last layer left out as there."""
    rows = PYTHIA["angular_distance_lower_triangle"]
    d = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for layer, row in enumerate(rows):
        d[layer, : len(row)] = torch.tensor(row, dtype=torch.float64)
    return d[:-1, :-1]


def random_distances(n_layers: int, *, seed: int, levels: int = 0) -> Tensor:
    """Symmetric, zero diagonal; with few levels there are many ties."""
    d = torch.rand(n_layers, n_layers, generator=torch.Generator().manual_seed(seed))
    d = (d * levels).ceil() / levels if levels else d
    return d.tril(-1) + d.tril(-1).T


def all_partitions(n_layers: int, n_groups: int) -> list[list[list[int]]]:
    """In the order of their cuts, the leftmost first."""
    cuts = itertools.combinations(range(1, n_layers), n_groups - 1)
    return [[list(range(a, b)) for a, b in itertools.pairwise((0, *cut, n_layers))] for cut in cuts]


@pytest.mark.parametrize("n_groups", range(1, 15))
def test_published_partitions_are_reproduced(n_groups: int) -> None:
    # Distances were read off a heat map to ±0.001 and AMAD is published to three decimals: together ±0.0015
    published = PYTHIA["published"][str(n_groups)]
    found = partition(pythia(), n_groups, method="published")
    assert found == [list(range(first, last + 1)) for first, last in published["groups"]]
    assert amad(pythia(), found) == pytest.approx(published["amad"], abs=0.0015)
    assert worst_diameter(pythia(), found) == pytest.approx(published["worst_diameter"], abs=0.0015)


def fewest_groups(d: Tensor, *, threshold: float = 0.2, method: str = "minmax") -> list[list[int]]:
    """The partition into K* groups."""
    cuts = partitions(d, method)
    found = cuts[first_below((None if cut is None else amad(d, cut) for cut in cuts), threshold)]
    assert found is not None
    return found


def test_the_fewest_groups_of_pythia_are_the_published_six() -> None:
    assert len(fewest_groups(pythia(), method="published")) == 6
    assert len(fewest_groups(pythia())) == 5  # minmax is below the threshold with one SAE less


@pytest.mark.parametrize("n_groups", range(1, 16))
def test_minmax_is_never_worse_than_others_in_worst_diameter(n_groups: int) -> None:
    own = worst_diameter(pythia(), partition(pythia(), n_groups))
    assert all(own <= worst_diameter(pythia(), partition(pythia(), n_groups, method)) for method in METHODS)


def test_minmax_can_be_worse_in_amad() -> None:
    published = {k: amad(pythia(), partition(pythia(), k, "published")) for k in range(1, 16)}
    worse = [k for k in published if amad(pythia(), partition(pythia(), k)) > published[k]]
    assert worse == [2, 4]


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("seed", range(4))
def test_minmax_is_the_best_of_all_partitions(seed: int, levels: int) -> None:
    d = random_distances(8, seed=seed, levels=levels)
    diameter = [[d[a : b + 1, a : b + 1].max().item() if a <= b else 0 for b in range(8)] for a in range(8)]
    for n_groups in range(1, 9):

        def quality(groups: list[list[int]]) -> tuple[float, float]:
            diameters = [round(max(1, levels) * diameter[g[0]][g[-1]], 9) for g in groups]  # of ties: whole numbers
            return max(diameters), sum(diameters)

        assert partition(d, n_groups) == min(all_partitions(8, n_groups), key=quality)  # min takes the first of equals


def test_sums_of_diameters_are_compared_exactly() -> None:
    x, y, c = 0.1, 0.6, 0.5
    assert x + (y + c) > y + (x + c)  # as floats; the sums of both partitions are equal, so that the leftmost cut wins
    d = torch.full((9, 9), 0.9, dtype=torch.float64)
    d[:3, :3], d[2:6, 2:6], d[6:, 6:] = y, y, c
    d[:2, :2], d[3:6, 3:6] = x, x
    first, second = [[0, 1], [2, 3, 4, 5], [6, 7, 8]], [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    d.fill_diagonal_(0)
    assert worst_diameter(d, first) == worst_diameter(d, second) == y
    assert partition(d, 3) == first


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_layers", [1, 2, 7])
def test_every_layer_is_in_one_group(method: str, n_layers: int) -> None:
    away = torch.arange(n_layers, dtype=torch.float32)
    d = (away[:, None] - away).abs() / 10
    for n_groups in range(1, n_layers + 1):
        groups = partition(d, n_groups, method)
        assert len(groups) == n_groups
        assert [layer for group in groups for layer in group] == list(range(n_layers))
        assert partition(d.tril(-1).numpy(), n_groups, method) == groups


def test_complete_linkage_merges_the_nearest_neighbours() -> None:
    d = [[0, 1, 9, 9], [1, 0, 2, 4], [9, 2, 0, 3], [9, 4, 3, 0]]
    distances = [[value / 10 for value in row] for row in d]
    assert partition(distances, 3, "complete") == [[0, 1], [2], [3]]
    assert partition(distances, 2, "complete") == [[0, 1], [2, 3]]  # 2 is 0.2 from 1, but 0.9 from 0


def test_published_clusters_that_are_no_neighbours_are_refused() -> None:
    lower = torch.zeros(4, 4)
    lower[1:, 0] = torch.tensor([0.9, 0.85, 0.01])  # rows 0 and 3 alike, though not their layers
    message = r'`method` "published" must give .* For 3 groups it gives \[\[0, 3\], \[1\], \[2\]\].* "minmax"'
    with pytest.raises(NotNeighboursError, match=message):
        partition(lower, 3, "published")
    assert [cut is None for cut in partitions(lower, "published")] == [False, True, True, False]
    assert fewest_groups(lower, method="published") == [[0], [1], [2], [3]], "others have none or are too far apart"


def test_amad_counts_single_layers_as_zero() -> None:
    d = random_distances(4, seed=0)
    groups = [[0], [1, 2, 3]]
    widest = max(d[1, 2], d[1, 3], d[2, 3]).item()
    assert amad(d, groups) == pytest.approx(widest / 2)
    assert worst_diameter(d, groups) == pytest.approx(widest)
    assert amad(d, [[0], [1], [2], [3]]) == 0


def test_the_fewest_groups_are_below_the_threshold_and_one_less_is_not() -> None:
    d = random_distances(9, seed=1)
    found = fewest_groups(d, threshold=0.3)
    assert amad(d, found) < 0.3 <= amad(d, partition(d, len(found) - 1))
    assert fewest_groups(d, threshold=1.5) == [list(range(9))]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.rand(2, 3), r"`distances` must be a square matrix \[L L\]. Got the shape \[2, 3\]"),
        (torch.zeros(0, 0), r"must be a square matrix .* \[0, 0\]"),
        (torch.tensor([[0, math.nan], [math.nan, 0]]), "must be finite numbers of at least 0"),
        (torch.tensor([[0, -0.1], [-0.1, 0]]), "must be finite numbers of at least 0"),
        (torch.tensor([[0, 0.1], [0.2, 0]]), "must be symmetric, or strictly lower-triangular"),
    ],
)
def test_bad_matrices_are_refused(given: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        partition(given, 1)


def test_bad_requests_are_refused() -> None:
    d = random_distances(5, seed=0)
    for n_groups in (0, 6):
        with pytest.raises(UserError, match=rf"`n_groups` must be in \[1, 5\].* Got {n_groups}"):
            partition(d, n_groups)
    with pytest.raises(UserError, match=r"Got 'minmx'\. Did you mean 'minmax'"):
        partition(d, 2, "minmx")
    for groups in ([[0, 1], [2, 3]], [[0, 1], [1, 2, 3, 4]], [[0, 1, 2, 3, 4], []]):
        with pytest.raises(UserError, match="`groups` must hold each of the 5 layers exactly once"):
            amad(d, groups)


def test_a_lower_triangle_is_the_whole_matrix() -> None:
    d = random_distances(5, seed=0)
    assert torch.equal(checked_distances(d), checked_distances(d.tril(-1)))


@pytest.mark.parametrize("unit", [1e-9, 1e9])
@pytest.mark.parametrize("method", METHODS)
def test_the_unit_of_the_distances_decides_nothing(method: str, unit: float) -> None:
    for n_groups in range(1, 16):
        assert partition(pythia() * unit, n_groups, method) == partition(pythia(), n_groups, method)


def test_a_matrix_is_checked_in_double_precision_and_its_diagonal_is_zero() -> None:
    d = random_distances(5, seed=0)
    assert checked_distances(d).dtype == torch.float64
    assert torch.equal(checked_distances(d + 0.3 * torch.eye(5)), checked_distances(d))
    assert not checked_distances(d.clone().requires_grad_()).requires_grad
    assert isinstance(amad(d, [[0, 1, 2], [3, 4]]), float)


def test_triangles_may_differ_by_rounding_alone() -> None:
    d = random_distances(5, seed=0).double()
    rounded, other, far = d.clone(), d.clone(), 1e4 * d
    rounded[0, 3] += 5e-6
    other[0, 3] += 2e-5
    far[0, 3] += 2e-5  # whatever their size
    assert torch.equal(checked_distances(rounded), checked_distances(d))
    for given in (other, far):
        with pytest.raises(UserError, match="must be symmetric"):
            checked_distances(given)


def test_an_amad_at_the_threshold_is_not_below_it() -> None:
    assert first_below([None, 0.3, 0.2, 0.1, 0.0], 0.2) == 3


def rows_of(n_rows: int, *, n_layers: int = 4, d_in: int = 12) -> list[Tensor]:
    """Layers of which each adds something to the one before, on a mean that is not 0."""
    steps = torch.randn(n_layers, n_rows, d_in, generator=torch.Generator().manual_seed(5))
    return list(steps.cumsum(0) + 3 * torch.randn(n_layers, 1, d_in, generator=torch.Generator().manual_seed(6)))


def angles_pair_by_pair(rows: list[Tensor], means: Tensor) -> Tensor:
    n = len(rows)
    d = torch.zeros(n, n)
    for p, q in itertools.permutations(range(n), 2):
        a, b = rows[p].double() - means[p], rows[q].double() - means[q]
        cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1)
        d[p, q] = cosine.clamp(-1, 1).acos().mean() / torch.pi
    return d


def test_angular_distances_are_the_mean_angles() -> None:
    rows = rows_of(20_000)  # more than a buffer
    means = torch.stack([layer.mean(0) for layer in rows])
    measured = AngularDistances(means)
    for start in range(0, 20_000, 7000):
        measured.add([layer[start : start + 7000] for layer in rows])
    assert measured.n_rows == 20_000
    torch.testing.assert_close(measured.matrix(), angles_pair_by_pair(rows, means), atol=1e-5, rtol=0)


def test_angles_of_opposite_equal_and_absent_rows() -> None:
    x = torch.randn(64, 8)
    measured = AngularDistances(torch.zeros(4, 8))
    measured.add([x, -x, 2 * x, torch.zeros_like(x)])
    d = measured.matrix()
    assert d[0, 1].item() == pytest.approx(1, abs=2e-4)
    assert d[0, 2].item() == pytest.approx(0, abs=2e-4)
    assert d[0, 3].item() == pytest.approx(0.5)
    assert d.diagonal().tolist() == [0, 0, 0, 0]


def test_sinks_at_any_layer_are_left_out() -> None:
    rows = rows_of(500)
    clean = AngularDistances(torch.zeros(4, 12))
    clean.add([layer[10:] for layer in rows])
    rows[2][:10] *= 1000
    measured = AngularDistances(torch.zeros(4, 12), sink_radius=torch.full((4,), 500.0))
    measured.add(rows)
    assert measured.n_rows == 490
    torch.testing.assert_close(measured.matrix(), clean.matrix())


def cka_by_definition(x: Tensor, y: Tensor) -> float:
    """With the biased HSIC of all rows, centred: what the unbiased one tends to."""
    x, y = (x - x.mean(0)).double(), (y - y.mean(0)).double()
    return ((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())).item()


def hsic_1(k: Tensor, other: Tensor) -> float:
    """Song et al. 2012, equation 5, as a sum over all quadruples that are distinct."""
    n, total = len(k), 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += (k[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q])).item()
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def test_cka_has_the_unbiased_estimator_of_its_definition() -> None:
    rows = [layer[:7].double() for layer in rows_of(7)]
    measured = LinearCKA(torch.zeros(4, 12))
    measured.add([layer.float() for layer in rows])
    hsic = [[hsic_1(p @ p.T, q @ q.T) for q in rows] for p in rows]
    expected = torch.tensor([[hsic[p][q] / math.sqrt(hsic[p][p] * hsic[q][q]) for q in range(4)] for p in range(4)])
    torch.testing.assert_close(measured.matrix(), expected, atol=1e-4, rtol=1e-4)


def test_cka_of_small_batches_is_that_of_all_rows() -> None:
    rows = rows_of(6000)
    measured = LinearCKA(torch.stack([layer.mean(0) for layer in rows]))
    for start in range(0, 6000, 40):
        measured.add([layer[start : start + 40] for layer in rows])
    measured.add([layer[:3] for layer in rows])  # too few: passed over
    expected = torch.tensor([[cka_by_definition(x, y) for y in rows] for x in rows])
    torch.testing.assert_close(measured.matrix(), expected, atol=0.02, rtol=0)


def test_cka_ignores_rotation_scale_and_mean() -> None:
    x = torch.randn(200, 12)
    rotation = torch.linalg.qr(torch.randn(12, 12)).Q
    measured = LinearCKA(torch.zeros(2, 12))
    measured.add([x, 5 * x @ rotation + 1])
    assert measured.matrix()[0, 1].item() == pytest.approx(1, abs=1e-4)


def as_batches(rows: list[Tensor], n_batch: int) -> list[dict[str, Tensor]]:
    starts = range(0, len(rows[0]), n_batch)
    return [{f"layers.{i}": layer[start : start + n_batch] for i, layer in enumerate(rows)} for start in starts]


@pytest.mark.parametrize("n_batch", [7, 128, 5000])
def test_the_first_tenth_gives_the_means_and_the_rest_the_distances(n_batch: int) -> None:
    rows = rows_of(3000)
    means = torch.stack([layer[:200].mean(0) for layer in rows])
    found = layer_similarity(as_batches(rows, n_batch), [f"layers.{i}" for i in range(4)], n_tokens=2000)
    assert (found.n_mean_rows, found.n_rows) == (200, 1800)
    expected = angles_pair_by_pair([layer[200:2000] for layer in rows], means)
    torch.testing.assert_close(found.angular, expected, atol=1e-5, rtol=0)
    assert found.cka.diagonal().tolist() == pytest.approx([1, 1, 1, 1])


def test_a_few_sinks_change_nothing() -> None:
    rows = rows_of(4000)
    clean = layer_similarity(as_batches(rows, 500), ["layers.0", "layers.1"], n_tokens=4000)
    for layer in rows:
        layer[::100] = 3000.0
    found = layer_similarity(as_batches(rows, 500), ["layers.0", "layers.1"], n_tokens=4000)
    assert found.n_rows == 3600 - 36
    assert found.angular[0, 1].item() == pytest.approx(clean.angular[0, 1].item(), abs=0.005)
    assert found.cka[0, 1].item() == pytest.approx(clean.cka[0, 1].item(), abs=0.05)


def test_similarity_of_activations_in_memory() -> None:
    rows = rows_of(3000)
    acts = Activations({f"layers.{i}": layer for i, layer in enumerate(rows)})
    found = layer_similarity(shuffled_rows(acts), acts.sites, n_tokens=3000, cka=False)
    assert (found.n_mean_rows, found.n_rows) == (300, 2700)
    assert bool(found.cka.isnan().all())
    means = torch.stack([layer.mean(0) for layer in rows])
    torch.testing.assert_close(found.angular, angles_pair_by_pair(rows, means), atol=0.01, rtol=0)


def test_a_text_that_is_a_little_short_is_taken_as_it_is_and_one_too_short_is_refused() -> None:
    rows, sites = rows_of(600), ["layers.0", "layers.1"]
    found = layer_similarity(as_batches(rows, 100), sites, n_tokens=1000)
    assert (found.n_mean_rows, found.n_rows) == (100, 500)
    with pytest.raises(UserError, match=r"`n_tokens` asks for 2000 rows .* The text holds 600. Lower n_tokens"):
        layer_similarity(as_batches(rows, 100), sites, n_tokens=2000)
    with pytest.raises(UserError, match=r"The text holds 600"):
        layer_similarity(as_batches(rows, 100), sites, n_tokens=100_000)


def test_bad_rows_are_refused() -> None:
    sites = ["layers.0", "layers.1", "layers.2"]
    for place in (3, 50, 900):  # among the first, the means', the others
        rows = rows_of(1000)
        rows[2][place, 0] = math.inf
        with pytest.raises(UserError, match=r"must be finite numbers. layers.2 holds NaN or infinity"):
            layer_similarity(as_batches(rows, 100), sites, n_tokens=1000)
    wide = [{"layers.0": torch.randn(100, 8), "layers.1": torch.randn(100, 9)}]
    with pytest.raises(UserError, match=r"`sites` must be of the same width .*'layers.1': 9"):
        layer_similarity(wide, ["layers.0", "layers.1"], n_tokens=100)
    with pytest.raises(UserError, match=r"`n_tokens` must be at least 20\. Got 19"):
        layer_similarity(wide, sites, n_tokens=19)
    with pytest.raises(UserError, match="`sites` must name at least one site"):
        layer_similarity(wide, [], n_tokens=100)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(tiny_model("gpt_neox"), tokenizer=tiny_tokenizer())


def test_distances_of_a_language_model(lm: LanguageModel) -> None:
    ids = torch.randint(2, 300, (40, 32), generator=torch.Generator().manual_seed(0))
    found = layer_distances(lm, ids, n_tokens=1280, text_batch_size=8, lm_dtype="fp32")
    rows = [layer.flatten(0, 1) for layer in lm.activations(ids, lm.sites).values()]
    means = torch.stack([layer[:128].mean(0) for layer in rows])
    expected = angles_pair_by_pair([layer[128:] for layer in rows], means)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_options_reach_the_measurement(lm: LanguageModel) -> None:
    with pytest.raises(UserError, match="lm_dtype"):
        layer_distances(lm, ["a text"], lm_dtype="fp99")


def test_numpy_and_lists_are_matrices_too() -> None:
    d = random_distances(5, seed=2).double()
    assert partition(np.asarray(d), 2) == partition(d.tolist(), 2) == partition(d, 2)
