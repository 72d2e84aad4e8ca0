"""Several results of one pass: sweeps, transcoders, where their rows come from, and the recipes."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import strata
from strata.assignments import assign, sites_read
from strata.cli import main, parse_train
from strata.collect import collect_run
from strata.config.collect import CollectConfig
from strata.config.sweep import check_sweep, labels, sweep_configs
from strata.config.train import SAEConfig, TrainConfig
from strata.errors import UserError
from strata.recipes import RECIPES
from strata.recording import Recording
from strata.run import train_run
from strata.sae.model import Transcoder
from tiny_models import save_tiny_model, shared_language_model

SMALL = SAEConfig(expansion_factor=2, k=4, batch_size=32, text_batch_size=4)
IDS = torch.randint(3, 300, (30, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "code.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"def f{n}(x):\n    return x + {n}\n" * 6}) for n in range(60)))
    return path


@pytest.fixture
def tiny(model_folder: Path, text: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        model=str(model_folder),
        data=str(text),
        sites=("layers.1",),
        n_tokens=320,
        context_tokens=32,
        sae=SMALL,
        out=tmp_path / "run",
        device="cpu",
        lm_dtype="fp32",
        held_out_rows=64,
        held_out_tokens=256,
        log_every_steps=1,
        report=False,
    )


def assert_same(a: strata.SAE, b: strata.SAE) -> None:
    found, wanted = a.state_dict(), b.state_dict()
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- what a sweep is ------------------------------------------------------------------------------------------------


def test_words_become_all_combinations() -> None:
    found = sweep_configs(SMALL, ["k=2,4", "lr=auto,0.001", "seed=1"])
    assert [(c.k, c.lr, c.seed) for c in found] == [(2, "auto", 1), (2, 0.001, 1), (4, "auto", 1), (4, 0.001, 1)]
    assert all(replace(c, k=4, lr="auto", seed=0) == SMALL for c in found)
    assert sweep_configs(SMALL, []) == [SMALL]
    flags = sweep_configs(SMALL, ["use-ghost-grads=true,false", "warmup=200 steps,5%"])
    assert [c.use_ghost_grads for c in flags] == [True, True, False, False]
    assert labels(flags)[0] == "warmup=200steps,use_ghost_grads=True"
    assert type(sweep_configs(SMALL, ["architecture=relu"])[0].architecture) is str


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["kk=1"], r"`sweep` must name a setting of SAEConfig\. Got 'kk'\. Did you mean 'k'"),
        (["d-sae=4096"], r"Got 'd_sae'\. Give 'expansion_factor': d_sae = expansion_factor · d_in\."),
        (["k"], r"`sweep` takes settings with their values, such as k=16,32\. Got 'k'"),
        (["k="], r"`sweep` takes settings with their values"),
        (["k=many"], r"`sweep` of k must be a whole number\. Got 'many'"),
        (["k=2.5"], r"`sweep` of k must be a whole number\. Got '2.5'"),
        (["architecture=topk,bottomk"], r"`sweep` of architecture must be .*'topk'.*Got 'bottomk'"),
        (["k=4,0"], r"`SAEConfig\.k` must be at least 1\. Got 0"),
        (["k=2,2"], r"`sweep` must give each value once"),
        (["k=2", "k=3"], r"`sweep` must name each setting once\. Got k twice"),
    ],
)
def test_words_that_are_no_sweep(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        sweep_configs(SMALL, words)


@pytest.mark.parametrize("name", ["batch_size", "num_epochs", "text_batch_size"])
def test_what_configs_must_share(name: str) -> None:
    with pytest.raises(UserError, match=rf"`SAEConfig\.{name}` must be the same in all configs of a sweep"):
        check_sweep([SMALL, replace(SMALL, **{name: 7})])


def test_configs_must_differ_and_be_there() -> None:
    with pytest.raises(UserError, match=r"configs that differ\. Number 3 is there twice"):
        check_sweep([SMALL, replace(SMALL, k=2), SMALL])
    with pytest.raises(UserError, match=r"Got an empty list"):
        check_sweep([])


def test_what_is_assigned_and_its_names() -> None:
    sae = strata.SAE(
        W_enc=torch.zeros(2, 4), b_enc=torch.zeros(4), W_dec=torch.zeros(4, 2), b_dec=torch.zeros(2),
        gate=strata.Trainer(SMALL, progress=False).train(torch.randn(64, 8)).gate,
    )  # fmt: skip
    sites = ["layers.1", "layers.3"]
    one = assign(sites, SMALL, target_sites={"layers.1": "layers.2"}, skip=True, init={"layers.3": sae})
    assert list(one) == ["layers.1.to.layers.2", "layers.3"]
    assert (one["layers.3"].skip, one["layers.3"].init is sae) == (False, True)
    assert one["layers.1.to.layers.2"].skip
    assert sites_read(one) == ["layers.1", "layers.3", "layers.2"]
    assert list(assign(["layers.1"], [SMALL])) == ["layers.1"]
    two = [replace(SMALL, k=2, seed=1), SMALL]
    assert list(assign(["layers.1"], two)) == ["layers.1/k=2,seed=1", "layers.1/k=4,seed=0"]
    for given, sentence in [
        ({"target_sites": {"layers.2": "layers.3"}}, r"`target_sites` names a site that is not trained: 'layers\.2'"),
        ({"init": {"layers.2": sae}}, r"`init` names a site that is not trained: 'layers\.2'"),
        ({"skip": True}, r"`skip` must be False for an SAE"),
    ]:
        with pytest.raises(UserError, match=sentence):
            assign(sites, SMALL, **given)  # type: ignore[arg-type]


# --- sweeps are trained ---------------------------------------------------------------------------------------------


def test_a_sweep_is_one_pass_and_each_result_that_of_a_run_of_its_own() -> None:
    lm = shared_language_model("gpt_neox")
    configs = [SMALL, replace(SMALL, k=2, expansion_factor=4), replace(SMALL, architecture="batchtopk")]
    given: dict[str, Any] = {"sites": ["layers.2", "layers.0"], "buffer_tokens": 160, "progress": False}
    passes: list[int] = []
    hook = lm.model.get_input_embeddings().register_forward_hook(lambda *_: passes.append(1))
    try:
        swept = strata.train_suite(lm, IDS, config=configs, **given)
        n_for_all = len(passes)
        alone = [strata.train_suite(lm, IDS, config=config, **given) for config in configs]
    finally:
        hook.remove()
    assert len(passes) == 4 * n_for_all
    names = labels(configs)
    assert names[1] == "architecture=topk,expansion_factor=4,k=2"
    assert list(swept) == [f"{site}/{name}" for site in given["sites"] for name in names]
    for name, suite in zip(names, alone, strict=True):
        for site, sae in suite.items():
            assert_same(swept[f"{site}/{name}"], sae)


def test_a_sweep_over_seeds_sees_the_same_rows() -> None:
    lm = shared_language_model("gpt_neox")
    configs = [replace(SMALL, seed=seed, lr=1e-12) for seed in (3, 4)]
    swept = list(strata.train_suite(lm, IDS, sites="layers.1", config=configs, progress=False).values())
    assert not torch.equal(swept[0].W_dec, swept[1].W_dec)
    torch.testing.assert_close(swept[0].b_dec, swept[1].b_dec)  # the mean of the same rows


def test_the_command_sweeps(tiny: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tiny.out)
    words = [
        *("train", "--model", tiny.model, "--data", tiny.data, "--sites", "layers.0", "layers.1", "--n-tokens", "320"),
        *("--context-tokens", "32", "--sae.batch-size", "32", "--sae.expansion-factor", "2", "--sae.text-batch-size"),
        *("4", "--device", "cpu", "--lm-dtype", "fp32", "--held-out-tokens", "256", "--out", out),
        *("--sweep", "k=2,4", "seed=0,1"),
    ]
    assert main(words) == 0
    keys = {f"{site}/k={k},seed={seed}" for site in ("layers.0", "layers.1") for k in (2, 4) for seed in (0, 1)}
    assert {str(path.parent.relative_to(tiny.out / "sae")) for path in tiny.out.rglob("cfg.json")} == keys  # type: ignore[operator]
    assert set(lines(Path(out))[-1]["sites"]) == keys
    for key in keys:
        sae = strata.SAE.load(Path(out) / "sae" / key)
        assert (sae.metadata["site"], int(sae.gate.k)) == (key.split("/")[0], int(key[key.index("k=") + 2]))  # type: ignore[arg-type]
    evaluation = json.loads((Path(out) / "evaluation.json").read_text())
    assert set(evaluation["sites"]) == set(json.loads((Path(out) / "features.json").read_text())) == keys
    assert len({numbers["fvu"] for numbers in evaluation["sites"].values()}) == len(keys)
    page = (Path(out) / "report" / "index.html").read_text(encoding="utf-8")
    assert all(key in page for key in keys)
    capsys.readouterr()
    assert main([*words[:-3], "--overwrite", "--sweep", "k=2,many"]) == 2
    assert "`sweep` of k must be a whole number" in capsys.readouterr().err
    assert (Path(out) / "report" / "index.html").exists()


def test_a_sweep_may_not_change_the_batches(tiny: TrainConfig) -> None:
    with pytest.raises(UserError, match=r"`SAEConfig\.batch_size` must be the same"):
        train_run(replace(tiny, sweep=("batch_size=32,64",)), progress=False)
    assert not tiny.folder().exists()


def test_train_sae_gives_one_result() -> None:
    lm = shared_language_model("gpt_neox")
    with pytest.raises(UserError, match=r"`config` must be one SAEConfig\. Got list.*train_suite"):
        lm.train_sae(IDS, "layers.1", config=[SMALL])  # type: ignore[arg-type]


# --- transcoders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_learns_to_predict_its_target(skip: bool, tmp_path: Path) -> None:
    lm = shared_language_model("gpt_neox")
    config = replace(SMALL, num_epochs=6, expansion_factor=4, k=8)
    sites = ["layers.0.mlp", "layers.1"]
    rows = strata.collect_activations(lm, IDS, sites=sites)
    transcoder = lm.train_sae(
        IDS, "layers.0.mlp", target_site="layers.1", skip=skip, config=config,
        held_out=rows, recording=Recording(folder=tmp_path, log_every_steps=1, progress=False),
    )  # fmt: skip
    assert isinstance(transcoder, Transcoder)
    assert (transcoder.W_skip is not None) == skip
    assert (transcoder.metadata["site"], transcoder.metadata["target_site"]) == ("layers.0.mlp", "layers.1")
    x, target = rows["layers.0.mlp"], rows["layers.1"]
    from strata.sae.metrics import fvu

    assert fvu(target, transcoder(x)) < 0.9
    logged = lines(tmp_path)
    assert set(logged[-1]["held_out"]) == set(logged[-1]["sites"]) == {"layers.0.mlp.to.layers.1"}
    measured = [line["held_out"]["layers.0.mlp.to.layers.1"]["fvu"] for line in logged if line["held_out"]]
    assert measured[-1] == pytest.approx(fvu(target, transcoder(x)).item(), rel=1e-3)
    assert measured[-1] < measured[0]


def test_a_run_of_a_transcoder_ends_in_a_report(tiny: TrainConfig) -> None:
    from strata.report.run import train_and_report

    config = replace(tiny, target_site="layers.2", skip=True, report=True, sae=replace(SMALL, architecture="batchtopk"))
    page = train_and_report(config, progress=False)
    key = "layers.1.to.layers.2"
    assert key in page.read_text(encoding="utf-8")
    run = tiny.folder()
    assert isinstance(strata.SAE.load(run / "sae" / key), Transcoder)
    numbers = json.loads((run / "evaluation.json").read_text())["sites"][key]
    assert 0 < numbers["fvu"] < 1.5
    assert numbers["ce_loss_score"] is None
    assert numbers["dead_share"] is not None
    record = json.loads((run / "run.json").read_text())
    assert (record["config"]["target_site"], record["config"]["skip"]) == ("layers.2", True)


def test_transcoders_of_several_sites_come_from_python_only(tiny: TrainConfig) -> None:
    with pytest.raises(UserError, match=r"`target_site` is for a single site\. Got 3 sites"):
        train_run(replace(tiny, sites=("all",), target_site="layers.2"), progress=False)
    with pytest.raises(UserError, match=r"'layers\.9'"):
        train_run(replace(tiny, target_site="layers.9"), progress=False)
    with pytest.raises(UserError, match=r"`skip` must be False for an SAE"):
        train_run(replace(tiny, skip=True), progress=False)
    lm = shared_language_model("gpt_neox")
    targets = {"layers.0": "layers.1", "layers.1": "layers.2"}
    suite = strata.train_suite(lm, IDS, config=SMALL, target_sites=targets, progress=False)
    assert list(suite) == ["layers.0.to.layers.1", "layers.1.to.layers.2", "layers.2"]
    assert [isinstance(sae, Transcoder) for sae in suite.values()] == [True, True, False]


# --- where rows come from -------------------------------------------------------------------------------------------


def test_collected_rows_train_what_the_trainer_trains_of_them(tiny: TrainConfig) -> None:
    _, trained = train_run(replace(tiny, activations="collected"), progress=False)
    lm = strata.LanguageModel(tiny.model, device="cpu")
    from strata.activations.harvest import collect, token_stream

    tokens = token_stream(lm, tiny.data, context_tokens=32, text_batch_size=4, split="train")
    rows = collect(lm, tokens, sites=["layers.1"], lm_dtype="fp32", n_tokens=320)["layers.1"]
    assert_same(trained.saes["layers.1"], strata.Trainer(SMALL, device="cpu", progress=False).train(rows))
    record = json.loads((tiny.folder() / "run.json").read_text())
    assert record["mode"] == "collected"
    assert record["config"]["activations"] == "collected"
    assert (record["config"]["model"], record["config"]["data"]) == (tiny.model, tiny.data)
    assert lines(tiny.folder())[-1]["held_out"]["layers.1"]["fvu"] > 0


def test_auto_is_the_embedded_model_and_the_standard_library(tmp_path: Path) -> None:
    config = TrainConfig(
        n_tokens=64,
        context_tokens=32,
        sae=SMALL,
        out=tmp_path / "run",
        report=False,
        sites=("layers.0",),
        held_out_rows=0,
    )
    rows, _ = train_run(config, progress=False)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["config"]["model"], record["config"]["data"]) == ("demo", "stdlib")
    assert (rows.config.model, rows.config.data) == ("demo", "stdlib")


@pytest.fixture(scope="module")
def store(model_folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of two sites, and some of held-out documents."""
    out = tmp_path_factory.mktemp("stores") / "tiny"
    config = CollectConfig(
        model=str(model_folder), data=str(text), sites=("layers.1", "layers.2"), n_tokens=640, held_out_tokens=96,
        context_tokens=32, out=out, device="cpu", lm_dtype="fp32", dtype="fp32",
    )  # fmt: skip
    return collect_run(config, progress=False)


def of_store(store: Path, out: Path, **given: Any) -> TrainConfig:
    settings = {"held_out_rows": 64, "log_every_steps": 5, "device": "cpu", "report": False}
    return TrainConfig(activations=store, sae=SMALL, out=out, **settings | given)  # type: ignore[arg-type]


def test_a_store_is_trained_without_its_language_model(
    store: Path, tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from strata.activations.store import open_store

    with monkeypatch.context() as patched:
        patched.setattr("strata.run_rows.LanguageModel", None)  # nothing can load it
        _, trained = train_run(of_store(store, tmp_path / "run"), progress=False)
    assert list(trained.saes) == ["layers.1"]  # the middle one of the store's sites
    wanted = strata.Trainer(SMALL, device="cpu", progress=False).train(open_store(store).only("layers.1"))
    assert_same(trained.saes["layers.1"], wanted)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["mode"], record["config"]["model"], record["config"]["data"]) == ("store", tiny.model, "code.jsonl")
    assert record["config"]["context_tokens"] == 32
    assert record["model"]["weights_sha256"]
    assert lines(tmp_path / "run")[-1]["held_out"]["layers.1"]["fvu"] > 0
    assert trained.saes["layers.1"].metadata["hook_name"] == "blocks.1.hook_resid_post"
    assert trained.saes["layers.1"].metadata["model_class_name"] == "HookedTransformer", "which knows that hook"


def test_stores_take_sweeps_transcoders_and_all_their_sites(store: Path, tmp_path: Path) -> None:
    given = {"sites": ("all",), "sweep": ("k=2,4",), "held_out_rows": 0}
    _, swept = train_run(of_store(store, tmp_path / "sweep", **given), progress=False)
    assert list(swept.saes) == [f"{site}/k={k}" for site in ("layers.1", "layers.2") for k in (2, 4)]
    _, trained = train_run(of_store(store, tmp_path / "transcoder", target_site="layers.2"), progress=False)
    assert list(trained.saes) == ["layers.1.to.layers.2"]
    assert lines(tmp_path / "transcoder")[-1]["held_out"]["layers.1.to.layers.2"]["fvu"] > 0


def test_the_report_of_a_store_names_the_text_that_it_lacks(
    store: Path, tiny: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from strata.report.run import train_and_report

    page = train_and_report(of_store(store, tmp_path / "without", report=True), progress=True)
    assert page.exists()
    assert "no evaluation, since the store's model or text is not at hand: " in capsys.readouterr().err
    assert not (tmp_path / "without" / "evaluation.json").exists()
    given = of_store(store, tmp_path / "with", report=True, data=tiny.data, held_out_tokens=256)
    train_and_report(given, progress=False)
    evaluation = json.loads((tmp_path / "with" / "evaluation.json").read_text())
    assert evaluation["sites"]["layers.1"]["ce_loss_score"] is not None


def test_what_is_not_the_stores_is_refused(store: Path, tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text('{"text": "something else"}')
    for given, sentence in [
        ({"model": "demo"}, r"holds activations of .*tiny'\. Got the language model 'demo'"),
        ({"data": str(tmp_path / "other.jsonl")}, r"`data` must be the text that the store was collected from"),
        ({"sites": ("layers.0",)}, r"`sites` must be sites of the store\. Got 'layers\.0'\."),
        ({"target_site": "layers.0"}, r"`sites` must be sites of the store\. Got 'layers\.0'\."),
        ({"n_tokens": 64}, r'`n_tokens` must be "all" for rows of a store\. Got 64'),
        ({"activations": tmp_path / "nowhere"}, r"nowhere"),
    ]:
        with pytest.raises(UserError, match=sentence):
            train_run(replace(of_store(store, tmp_path / "run"), **given), progress=False)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_run_folders_are_named_after_model_and_data_or_the_store(tmp_path: Path) -> None:
    assert TrainConfig().folder() == Path("runs/demo-stdlib")
    assert TrainConfig(model="org/name", activations="collected").folder() == Path("runs/name-stdlib")
    assert TrainConfig(activations=Path("stores/mine")).folder() == Path("runs/mine")
    assert TrainConfig(activations=Path("stores/mine"), data="a/b.jsonl").folder() == Path("runs/demo-b")


def test_flags_say_where_rows_come_from() -> None:
    for words, wanted in [
        ([], "stream"),
        (["--activations", "collected"], "collected"),
        (["--activations", "stores/x"], Path("stores/x")),
    ]:
        config = parse_train(["default", *words])
        assert config is not None
        assert config.activations == wanted
        assert type(config.activations) is type(wanted) or isinstance(wanted, Path)


# --- recipes --------------------------------------------------------------------------------------------------------


def test_the_fast_testing_and_production_presets_are_those_of_practice() -> None:
    fast, production = RECIPES["fast-testing"](), RECIPES["production"]()
    assert fast.activations == "collected"
    assert (fast.sae.expansion_factor, fast.sae.k, fast.sae.batch_size, fast.sae.dead_feature_window) == (
        16,
        64,
        256,
        500,
    )
    wanted = SAEConfig(
        expansion_factor=32, k=128, num_epochs=3, batch_size=64, text_batch_size=32, dead_feature_window=1000,
        use_ghost_grads=True,
    )  # fmt: skip
    assert production.activations == "stream"
    assert production.sae == wanted


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_three_steps(name: str, tiny: TrainConfig) -> None:
    """With its own kind of training; model, text and sizes are replaced by tiny ones."""
    recipe = RECIPES[name]()
    said = RECIPES[name].__doc__ or ""
    assert name == "default" or f"`strata train {name}" in said
    sae = replace(recipe.sae, batch_size=32, num_epochs=1, k=min(recipe.sae.k, 64), text_batch_size=4)
    sites = recipe.sites if recipe.sites in (("all",), ("middle",)) else ("layers.1",)
    config = replace(
        recipe, model=tiny.model, data=tiny.data, sites=sites, n_tokens=96, context_tokens=32, sae=sae, out=tiny.out,
        device="cpu", lm_dtype="fp32", held_out_rows=32, log_every_steps=1, report=False,
    )  # fmt: skip
    _, trained = train_run(config, progress=False)
    assert trained.n_steps == 3
    assert set(trained.saes) == ({"layers.0", "layers.1", "layers.2"} if sites == ("all",) else {"layers.1"})
    assert [line["step"] for line in lines(tiny.folder())] == [1, 2, 3]
