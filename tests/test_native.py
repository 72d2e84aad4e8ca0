"""The C++ kernels against PyTorch's, which the dense oracle judges through every gate (tests/test_gates.py)."""

import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from strata.errors import UserError
from strata.kernels import backend, native, pytorch
from strata.kernels.operands import AdamRows, ByLatent, WholeRows
from strata.lm.model import LanguageModel
from strata.sae.normalization import Normalization

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no C++ kernels here: {native.why_not()}")
int8 = pytest.mark.skipif(not native.has_int8(), reason="the processor has no AVX-512 VNNI")

# rows, d_in, d_sae, k
SHAPES = [
    *((1, 1, 1, 1), (1, 3, 8, 1), (7, 17, 48, 5), (33, 130, 1000, 32), (5, 64, 49, 49), (100, 16, 4001, 64)),
    *((50, 20, 3073, 8), (3, 4, 9000, 700)),
]


def problem(n_rows: int, d_in: int, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(n_rows, d_in), torch.randn(d_sae, d_in) / d_in**0.5, torch.randn(d_sae) * 0.1


def code(n_rows: int, d_sae: int, *, density: float = 0.3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values, rows, latents and row starts of a random code with empty rows and silent latents."""
    mask = torch.rand(n_rows, d_sae) < density
    mask[n_rows // 2], mask[:, d_sae // 2] = False, False
    rows, latents = mask.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=n_rows)
    return torch.randn(len(rows)), rows, latents, counts.cumsum(0) - counts


@pytest.mark.parametrize(("n_rows", "d_in", "d_sae", "k"), SHAPES)
def test_topk_of_fp32_scores(n_rows, d_in, d_sae, k):
    z, W, bias = problem(n_rows, d_in, d_sae)
    values, latents = native.topk(z, W, bias, k, score_dtype=torch.float32)
    exact = torch.addmm(bias, z, W.t())
    torch.testing.assert_close(values.sort(1).values, exact.topk(k).values.sort(1).values)
    torch.testing.assert_close(values, exact.gather(1, latents))
    assert all(len(set(row)) == k for row in latents.tolist())


@int8
@pytest.mark.parametrize(("n_rows", "d_in", "d_sae", "k"), SHAPES)
def test_topk_of_int8_scores_has_exact_values_of_the_winners(n_rows, d_in, d_sae, k):
    z, W, bias = problem(n_rows, d_in, d_sae)
    values, latents = native.topk(z, W, bias, k, score_dtype=torch.int8)
    exact = torch.addmm(bias, z, W.t())
    torch.testing.assert_close(values, exact.gather(1, latents))
    assert all(len(set(row)) == k for row in latents.tolist())
    wanted = exact.topk(k).values.sort(1).values
    assert torch.isclose(values.sort(1).values, wanted, rtol=1e-4, atol=1e-5).float().mean() > 0.99
    torch.testing.assert_close(values.sort(1).values, wanted, rtol=0.02, atol=0.02)


@int8
def test_int8_finds_the_winners_also_where_some_dimensions_are_large():
    z, W, bias = problem(400, 192, 3072)
    z[:, :4] *= 20.0  # a scale for each row: large dimensions cost the others precision
    _, latents = native.topk(z, W, bias, 32, score_dtype=torch.int8)
    wanted = torch.addmm(bias, z, W.t()).topk(32).indices
    recall = (latents.unsqueeze(2) == wanted.unsqueeze(1)).any(2).float().mean()
    assert recall > 0.998


@int8
def test_int8_finds_the_winners_on_the_embedded_models_activations():
    lm = LanguageModel("demo")
    ids = torch.randint(lm.vocabulary_size, (8, 256), generator=torch.Generator().manual_seed(0))
    rows = lm.activations(ids, ["layers.3"])["layers.3"][:, 1:].flatten(0, 1)
    z = Normalization.estimate(rows).apply(rows)
    _, W, bias = problem(1, z.shape[1], 3072)
    _, latents = native.topk(z, W, bias, 32, score_dtype=torch.int8)
    wanted = torch.addmm(bias, z, W.t()).topk(32).indices
    assert (latents.unsqueeze(2) == wanted.unsqueeze(1)).any(2).float().mean() > 0.999


@pytest.mark.parametrize("score_dtype", [torch.float32, pytest.param(torch.int8, marks=int8)])
class TestRowsThatNobodyWants:
    def test_equal_scores_give_k_different_latents(self, score_dtype):
        z, W = torch.ones(9, 8), torch.ones(500, 8)
        bias = torch.zeros(500)
        bias[::3] = 1.0
        values, latents = native.topk(z, W, bias, 8, score_dtype=score_dtype)
        assert bool((values == 9).all())
        assert bool((latents % 3 == 0).all())
        assert all(len(set(row)) == 8 for row in latents.tolist())

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_what_is_not_finite_stays_so(self, score_dtype, bad):
        z, W, bias = problem(20, 16, 300)
        z[7, 3] = bad
        values, latents = native.topk(z, W, bias, 8, score_dtype=score_dtype)
        assert not bool(torch.isfinite(values[7]).all())
        assert bool(((latents >= 0) & (latents < 300)).all())
        whole, _ = pytorch.topk(z[:7], W, bias, 8, score_dtype=torch.float32)
        torch.testing.assert_close(values[:7].sort(1).values, whole.sort(1).values, rtol=1e-2, atol=1e-2)

    def test_rows_of_zeros_and_no_rows(self, score_dtype):
        _, W, bias = problem(1, 16, 300)
        values, _ = native.topk(torch.zeros(3, 16), W, bias, 4, score_dtype=score_dtype)
        torch.testing.assert_close(values.sort(1).values, bias.topk(4).values.sort().values.expand(3, 4))
        assert native.topk(torch.zeros(0, 16), W, bias, 4, score_dtype=score_dtype)[0].shape == (0, 4)


@int8
@pytest.mark.parametrize("per_latent", [False, True])
@pytest.mark.parametrize(("n_rows", "d_in", "d_sae"), [(1, 4, 8), (130, 32, 512), (60, 3, 4000)])
def test_what_is_above_a_floor(n_rows, d_in, d_sae, per_latent):
    z, W, bias = problem(n_rows, d_in, d_sae)
    floor = torch.rand(d_sae) if per_latent else torch.tensor(0.6)
    values, rows, latents = native.above(z, W, bias, floor, score_dtype=torch.int8)
    exact = torch.addmm(bias, z, W.t())
    torch.testing.assert_close(values, exact[rows, latents])
    assert bool((values > (floor[latents] if per_latent else floor)).all())
    places = rows * d_sae + latents
    assert torch.equal(places, places.sort().values)
    assert len(places) / int((exact > floor).sum()) > 0.998


@pytest.mark.parametrize(("n_rows", "d", "d_sae"), [(2, 1, 3), (9, 5, 14), (40, 130, 77), (200, 64, 30)])
class TestSparseProducts:
    def test_decode_residual_and_dot(self, n_rows, d, d_sae):
        values, rows, latents, starts = code(n_rows, d_sae)
        weight, target, keep = torch.randn(d_sae, d), torch.randn(n_rows, d), (torch.rand(n_rows) < 0.8).float()
        for name, arguments in (
            ("decode", (values, latents, starts, weight)),
            ("dot", (target, rows, weight, latents)),
            ("residual", (values, rows, latents, starts, weight, target, keep)),
        ):
            found, wanted = getattr(native, name)(*arguments), getattr(pytorch, name)(*arguments)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)

    def test_entries_by_latent(self, n_rows, d, d_sae):
        _, _, latents, _ = code(n_rows, d_sae)
        found, wanted = native.by_latent(latents, d_sae), pytorch.by_latent(latents, d_sae)
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])

    @pytest.mark.parametrize("unit_rows", [False, True])
    def test_adam_on_what_fired(self, n_rows, d, d_sae, unit_rows):
        results = []
        for kernels in (native, pytorch):
            torch.manual_seed(3)
            weight = torch.nn.functional.normalize(torch.randn(d_sae, d), dim=1)
            first, second = torch.zeros_like(weight), torch.zeros_like(weight)
            last_step = torch.zeros(d_sae, dtype=torch.int32)
            for step in (1, 2, 5):
                values, rows, latents, _ = code(n_rows, d_sae, density=0.1)
                order, starts = pytorch.by_latent(latents, d_sae)
                number_of = torch.full((d_sae,), -1, dtype=torch.int32)
                number_of[d_sae // 2] = 0  # has no entries
                kernels.adam_rows_(
                    AdamRows(weight, first, second, last_step, unit_rows),
                    ByLatent(rows[order], values[order], starts, torch.randn(n_rows, d)),
                    WholeRows(torch.randn(1, d), number_of),
                    rate=torch.tensor(1e-2), step=torch.tensor(step, dtype=torch.int32),
                )  # fmt: skip
            results.append((weight, first, second, last_step))
        for found, wanted in zip(*results, strict=True):
            torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-6)


def test_rows_that_are_not_listed_stay_and_their_moments_decay_when_they_are_again():
    weight, first, second = torch.ones(2, 3), torch.zeros(2, 3), torch.zeros(2, 3)
    last_step = torch.zeros(2, dtype=torch.int32)
    for kernels in (native, pytorch):
        w, m, v, last = (tensor.clone() for tensor in (weight, first, second, last_step))
        for step in (1, 4):  # the steps between listed nothing of this weight
            kernels.adam_rows_(
                AdamRows(w, m, v, last, unit_rows=False),
                ByLatent(torch.tensor([0]), torch.ones(1), torch.tensor([0, 1, 1]), torch.ones(1, 3)),
                WholeRows(torch.zeros(0, 3), torch.full((2,), -1, dtype=torch.int32)),
                rate=torch.tensor(0.5), step=torch.tensor(step, dtype=torch.int32),
            )  # fmt: skip
        assert torch.equal(w[1], weight[1])
        assert last.tolist() == [4, 0]
        m1, v1 = 0.1, 0.001
        m4, v4 = 0.9**3 * m1 + 0.1, 0.999**3 * v1 + 0.001
        moved = 0.5 * (1 + m4 / (1 - 0.9**4) / (v4 / (1 - 0.999**4)) ** 0.5)
        torch.testing.assert_close(w[0], torch.full((3,), 1 - moved))


def test_a_zero_row_becomes_a_unit_vector():
    weight = torch.zeros(3, 2)
    native.adam_rows_(
        AdamRows(weight, torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, dtype=torch.int32), unit_rows=True),
        ByLatent(torch.tensor([0, 0, 0]), torch.zeros(3), torch.arange(4), torch.ones(1, 2)),
        WholeRows(torch.zeros(0, 2), torch.full((3,), -1, dtype=torch.int32)),
        rate=torch.tensor(0.1), step=torch.tensor(1, dtype=torch.int32),
    )  # fmt: skip
    assert weight.tolist() == [[1, 0], [0, 1], [1, 0]]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("score_dtype", [pytest.param(torch.int8, marks=int8)])
def test_results_do_not_depend_on_threads_or_on_how_rows_are_divided(threads, score_dtype):
    z, W, bias = problem(500, 24, 700)
    found = {}
    for n_threads in (1, 2):
        threads(n_threads)
        values, latents = native.topk(z, W, bias, 8, score_dtype=score_dtype)
        pieces = [native.topk(piece, W, bias, 8, score_dtype=score_dtype) for piece in z.split(130)]
        assert torch.equal(torch.cat([one for one, _ in pieces]), values)
        assert torch.equal(torch.cat([one for _, one in pieces]), latents)
        rows = torch.arange(500).repeat_interleave(8)
        order, starts = native.by_latent(latents.view(-1), 700)
        found[n_threads] = native.row_sums(ByLatent(rows[order], values.view(-1)[order], starts, z))
    assert torch.equal(found[1], found[2])


def test_gradients_are_autograds_affair(monkeypatch):
    values, rows, latents, starts = code(6, 12)
    weight = torch.randn(12, 5, requires_grad=True)
    native.decode(values, latents, starts, weight).sum().backward()
    assert weight.grad is not None
    assert native.dot(torch.randn(6, 5), rows, weight.detach(), latents).shape == values.shape


class TestWhichKernels:
    def test_an_unknown_name_is_refused(self, monkeypatch):
        monkeypatch.setenv("STRATA_KERNELS", "cython")
        with pytest.raises(UserError, match="`STRATA_KERNELS` must be one of auto, pytorch, native, triton"):
            backend.kernels(torch.device("cpu"))

    def test_pytorch_can_be_asked_for(self, monkeypatch):
        monkeypatch.setenv("STRATA_KERNELS", "pytorch")
        assert backend.kernels(torch.device("cpu")) is pytorch
        assert backend.score_dtype(torch.device("cpu")) in (torch.float32, torch.bfloat16)

    def test_without_a_compiler_pytorch_does_the_work(self, monkeypatch):
        monkeypatch.setattr(native, "_loaded", lambda: (None, "None of c++ is on the PATH."))
        monkeypatch.setenv("STRATA_KERNELS", "auto")
        backend._module.cache_clear()
        assert backend.kernels(torch.device("cpu")) is pytorch
        monkeypatch.setenv("STRATA_KERNELS", "native")
        with pytest.raises(UserError, match=r"`STRATA_KERNELS`=native needs a C\+\+ compiler. None of c\+\+ is on the"):
            backend.kernels(torch.device("cpu"))
        backend._module.cache_clear()

    def test_what_the_compiler_says_is_told(self, monkeypatch, tmp_path):
        def fail(compiler: str) -> Path:
            raise subprocess.CalledProcessError(1, compiler, stderr="native.cpp:1: error: no such thing\nmore")

        monkeypatch.setattr(native, "_compiled", fail)
        library, why = native._loaded.__wrapped__()
        assert library is None
        assert why.endswith("failed: native.cpp:1: error: no such thing.")

    def test_it_is_compiled_once(self, monkeypatch, tmp_path):
        monkeypatch.setenv("STRATA_KERNEL_CACHE", str(tmp_path))
        compiler = "c++"
        made = native._compiled(compiler)
        stamp = made.stat().st_mtime_ns
        assert native._compiled(compiler) == made
        assert made.stat().st_mtime_ns == stamp
        assert [path.name for path in tmp_path.iterdir()] == [made.name]
