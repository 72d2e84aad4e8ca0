"""`strata train`: what a run leaves in its folder, and that nothing but the settings decides what is trained."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import strata
from strata import cli
from strata.cli import main
from tiny_models import save_tiny_model

DEMO_FLAGS = [
    *("--n-tokens", "8192", "--sae.batch-size", "1024", "--sae.expansion-factor", "2", "--sae.k", "8"),
    *("--sites", "layers.1", "layers.3", "--context-tokens", "64", "--sae.text-batch-size", "8"),
]
# The tiny model; the buffer holds a sixth of an epoch, so that a resumed run meets it in the middle of its refills.
TINY_FLAGS = [
    *("--n-tokens", "3072", "--buffer-tokens", "512", "--sae.num-epochs", "2", "--sae.batch-size", "64"),
    *("--sae.expansion-factor", "2", "--sae.k", "4", "--sae.dead-feature-window", "20"),
    *("--sites", "layers.0", "layers.2"),
    *("--context-tokens", "32", "--sae.text-batch-size", "8", "--device", "cpu", "--lm-dtype", "fp32", "--no-report"),
]
N_STEPS = 2 * 3072 // 64
SITE_KEYS = {"loss", "fvu", "l0", "dead_share", "silent_1m_share", "silent_rows_p90"}
SITE_KEYS |= {"silent_step_share", "outlier_share", "relative_length"}
METRICS_KEYS = {"step", "rows", "tokens", "seconds", "rows_per_second", "learning_rate", "sites", "held_out"}
METRICS_KEYS |= {"rows_seconds", "sae_seconds"}
EVALUATION_KEYS = {
    *("explained_variance", "fvu", "mse", "cosine", "l0", "l2_ratio", "relative_reconstruction_bias", "silent_share"),
    *("dead_share", "dead_window_rows", "n_sink_rows", "fvu_with_sinks", "ce_clean", "ce_sae", "ce_zero"),
    *("ce_loss_score", "kl_div_score", "delta_ce_percent", "n_trained_rows"),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text files, of all kinds that need no extra."""
    folder = tmp_path_factory.mktemp("texts")
    library = Path(sysconfig.get_path("stdlib"))
    for name in ("textwrap", "string", "bisect", "heapq"):
        (folder / f"{name}.txt").write_text((library / f"{name}.py").read_text(encoding="utf-8"), encoding="utf-8")
    lines = [json.dumps({"text": f"print({number})\n" * 30}) for number in range(40)]
    (folder / "lines.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    out = tmp_path_factory.mktemp("demo") / "runs" / "one"
    assert main(["train", "--data", str(data), "--out", str(out), "--no-report", *DEMO_FLAGS]) == 0
    return out


@pytest.fixture(scope="module")
def tiny_words(model_folder: Path, data: Path) -> list[str]:
    return ["train", "--model", str(model_folder), "--data", str(data), *TINY_FLAGS]


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_words: list[str]) -> Path:
    """An uninterrupted run, logged every 10 steps."""
    out = tmp_path_factory.mktemp("tiny") / "uninterrupted"
    assert main([*tiny_words, "--out", str(out)]) == 0
    return out


def sae_files(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted((run / "sae").rglob("*")) if p.is_file()}


def weight_files(run: Path) -> dict[str, bytes]:
    found = {name: content for name, content in sae_files(run).items() if name.endswith(".safetensors")}
    assert len(found) == 2
    return found


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# --- the run folder -------------------------------------------------------------------------------------------------


def test_the_run_folder_holds_what_the_contract_says_and_nothing_else(demo_run: Path) -> None:
    files = sorted(str(path.relative_to(demo_run)) for path in demo_run.rglob("*") if path.is_file())
    parts = [f"sae/layers.{i}/{name}" for i in (1, 3) for name in ("cfg.json", "sae_weights.safetensors")]
    assert files == sorted(["metrics.jsonl", "run.json", *parts])
    assert not (demo_run / "checkpoints").exists()


def test_run_json_tells_config_versions_hardware_and_data(demo_run: Path, data: Path) -> None:
    record = json.loads((demo_run / "run.json").read_text())
    assert record["status"] == "trained"
    config = record["config"]
    assert config["n_tokens"] == 8192
    assert config["sites"] == ["layers.1", "layers.3"]
    assert config["data"] == str(data)
    assert config["sae"]["k"] == 8
    assert config["sae"]["seed"] == 0
    assert {"strata-sae", "torch", "transformers"} <= set(record["versions"])
    assert record["versions"]["torch"] == torch.__version__
    assert record["hardware"]["n_cores"] == os.cpu_count()
    assert record["model"]["name"] == "demo"
    assert record["text"]["tokenizer"]["fingerprint"]
    assert record["text"]["texts"]["fingerprint"].startswith("sha256:")
    assert record["n_steps"] == 8


def test_the_fingerprint_of_the_data_is_that_of_its_content(
    demo_run: Path, tmp_path: Path, tiny_run: Path, tiny_words: list[str], data: Path
) -> None:
    same = json.loads((tiny_run / "run.json").read_text())["text"]["texts"]["fingerprint"]
    assert json.loads((demo_run / "run.json").read_text())["text"]["texts"]["fingerprint"] == same
    changed = shutil.copytree(data, tmp_path / data.name)
    (changed / "string.txt").write_text("other text " * 2000)
    words = [str(changed) if word == str(data) else word for word in tiny_words]
    assert main([*words, "--out", str(tmp_path / "run"), "--n-tokens", "64"]) == 0
    other = json.loads((tmp_path / "run" / "run.json").read_text())
    assert other["text"]["texts"]["fingerprint"] != same


def test_metrics_have_the_same_keys_always_and_sensible_numbers(tiny_run: Path) -> None:
    lines = metrics_of(tiny_run)
    assert [line["step"] for line in lines] == [*range(10, N_STEPS, 10), N_STEPS]
    for line in lines:
        assert set(line) == METRICS_KEYS
        assert set(line["sites"]) == {"layers.0", "layers.2"}
        assert line["rows"] == 64 * line["step"]
        assert line["rows_per_second"] > 0
        for values in line["sites"].values():
            assert set(values) == SITE_KEYS
            assert 0 < values["fvu"] < 2
            assert values["loss"] >= values["fvu"]
            assert 0 < values["l0"] <= 4
            assert 0 <= values["dead_share"] < 1
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    rates = [line["learning_rate"] for line in lines]
    assert rates[-1] < max(rates) / 10  # decayed
    for site in ("layers.0", "layers.2"):
        assert lines[-1]["sites"][site]["fvu"] < 0.9 * lines[0]["sites"][site]["fvu"]


def test_metrics_agree_with_the_saved_sae_on_real_activations(demo_run: Path, data: Path) -> None:
    from strata.sae.metrics import fvu

    lm = strata.LanguageModel("demo")
    acts = strata.collect_activations(lm, str(data), sites=["layers.1", "layers.3"], n_tokens=4000, context_tokens=64)
    last = metrics_of(demo_run)[-1]["sites"]
    for site in acts:
        sae = strata.SAE.load(demo_run / "sae" / site)
        assert (sae.d_in, sae.d_sae) == (192, 384)
        assert sae.metadata["site"] == site
        x = acts[site]
        assert (sae.encode(x) > 0).sum(1).float().mean() <= 8
        # The logged value is a mean over all eight steps, the first ones of an untrained SAE among them.
        assert fvu(x, sae(x)) < last[site]["fvu"] + 0.05


def test_the_saes_are_in_saelens_form(demo_run: Path) -> None:
    config = json.loads((demo_run / "sae" / "layers.3" / "cfg.json").read_text())
    assert config["architecture"] == "topk"
    assert (config["d_in"], config["d_sae"], config["k"]) == (192, 384, 8)
    assert config["normalize_activations"] == "none"
    assert config["apply_b_dec_to_input"] is True
    tensors = load_file(str(demo_run / "sae" / "layers.3" / "sae_weights.safetensors"))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "W_enc": (192, 384),
        "b_enc": (384,),
        "W_dec": (384, 192),
        "b_dec": (192,),
    }
    assert all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in tensors.values())
    torch.testing.assert_close(tensors["W_dec"].norm(dim=1), torch.ones(384))


# --- nothing but the settings decides -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--log-every-steps", "1"],
        ["--log-every-steps", "100", "--checkpoint-every", "7 steps"],
    ],
    ids=["again", "log every step", "log seldom, checkpoint often"],
)
def test_the_same_settings_give_the_same_weights_however_they_are_watched(
    flags: list[str], tiny_run: Path, tiny_words: list[str], tmp_path: Path
) -> None:
    assert main([*tiny_words, "--out", str(tmp_path / "run"), *flags]) == 0
    assert weight_files(tmp_path / "run") == weight_files(tiny_run)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_same_command_twice_gives_the_same_bytes_with_the_embedded_model(
    demo_run: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    assert main(["train", "--data", str(data), "--out", str(out), "--no-report", *DEMO_FLAGS]) == 0
    assert sae_files(out) == sae_files(demo_run)


def test_another_seed_gives_other_weights(tiny_run: Path, tiny_words: list[str], tmp_path: Path) -> None:
    assert main([*tiny_words, "--out", str(tmp_path / "run"), "--sae.seed", "1"]) == 0
    assert weight_files(tmp_path / "run") != weight_files(tiny_run)


# --- interrupted and resumed ----------------------------------------------------------------------------------------


def killed_run(words: list[str], out: Path) -> None:
    """Start the command in a process of its own and kill it as soon as it has a checkpoint."""
    command = [sys.executable, "-m", "strata", *words, "--out", str(out), "--checkpoint-every", "1 steps"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob("checkpoints/step-*/*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said.decode()


def test_a_killed_run_resumes_to_the_same_bytes(tiny_run: Path, tiny_words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "killed"
    killed_run(tiny_words, out)
    assert json.loads((out / "run.json").read_text())["status"] == "training"
    assert not (out / "sae").exists()
    assert main([*tiny_words, "--out", str(out), "--resume", "--checkpoint-every", "50 steps"]) == 0
    assert sae_files(out) == sae_files(tiny_run)
    assert not (out / "checkpoints").exists()
    assert json.loads((out / "run.json").read_text())["status"] == "trained"
    resumed, whole = metrics_of(out), metrics_of(tiny_run)
    assert [line["step"] for line in resumed] == [line["step"] for line in whole]
    assert [line["sites"] for line in resumed] == [line["sites"] for line in whole]
    assert [line["seconds"] for line in resumed] == sorted(line["seconds"] for line in resumed)


class _StoppedError(BaseException):
    """Stands for a kill in the middle of the training."""


@pytest.mark.parametrize("stop_at", [3, 50, N_STEPS - 1], ids=lambda step: f"step {step}")
def test_resuming_at_any_step_gives_the_same_bytes(
    stop_at: int, tiny_run: Path, tiny_words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops behind the checkpoint of a step: early, in the second epoch, before the last step."""
    import strata.loop as program

    save = program.save_checkpoint

    def save_and_stop(folder: Path, *, step: int, **more: Any) -> None:
        save(folder, step=step, **more)
        raise _StoppedError

    out = tmp_path / "stopped"
    with monkeypatch.context() as patched:
        patched.setattr(program, "save_checkpoint", save_and_stop)
        with pytest.raises(_StoppedError):
            main([*tiny_words, "--out", str(out), "--checkpoint-every", f"{stop_at} steps"])
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')  # a line that was torn
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{stop_at}"]
    assert main([*tiny_words, "--out", str(out), "--resume"]) == 0
    assert sae_files(out) == sae_files(tiny_run)
    assert [line["sites"] for line in metrics_of(out)] == [line["sites"] for line in metrics_of(tiny_run)]


def test_a_long_enough_run_leaves_checkpoints_without_being_asked() -> None:
    """What `--resume` is offered for: the recipe `demo` as it is must be resumable."""
    from strata.durations import Duration
    from strata.recipes import RECIPES

    demo = RECIPES["demo"]()
    assert demo.n_tokens != "all"
    n_steps = demo.n_tokens * demo.sae.num_epochs // demo.sae.batch_size
    every = Duration.parse(demo.checkpoint_every, setting="checkpoint_every")
    assert 0 < every.steps(n_steps=n_steps, batch_size=demo.sae.batch_size) < n_steps


# --- folders that exist ---------------------------------------------------------------------------------------------


def test_overwrite_replaces_the_whole_run(tiny_run: Path, tiny_words: list[str], tmp_path: Path) -> None:
    out = shutil.copytree(tiny_run, tmp_path / "run")
    (out / "sae" / "layers.1").mkdir()
    (out / "report").mkdir()
    (out / "report" / "index.html").write_text("of the run before")
    words = [*tiny_words, "--out", str(out), "--sites", "layers.2", "--n-tokens", "640"]
    assert main(words) == 2  # the folder exists
    assert sae_files(out) == sae_files(tiny_run)
    assert main([*words, "--overwrite"]) == 0
    assert {path.name for path in out.iterdir()} == {"run.json", "metrics.jsonl", "sae"}
    assert [path.name for path in (out / "sae").iterdir()] == ["layers.2"]
    assert metrics_of(out)[-1]["step"] == 20


def test_an_empty_folder_is_a_new_one(tiny_words: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert main([*tiny_words, "--out", str(tmp_path / "run"), "--n-tokens", "64"]) == 0
    assert (tmp_path / "run" / "run.json").exists()


def test_without_out_the_folder_is_named_after_model_and_data(
    tiny_words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*tiny_words, "--n-tokens", "64"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [f"tiny-{data.name}"]
    assert f"tiny-{data.name}" in capsys.readouterr().out  # stdout says where the result is


# --- what the command says of itself --------------------------------------------------------------------------------


def test_help_names_commands_recipes_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["-h"], []):
        assert main(words) == 0
        said = capsys.readouterr()
        assert "train" in said.out
        assert "strata train demo" in said.out
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr()
    for part in ("demo", "--model", "--data", "--sites", "--sae.k", "--out", "--resume", "--overwrite", "--no-report"):
        assert part in said.out
    assert said.err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip()


def test_the_first_word_is_the_recipe_and_flags_override_it() -> None:
    from strata.cli import parse_train

    demo, plain = parse_train([]), parse_train(["--data", "my.jsonl"])
    assert demo == parse_train(["demo"])
    assert demo is not None
    assert plain is not None
    assert demo.sites == ("all",)
    assert plain.sites == ("middle",)
    changed = parse_train(["demo", "--sae.k", "7", "--sites", "layers.0"])
    assert changed is not None
    assert (changed.sae.k, changed.sites, changed.n_tokens) == (7, ("layers.0",), demo.n_tokens)
    assert changed.sae.expansion_factor == demo.sae.expansion_factor


def test_the_installed_command_starts_fast_and_quietly() -> None:
    strata_command = Path(sys.executable).with_name("strata")
    words = [str(strata_command)] if strata_command.exists() else [sys.executable, "-m", "strata"]
    done = subprocess.run([*words, "train", "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "--sae.k" in done.stdout


# --- with the report ------------------------------------------------------------------------------------------------


def test_a_whole_run_ends_in_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", *DEMO_FLAGS, "--held-out-tokens", "2048", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "report" / "index.html")
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert "layers.3" in page
    for fetched in ('src="http', "src='http", 'rel="stylesheet" href', "@import", "url(http"):
        assert fetched not in page
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["n_tokens"] >= evaluation["n_rows"] > 0
    assert set(evaluation["sites"]) == {"layers.1", "layers.3"}
    for numbers in evaluation["sites"].values():
        assert set(numbers) == EVALUATION_KEYS
        assert numbers["explained_variance"] == pytest.approx(1 - numbers["fvu"])
        assert 0 < numbers["fvu"] < 1
        assert 0 < numbers["l0"] <= 8
        assert numbers["ce_clean"] < numbers["ce_sae"] < numbers["ce_zero"]
        assert 0 < numbers["ce_loss_score"] < 1
    features = json.loads((out / "features.json").read_text())
    assert set(features) == {"layers.1", "layers.3"}
    for shown in features.values():
        assert shown
        for feature in shown:
            assert {"latent", "density", "max_activation", "kind", "examples"} <= set(feature)
            for example in feature["examples"]:
                assert len(example["tokens"]) == len(example["activations"])
                assert 0 <= example["peak"] < len(example["tokens"])
    (out / "report" / "index.html").unlink()  # as if it had been stopped before its end
    capsys.readouterr()
    assert main(["train", *DEMO_FLAGS, "--held-out-tokens", "2048", "--out", str(out), "--resume"]) == 0
    assert "the training had ended; what is left is the evaluation" in capsys.readouterr().err
    assert (out / "report" / "index.html").read_text(encoding="utf-8") == page


def test_a_bare_interruption_is_a_sentence_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(_config: Any) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "groups", cli.Command(lambda words: words, run))
    assert main(["groups", "demo"]) == 130
    assert capsys.readouterr().err == (
        "strata: interrupted. The same command goes on where it was, `strata train` with --resume.\n"
    )
