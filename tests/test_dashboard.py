"""The dashboard's files: they hold what the index says, none of it is markup, and they are whole or not there."""

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.config import SAEConfig, TrainConfig
from strata.dashboard_config import DashboardConfig
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
from strata.report.dashboard import write as write_module
from strata.report.dashboard.command import dashboard
from strata.report.dashboard.encoding import integers, rounded, script
from strata.report.dashboard.features import FULL_LEVEL, N_QUANTILES, N_RANDOM, Shown
from strata.report.dashboard.neuronpedia import neuronpedia_feature, plain
from strata.report.dashboard.overview import group_of, shell_word
from strata.report.dashboard.write import check_free, write_dashboard
from strata.run import train_run

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
SHOWN = Shown(n_examples=4, before=5, after=3)


def made_run(
    folder: Path, *, keys: tuple[str, ...] = ("layers.1",), d_sae: int = 150, n_sequences: int = 24, seq: int = 32
) -> FeatureIndex:
    """A run's folder with an index of random codes, Zipf densities, over a vocabulary of hostile tokens and words."""
    random = np.random.default_rng(0)
    vocabulary = [*HOSTILE, *(f" word{i}" for i in range(N_WORDS)), "\n", "<end>"]
    ids = random.integers(0, len(vocabulary) - 1, (n_sequences, seq))
    ids[:, ::13] = len(vocabulary) - 1
    is_token = np.ones(ids.shape, bool)
    is_token[-1, 20:] = False
    is_row = is_token & (ids != len(vocabulary) - 1)
    index = folder / "index"
    saes = {key: {"site": key.rpartition("/")[2], "d_sae": d_sae, "d_in": 8} for key in keys}
    chance = np.minimum(0.5, 2.0 / (1 + np.arange(d_sae)))
    chance[DEAD] = 0
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
              "n_prefix_tokens": 0, "text": {}}  # fmt: skip
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


def explain(index: FeatureIndex, key: str, *, text: str = "fires on <i>words</i>", n: int = 50) -> None:
    """Explanations of the first latents: the scores of latent i are i / 100; latent 3's failed."""
    file = ExplanationsFile(index[key].folder, interpreter="gpt <x>", settings={})
    file.add([_explained(i, text) for i in range(n)])


def _explained(latent: int, text: str) -> ExplainedFeature:
    if latent == 3:
        return ExplainedFeature(latent=3, text="", interpreter="gpt <x>", scores={}, shuffled={}, failed="timeout")
    parts = {part: {"correlation": latent / 100} for part in ("all", "top", "random")}
    scores = {"simulation": parts, "detection": {"balanced_accuracy": 0.5, "auroc": None}, "fuzzing": None}
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
    (folder / "report").mkdir()
    (folder / "report" / "index.html").write_text("report")
    write_dashboard(index, run_folder=folder, out=folder / "dashboard", shown=SHOWN, neuronpedia=True, progress=False)
    return index, folder / "dashboard"


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
    for latent in (0, 1, 64, 100):
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
            assert values[mine][peak] > 0
            if i < len(top):  # the strongest come first
                assert ids[mine].tolist() == top.token_ids[i][there].tolist()
                assert values[mine] == pytest.approx(top.activations[i][there], abs=most / 131_070 * 1.01)
                first = int(top.starts[i]) + int(there.argmax())
                assert found["cut"][i] % 2 == (first % seq != 0)
                assert found["cut"][i] // 2 == (
                    (first + length) % seq != 0 and index.is_token.reshape(-1)[first + length]
                )
        kinds = [group["kind"] for group in found["groups"]]
        assert kinds == ["top", *["quantile"] * (len(kinds) - 2), "random"] and len(kinds) <= 2 + N_QUANTILES
        assert found["groups"][-1]["n"] == min(N_RANDOM, len(firings))
        intervals = [(g["low"], g["high"]) for g in found["groups"] if g["kind"] == "quantile"]
        assert all(low <= high for low, high in intervals) and intervals == sorted(intervals, reverse=True)
        assert sum(g["share"] for g in found["groups"] if g["kind"] == "quantile") == pytest.approx(1, abs=0.01)


def test_columns_agree_with_the_index(written: tuple[FeatureIndex, Path]) -> None:
    index, folder = written
    site, table = index["layers.1"], stored(folder, "0/table")
    assert table["n_fired"] == site.n_fired.tolist() and table["n_fired"][DEAD] == 0
    assert table["max"] == pytest.approx(site.max_activation, rel=1e-3)
    for latent in (0, 20, DEAD):
        firings = site.firings(latent)
        strongest = firings.tokens[firings.values.argmax()] if len(firings) else None
        expected = None if strongest is None else int(index.token_ids.reshape(-1)[strongest])
        assert table["token"][latent] == expected
    assert table["explanation"][4] == "fires on <i>words</i> 4" and table["score"][4] == 0.04
    assert table["explanation"][3] is None and table["score"][3] is None and table["explanation"][60] is None


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
    assert ["simulation, correlation", 0.05] in told["scores"] and not any(
        "AUROC" in name for name, _ in told["scores"]
    )
    assert features[3]["explanations"][0]["text"] is None and features[3]["explanations"][0]["why"] == "timeout"
    assert "windows" not in features[DEAD] and "histogram" not in features[DEAD]


def test_the_overview_knows_run_and_saes(written: tuple[FeatureIndex, Path]) -> None:
    index, folder = written
    run = stored(folder, "run")
    (sae,) = run["saes"]
    assert run["title"] == "<b>demo</b>" and run["report"] == "../report/index.html"
    assert run["n_tokens"] == int(index.is_token.sum()) and run["date"].endswith("UTC")
    assert (sae["key"], sae["fvu"], sae["l0"], sae["d_sae"]) == ("layers.1", 0.1, 8.0, 150)
    assert sae["n_silent"] == int((index["layers.1"].n_fired == 0).sum()) >= 1
    assert sae["n_explained"] == 49 and sae["mean_score"] == pytest.approx(sum(i for i in range(50) if i != 3) / 4900)
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


def test_without_unembedding_and_explanations_nothing_is_made_up(tmp_path: Path) -> None:
    index = made_run(tmp_path, d_sae=20)
    (tmp_path / "index" / "layers.1" / "logit_effects.safetensors").unlink()
    write_dashboard(index, run_folder=tmp_path, out=tmp_path / "d", shown=SHOWN, progress=False)
    feature = stored(tmp_path / "d", "0/0")[0]
    assert "logits" not in feature and "explanations" not in feature
    assert "explanation" not in stored(tmp_path / "d", "0/table")
    sae = stored(tmp_path / "d", "run")["saes"][0]
    assert sae["explained"] is False and sae["mean_score"] is None and sae["score_name"] is None
    lone = neuronpedia_feature(index["layers.1"], 0, groups=[], effects=None, vocabulary=index.vocabulary, dataset="x")
    assert lone["pos_str"] == [] and lone["activations"] == []


def test_layers_of_a_group_show_the_latent_at_each(tmp_path: Path) -> None:
    keys = ("layers.0-1/layers.0", "layers.0-1/layers.1", "layers.2")
    index = made_run(tmp_path, keys=keys, d_sae=10)
    write_dashboard(index, run_folder=tmp_path, out=tmp_path / "d", shown=SHOWN, neuronpedia=True, progress=False)
    assert stored(tmp_path / "d", "1/0")[2]["layers"] == [[n, int(index[keys[n]].n_fired[2])] for n in (0, 1)]
    assert "layers" not in stored(tmp_path / "d", "2/0")[2]
    batch = json.loads((tmp_path / "d" / "neuronpedia" / keys[1] / "batch-0.json").read_text())
    assert (batch["layer"], batch["sae_id_suffix"]) == (1, "layers.0-1")
    assert group_of("layers.0+4/layers.4") == "layers.0+4" and group_of("lr=0.1/layers.3") == ""


def test_a_folder_is_replaced_only_when_told_and_only_a_dashboard(tmp_path: Path) -> None:
    index = made_run(tmp_path, d_sae=9)
    out = tmp_path / "d"
    write_dashboard(index, run_folder=tmp_path, out=out, shown=SHOWN, progress=False)
    with pytest.raises(UserError, match="--overwrite"):
        check_free(out, overwrite=False)
    check_free(out, overwrite=True)
    for wrong in (tmp_path, tmp_path / "index"):
        with pytest.raises(UserError, match="holds no dashboard"):
            check_free(wrong, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        check_free(tmp_path / "run.json", overwrite=True)


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
