"""The index of a run's features: against dense codes of the same text, after interruptions, and when it is damaged."""

import json
import shutil
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from finished_runs import grouped, layer_wise, sae, write_run, write_text
from strata.config.interpret import IndexConfig
from strata.errors import UserError
from strata.interpret import index_building, index_layout, index_writing, run_index
from strata.interpret.index import FeatureIndex
from strata.interpret.index_building import build_index
from strata.interpret.index_layout import CodeFile, TokenShard, codes_path, tokens_path, write_codes
from strata.interpret.index_writing import IndexWriter
from strata.interpret.run_index import index_run
from strata.interpret.site_index import SiteIndex
from strata.interpret.windows import Windows
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenBatch
from strata.lm.vocabulary import token_texts
from strata.sae.gates import Gate, JumpReLU, ReLU, TopK
from strata.sae.model import SAE
from strata.shapes import SparseCode
from tiny_models import END, WIDTH, save_tiny_model, tiny_model, tiny_tokenizer

SEQ = 32
SHARD = 160  # tokens: five sequences
D_SAE = 48
FP16 = 5e-4
NEAR = 1e-4  # pre-activations so near to the gate's edge may fall on either side of it
TEXTS = [
    "def first(x):\n    return x\n",
    "",
    "y",
    "class Long:\n" + "".join(f"    name_{n} = {n * 7919 % 1000}\n" for n in range(12)),  # longer than a shard
    "naïve 語\ttabs",
    "import this  # " + "a" * 70,
    "end",
]


@pytest.fixture(scope="module", autouse=True)
def small_shards_and_one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_layout, "SHARD_TOKENS", SHARD)
        yield
    torch.set_num_threads(before)


def random_sae(gate: Gate, *, site: str, seed: int) -> SAE:
    random = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, WIDTH, generator=random), dim=1)
    b_enc, b_dec = (0.1 * torch.randn(n, generator=random) for n in (D_SAE, WIDTH))
    b_enc[7] = -100.0  # never fires
    return SAE(W_enc=W_dec.t().contiguous(), b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, gate=gate, metadata={"site": site})


def some_saes() -> dict[str, SAE]:
    """Three gates, two of the SAEs layers of a group."""
    return {
        "layers.0": random_sae(TopK(6), site="layers.0", seed=0),
        "layers.1": random_sae(JumpReLU(torch.linspace(0, 2, D_SAE)), site="layers.1", seed=1),
        "layers.1-2/layers.1": random_sae(ReLU(), site="layers.1", seed=2),
        "layers.1-2/layers.2": random_sae(ReLU(), site="layers.2", seed=3),
    }


KEYS = tuple(some_saes())


def language_model(tokenizer: Any = None) -> LanguageModel:
    return LanguageModel(tiny_model("gpt_neox"), tokenizer=tokenizer or tiny_tokenizer())


def bare_texts() -> list[list[int]]:
    tokenizer = tiny_tokenizer()
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


@dataclass(frozen=True)
class Packed:
    """Sequences made by hand: each document behind a 0, cut every 32 tokens, the last one filled with 1."""

    ids: np.ndarray
    documents: np.ndarray  # of which text each token is; -1 at pads

    @property
    def is_token(self) -> np.ndarray:
        return self.documents >= 0

    @property
    def is_row(self) -> np.ndarray:
        return self.is_token & (self.ids > 1)


def packed() -> Packed:
    flat = [(token, number) for number, ids in enumerate(bare_texts()) if ids for token in (0, *ids)]
    flat += [(1, -1)] * (-len(flat) % SEQ)
    ids, documents = np.array(flat).T.reshape(2, -1, SEQ)
    return Packed(ids, documents)


@dataclass(frozen=True)
class Dense:
    """The code of each token, [tokens d_sae] in fp64; 0 where there is no row. What may fire, and what has to."""

    values: np.ndarray
    may: np.ndarray
    must: np.ndarray


def dense(lm: LanguageModel, one: SAE, text: Packed) -> Dense:
    site = one.metadata["site"]
    x = lm.activations(text.ids.tolist(), site, attention_mask=text.is_token.astype(int).tolist())[site].double()
    pre = ((x - one.b_dec) @ one.W_enc.double() + one.b_enc).flatten(0, 1)
    gate = one.gate
    if isinstance(gate, TopK):
        edges = pre.sort(dim=1, descending=True).values
        lowest, next_one = edges[:, gate.k - 1, None], edges[:, gate.k, None]
        may, must = pre >= lowest - NEAR, pre > next_one + NEAR
    else:
        floor = gate.threshold if isinstance(gate, JumpReLU) else torch.zeros(D_SAE)
        may, must = pre > floor - NEAR, pre > floor + NEAR
    is_row = torch.from_numpy(text.is_row.reshape(-1, 1))
    may, must = may & (pre > -NEAR) & is_row, must & (pre > NEAR) & is_row
    return Dense(torch.where(may, pre, 0).numpy(), may.numpy(), must.numpy())


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return language_model()


@pytest.fixture(scope="module")
def built(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    folder = tmp_path_factory.mktemp("indexes") / "index"
    return build_index(lm, some_saes(), TEXTS, folder=folder, context_tokens=SEQ, text_batch_size=3, lm_dtype="fp32",
                       progress=False)  # fmt: skip


@pytest.fixture(scope="module")
def truth(lm: LanguageModel) -> dict[str, Dense]:
    return {key: dense(lm, one, packed()) for key, one in some_saes().items()}


def stored(site: SiteIndex) -> np.ndarray:
    """Firings as [tokens d_sae], through the interface for one latent."""
    found = np.zeros((site.index.n_tokens, site.d_sae))
    for latent in range(site.d_sae):
        firings = site.firings(latent)
        found[firings.tokens, latent] = firings.values
    return found


def small(lm: LanguageModel, folder: Path, texts: Any = None, **options: Any) -> FeatureIndex:
    given: dict[str, Any] = {"context_tokens": SEQ, "text_batch_size": 3, "lm_dtype": "fp32", "progress": False}
    saes = options.pop("saes", {"layers.1": random_sae(TopK(6), site="layers.1", seed=0)})
    return build_index(lm, saes, TEXTS if texts is None else texts, folder=folder, **given | options)


# What is in it


def test_tokens_are_the_texts_packed(built: FeatureIndex) -> None:
    text = packed()
    assert len(text.ids) > 2 * SHARD // SEQ, "several shards"
    assert not text.is_token[-1].all(), "the last sequence is short"
    assert np.array_equal(built.token_ids, text.ids)
    assert np.array_equal(built.is_token, text.is_token)
    assert np.array_equal(built.is_row, text.is_row)
    assert (built.n_sequences, built.sequence_tokens, built.n_tokens) == (*text.ids.shape, text.ids.size)
    assert built.keys == list(KEYS)


def test_each_text_has_a_number_of_its_own_and_numbers_ascend(built: FeatureIndex) -> None:
    text = packed()
    there = text.is_token
    pairs = set(zip(text.documents[there].tolist(), built.documents[there].tolist(), strict=True))
    assert len(pairs) == len({text for text, _ in pairs}) == len({number for _, number in pairs}) == 6
    assert (np.diff(built.documents.reshape(-1)) >= 0).all()


@pytest.mark.parametrize("key", KEYS)
def test_firings_are_those_of_the_dense_code(key: str, built: FeatureIndex, truth: dict[str, Dense]) -> None:
    found, want = stored(built[key]), truth[key]
    fires = found > 0
    assert not (fires & ~want.may).any(), "a firing that is none"
    assert not (want.must & ~fires).any(), "a firing that is missing"
    assert want.must.sum() > 0.98 * want.may.sum() > 0, "nearly all are certain"
    np.testing.assert_allclose(found[fires], want.values[fires], rtol=FP16, atol=1e-5)
    assert len(built[key].firings(7)) == 0


@pytest.mark.parametrize("key", KEYS)
def test_shards_hold_the_same_firings_in_reading_order(key: str, built: FeatureIndex) -> None:
    site = built[key]
    found, first = np.zeros((built.n_tokens, D_SAE)), 0
    shards = list(site.shards())
    assert len(shards) == -(-built.n_tokens // SHARD) > 2
    for shard in shards:
        assert shard.offsets[0] == 0
        assert shard.offsets[-1] == len(shard.tokens) == len(shard.values)
        assert (shard.values > 0).all()
        assert ((shard.tokens >= first) & (shard.tokens < first + SHARD)).all()
        for latent in range(D_SAE):
            assert (np.diff(shard.tokens[shard.offsets[latent] : shard.offsets[latent + 1]]) > 0).all()
        assert shard.n_rows == built.is_row.reshape(-1)[first : first + SHARD].sum()
        found[shard.tokens, shard.latents] = shard.values
        first += SHARD
    assert np.array_equal(found, stored(site))
    for latent in range(D_SAE):
        assert (np.diff(site.firings(latent).tokens) > 0).all()


@pytest.mark.parametrize("key", KEYS)
def test_counts_and_statistics_are_those_of_the_firings(key: str, built: FeatureIndex) -> None:
    site, codes = built[key], stored(built[key])
    n_rows, fires = int(built.is_row.sum()), codes > 0
    assert site.n_rows == n_rows
    assert np.array_equal(site.n_fired, fires.sum(0))
    assert [site.density(i) for i in range(D_SAE)] == pytest.approx((fires.sum(0) / n_rows).tolist())
    found = site.statistics()
    assert np.array_equal(found.n_fired, fires.sum(0))
    assert int(found.n_rows[0]) == n_rows
    np.testing.assert_allclose(found.density, fires.sum(0) / n_rows)
    np.testing.assert_allclose(found.max_activation, codes.max(0), rtol=1e-6)
    np.testing.assert_allclose(site.max_activation, codes.max(0), rtol=1e-6)
    for latent in range(D_SAE):
        values, all_rows = codes[fires[:, latent], latent], codes[built.is_row.reshape(-1), latent]
        if not len(values):
            empty = (found.mean, found.mean_square, found.skew, found.kurtosis, found.max_activation)
            assert [part[latent] for part in empty] == [0] * 5
            assert found.histogram[latent].sum() == 0
            continue
        square = (all_rows**2).mean()
        assert found.mean[latent] == pytest.approx(values.mean(), rel=1e-6)
        assert found.mean_square[latent] == pytest.approx((values**2).mean(), rel=1e-6)
        assert found.skew[latent] == pytest.approx((all_rows**3).mean() / square**1.5, rel=1e-6)
        assert found.kurtosis[latent] == pytest.approx((all_rows**4).mean() / square**2, rel=1e-6)
        below, place = found.histogram[latent].cumsum(), values / values.max() * 40
        edges = np.arange(1, 41)[:, None]
        # A value on a bin's edge may fall on either side of it.
        assert ((place < edges - 1e-4).sum(1) <= below).all()
        assert (below <= (place < edges + 1e-4).sum(1)).all()
        assert below[-1] == len(values)


def test_statistics_are_kept_on_disk(built: FeatureIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    before = built["layers.1"].statistics()
    again = FeatureIndex.open(built.folder)["layers.1"]
    monkeypatch.setattr(SiteIndex, "shards", lambda self: pytest.fail("read anew"))
    assert np.array_equal(again.statistics().histogram, before.histogram)
    assert np.array_equal(again.statistics().skew, before.skew)


def test_an_sae_is_found_by_key_and_by_site_where_that_is_clear(built: FeatureIndex) -> None:
    assert built["layers.2"].key == "layers.1-2/layers.2"
    assert built["layers.1"].key == "layers.1", "the key goes before the site"
    assert [site.key for site in built.sites()] == list(KEYS)
    with pytest.raises(UserError, match=r"no SAE 'layers\.7'"):
        built["layers.7"]


@pytest.mark.parametrize("latent", [-1, D_SAE])
def test_a_latent_out_of_range_is_refused(latent: int, built: FeatureIndex) -> None:
    site = built["layers.0"]
    for ask in (site.firings, site.top, site.quantiles, site.density, lambda i: site.silent(i, 3)):
        with pytest.raises(UserError, match=rf"`latent` must be in \[0, {D_SAE}\)"):
            ask(latent)


def test_attention_sinks_are_no_rows(tmp_path: Path) -> None:
    model: Any = tiny_model("gpt_neox")
    sink = tiny_tokenizer()("Z", add_special_tokens=False)["input_ids"][0]
    model.get_input_embeddings().weight.data[sink] *= 1000  # its residual stream is far from all others
    loud = LanguageModel(model, tokenizer=tiny_tokenizer())
    # No sink in the last texts only: each batch is judged by itself, with the statistics of the first one.
    texts = ["abc Z def" * 5, "Zeta", "plain text without it", "ZZ top"]
    index = small(loud, tmp_path / "i", texts, saes={"layers.0": random_sae(ReLU(), site="layers.0", seed=1)})
    at = (index.token_ids == sink).reshape(-1)
    site = index["layers.0"]
    assert at.sum() == 8
    assert site.n_rows == index.is_row.sum() - 8
    codes = stored(site)
    assert not codes[at].any()
    rest = index.is_row.reshape(-1) & ~at
    assert (codes[rest] > 0).any(1).all()
    assert site.statistics().n_rows.tolist() == [site.n_rows]
    assert not site.windows(3, at.nonzero()[0], before=0, after=0).activations.any()


# Windows


@pytest.mark.parametrize("key", ["layers.0", "layers.1-2/layers.2"])
@pytest.mark.parametrize(("before", "after"), [(24, 8), (0, 0), (40, 40)])
def test_windows_show_tokens_and_activations_of_one_sequence(
    key: str, before: int, after: int, built: FeatureIndex
) -> None:
    text, site, codes = packed(), built[key], stored(built[key])
    tokens = np.array([0, 1, SEQ - 1, SEQ, 100, SHARD - 1, SHARD, int(text.is_token.sum()) - 1])
    for latent in (0, 7, 11):
        windows = site.windows(latent, tokens, before=before, after=after)
        assert windows.token_ids.shape == (len(tokens), before + after + 1)
        assert windows.peaks.tolist() == [before] * len(tokens)
        assert windows.starts.tolist() == (tokens - before).tolist()
        assert windows.documents.tolist() == built.documents.reshape(-1)[tokens].tolist()
        for row, token in enumerate(tokens.tolist()):
            for column in range(before + after + 1):
                place = token - before + column
                there = place // SEQ == token // SEQ and bool(text.is_token.reshape(-1)[place])
                assert bool(windows.is_token[row, column]) == there
                assert windows.token_ids[row, column] == (text.ids.reshape(-1)[place] if there else 0)
                want = codes[place, latent] if there else 0
                assert windows.activations[row, column] == np.float32(want)


def strongest(site: SiteIndex, latent: int, *, n: int, before: int, after: int) -> list[int]:
    """Tokens by brute force: the strongest that are the strongest of their window, which shares no token with those
    that were taken before.
    """
    firings = site.firings(latent)
    values = dict(zip(firings.tokens.tolist(), firings.values.tolist(), strict=True))
    seq, taken, used = site.index.sequence_tokens, [], set()
    for value, token in sorted((-value, token) for token, value in values.items()):
        window = {t for t in range(token - before, token + after + 1) if t // seq == token // seq}
        highest = max(values.get(t, 0.0) for t in window)
        if used.isdisjoint(window) and highest <= -value:
            used |= window
            taken.append(token)
    return taken[:n]


@pytest.mark.parametrize("key", ["layers.0", "layers.1-2/layers.2"])
@pytest.mark.parametrize(("n", "before", "after"), [(20, 24, 8), (3, 2, 1), (1000, 0, 0), (5, 0, 6)])
def test_top_are_the_strongest_firings_whose_windows_do_not_overlap(
    key: str, n: int, before: int, after: int, built: FeatureIndex
) -> None:
    site = built[key]
    for latent in (0, 7, 11, 40):
        top = site.top(latent, n=n, before=before, after=after)
        assert (top.starts + before).tolist() == strongest(site, latent, n=n, before=before, after=after)
        peaks = top.activations[:, before]
        assert (np.diff(peaks) <= 0).all()
        if len(top):
            assert peaks[0] == site.max_activation[latent]
        places = (top.starts[:, None] + np.arange(before + after + 1))[top.is_token]
        assert len(set(places.tolist())) == len(places), "a token is in two windows"
        sequences = np.where(top.is_token, (top.starts[:, None] + np.arange(before + after + 1)) // SEQ, -1)
        assert all(len(set(row.tolist()) - {-1}) == 1 for row in sequences), "a window crosses a sequence"


def test_of_equal_firings_the_earlier_come_first(tmp_path: Path) -> None:
    lm = language_model()
    # Token ids given: all sequences the same, so that each firing stands in each of them.
    index = small(lm, tmp_path / "i", torch.arange(2, 22).repeat(9, 1), saes={"layers.1": some_saes()["layers.1"]})
    site = index["layers.1"]
    latent = int(site.n_fired.argmax())
    top = site.top(latent, n=9, before=20, after=20)
    firings = site.firings(latent)
    best = int(firings.tokens[firings.values.argmax()]) % 20
    assert (top.starts + 20).tolist() == [n * 20 + best for n in range(9)]
    assert index.documents.tolist() == [[n] * 20 for n in range(9)], "each sequence given counts as a document"


def test_no_windows_are_given_where_none_are_wanted(built: FeatureIndex) -> None:
    site = built["layers.1-2/layers.2"]
    assert len(site.top(0, n=0)) == 0
    assert len(site.silent(7, 0)) == 0


def test_peaks_are_the_strongest_tokens_of_their_windows(built: FeatureIndex) -> None:
    for key in KEYS:
        for latent in range(0, D_SAE, 8):
            top = built[key].top(latent, n=20, before=6, after=6)
            assert np.array_equal(top.strengths, top.activations[np.arange(len(top)), top.peaks])
            assert (np.diff(top.strengths) <= 0).all()


@pytest.mark.parametrize("key", ["layers.0", "layers.1"])
@pytest.mark.parametrize(("n_quantiles", "n_each"), [(10, 2), (4, 5), (1, 3), (100, 1)])
def test_quantiles_hold_equally_many_firings_and_drawn_ones_lie_in_theirs(
    key: str, n_quantiles: int, n_each: int, built: FeatureIndex
) -> None:
    site = built[key]
    for latent in (0, 7, 30):
        values = np.sort(site.firings(latent).values)[::-1]
        sizes = [len(values) // n_quantiles + (q < len(values) % n_quantiles) for q in range(n_quantiles)]
        drawn = site.quantiles(latent, n_quantiles=n_quantiles, n_each=n_each, before=3, after=3)
        assert [len(part) for part in drawn] == [min(n_each, size) for size in sizes]
        ends = np.cumsum(sizes)
        for part, size, end in zip(drawn, sizes, ends, strict=True):
            if size:
                peaks = part.activations[:, 3]
                assert (values[end - 1] <= peaks).all()
                assert (peaks <= values[end - size]).all()
                assert (np.diff(peaks) <= 0).all()
        starts = np.concatenate([part.starts for part in drawn])
        assert len(set(starts.tolist())) == len(starts), "a firing is drawn twice"


def test_draws_are_decided_by_the_seed(built: FeatureIndex) -> None:
    site, again = built["layers.1-2/layers.1"], FeatureIndex.open(built.folder)["layers.1-2/layers.1"]

    def starts(parts: list[Windows]) -> list[int]:
        return np.concatenate([part.starts for part in parts]).tolist()

    latent = int(((site.n_fired > 60) & (site.n_fired < 300)).nonzero()[0][0])
    assert starts(site.quantiles(latent, seed=3)) == starts(again.quantiles(latent, seed=3))
    assert starts(site.quantiles(latent, seed=3)) != starts(site.quantiles(latent, seed=4))
    site, again = built["layers.0"], FeatureIndex.open(built.folder)["layers.0"]
    assert starts([site.silent(7, 9, seed=3)]) == starts([again.silent(7, 9, seed=3)])
    assert starts([site.silent(7, 9, seed=3)]) != starts([site.silent(7, 9, seed=4)])


@pytest.mark.parametrize("key", KEYS)
def test_silent_windows_hold_no_firing(key: str, built: FeatureIndex) -> None:
    site, is_row, n_found = built[key], built.is_row.reshape(-1), 0
    for latent in range(1, D_SAE, 6):
        windows = site.silent(latent, 6, before=2, after=1)
        assert len(windows) <= 6
        assert not windows.activations.any()
        fired = set(site.firings(latent).tokens.tolist())
        for start in windows.starts.tolist():
            assert fired.isdisjoint(range(start, start + 4))
            assert is_row[start + 2]
        assert len(set(windows.starts.tolist())) == len(windows)
        n_found += len(windows)
    assert n_found > 8
    assert len(site.silent(7, 6)) == 6, "one that never fires is silent everywhere"


def test_windows_can_be_chosen_and_joined(built: FeatureIndex) -> None:
    parts = built["layers.0"].quantiles(1, n_quantiles=3, n_each=4, before=2, after=2)
    whole = Windows.joined(parts)
    assert len(whole) == sum(len(part) for part in parts) > 3
    assert whole[[2]].starts.tolist() == whole.starts[2:3].tolist()
    assert np.array_equal(whole[whole.strengths > 0].token_ids, whole.token_ids)
    assert np.array_equal(whole[1:3].activations, whole.activations[1:3])


# Tokenizers, and texts of odd lengths


def framed_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a BOS or a frame of its own around each text."""
    tokenizer = tiny_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.add_special_tokens(["[CLS]", "[SEP]"])
    ids = {name: backend.token_to_id(name) for name in ("[CLS]", "[SEP]", END)}
    backend.post_processor = TemplateProcessing(single=template, special_tokens=list(ids.items()))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END, eos_token=END, pad_token="<|pad|>", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip


@pytest.mark.parametrize("template", ["$A", f"{END} $A", "[CLS] $A [SEP]", f"$A {END}"])
def test_a_text_never_has_two_numbers_whatever_the_tokenizer_puts_around_it(template: str, tmp_path: Path) -> None:
    lm = language_model(framed_tokenizer(template))
    letters = "abcdefgh"  # each text has its own letter, so that its tokens are known
    index = small(lm, tmp_path / "i", [letter * (13 * n + 5) for n, letter in enumerate(letters)])
    assert (np.diff(index.documents.reshape(-1)) >= 0).all()
    texts = np.array(index.vocabulary)[index.token_ids]
    numbers = [set(index.documents[(texts == letter) & index.is_row].tolist()) for letter in letters]
    assert [len(found) for found in numbers] == [1] * len(letters), "what is of two documents here is of two documents"
    assert len(set.union(*numbers)) >= len(letters) - 2, "nearly all are told apart"


def test_special_tokens_are_no_rows_also_where_a_text_spells_them(tmp_path: Path) -> None:
    lm = language_model(framed_tokenizer(f"{END} $A"))
    index = small(lm, tmp_path / "i", [f"one {END} two [CLS] three" * 3, "<|pad|> four"])
    special = np.isin(index.token_ids, sorted(lm.special_token_ids))
    assert (index.token_ids[:, 0] == 0).all()
    assert special.sum() > len(index.token_ids)
    assert not index.is_row[special].any()
    assert index["layers.1"].n_rows == index.is_row.sum() == (~special).sum()
    assert not stored(index["layers.1"])[special.reshape(-1)].any()


def test_pads_of_given_token_ids_are_no_rows(tmp_path: Path) -> None:
    ids = torch.randint(2, 250, (7, 12), generator=torch.Generator().manual_seed(0))
    ids[2, 5:] = 1
    ids[4, :3] = 1
    index = small(language_model(), tmp_path / "i", ids)
    assert np.array_equal(index.is_token, (ids != 1).numpy())
    assert index["layers.1"].n_rows == 7 * 12 - 10
    assert not stored(index["layers.1"])[~index.is_token.reshape(-1)].any()


def test_a_text_shorter_than_a_shard_and_a_sequence(tmp_path: Path) -> None:
    index = small(language_model(), tmp_path / "i", ["abc"])
    assert index.token_ids.shape == (1, SEQ)
    assert index.is_token.sum() == 4
    assert index["layers.1"].n_rows == 3
    top = index["layers.1"].top(int(index["layers.1"].n_fired.argmax()), n=5)
    assert len(top) == 1
    assert top.is_token.sum() == 4


def test_a_text_of_one_token_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Give more text\."):  # the rows' spread tells sinks, and one has none
        small(language_model(), tmp_path / "i", ["a"])


@pytest.mark.parametrize("text", [[""], []])
def test_a_text_without_a_token_is_refused(text: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="text"):
        small(language_model(), tmp_path / "i", text)


def test_a_shard_of_one_sequence_that_is_longer_than_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = language_model()
    wanted = small(lm, tmp_path / "a")
    codes = stored(wanted["layers.1"])
    monkeypatch.setattr(index_layout, "SHARD_TOKENS", 20)
    index = small(lm, tmp_path / "b")
    assert index.record["n_shards"] == index.n_sequences
    np.testing.assert_allclose(stored(index["layers.1"]), codes, rtol=2 * FP16, atol=1e-5)


@pytest.mark.parametrize("n_tokens", [1, 64, 65, 10_000])
def test_as_many_tokens_are_read_as_are_wanted(n_tokens: int, tmp_path: Path) -> None:
    index = small(language_model(), tmp_path / "i", n_tokens=n_tokens)
    assert index.n_sequences == min(-(-n_tokens // SEQ), len(packed().ids))
    assert np.array_equal(index.token_ids, packed().ids[: index.n_sequences])


@pytest.mark.parametrize("n_tokens", [0, -3])
def test_no_tokens_are_no_index(n_tokens: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`n_tokens` must be"):
        small(language_model(), tmp_path / "i", n_tokens=n_tokens)


def test_batches_and_shards_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = language_model()
    found = []
    for number, (batch, shard) in enumerate(((1, 32), (7, 96), (64, 65_536))):
        monkeypatch.setattr(index_layout, "SHARD_TOKENS", shard)
        index = small(lm, tmp_path / str(number), text_batch_size=batch)
        found.append((stored(index["layers.1"]), index.token_ids, index.documents, index.is_row))
    for other in found[1:]:
        np.testing.assert_allclose(other[0], found[0][0], rtol=2 * FP16, atol=1e-5)
        for a, b in zip(other[1:], found[0][1:], strict=True):
            assert np.array_equal(a, b)


# Texts of tokens


def test_the_vocabulary_spells_the_tokens(built: FeatureIndex) -> None:
    assert len(built.vocabulary) == 300
    windows = built["layers.0"].windows(0, np.array([1, 40]), before=1, after=6)
    ids = windows.token_ids[0][windows.is_token[0]].tolist()
    assert [built.vocabulary[i] for i in ids] == [
        END,
        "d",
        "e",
        "f",
        " ",
        "f",
        "i",
        "r",
    ]
    ids = tiny_tokenizer()("語", add_special_tokens=False)["input_ids"]
    assert [built.vocabulary[number] for number in ids] == ["\ufffd"] * 3
    assert built.vocabulary[-1] == "", "an id that the tokenizer does not know"
    assert token_texts(None, 3) == ["0", "1", "2"]


@pytest.mark.parametrize("text", ["some words", "two  spaces", "   three at first", "one\n    indented"])
def test_spaces_before_words_are_kept(text: str) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["some", "words", "two", "spaces", "three", "at", "first", "one", "indented"]
    pieces = ["<unk>", "▁", "▁▁", "▁▁▁", "▁▁▁▁", "\n", *(f"▁{word}" for word in words), *words]
    backend = Tokenizer(models.Unigram([(piece, -float(len(piece) == 1)) for piece in pieces], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    texts = token_texts(tokenizer, len(tokenizer))
    assert "".join(texts[number] for number in tokenizer(text, add_special_tokens=False)["input_ids"]) == text


# One pass


def test_each_sequence_runs_through_the_model_once(tmp_path: Path) -> None:
    lm, forwarded = language_model(), []
    hook = lm.model.register_forward_pre_hook(
        # The unembedding is tried on a single token, which is no text.
        lambda module, args, kwargs: forwarded.append(len(kwargs["input_ids"]) * (kwargs["input_ids"].numel() > 1)),
        with_kwargs=True,
    )
    index = small(lm, tmp_path / "i", saes=some_saes())
    hook.remove()
    assert sum(forwarded) == index.n_sequences


def test_nothing_runs_the_model_afterwards(built: FeatureIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_, **__: pytest.fail("something ran a model"))
    monkeypatch.setattr(LanguageModel, "__init__", lambda *_, **__: pytest.fail("something loaded a model"))
    index = FeatureIndex.open(built.folder)
    for site in index.sites():
        latent = int(site.n_fired.argmax())
        assert len(site.top(latent)) > 0
        assert len(site.quantiles(latent)) == 10
        assert len(site.silent(7, 3)) == 3
        assert site.statistics().n_fired[latent] == site.n_fired[latent]
        assert site.logit_effects() is not None
        assert len(index.top_texts(latent, site.key)) > 0


# Going on, and using what is there


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def saved(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; its text makes three shards and a bit, its batches do not end where shards do."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return write_run(folder, LanguageModel(str(model), device="cpu"), data, layer_wise(), text_batch_size=3)


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(saved, tmp_path / "run")


def indexed(run: Path, **options: Any) -> FeatureIndex:
    given: dict[str, Any] = {"n_tokens": 512, "device": "cpu", "lm_dtype": "fp32"}
    return index_run(IndexConfig(run=run, **given | options), progress=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def written_codes(patch: pytest.MonkeyPatch) -> list[str]:
    """Which files of codes are written from here on."""
    written: list[str] = []

    def noted(path: Path, **given: Any) -> None:
        written.append(f"{path.parent.name}/{path.name}")
        write_codes(path, **given)

    patch.setattr(index_writing, "write_codes", noted)
    return written


def interrupt(patch: pytest.MonkeyPatch, *, at: int) -> None:
    """Ctrl-C when the n-th batch has been encoded."""
    real, calls = IndexWriter.add, [0]

    def add(*args: Any) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise KeyboardInterrupt
        real(*args)

    patch.setattr(IndexWriter, "add", add)


def raise_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("at", [*(pytest.param(at, marks=pytest.mark.slow) for at in (1, 5, 8)), 3, 6, 9])
def test_an_interrupted_index_is_gone_on_with(at: int, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Shards of 5 sequences in batches of 3, 2 | 1, 3, 1 | 2, 3 | 1; behind those the vocabulary is written.
    wanted = contents(indexed(run).folder)
    assert sum(name.startswith("tokens-") for name in wanted) == 4
    shutil.rmtree(run / "index")
    written = written_codes(monkeypatch)
    with monkeypatch.context() as patch:
        interrupt(patch, at=at)
        patch.setattr(index_building, "token_texts", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            indexed(run)
    assert len(written) == 3 * sum(at > last for last in (2, 5, 7, 8)), "what is whole"
    with pytest.raises(UserError, match="interrupted"):
        FeatureIndex.open(run)
    indexed(run)
    assert contents(run / "index") == wanted
    assert len(written) == len(set(written)) == 12, "each shard of each SAE is written once"


def test_what_a_killed_process_left_of_a_shard_does_not_matter(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = indexed(run).folder
    wanted = contents(folder)
    record = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    for name in ("n_shards", "n_sequences"):
        del record[name]
    (folder / "index.json").write_text(
        json.dumps(record | {"complete": False, "being_made": record["stated"]["saes"]}), encoding="utf-8"
    )
    tokens_path(folder, 2).unlink()
    tokens_path(folder, 3).unlink()
    codes_path(folder, "layers.0", 2).write_bytes(b"of another time")
    codes_path(folder, "layers.1", 2).unlink()
    half = folder / "layers.1" / ".codes-00002.safetensors.unfinished"
    half.write_bytes(b"half")
    written = written_codes(monkeypatch)
    indexed(run)
    assert contents(folder) == wanted
    assert sorted(written) == sorted(f"layers.{i}/codes-0000{n}.safetensors" for i in range(3) for n in (2, 3))


def test_the_same_index_is_used_without_loading_the_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(indexed(run).folder)
    monkeypatch.setattr(run_index, "language_model_of", lambda *_, **__: pytest.fail("loaded a model"))
    assert indexed(run).keys == ["layers.0", "layers.1", "layers.2"]
    assert indexed(run, sites=("layers.1",)).keys == ["layers.0", "layers.1", "layers.2"], "it has that one, too"
    assert contents(run / "index") == before


def test_an_index_gets_the_saes_that_it_lacks(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = indexed(run, sites=("layers.2",))
    assert some.keys == ["layers.2"]
    (some["layers.2"].folder / "explanations.jsonl").write_text("of hours of work")
    codes, written = stored(some["layers.2"]), written_codes(monkeypatch)
    with monkeypatch.context() as patch:
        interrupt(patch, at=6)
        with pytest.raises(KeyboardInterrupt):
            indexed(run, sites=("layers.0",))
    assert FeatureIndex.open(run).keys == ["layers.2"], "what was whole is still there"
    every = indexed(run)
    assert every.keys == ["layers.0", "layers.1", "layers.2"]
    assert not any(name.startswith("layers.2") for name in written)
    assert np.array_equal(stored(every["layers.2"]), codes)
    assert (every["layers.2"].folder / "explanations.jsonl").read_text() == "of hours of work"
    assert all(site.logit_effects() is not None for site in every.sites())
    monkeypatch.setattr(run_index, "language_model_of", lambda *_, **__: pytest.fail("loaded a model"))
    added = contents(indexed(run).folder)
    monkeypatch.undo()
    indexed(run, reindex=True)
    at_once = contents(run / "index")
    del added["layers.2/explanations.jsonl"]
    assert {name: part for name, part in added.items() if name != "index.json"} == {
        name: part for name, part in at_once.items() if name != "index.json"
    }


def test_a_group_is_chosen_by_folder_or_site(tmp_path: Path, model: Path, data: Path) -> None:
    run = write_run(tmp_path / "run", LanguageModel(str(model), device="cpu"), data, grouped())
    assert indexed(run, sites=("layers.1", "layers.2")).keys == ["layers.0-1/layers.1", "layers.2"]
    index = indexed(run, sites=("layers.0-1/layers.0",))
    assert index["layers.0"].key == "layers.0-1/layers.0"
    whole = indexed(run)
    assert whole.keys == list(grouped())
    for site in whole.sites():
        assert torch.equal(site.sae().W_dec, grouped()[site.key].W_dec)
    with pytest.raises(UserError, match=r"`sites` must be of the run\. Got 'layers\.9'"):
        indexed(run, sites=("layers.9",))


def other_gate(run: Path) -> None:
    one = sae("layers.1")
    SAE(W_enc=one.W_enc, b_enc=one.b_enc, W_dec=one.W_dec, b_dec=one.b_dec, gate=TopK(9),
        metadata=one.metadata).save(run / "sae" / "layers.1")  # fmt: skip


@pytest.mark.parametrize("change", ["weights", "gate", "n_tokens", "text", "text of that name", "reindex"])
def test_another_index_is_made_where_anything_differs(
    change: str, run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write_text(tmp_path / "own")
    before = indexed(run, data=str(own))
    before["layers.1"].statistics()
    written = written_codes(monkeypatch)
    options: dict[str, Any] = {"data": str(own)}
    if change == "weights":
        sae("layers.1", seed=5).save(run / "sae" / "layers.1")
    elif change == "gate":
        other_gate(run)
    elif change == "text of that name":
        write_text(own, word="class")
    else:
        options |= {"n_tokens": {"n_tokens": 480}, "text": {"data": str(data)}, "reindex": {"reindex": True}}[change]
    after = indexed(run, **options)
    assert len(written) == (12 if change != "n_tokens" else 9), "all is written anew"
    assert not (after.folder / "layers.1" / "statistics.safetensors").exists()


def test_an_interrupted_index_of_another_text_is_not_gone_on_with(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, at=4)
        with pytest.raises(KeyboardInterrupt):
            indexed(run)
    assert tokens_path(run / "index", 0).exists()
    other = write_text(tmp_path / "other", word="class")
    found = indexed(run, data=str(other))
    assert "".join(found.vocabulary[number] for number in found.token_ids.reshape(-1)[1:6].tolist()) == "class"
    assert found.n_sequences == 16


# Mistakes and damage


def test_a_folder_with_something_else_is_left_alone(run: Path) -> None:
    (run / "index").mkdir()
    (run / "index" / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match=r"must have a folder of its own\. .* holds something else"):
        indexed(run)
    assert (run / "index" / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_a_folder_whose_index_json_is_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"pages": ["home"]}', encoding="utf-8")
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="folder of its own"):
        small(language_model(), tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("a file", encoding="utf-8")
    with pytest.raises(UserError, match="folder"):
        small(language_model(), tmp_path / "index")
    assert (tmp_path / "index").read_text(encoding="utf-8") == "a file"


def test_a_mistake_does_not_cost_the_index_that_is_there(tmp_path: Path) -> None:
    lm = language_model()
    before = contents(small(lm, tmp_path / "i").folder)
    with pytest.raises(UserError, match=r"layers\.9"):
        small(lm, tmp_path / "i", saes={"layers.9": random_sae(TopK(2), site="layers.9", seed=0)})
    with pytest.raises(UserError, match="must hold at least one SAE"):
        small(lm, tmp_path / "i", saes={})
    with pytest.raises(UserError, match="`context_tokens` must be at most 64"):
        small(lm, tmp_path / "i", context_tokens=100)
    assert contents(tmp_path / "i") == before


@pytest.fixture
def own(built: FeatureIndex, tmp_path: Path) -> Path:
    """An index to be damaged."""
    shutil.copytree(built.folder, tmp_path / "own")
    return tmp_path / "own"


def test_where_there_is_no_index_the_way_out_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must hold an index.*strata explain RUN"):
        FeatureIndex.open(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "{}", '"text"', b"\xff\xfe", "null"])
def test_a_damaged_record_is_said(content: str | bytes, own: Path) -> None:
    (own / "index.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"damaged.*--reindex"):
        FeatureIndex.open(own)


@pytest.mark.parametrize("lost", ["format_version", "saes", "n_shards", "n_sequences", "separator", "n_prefix_tokens"])
def test_a_record_that_lacks_something_is_damaged(lost: str, own: Path) -> None:
    record = json.loads((own / "index.json").read_text(encoding="utf-8"))
    del record[lost]
    (own / "index.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match="--reindex"):
        FeatureIndex.open(own).documents  # noqa: B018  read here


@pytest.mark.parametrize("key", ["../outside", "/tmp/x", "a/../../b", "", "a\\b"])
def test_no_key_leads_out_of_the_index(key: str, own: Path) -> None:
    record = json.loads((own / "index.json").read_text(encoding="utf-8"))
    record["saes"][key] = record["saes"]["layers.0"]
    (own / "index.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match=r"Keys of an index must be names of folders within it"):
        FeatureIndex.open(own)


def test_saes_are_not_added_on_another_text(run: Path) -> None:
    folder = indexed(run, sites=("layers.2",)).folder
    shard = TokenShard.read(tokens_path(folder, 1))
    TokenShard(shard.token_ids[::-1].copy(), shard.is_token, shard.is_row).write(tokens_path(folder, 1))
    with pytest.raises(UserError, match=r"must be of one text.*tokens-00001.*--reindex"):
        indexed(run)


def test_where_documents_cannot_be_told_sequences_in_a_row_are_one(built: FeatureIndex) -> None:
    record = built.record | {"separator": "none", "n_sequences": built.n_sequences}
    given = FeatureIndex(built.folder, record)
    assert given.documents[:, 0].tolist() == [n // 32 for n in range(built.n_sequences)]
    assert (given.documents == given.documents[:, :1]).all()


def test_an_index_of_another_format_is_said(own: Path) -> None:
    record = json.loads((own / "index.json").read_text(encoding="utf-8"))
    (own / "index.json").write_text(json.dumps(record | {"format_version": 99}), encoding="utf-8")
    with pytest.raises(UserError, match=r"must be of format 1.*is of 99.*--reindex"):
        FeatureIndex.open(own)


def test_an_index_is_never_opened_half_made(own: Path) -> None:
    record = json.loads((own / "index.json").read_text(encoding="utf-8"))
    (own / "index.json").write_text(json.dumps(record | {"complete": False}), encoding="utf-8")
    with pytest.raises(UserError, match="interrupted"):
        FeatureIndex.open(own)


@pytest.mark.parametrize("how", ["missing", "cut", "other"])
@pytest.mark.parametrize("name", ["tokens-00001.safetensors", "layers.1/codes-00001.safetensors", "vocabulary.json"])
def test_a_file_that_is_not_whole_is_said(name: str, how: str, own: Path) -> None:
    path = own / name
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        path.write_bytes(b"something else")
    index = FeatureIndex.open(own)
    with pytest.raises(UserError, match=rf"{Path(name).name} is missing or damaged.*--reindex"):
        index.top_texts(0, "layers.1")


@pytest.mark.parametrize("name", ["statistics", "logit_effects"])
def test_a_damaged_file_of_numbers_is_said(name: str, own: Path) -> None:
    FeatureIndex.open(own)["layers.0"].statistics()
    (own / "layers.0" / f"{name}.safetensors").write_bytes(b"damage")
    with pytest.raises(UserError, match=rf"{name}.safetensors is missing or damaged"):
        getattr(FeatureIndex.open(own)["layers.0"], name)()


def test_the_sae_of_an_index_outside_a_run_is_not_found_in_words(built: FeatureIndex) -> None:
    with pytest.raises(UserError):
        built["layers.0"].sae()


# The writer by itself: sizes and memory


def token_batch(ids: Tensor) -> TokenBatch:
    return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), torch.ones_like(ids, dtype=torch.bool))


@pytest.mark.parametrize(
    ("vocabulary", "kept"), [(300, np.uint16), (65_536, np.uint16), (65_537, np.uint32), (10**6, np.uint32)]
)
def test_token_ids_of_any_vocabulary_are_kept(vocabulary: int, kept: type, tmp_path: Path) -> None:
    writer = IndexWriter(tmp_path, {}, sequence_tokens=4, vocabulary_size=vocabulary)
    ids = torch.tensor([[0, 1, vocabulary - 2, vocabulary - 1]])
    writer.add(token_batch(ids), {})
    writer.finish_shard()
    shard = TokenShard.read(tokens_path(tmp_path, 0))
    assert shard.token_ids.dtype == kept
    assert shard.token_ids.tolist() == ids.tolist()


@pytest.mark.parametrize("d_sae", [2, 65_536, 65_537, 70_000])
def test_codes_of_any_width_are_sorted(d_sae: int, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    writer = IndexWriter(tmp_path, {"a/b": d_sae}, sequence_tokens=20, vocabulary_size=300)
    dense_codes = np.zeros((60, d_sae), np.float32)
    for first in (0, 20, 40):
        indices = torch.stack([torch.randperm(d_sae, generator=random)[:2] for _ in range(15)])
        indices[0] = torch.tensor([d_sae - 1, 0])
        values = torch.rand(15, 2, generator=random) * (torch.rand(15, 2, generator=random) > 0.3)
        places = torch.randperm(20, generator=random)[:15].sort().values
        block = dense_codes[first + places.numpy()]
        np.put_along_axis(block, indices.numpy(), values.numpy(), 1)
        dense_codes[first + places.numpy()] = block
        code = SparseCode(values, indices, d_sae)
        writer.add(token_batch(torch.zeros(1, 20, dtype=torch.int64)), {"a/b": (code, places)})
    writer.finish_shard()
    shard = CodeFile(codes_path(tmp_path, "a/b", 0), first_token=1000).whole()
    tokens, latents = dense_codes.nonzero()
    order = np.lexsort((tokens, latents))
    assert shard.n_rows == 45
    assert np.array_equal(shard.latents, latents[order])
    assert np.array_equal(shard.tokens, tokens[order] + 1000)
    np.testing.assert_allclose(shard.values, dense_codes[tokens, latents][order], rtol=FP16)


@pytest.mark.parametrize("largest", [1e-30, 1e-3, 1.0, 2.0**15, 7e4, 1e30])
def test_values_of_any_size_are_kept_to_fp16(largest: float, tmp_path: Path) -> None:
    values = (largest * np.linspace(1e-6, 1, 50)).astype(np.float32)
    path = tmp_path / "codes.safetensors"
    write_codes(path, offsets=np.array([0, 50]), places=np.arange(50, dtype=np.uint16), values=values, n_rows=50)
    np.testing.assert_allclose(CodeFile(path, first_token=0).whole().values, values, rtol=FP16)


def test_a_value_far_below_the_others_still_fires(tmp_path: Path) -> None:
    path = tmp_path / "codes.safetensors"
    values = np.array([1e-20, 1.0], np.float32)
    write_codes(path, offsets=np.array([0, 2]), places=np.arange(2, dtype=np.uint16), values=values, n_rows=2)
    found = CodeFile(path, first_token=0).whole().values
    assert 0 < found[0] < 1e-8
    assert found[1] == 1


def test_ten_million_tokens_take_less_than_two_gigabytes(built: FeatureIndex) -> None:
    """An entry is a place of two bytes and a value of two; a shard has d_sae + 1 offsets of four bytes each for every
    SAE, ids of two bytes and two bits for each token, and a header.
    """
    header, ids = 600, 2 + 2 / 8
    for site in built.sites():
        for number, shard in enumerate(site.shards()):
            n_bytes = codes_path(built.folder, site.key, number).stat().st_size
            assert n_bytes <= 4 * len(shard.tokens) + 4 * (D_SAE + 1) + header
    for number in range(built.record["n_shards"]):
        n_tokens = min(SHARD, built.n_tokens - number * SHARD)
        assert tokens_path(built.folder, number).stat().st_size <= ids * n_tokens + header
    n_shards = -(-10_000_000 // 65_536)
    for d_sae in (3072, 65_536):
        n_bytes = 10_000_000 * (32 * 4 + ids) + n_shards * (4 * (d_sae + 1) + 2 * header)
        assert n_bytes < 2e9


def fill(folder: Path, *, n_sequences: int, k: int = 8) -> int:
    """Write synthetic codes of two SAEs; the most bytes of arrays and of tensors that the writer held."""
    random = torch.Generator().manual_seed(0)
    writer = IndexWriter(folder, {"a": 512, "b": 512}, sequence_tokens=64, vocabulary_size=300)
    tracemalloc.start()
    held = 0
    for _ in range(n_sequences // 4):
        indices = torch.randint(0, 512, (256, k), generator=random)
        code = SparseCode(torch.rand(256, k, generator=random), indices, 512)
        batch = token_batch(torch.randint(0, 300, (4, 64), generator=random))
        writer.add(batch, dict.fromkeys(("a", "b"), (code, torch.arange(256))))
        tensors = [part for parts in writer._codes.values() for part in parts]
        held = max(held, sum(t.nbytes for part in tensors for t in (part.latents, part.tokens, part.values)))
    writer.finish_shard()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak + held


def test_four_times_the_tokens_take_no_more_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_layout, "SHARD_TOKENS", 4096)
    fill(tmp_path / "warm", n_sequences=64)
    once, four = (fill(tmp_path / str(n), n_sequences=n * 96) for n in (1, 4))
    assert four < 1.1 * once
    entries = 4096 * 8
    assert once > 2 * 10 * entries, "the measure sees what a shard holds"
