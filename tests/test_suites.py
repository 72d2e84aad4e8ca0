"""Several suites on the same text: as if each were measured by itself, in as few passes as the figures allow."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from strata.errors import UserError
from strata.evaluate import quality, suites
from strata.evaluate.quality import reconstruction_quality
from strata.evaluate.suites import evaluate_suites
from strata.evaluate.sums import ReconstructionSums, SiteSums
from strata.lm.model import LanguageModel
from strata.lm.partial import can_start_at
from strata.lm.tokens import TokenBatch
from strata.sae import metrics
from strata.sae.gates import TopK
from strata.sae.model import SAE
from strata.shapes import SparseCode
from tiny_models import WIDTH, tiny_model, tiny_tokenizer

SEQ = 30
END, PAD = 0, 1
LOSS_KEYS = ["ce_clean", "ce_sae", "ce_zero", "ce_loss_score", "kl_div_score", "delta_ce_percent"]
METRICS = (
    *(metrics.explained_variance, metrics.fvu, metrics.mse, metrics.cosine, metrics.l2_ratio),
    metrics.relative_reconstruction_bias,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(tiny_model("gpt_neox"), tokenizer=tiny_tokenizer())


def text(*, end_at: int | None = 13, sizes: tuple[int, ...] = (5, 7)) -> list[TokenBatch]:
    """Twelve sequences with an end of text in each; the last one ends in pads."""
    ids = torch.randint(2, 120, (12, SEQ), generator=torch.Generator().manual_seed(3))
    if end_at is not None:
        ids[:, end_at] = END
    ids[-1, 20:] = PAD
    parts = ids.split(list(sizes))
    return [TokenBatch(part, part != PAD, part > PAD) for part in parts]


def random_sae(seed: int = 0, d_in: int = WIDTH) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(64, d_in, generator=generator), dim=1)
    return SAE(W_enc=W_dec.t().clone(), b_enc=torch.zeros(64), W_dec=W_dec, b_dec=torch.zeros(d_in), gate=TopK(8))


def identity_sae() -> SAE:
    both = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    zeros = torch.zeros(2 * WIDTH), torch.zeros(WIDTH)
    return SAE(W_enc=both.t().clone(), b_enc=zeros[0], W_dec=both, b_dec=zeros[1], gate=TopK(2 * WIDTH))


def zero_sae() -> SAE:
    W = torch.zeros(4, WIDTH)
    return SAE(W_enc=W.t().clone(), b_enc=-torch.ones(4), W_dec=W, b_dec=torch.zeros(WIDTH), gate=TopK(2))


@contextmanager
def counted(lm: LanguageModel) -> Iterator[Counter[str]]:
    """How often the embedding and each block's attention ran."""
    calls: Counter[str] = Counter()
    places = {"model": lm.model.get_input_embeddings()}
    places |= {site: lm.model.get_submodule(lm.site(f"{site}.attn").path) for site in lm.sites}
    handles = [
        module.register_forward_hook(lambda *_, name=name: calls.update([name])) for name, module in places.items()
    ]
    yield calls
    for handle in handles:
        handle.remove()


# Passes.


def test_one_clean_pass_two_partial_ones_per_site_and_one_of_the_whole(lm: LanguageModel) -> None:
    assert all(can_start_at(lm, block) for block in (1, 2, 3))  # once and for all, on eight tokens
    a = {site: random_sae() for site in lm.sites}
    b = {site: random_sae(1) for site in lm.sites}
    with counted(lm) as calls:
        evaluate_suites(lm, {"a": a}, text(sizes=(12,)))
    assert calls == {"model": 1 + 3 + 3 + 1, "layers.0": 1, "layers.1": 1 + 2 + 1, "layers.2": 1 + 4 + 1}
    with counted(lm) as calls:  # of two batches; clean and zeroed runs are shared
        evaluate_suites(lm, {"a": a, "b": b}, text())
    assert calls == {"model": 2 * 12, "layers.0": 2, "layers.1": 2 * (1 + 3 + 2), "layers.2": 2 * (1 + 6 + 2)}
    with counted(lm) as calls:  # a suite with one SAE needs no run of the whole; block 1 runs for its own mlp
        evaluate_suites(lm, {"a": {"layers.1.mlp": random_sae()}}, text(sizes=(12,)))
    assert calls == {"model": 3, "layers.0": 1, "layers.1": 3, "layers.2": 3}


def test_without_next_token_loss_only_what_the_sites_need_is_run() -> None:
    encoder = LanguageModel(tiny_model("bert"), tokenizer=tiny_tokenizer())
    with counted(encoder) as calls:
        suites = {"a": {"layers.1": random_sae()}, "b": {"layers.0": random_sae()}}
        found = evaluate_suites(encoder, suites, text(), lm_dtype="fp32")
    assert calls == {"model": 2, "layers.0": 2, "layers.1": 2}
    assert found["a"]["all_sites"] == dict.fromkeys(LOSS_KEYS)
    x = torch.cat(
        [
            encoder.activations(b.input_ids, ["layers.1"], attention_mask=b.attention_mask)["layers.1"][b.is_row]
            for b in text()
        ]
    )
    expected = reconstruction_quality(random_sae(), x)
    numbers = found["a"]["sites"]["layers.1"]
    assert {key: numbers.pop(key) for key in LOSS_KEYS} == dict.fromkeys(LOSS_KEYS)
    assert numbers == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("lm_dtype", ["fp32", "bf16"])
def test_partial_passes_change_no_number(lm: LanguageModel, lm_dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "a": {"layers.2": random_sae(), "layers.0": random_sae(1), "layers.1.mlp": random_sae(2)},
        "b": {"layers.2": random_sae(3), "gpt_neox.embed_in": random_sae(4)},
    }
    partial = evaluate_suites(lm, given, text(), lm_dtype=lm_dtype)
    monkeypatch.setattr(suites, "first_needed_block", lambda lm, site: 0)
    assert evaluate_suites(lm, given, text(), lm_dtype=lm_dtype) == partial
    assert [list(found["sites"]) for found in partial.values()] == [list(saes) for saes in given.values()]


def test_suites_together_are_as_each_alone(lm: LanguageModel) -> None:
    a = {"layers.0": random_sae(), "layers.2": random_sae(1)}
    b = {"layers.2": random_sae(2)}
    together = evaluate_suites(lm, {"a": a, "b": b}, text())
    assert together == {**evaluate_suites(lm, {"a": a}, text()), **evaluate_suites(lm, {"b": b}, text())}
    assert together["a"]["sites"]["layers.2"]["ce_zero"] == together["b"]["sites"]["layers.2"]["ce_zero"]
    assert (together["b"]["n_rows"], together["b"]["n_tokens"], together["b"]["context_tokens"]) == (338, 350, 30)


# All sites at once.


def test_identities_everywhere_score_one(lm: LanguageModel) -> None:
    found = evaluate_suites(lm, {"a": {site: identity_sae() for site in lm.sites}}, text())["a"]
    for numbers in (found["all_sites"], *found["sites"].values()):
        assert (numbers["ce_loss_score"], numbers["kl_div_score"], numbers["delta_ce_percent"]) == (1, 1, 0)
    assert {numbers["explained_variance"] for numbers in found["sites"].values()} == {1}


@pytest.mark.parametrize("end_at", [None, 0, 13])
def test_zeros_everywhere_score_zero(lm: LanguageModel, end_at: int | None) -> None:
    found = evaluate_suites(lm, {"a": {site: zero_sae() for site in lm.sites}}, text(end_at=end_at))["a"]
    for numbers in found["sites"].values():
        assert (numbers["ce_loss_score"], numbers["kl_div_score"]) == (0, 0)
    whole = found["all_sites"]
    assert whole["ce_zero"] == found["sites"]["layers.2"]["ce_zero"]
    exact = end_at != 13  # special tokens amid the text read zeroed rows before the last site is zeroed
    assert (whole["ce_loss_score"], whole["kl_div_score"]) == pytest.approx((0, 0), abs=0 if exact else 0.05)


def test_all_sites_against_one_attached_pass(lm: LanguageModel) -> None:
    (batch,) = text(sizes=(12,))
    saes = {site: random_sae(n) for n, site in enumerate(lm.sites)}
    found = evaluate_suites(lm, {"a": saes}, [batch], lm_dtype="fp32")["a"]
    scored = batch.is_row[:, 1:] & batch.attention_mask[:, :-1]
    with torch.no_grad(), lm.attach(saes, mask=batch.is_row):
        logits = lm.logits(batch.input_ids, attention_mask=batch.attention_mask)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1][scored], batch.input_ids[:, 1:][scored]).item()
    assert found["all_sites"]["ce_sae"] == pytest.approx(expected, rel=1e-6)
    assert found["all_sites"]["ce_sae"] not in {numbers["ce_sae"] for numbers in found["sites"].values()}


@pytest.mark.parametrize(
    ("sites", "last"),
    [
        (["layers.2", "layers.0"], "layers.2"),
        (["layers.1.mlp", "layers.1", "layers.0.attn"], "layers.1"),
        (["layers.1"], "layers.1"),
        (["layers.2.mlp"], "layers.2.mlp"),
        (["layers.0", "layers.2.attn"], None),
        (["layers.0.mlp", "layers.1.mlp"], None),
        (["layers.1", "gpt_neox.final_layer_norm"], None),
    ],
)
def test_zeroing_the_last_residual_site_zeroes_all(lm: LanguageModel, sites: list[str], last: str | None) -> None:
    found = evaluate_suites(lm, {"a": {site: random_sae() for site in sites}}, text())["a"]
    whole = found["all_sites"]
    if last is None:
        assert [whole[key] for key in ("ce_zero", "ce_loss_score", "kl_div_score")] == [None] * 3
        assert whole["delta_ce_percent"] != 0
    else:
        assert whole["ce_zero"] == found["sites"][last]["ce_zero"]
        assert whole["ce_loss_score"] is not None
        assert whole["kl_div_score"] is not None


# Sums.


def parts_of(x: Tensor, x_hat: Tensor, code: SparseCode, kept: Tensor, sizes: list[int]) -> dict[str, Any]:
    found = ReconstructionSums(code.d_sae)
    for part in torch.arange(len(x)).split(sizes):
        rows = SparseCode(code.values[part], code.indices[part], code.d_sae)
        found.add(x[part], x_hat[part], rows, kept=kept[part])
    return found.numbers()


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("sizes", [[500], [1, 0, 99, 400], [50] * 10])
def test_sums_are_the_metrics_of_all_rows(offset: float, sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 16, generator=generator) + offset
    x[:50] += 5  # the first part's mean is not that of all
    x_hat = x + 0.3 * torch.randn(500, 16, generator=generator) - 0.1
    values = torch.randn(500, 4, generator=generator).clamp(min=0)
    indices = torch.randint(0, 900, (500, 4), generator=generator)
    kept = torch.rand(500, generator=generator) > 0.1
    found = parts_of(x, x_hat, SparseCode(values, indices, 1000), kept, sizes)
    for metric in METRICS:
        expected = metric(x[kept].double(), x_hat[kept].double()).item()
        assert found[metric.__name__] == pytest.approx(expected, rel=1e-6, abs=1e-6), metric.__name__
    assert found["fvu_with_sinks"] == pytest.approx(metrics.fvu(x.double(), x_hat.double()).item(), rel=1e-6)
    assert found["l0"] == pytest.approx(metrics.l0(values[kept]).item())
    fired = set(indices[kept][values[kept] > 0].tolist())
    assert found["silent_share"] == pytest.approx(1 - len(fired) / 1000)
    assert found["n_sink_rows"] == 500 - int(kept.sum())


def test_chunks_of_rows_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(300, WIDTH, generator=torch.Generator().manual_seed(0)) + 3
    whole = reconstruction_quality(random_sae(), x)
    monkeypatch.setattr(quality, "_CHUNK_ROWS", 70)
    assert reconstruction_quality(random_sae(), x) == pytest.approx(whole, rel=1e-6)


def test_sinks_are_told_from_the_first_rows() -> None:
    sae = random_sae()
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(100, WIDTH, generator=generator)
    later = 30 * torch.randn(200, WIDTH, generator=generator)  # sinks beside the first rows; most rows in the end
    rows = SiteSums("layers.1", {"a": sae}, n_first_rows=80)
    for part in (*first.split(30), later):
        rows.add(part, {"a": sae.encode_sparse(part)})
    found = rows.numbers("a")
    assert found["n_sink_rows"] == 200
    assert found["fvu"] == pytest.approx(reconstruction_quality(sae, first)["fvu"])
    both = torch.cat([first, later])
    assert found["fvu_with_sinks"] == pytest.approx(metrics.fvu(both, sae(both)).item(), rel=1e-5)
    assert reconstruction_quality(sae, both)["n_sink_rows"] == 0


def test_rows_wait_no_longer_than_needed() -> None:
    sae = random_sae()
    rows = SiteSums("layers.1", {"a": sae}, n_first_rows=80)
    for n_waiting in (50, 0, 0):
        part = torch.randn(50, WIDTH)
        rows.add(part, {"a": sae.encode_sparse(part)})
        assert sum(len(x) for x, _ in rows._waiting) == n_waiting


def test_rows_that_cannot_be_measured_are_named() -> None:
    sae = random_sae()
    for bad in (float("nan"), float("inf")):
        rows = SiteSums("layers.1", {"a": sae}, n_first_rows=50)
        for x in (torch.randn(50, WIDTH), torch.full((2, WIDTH), bad)):
            rows.add(x, {"a": sae.encode_sparse(torch.zeros_like(x))})
        with pytest.raises(UserError, match=r"must be finite numbers\. layers\.1 holds NaN"):
            rows.numbers("a")
    with pytest.raises(UserError, match=r"must hold more than attention sinks\. Those of layers\.1 do not"):
        ReconstructionSums(4).numbers(site="layers.1")
    same = SiteSums("layers.1", {"a": sae}, n_first_rows=50)
    same.add(torch.ones(9, WIDTH), {"a": sae.encode_sparse(torch.ones(9, WIDTH))})
    with pytest.raises(UserError, match=r"All rows of layers\.1 are equal"):
        same.numbers("a")


# Mistakes.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"`suites` must hold at least one suite\. Got none"),
        ({"a": {"layers.0": random_sae()}, "b": {}}, r"at least one SAE\. Got none in 'b'"),
        ({"a": {"layers.7": random_sae()}}, r"Got 'layers\.7'\."),
        ({"a": {"layers.0": random_sae(d_in=16)}}, r"Got d_in=16 at 'layers\.0', which is 32 wide"),
        (
            {"a": {"layers.0": random_sae(), "gpt_neox.layers.0": random_sae()}},
            r"'layers\.0' and 'gpt_neox\.layers\.0' are the same place",
        ),
    ],
)
def test_mistakes_end_before_the_model_runs(lm: LanguageModel, given: Any, message: str) -> None:
    with counted(lm) as calls, pytest.raises(UserError, match=message):
        evaluate_suites(lm, given, text())
    assert not calls
