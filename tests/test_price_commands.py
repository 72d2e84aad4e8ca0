"""plan, doctor and scaling as words on a command line; what a run says of its price."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from strata.cli import main
from test_command import TINY_FLAGS
from tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def tiny_words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_model(folder / "model")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400, encoding="utf-8")
    return ["--model", str(folder / "model"), "--data", str(folder / "text.txt"), *TINY_FLAGS]


def test_a_run_tells_its_price_first_and_keeps_it(
    tiny_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *tiny_words, "--out", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().err
    assert "training should take about" in told
    assert "assumed, not measured" in told
    assert told.index("training should take") < told.index("step 96/96")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    price = record["predicted"]
    assert price["kind"] == "assumed"
    assert price["seconds"] == pytest.approx(96 * (price["rows_seconds"] + price["sae_seconds"]))
    assert record["batch_size"] == 64
    assert record["saes"]["layers.2"]["d_sae"] == 2 * record["saes"]["layers.2"]["d_in"]
    assert (record["buffer_rows"], record["forward_rows"], record["context_tokens"]) == (512, 8 * 32, 32)
    assert main(["doctor", str(tmp_path / "run")]) in (0, 3)
    assert "finished, step 96 of 96" in capsys.readouterr().out


def test_what_goes_wrong_is_said_while_it_does(
    tiny_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny_words, "--sae.lr", "3.0", "--log-every-steps", "2", "--out", str(tmp_path / "wild")]
    assert main(["train", *words]) == 0
    told = capsys.readouterr().err
    assert "learning-rate-too-high" in told
    assert told.index("learning-rate-too-high") < told.index("step 96/96")
    assert main(["doctor", str(tmp_path / "wild")]) in (3, 4)
    assert "Not healthy" in capsys.readouterr().out


def test_the_plan_of_a_run_is_that_of_its_flags(
    tiny_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    assert main(["plan", "train", *tiny_words, "--price-per-hour", "3.6", "--json", str(path)]) == 0
    told = capsys.readouterr().out
    assert "96 steps of 64 rows" in told
    assert "assumes" in told
    described = json.loads(path.read_text())["ways"]["described"][0]
    assert described["n_saes"] == 2
    assert described["price"] == pytest.approx(described["total_seconds"] * 3.6 / 3600)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["doctor"], "needs the folder of a run"),
        (["scaling"], "needs a store"),
        (["plan", "--hardwar", "h100"], "Unknown flag --hardwar. Did you mean '--hardware'"),
        (["plan", "--hardware", "h10"], "`hardware` must be one of this, h200"),
        (["plan", "nonsense"], "Unknown recipe 'nonsense'"),
        (["plan", "explain", "demo"], "`strata explain` has no plan of its own"),
        (["plan", "--n-devices", "0"], "`n_devices` must be at least 1"),
        (["plan", "--hardware", "h100", "--calibrate"], "for this machine alone"),
        (["train", "--sae.k", "0"], "strata: `SAEConfig.k` must be at least 1. Got 0."),
        (["train", "--sae.k", "many"], "strata: `--sae.k` must be a whole number. Got 'many'."),
        (["train", "--sae.lr", "fast"], "strata: `--sae.lr` must be a number or auto. Got 'fast'."),
        (["groups", "--threshold", "7"], "`threshold` must be above 0 and at most 1, as distances are. Got 7.0."),
    ],
)
def test_mistakes_end_in_a_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert sentence in told.err
    assert "Error parsing" not in told.err
    assert told.err.count("\n") == 1


def test_a_terminal_without_utf_8_reads_the_same_sentence() -> None:
    program = "import sys; from strata.cli import main; sys.exit(main(['train', '--sae.k', '0']))"
    found = [
        subprocess.run([sys.executable, "-c", program], env=os.environ | chosen, capture_output=True, check=False)
        for chosen in ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONUTF8": "1"})
    ]
    assert found[0].stderr == found[1].stderr
    assert found[0].stderr.startswith(b"strata: `SAEConfig.k` must be at least 1. Got 0.")


@pytest.mark.parametrize("command", ["plan", "doctor", "scaling"])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    told = capsys.readouterr().out
    assert f"usage: strata {command}" in told
    assert main(["--help"]) == 0
    assert f"  {command} " in capsys.readouterr().out


def test_a_reader_who_has_had_enough_is_no_error() -> None:
    program = "import sys; from strata.cli import main; sys.exit(main(['--help']))"
    command = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    assert command.stderr.read() == b""
    command.stderr.close()
    assert command.wait() == 141
