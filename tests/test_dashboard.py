"""The dashboard's files: they hold what the index says, none of it is markup, and they are whole or not there."""

import base64
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strata.config.dashboard import DashboardConfig
from strata.config.train import SAEConfig, TrainConfig
from strata.errors import UserError
from strata.interpret.explain.record import ExplainedFeature, ExplanationsFile
from strata.interpret.index import FeatureIndex
from strata.interpret.index_layout import (
    FORMAT_VERSION,
    RECORD,
    VOCABULARY,
    TokenShard,
    codes_path,
    tokens_path,
    write_codes,
)
from strata.interpret.logit_effects import LogitEffects
from strata.interpret.site_index import SiteIndex
from strata.report.dashboard import command as command_module
from strata.report.dashboard import neuronpedia as neuronpedia_module
from strata.report.dashboard import write as write_module
from strata.report.dashboard.command import dashboard
from strata.report.dashboard.encoding import integers, rounded, script
from strata.report.dashboard.features import FULL_LEVEL, N_QUANTILES, N_RANDOM, N_SILENT, Shown
from strata.report.dashboard.nearest import N_NEAREST, Nearest
from strata.report.dashboard.neuronpedia import neuronpedia_feature, plain
from strata.report.dashboard.overview import DENSE, group_of, shell_word
from strata.report.dashboard.write import write_dashboard
from strata.report.snippets import snippet
from strata.run import train_run
from strata.sae.gates import TopK
from strata.sae.model import SAE

HOSTILE = (
    '</script><img src=x onerror="window.owned=1">',
    "]]>",
    "\u202eevil\u2066",
    "nul\0here",
    "lone\ud800surrogate",
    "x" * 10_000,
    "<!--<script>",
    "\u2028line\u2029",
    "a\r\nb\tc",
    "&lt;b&gt;`${window.owned=1}`",
    "__proto__",
)
N_WORDS = 40
DEAD = 7  # a latent that never fires
FAILED, UNANSWERED, HALF = 3, 5, 6  # latents without explanation, with windows without answer, half scored
N_LATENTS, N_EXPLAINED = 20, 15
SHOWN = Shown(n_examples=4, before=5, after=3)


def made_run(
    folder: Path, *, keys: tuple[str, ...] = ("layers.1",), d_sae: int = N_LATENTS, n_sequences: int = 24, seq: int = 32
) -> FeatureIndex:
    """A run's folder with an index of random codes of falling densities, over hostile tokens and words."""
    random = np.random.default_rng(0)
    vocabulary = [*HOSTILE, *(f" word{i}" for i in range(N_WORDS)), "\n", "<end>"]
    ids = random.integers(0, len(vocabulary) - 1, (n_sequences, seq))
    ids[:, ::13] = len(vocabulary) - 1
    is_token = np.ones(ids.shape, bool)
    is_token[-1, 20:] = False
    is_row = is_token & (ids != len(vocabulary) - 1)
    index = folder / "index"
    saes = {key: {"site": key.rpartition("/")[2], "d_sae": d_sae, "d_in": 8} for key in keys}
    chance = np.minimum(0.5, 2.0 / (1 + np.arange(d_sae)) ** 1.5)
    chance[DEAD : DEAD + 1] = 0
    for key in keys:
        fires = (random.random((ids.size, d_sae)) < chance) & is_row.reshape(-1, 1)
        latents, places = fires.T.nonzero()
        values = random.gamma(2.0, 1.5, len(latents)).astype(np.float32) + 0.05
        offsets = np.append(0, fires.sum(0).cumsum())
        write_codes(codes_path(index, key, 0), offsets=offsets, places=places.astype(np.uint16), values=values,
                    n_rows=int(is_row.sum()))  # fmt: skip
        chosen = random.integers(0, len(vocabulary), (d_sae, 5)).astype(np.int32)
        strength = np.sort(random.random((d_sae, 5)).astype(np.float32))[:, ::-1].copy()
        LogitEffects(chosen, strength, chosen[:, ::-1].copy(), -strength).save(
            index / key / "logit_effects.safetensors"
        )
    TokenShard(ids.astype(np.uint16), is_token, is_row).write(tokens_path(index, 0))
    (index / VOCABULARY).write_text(json.dumps(vocabulary), encoding="utf-8")
    record = {"format_version": FORMAT_VERSION, "complete": True, "stated": {"data": "texts"}, "saes": saes,
              "n_sequences": n_sequences, "sequence_tokens": seq, "separator": len(vocabulary) - 1, "n_shards": 1,
              "n_prefix_tokens": 0, "n_suffix_tokens": 0, "logit_effects": list(keys), "text": {}}  # fmt: skip
    (index / RECORD).write_text(json.dumps(record), encoding="utf-8")
    about = {
        "status": "trained",
        "model": {"name": "<b>demo</b>"},
        "config": {"data": "texts"},
        "date": "2026-01-02T03:04:05",
    }
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    evaluated = {"sites": {key: {"fvu": 0.1, "l0": 8.0, "explained_variance": 0.9, "dead_share": 0.01} for key in keys}}
    (folder / "evaluation.json").write_text(json.dumps(evaluated), encoding="utf-8")
    return FeatureIndex.open(folder)


def decoder_of(d_sae: int) -> torch.Tensor:
    return torch.randn(d_sae, 8, generator=torch.Generator().manual_seed(0))


def save_sae(index: FeatureIndex, key: str) -> None:
    """An SAE of random directions where a run has it."""
    W_dec = decoder_of(index[key].d_sae)
    sae = SAE(W_enc=W_dec.t().clone(), b_enc=torch.zeros(len(W_dec)), W_dec=W_dec, b_dec=torch.zeros(8), gate=TopK(2))
    sae.save(index.folder.parent / "sae" / key)


@contextmanager
def small_files() -> Iterator[None]:
    """Chunks of 8 features and batches of 16, so that few features fill several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_module, "CHUNK_LATENTS", 8)
        patch.setattr(neuronpedia_module, "BATCH_LATENTS", 16)
        yield


def explain(index: FeatureIndex, key: str, *, text: str = "fires on <i>words</i>", n: int = N_EXPLAINED) -> None:
    """Explanations of the first latents: the scores of latent i are i / 100."""
    file = ExplanationsFile(index[key].folder, interpreter="gpt <x>", settings={})
    file.add([_explained(i, text) for i in range(n)])


def _explained(latent: int, text: str) -> ExplainedFeature:
    if latent == FAILED:
        return ExplainedFeature(latent=3, text="", interpreter="gpt <x>", scores={}, shuffled={}, failed="timeout")
    n_failed = {UNANSWERED: 4, HALF: 30}.get(latent, 0)
    answered = {"n_windows": 40, "n_failed": n_failed}
    scores = {
        "simulation": {part: {"correlation": latent / 100, **answered} for part in ("all", "top", "random")},
        "detection": {"balanced_accuracy": 0.5, "auroc": None, "n": 40, "n_failed": 0},
        "fuzzing": {"balanced_accuracy": None, "auroc": None, "n": 20, "n_failed": 20} if n_failed else None,
        "failures": {UNANSWERED: {"timeout": 24}, HALF: {"budget": 50}}.get(latent, {}),
    }
    return ExplainedFeature(latent=latent, text=f"{text} {latent}", interpreter="gpt <x>", scores=scores, shuffled={})


def stored(folder: Path, name: str) -> Any:
    """The content of a data file."""
    text = (folder / "data" / f"{name}.js").read_text(encoding="ascii")
    head = f'Strata.put("{name}",'
    assert text.startswith(head) and text.endswith(");\n")
    return json.loads(text[len(head) : -3])


def unpacked(text: str, n_bytes: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), f"<u{n_bytes}").astype(np.int64)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureIndex, Path]:
    folder = tmp_path_factory.mktemp("run")
    index = made_run(folder)
    explain(index, "layers.1")
    save_sae(index, "layers.1")
    (folder / "report").mkdir()
    (folder / "report" / "index.html").write_text("report")
    out = folder / "dashboard"
    with small_files():
        write_dashboard(index, run_folder=folder, out=out, shown=SHOWN, neuronpedia=True, progress=False)
    return index, out


def test_scripts_hold_any_text_as_ascii_without_markup() -> None:
    content = {"texts": list(HOSTILE), "n": [1, None, 0.5]}
    text = script("a/b", content)
    assert text.isascii() and not set(text) & set("<>&\0\u2028")
    assert json.loads(text[len('Strata.put("a/b",') : -3]) == content
    with pytest.raises(ValueError, match="JSON"):
        script("a", [math.nan])


@pytest.mark.parametrize("n_bytes", [2, 4])
def test_packed_integers_come_back(n_bytes: int) -> None:
    values = np.array([0, 1, 255, 256, 65_535, *([70_000, 2**32 - 1] if n_bytes == 4 else [])])
    assert unpacked(integers(values, n_bytes=n_bytes), n_bytes).tolist() == values.tolist()
    with pytest.raises(AssertionError, match="fit"):
        integers(np.array([2 ** (8 * n_bytes)]), n_bytes=n_bytes)


def test_rounding_keeps_three_digits_and_turns_what_is_not_finite_into_none() -> None:
    values = np.array([0.0, 1.23456, -98765.0, 1.2345e-7, 1e-40, math.inf, math.nan])
    assert rounded(values) == [0.0, 1.23, -98800.0, 1.23e-7, pytest.approx(1e-40), None, None]


def test_examples_are_the_index_s_windows_to_the_stored_precision(written: tuple[FeatureIndex, Path]) -> None:
    index, folder = written
    run, site = stored(folder, "run"), index["layers.1"]
    seq = index.token_ids.shape[1]
    for latent in (0, 1, 8, 15, 19):
        found = stored(folder, f"0/{latent // run['chunk']}")[latent % run["chunk"]]["windows"]
        firings = site.firings(latent)
        value_of = dict(zip(firings.tokens.tolist(), firings.values.tolist(), strict=True))
        ids, most = unpacked(found["ids"], run["id_bytes"]), found["max"]
        values = np.zeros(len(ids))
        values[unpacked(found["places"], run["place_bytes"])] = unpacked(found["levels"], 2) / FULL_LEVEL * most
        assert most == pytest.approx(max(value_of.values()), rel=1e-5)
        top = site.top(latent, n=SHOWN.n_examples, before=SHOWN.before, after=SHOWN.after)
        n_windows = len(found["lengths"])
        assert n_windows == sum(group["n"] for group in found["groups"]) and sum(found["lengths"]) == len(ids)
        start = 0
        for i, (length, peak) in enumerate(zip(found["lengths"], found["peaks"], strict=True)):
            mine, there = slice(start, start + length), top.is_token[min(i, len(top) - 1)]
            start += length
            assert (values[mine][peak] > 0) == (i < n_windows - found["groups"][-1]["n"])
            if i < len(top):  # the strongest come first
                assert ids[mine].tolist() == top.token_ids[i][there].tolist()
                assert values[mine] == pytest.approx(top.activations[i][there], abs=most / 131_070 * 1.01)
                first = int(top.starts[i]) + int(there.argmax())
                assert found["cut"][i] % 2 == (first % seq != 0)
                assert found["cut"][i] // 2 == (
                    (first + length) % seq != 0 and index.is_token.reshape(-1)[first + length]
                )
        kinds = [group["kind"] for group in found["groups"]]
        assert kinds == ["top", *["quantile"] * (len(kinds) - 3), "random", "silent"] and len(kinds) <= 3 + N_QUANTILES
        assert found["groups"][-2]["n"] == min(N_RANDOM, len(firings))
        n_silent = found["groups"][-1]["n"]
        assert n_silent == N_SILENT or latent < 2, "a latent that fires at every other token leaves little without"
        assert not values[sum(found["lengths"][: n_windows - n_silent]) :].any()
        intervals = [(g["low"], g["high"]) for g in found["groups"] if g["kind"] == "quantile"]
        assert all(low <= high for low, high in intervals) and intervals == sorted(intervals, reverse=True)
        assert sum(g["share"] for g in found["groups"] if g["kind"] == "quantile") == pytest.approx(1, abs=0.01)


def test_columns_agree_with_the_index(written: tuple[FeatureIndex, Path]) -> None:
    index, folder = written
    site, table = index["layers.1"], stored(folder, "0/table")
    assert table["n_fired"] == site.n_fired.tolist() and table["n_fired"][DEAD] == 0
    assert table["max"] == pytest.approx(site.max_activation, rel=1e-3)
    for latent in (0, 16, DEAD):
        firings = site.firings(latent)
        strongest = firings.tokens[firings.values.argmax()] if len(firings) else None
        expected = None if strongest is None else int(index.token_ids.reshape(-1)[strongest])
        assert table["token"][latent] == expected
    assert table["explanation"][4] == "fires on <i>words</i> 4" and table["score"][4] == 0.04
    assert table["explanation"][3] is None and table["score"][3] is None and table["explanation"][16] is None


def test_a_feature_s_page_has_histogram_logits_partners_and_explanation(written: tuple[FeatureIndex, Path]) -> None:
    index, folder = written
    site, features = index["layers.1"], stored(folder, "0/0")
    feature = features[5]
    assert sum(feature["histogram"]["counts"]) == site.n_fired[5]
    values = site.firings(5).values.astype(np.float64)
    assert feature["moments"][:2] == pytest.approx([values.mean(), values.std()], rel=0.01)
    effects = site.logit_effects()
    assert effects is not None and feature["logits"]["up"] == effects.top_ids[5].tolist()
    assert feature["logits"]["down_values"] == pytest.approx(effects.bottom_values[5], rel=0.01)
    partners = site.partners().of(5)
    assert [p[0] for p in feature["partners"]] == partners.latents.tolist()
    assert [p[1] for p in feature["partners"]] == pytest.approx(partners.jaccard, rel=0.01)
    told = feature["explanations"][0]
    assert (told["text"], told["by"], told["split"]) == ("fires on <i>words</i> 5", "gpt <x>", "other documents")
    failed = features[FAILED]["explanations"][0]
    assert failed["text"] is None and failed["why"] == "timeout"
    assert "windows" not in features[DEAD] and "histogram" not in features[DEAD]


def test_scores_tell_how_many_windows_were_answered(written: tuple[FeatureIndex, Path]) -> None:
    _, folder = written
    told, half, whole = (stored(folder, "0/0")[latent]["explanations"][0] for latent in (UNANSWERED, HALF, 4))
    assert told["scores"][0] == ["simulation, correlation", 0.05, 36, 40]
    assert ["detection, balanced accuracy", 0.5, 40, 40] in told["scores"]
    assert not any("detection, AUROC" in score for score in told["scores"]), "all were answered: it has no value"
    assert ["fuzzing, AUROC", None, 0, 20] in told["scores"]
    assert not any("fuzzing, AUROC" in score for score in whole["scores"]), "it was not asked for"
    assert told["failures"] == [["timeout", 24]] and half["failures"] == [["the limit on cost", 50]]
    assert (told["half"], half["half"], whole["half"], whole["failures"]) == (False, True, False, [])
    sae = stored(folder, "run")["saes"][0]
    assert (sae["n_half_scored"], sae["n_unanswered"]) == (1, 74)
    counted = [latent / 100 for latent in range(N_EXPLAINED) if latent not in (FAILED, HALF)]
    assert sae["mean_score"] == pytest.approx(sum(counted) / len(counted))


def test_the_nearest_directions_are_those_of_the_largest_cosine(written: tuple[FeatureIndex, Path]) -> None:
    index, folder = written
    W_dec = decoder_of(index["layers.1"].d_sae).double().numpy()
    unit = W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    for latent in (0, DEAD, 17):
        found = stored(folder, f"0/{latent // 8}")[latent % 8]["nearest"]
        expected = np.argsort(-cosines[latent])[:N_NEAREST]
        assert [n for n, _ in found] == expected.tolist()
        assert [c for _, c in found] == pytest.approx(cosines[latent, expected], abs=1e-3)


@pytest.mark.parametrize("chunk_entries", [1, 23, 2**20])
def test_nearest_directions_in_chunks_of_any_size(chunk_entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    W_dec = decoder_of(7)
    whole = Nearest.of(W_dec)
    assert whole.latents.shape == (7, 6), "all others where there are fewer"
    monkeypatch.setattr("strata.report.dashboard.nearest._CHUNK_ENTRIES", chunk_entries)
    chunked = Nearest.of(3 * W_dec)
    assert chunked.latents.tolist() == whole.latents.tolist()
    assert chunked.cosines == pytest.approx(whole.cosines, abs=1e-5)
    assert Nearest.of(W_dec[:1]).latents.shape == (1, 0)


def test_the_overview_knows_run_and_saes(written: tuple[FeatureIndex, Path]) -> None:
    index, folder = written
    run = stored(folder, "run")
    (sae,) = run["saes"]
    assert run["title"] == "<b>demo</b>" and run["report"] == "../report/index.html"
    assert run["n_tokens"] == int(index.is_token.sum()) and run["date"].endswith("UTC")
    assert (sae["key"], sae["fvu"], sae["l0"], sae["d_sae"]) == ("layers.1", 0.1, 8.0, N_LATENTS)
    assert sae["n_silent"] == int((index["layers.1"].n_fired == 0).sum()) >= 1
    density = np.array(index["layers.1"].n_fired) / index["layers.1"].n_rows
    assert run["dense"] == DENSE and sae["n_dense"] == (density > DENSE).sum() > 3
    assert sae["n_explained"] == N_EXPLAINED - 1 and run["chunk"] == 8
    assert stored(folder, "vocabulary")[: len(HOSTILE)] == list(HOSTILE)


def test_no_data_file_holds_markup_and_the_policy_allows_no_network(written: tuple[FeatureIndex, Path]) -> None:
    _, folder = written
    for path in (folder / "data").rglob("*.js"):
        assert not set(path.read_text(encoding="ascii")) & set("<>&")
    page = (folder / "index.html").read_text()
    assert "default-src 'none'" in page and "unsafe" not in page and "http:" not in page
    for path in folder.glob("*.js"):
        assert not any(
            word in path.read_text() for word in ("innerHTML", "insertAdjacent", "document.write", "eval(", "fetch(")
        )


def test_neuronpedia_batches_have_the_shape_and_only_finite_numbers(written: tuple[FeatureIndex, Path]) -> None:
    index, folder = written
    site = index["layers.1"]
    paths = sorted((folder / "neuronpedia" / "layers.1").iterdir())
    assert [path.name for path in paths] == ["batch-0.json", "batch-1.json"]
    features = []
    for path in paths:
        batch = json.loads(path.read_text(), parse_constant=pytest.fail)
        assert (batch["model_id"], batch["layer"], batch["sae_id_suffix"]) == ("<b>demo</b>", 1, "")
        features += batch["features"]
    assert [f["feature_index"] for f in features] == site.n_fired.nonzero()[0].tolist()
    real, texts = (int, float), []
    for f in features:
        assert type(f["frac_nonzero"]) is float and 0 < f["frac_nonzero"] <= 1
        for names, values in (("neg_str", "neg_values"), ("pos_str", "pos_values")):
            assert len(f[names]) == len(f[values]) == 5 and all(isinstance(v, real) for v in f[values])
            texts += f[names]
        assert len(f["freq_hist_data_bar_heights"]) == len(f["freq_hist_data_bar_values"]) > 0
        assert sum(f["freq_hist_data_bar_heights"]) == site.n_fired[f["feature_index"]]
        n_partners = len(f["correlated_features_indices"])
        assert len(f["correlated_features_pearson"]) == len(f["correlated_features_l1"]) == n_partners
        for empty in (
            "neuron_alignment_indices",
            "correlated_neurons_l1",
            "logits_hist_data_bar_values",
            "decoder_weights_dist",
        ):
            assert f[empty] == []
        for one in f["activations"]:
            assert len(one["tokens"]) == len(one["values"]) > one["qualifying_token_index"] >= 0
            assert one["values"][one["qualifying_token_index"]] > 0
            assert all(isinstance(v, real) for v in one["values"])
            assert one["bin_contains"] == -1 or 0 < one["bin_contains"] <= 1
            assert -1 <= one["bin_min"] <= one["bin_max"]
            texts += one["tokens"]
        assert f["activations"][0]["bin_min"] == -1  # the strongest first
    assert not any("\0" in text or any("\ud800" <= c <= "\udfff" for c in text) for text in texts)
    assert any("nul\ufffdhere" in text for text in texts) and plain("a\ud83d\ude00b") == "a\U0001f600b"


def test_what_is_not_there_is_not_made_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = made_run(tmp_path, d_sae=9)
    index.record["logit_effects"] = []
    write_dashboard(index, run_folder=tmp_path, out=tmp_path / "d", shown=SHOWN, progress=False)
    assert "layers.1: the pages do without the nearest directions" in capsys.readouterr().err
    feature = stored(tmp_path / "d", "0/0")[0]
    assert "logits" not in feature and "explanations" not in feature and "nearest" not in feature
    assert "explanation" not in stored(tmp_path / "d", "0/table")
    sae = stored(tmp_path / "d", "run")["saes"][0]
    assert sae["explained"] is False and sae["mean_score"] is None and sae["score_name"] is None
    lone = neuronpedia_feature(index["layers.1"], 0, groups=[], vocabulary=index.vocabulary, dataset="x")
    assert lone["pos_str"] == [] and lone["activations"] == []


def test_layers_of_a_group_show_the_latent_at_each(tmp_path: Path) -> None:
    keys = ("layers.0-1/layers.0", "layers.0-1/layers.1", "layers.2")
    index = made_run(tmp_path, keys=keys, d_sae=4)
    write_dashboard(index, run_folder=tmp_path, out=tmp_path / "d", shown=SHOWN, neuronpedia=True, progress=False)
    assert stored(tmp_path / "d", "1/0")[2]["layers"] == [[n, int(index[keys[n]].n_fired[2])] for n in (0, 1)]
    assert "layers" not in stored(tmp_path / "d", "2/0")[2]
    batch = json.loads((tmp_path / "d" / "neuronpedia" / keys[1] / "batch-0.json").read_text())
    assert (batch["layer"], batch["sae_id_suffix"]) == (1, "layers.0-1")
    assert group_of("layers.0+4/layers.4") == "layers.0+4" and group_of("lr=0.1/layers.3") == ""


def test_a_feature_s_firings_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = made_run(tmp_path, d_sae=9)
    index["layers.1"].statistics()
    index["layers.1"].partners()
    read: list[int] = []
    firings = SiteIndex.firings

    def counted(self: SiteIndex, latent: int) -> Any:
        read.append(latent)
        return firings(self, latent)

    monkeypatch.setattr(SiteIndex, "firings", counted)
    write_dashboard(index, run_folder=tmp_path, out=tmp_path / "d", shown=SHOWN, neuronpedia=True, progress=False)
    assert read == list(range(9))


def test_only_the_saes_that_are_asked_for_are_written_and_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("layers.0-1/layers.0", "layers.0-1/layers.1", "layers.1", "layers.2")
    index = made_run(tmp_path, keys=keys, d_sae=2)
    explain(index, "layers.1", n=2)
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(command_module, "index_run", lambda *_, **__: index)
    monkeypatch.setattr(
        "strata.interpret.explain.command.explain_index", lambda _, config, **__: asked.append(config.sites)
    )
    expected = {("layers.2",): [keys[3]], ("layers.1", keys[0]): [keys[0], keys[2]], ("all",): list(keys)}
    for n, (sites, chosen) in enumerate(expected.items()):
        config = DashboardConfig(run=tmp_path, sites=sites, n_examples=2, out=tmp_path / f"d{n}", neuronpedia=True)
        out = dashboard(config, progress=False).parent
        assert [sae["key"] for sae in stored(out, "run")["saes"]] == chosen
        assert json.loads((out / "dashboard.json").read_text())["saes"] == chosen
        batches = (out / "neuronpedia").rglob("batch-0.json")
        assert {path.parent.relative_to(out / "neuronpedia").as_posix() for path in batches} == {*chosen}
        assert asked.pop() == tuple(key for key in chosen if key != "layers.1")
    with pytest.raises(UserError, match=r"layers\.9"):
        dashboard(DashboardConfig(run=tmp_path, sites=("layers.9",), out=tmp_path / "e"), progress=False)
    with pytest.raises(UserError, match="--overwrite"):
        dashboard(DashboardConfig(run=tmp_path, out=tmp_path / "d0"), progress=False)
    with pytest.raises(UserError, match="replaces dashboards only"):
        dashboard(DashboardConfig(run=tmp_path, out=tmp_path, overwrite=True), progress=False)


def test_what_fails_half_way_leaves_the_old_dashboard_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = made_run(tmp_path, d_sae=9)
    out = tmp_path / "d"
    write_dashboard(index, run_folder=tmp_path, out=out, shown=SHOWN, progress=False)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def full(*args: Any, **settings: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write_module, "sae_content", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_dashboard(index, run_folder=tmp_path, out=out, shown=SHOWN, progress=False)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".*"))


def test_snippets_show_what_cannot_be_seen() -> None:
    tokens = ["a\u202eb", "\u200b", "\x1b[1m", "c\td\r\ne"]
    html = str(snippet({"tokens": tokens, "activations": [0.0] * 4, "peak": 0}, full=1.0)["html"])
    assert "\u202e" not in html and "\u200b" not in html and "\x1b" not in html
    assert html.count("\ufffd") == 2 and "\u241b[1m" in html and html.endswith('c\td<span class="nl">↵</span>\ne')


@pytest.mark.parametrize(("setting", "value"), [("n_examples", 0), ("before_tokens", -1), ("after_tokens", 201)])
def test_settings_out_of_range_are_named(setting: str, value: int) -> None:
    with pytest.raises(UserError, match=f"`{setting}` must be between"):
        DashboardConfig(run=Path("runs/x"), **{setting: value})


@pytest.mark.slow
def test_the_command_indexes_explains_and_writes(tmp_path: Path) -> None:
    sae = SAEConfig(expansion_factor=1, k=8, batch_size=512)
    run = tmp_path / "a run"
    train_run(
        TrainConfig(model="demo", data="stdlib", sites=("layers.1",), n_tokens=4096, sae=sae, out=run, report=False),
        progress=False,
    )
    config = DashboardConfig(run=run, n_tokens=4096, n_examples=3, before_tokens=4, after_tokens=2)
    page = dashboard(config, progress=False)
    assert page == run / "dashboard" / "index.html" and page.is_file()
    about = stored(page.parent, "run")
    assert about["saes"][0]["n_explained"] > 0 and about["report"] is None
    assert about["folder"] == shell_word(str(run)) == f"'{run}'"
    lengths = [n for f in stored(page.parent, "0/0") if "windows" in f for n in f["windows"]["lengths"]]
    assert lengths and max(lengths) <= 4 + 1 + 2
    with pytest.raises(UserError, match="--overwrite"):
        dashboard(config, progress=False)
