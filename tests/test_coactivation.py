"""Partners of latents: against dense products, at the edges, and what the count costs."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from strata.errors import UserError
from strata.interpret import coactivation, coactivation_counts
from strata.interpret.coactivation import (
    Measure,
    Partners,
    Ranking,
    kept_partners,
    partners,
    partners_across,
    partners_of,
)
from strata.interpret.index_layout import CodeShard
from strata.interpret.index_writing import Entries
from strata.shapes import SparseCode


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_codes(n_rows: int, k: int, d_sae: int, *, seed: int = 0, ragged: bool = False) -> SparseCode:
    """k different latents on each row, early ones oftener; ragged: many of the values are 0, one row has all."""
    generator = torch.Generator().manual_seed(seed)
    weights = 1 / torch.arange(1, d_sae + 1).sqrt()
    indices = torch.multinomial(weights.expand(n_rows, d_sae), k, generator=generator)
    values = torch.rand(n_rows, k, generator=generator) + 0.1
    if ragged:
        values[1:] *= torch.rand(n_rows - 1, k, generator=generator) < 0.2
    return SparseCode(values, indices, d_sae)


def shard_of(code: SparseCode, *, first_token: int = 0) -> CodeShard:
    """The code of consecutive tokens, of any leading shape, as an index lists it."""
    rows = SparseCode(code.values.flatten(0, -2), code.indices.flatten(0, -2), code.d_sae)
    return Entries.of(rows, torch.arange(len(rows.values)), first=first_token).by_latent(code.d_sae)


def cut(code: SparseCode, ends: list[int]) -> list[CodeShard]:
    starts = [0, *ends]
    rows = [slice(a, b) for a, b in zip(starts, [*ends, len(code.values)], strict=True)]
    return [shard_of(SparseCode(code.values[r], code.indices[r], code.d_sae), first_token=r.start) for r in rows]


def source(code: SparseCode, ends: list[int] | None = None) -> Callable[[], list[CodeShard]]:
    shards = cut(code, ends or [])
    return lambda: shards


def brute(a: Tensor, b: Tensor) -> dict[str, np.ndarray]:
    """Every measure of every pair, from dense codes [T d_sae]."""
    a, b, n = a.double(), b.double(), len(a)
    fa, fb = (a > 0).double(), (b > 0).double()
    counts, ca, cb = fa.T @ fb, fa.sum(0)[:, None], fb.sum(0)[None]

    def pearson(x: Tensor, y: Tensor) -> Tensor:
        x, y = x - x.mean(0), y - y.mean(0)
        return (x.T @ y) / (x.norm(dim=0)[:, None] * y.norm(dim=0)[None])

    found = {
        "count": counts,
        "jaccard": counts / (ca + cb - counts),
        "phi": pearson(fa, fb),
        "pearson": pearson(a, b),
        "lift": (counts / n) / ((ca / n) * (cb / n)),
    }
    return {name: value.numpy() for name, value in found.items()}


def check_against(found: Partners, dense: dict[str, np.ndarray], ranking: Ranking, *, within: bool) -> None:
    for latent in range(len(found.offsets) - 1):
        scores, counts = dense[ranking.by][latent], dense["count"][latent]
        allowed = [j for j in range(len(counts)) if counts[j] >= ranking.n_least and not (within and j == latent)]
        # Equal scores by the latent's number: those of ratios of counts are equal to the last bit here and there.
        expected = sorted(allowed, key=lambda j: (-round(scores[j], 12), j))[: ranking.n_partners]
        own = found.of(latent)
        assert own.latents.tolist() == expected
        np.testing.assert_array_equal(own.counts, counts[expected])
        for name in ("jaccard", "phi", "pearson", "lift"):
            np.testing.assert_allclose(getattr(own, name), dense[name][latent, expected], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("by", ["jaccard", "phi", "pearson", "lift", "count"])
@pytest.mark.parametrize("ragged", [False, True])
def test_partners_are_those_of_the_dense_product(by: Measure, ragged: bool) -> None:
    code = random_codes(300, 6, 40, ragged=ragged)
    ranking = Ranking(n_partners=7, by=by, n_least=2)
    check_against(partners(source(code), ranking=ranking), brute(code.dense(), code.dense()), ranking, within=True)


@pytest.mark.parametrize("ragged", [False, True])
def test_partners_across_sites(ragged: bool) -> None:
    a, b = random_codes(300, 6, 40, ragged=ragged), random_codes(300, 3, 60, seed=1)
    ranking = Ranking(n_partners=5, n_least=1)
    found = partners_across(source(a, [100]), source(b, [100]), ranking=ranking)
    check_against(found, brute(a.dense(), b.dense()), ranking, within=False)
    fired = [(code.values > 0).sum(1) for code in (a, b)]
    assert found.n_increments == int((fired[0] * fired[1]).sum())
    back = partners_across(source(b, [100]), source(a, [100]), ranking=ranking)
    check_against(back, brute(b.dense(), a.dense()), ranking, within=False)


@pytest.mark.parametrize("few", [1e-9, 1e9], ids=["sorting", "arrays"])
def test_shards_stacks_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, few: float) -> None:
    """However the entries are cut and counted, the same comes out, and the number of increments too."""
    code, ranking = random_codes(400, 5, 30, ragged=True), Ranking(n_partners=4, n_least=2)
    whole = partners(source(code), ranking=ranking)
    monkeypatch.setattr(coactivation_counts, "_FEW", few)
    for entries, block, n_passes in ((2**23, 2**28, 1), (100, 2**28, 1), (100, 12 * 30 * 7, 5)):
        monkeypatch.setattr(coactivation_counts, "_AT_ONCE", entries)
        monkeypatch.setattr(coactivation_counts, "STACK_ENTRIES", entries)
        monkeypatch.setattr(coactivation_counts, "LEAST_BLOCK_BYTES", block)
        monkeypatch.setattr(coactivation_counts, "free_memory", lambda device: 0.0)
        found = partners(source(code, [1, 90, 90, 250]), ranking=ranking)  # the third shard is empty
        assert found.n_passes == n_passes
        for name, value in vars(whole).items():
            if name != "n_passes":
                np.testing.assert_allclose(getattr(found, name), value, rtol=1e-12)


def test_free_memory_spares_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what is free, 12 bytes for each pair; never less than 256 MB."""
    code = random_codes(400, 5, 30, ragged=True)
    monkeypatch.setattr(coactivation_counts, "STACK_ENTRIES", 100)
    monkeypatch.setattr(coactivation_counts, "LEAST_BLOCK_BYTES", 12 * 30 * 5)
    for free, n_passes in ((2 * 12 * 30 * 30, 1), (2 * 12 * 30 * 10, 3), (0, 6)):
        monkeypatch.setattr(coactivation_counts, "free_memory", lambda device, free=free: float(free))
        assert partners(source(code, [90, 250])).n_passes == n_passes
    monkeypatch.undo()
    monkeypatch.setattr(coactivation_counts, "free_memory", lambda device: 16e9)
    assert [-(-n // coactivation_counts.block_latents(n)) for n in (3072, 32_768, 131_072)] == [1, 2, 26]


def test_latents_that_never_and_always_fire() -> None:
    values = torch.ones(50, 3)
    values[:, 2] = torch.arange(50) % 2
    indices = torch.tensor([0, 1, 3]).expand(50, 3)
    found = partners(source(SparseCode(values, indices, 5)))
    assert [len(found.of(latent).latents) for latent in range(5)] == [2, 2, 0, 2, 0]
    always = found.of(0)
    assert always.latents.tolist() == [1, 3] and always.jaccard.tolist() == [1, 0.5]
    assert all(math.isnan(value) for value in [*always.phi, *always.pearson])  # it does not vary
    assert always.lift.tolist() == [1, 1]
    by_phi = partners(source(SparseCode(values, indices, 5)), ranking=Ranking(by="phi"))
    assert by_phi.of(0).latents.tolist() == [1, 3]  # undefined ones last, by number


def test_one_latent_a_token_has_no_partners() -> None:
    code = random_codes(100, 1, 10)
    found = partners(source(code))
    assert len(found.latents) == 0 and found.n_increments == 100


def test_nothing_fires() -> None:
    found = partners(source(SparseCode(torch.zeros(20, 4), torch.zeros(20, 4, dtype=torch.long), 6), [5]))
    assert len(found.latents) == 0 and found.n_rows == 20 and found.n_increments == 0
    with pytest.raises(UserError, match=r"at least one shard of codes\. Got none"):
        partners(list)


def test_few_tokens_together_are_no_partners() -> None:
    indices = torch.tensor([[0, 1], [0, 1], [0, 2], [3, 4]])
    found = partners(source(SparseCode(torch.ones(4, 2), indices, 5)), ranking=Ranking(n_least=2))
    assert found.latents.tolist() == [1, 0]


def test_increments_are_exactly_t_k_squared_whatever_d_sae() -> None:
    for k, n_rows in ((4, 100), (8, 100), (8, 300)):
        found = {d: partners(source(random_codes(n_rows, k, d))).n_increments for d in (64, 256)}
        assert set(found.values()) == {n_rows * k * k}


MEMORY = """
import resource, sys
import torch
from strata.interpret.coactivation import partners
from strata.interpret.index_writing import Entries
from strata.shapes import SparseCode

def peak_after(d_sae):
    starts = torch.randint(d_sae, (1000, 1), generator=torch.Generator().manual_seed(0))
    code = SparseCode(torch.ones(1000, 4), (starts + 7 * torch.arange(4)) % d_sae, d_sae)
    shard = Entries.of(code, torch.arange(1000)).by_latent(d_sae)
    partners(lambda: [shard])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

print(peak_after(50), peak_after(6000))
"""


def test_memory_is_far_below_a_square() -> None:
    """Of 6,000 latents: a square of counts would be 288 MB."""
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    before_bytes, peak_bytes = map(int, done.stdout.split())
    assert peak_bytes - before_bytes < 40e6


def test_sites_that_do_not_fit_are_refused() -> None:
    a, b = random_codes(100, 3, 20), random_codes(100, 3, 20, seed=1)
    with pytest.raises(UserError, match="must cover the same tokens"):
        partners_across(source(a, [40]), source(b, [60]))


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match=r"`n_partners` must be at least 1. Got 0"):
        Ranking(n_partners=0)
    with pytest.raises(UserError, match=r"`n_least` must be at least 1. Got -1"):
        Ranking(n_least=-1)
    ranking = Ranking()
    object.__setattr__(ranking, "by", "jacard")  # types refuse it already while tests run
    with pytest.raises(UserError, match=r"`by` must be a measure .* Got 'jacard'\. Did you mean 'jaccard'"):
        ranking.__post_init__()


def test_partners_are_kept(tmp_path: Path) -> None:
    calls = []
    shards = cut(random_codes(200, 5, 30), [70])
    site: Any = SimpleNamespace(folder=tmp_path, shards=lambda: calls.append(1) or shards)
    assert kept_partners(site) is None
    first, n_calls = partners_of(site), len(calls)
    assert len(first.latents) > 0
    again = partners_of(site)
    assert len(calls) == n_calls > 0
    with pytest.MonkeyPatch.context() as patch:  # another default would choose others
        patch.setattr(coactivation, "_ranked", lambda: np.array([10, 2]))
        assert kept_partners(site) is None
    for name, value in vars(first).items():
        np.testing.assert_array_equal(getattr(again, name), value)
        assert type(getattr(again, name)) is type(value)
