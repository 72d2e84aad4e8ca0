"""`strata train --groups`: which layers of a run share an SAE, given or found."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from strata.activations.harvest import collect_activations
from strata.cli import main
from strata.config.train import SAEConfig, TrainConfig
from strata.errors import UserError
from strata.groups import of_run
from strata.groups.files import read_record
from strata.groups.of_run import RunGroups, check_groups, groups_of
from strata.lm.model import LanguageModel
from strata.report.groups import write_groups_report
from strata.run_rows import open_rows

from tiny_models import save_tiny_model, tiny_model, tiny_tokenizer  # isort: skip

SITES = ["layers.0", "layers.1", "layers.2"]
IN_TWO = {"layers.0-1": ["layers.0", "layers.1"], "layers.2": ["layers.2"]}
SMALL = SAEConfig(expansion_factor=2, k=4, batch_size=64, text_batch_size=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("text") / "some.jsonl", n_texts=120)


def written(path: Path, *, n_texts: int) -> Path:
    texts = (f"{i} sheep and {i * i} goats, {'very ' * (i % 5)}quiet" for i in range(n_texts))
    path.write_text("\n".join(json.dumps({"text": one}) for one in texts))
    return path


def config(model: Path, text: Path, **more: Any) -> TrainConfig:
    return TrainConfig(**{"model": str(model), "data": str(text), "context_tokens": 32, "sae": SMALL, **more})


def found(given: TrainConfig, before: dict[str, Any] | None = None) -> RunGroups:
    rows = open_rows(given)
    return groups_of(rows.config, rows, before=before, progress=False)


def never_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise AssertionError("layers were measured")

    monkeypatch.setattr(of_run, "groups_record", refuse)


@pytest.fixture(scope="module")
def store(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose sites are not the residual stream's layers in order."""
    lm = LanguageModel(tiny_model("gpt_neox"), tokenizer=tiny_tokenizer())
    folder = tmp_path_factory.mktemp("stores") / "store"
    sites = ["layers.2", "layers.0", "layers.1.mlp", "layers.1"]
    collect_activations(lm, str(text), sites, n_tokens=1500, context_tokens=32, store=folder, progress=False)
    return folder


def test_layers_of_a_store_are_grouped_in_the_models_order(store: Path) -> None:
    groups = found(TrainConfig(activations=store, groups="auto", sae=SMALL))
    assert groups.sites is not None
    assert [site for group in groups.sites for site in group] == SITES
    assert groups.sites[-1] == ("layers.2",), "the last layer has its own"
    assert groups.record is not None
    assert groups.record["sites"] == SITES
    assert groups.record["flops_per_token"]["forward"] == 0
    assert groups.record["n_tokens"] == 1500
    given = TrainConfig(activations=store, groups="[[0, 1], [2]]", sae=SMALL)
    assert found(given).named() == IN_TWO


def test_a_run_of_such_a_store(store: Path, tmp_path: Path) -> None:
    words = ["--activations", str(store), "--groups", "[[0, 1], [2]]", "--sae.batch-size", "64", "--sae.k", "4"]
    out = tmp_path / "run"
    assert main(["train", *words, "--sae.expansion-factor", "2", "--out", str(out), "--no-report"]) == 0
    record = json.loads((out / "run.json").read_text())
    assert record["groups"] == IN_TWO
    assert sorted(path.name for path in (out / "sae").iterdir()) == ["layers.0-1", "layers.2"]
    assert not (out / "groups").exists(), "nothing was measured"
    again = found(TrainConfig(activations=store, groups=str(out), sae=SMALL))
    assert again.named() == IN_TWO, "the folder of a run names its groups"


def test_a_single_layer_cannot_be_grouped(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = LanguageModel(tiny_model("gpt_neox"), tokenizer=tiny_tokenizer())
    collect_activations(lm, str(text), ["layers.1", "layers.1.mlp"], n_tokens=500, context_tokens=32,
                        store=tmp_path / "store", progress=False)  # fmt: skip
    never_measured(monkeypatch)
    with pytest.raises(UserError, match=r"at least 2 layers, of which the last one is left out. Got 1"):
        found(TrainConfig(activations=tmp_path / "store", groups="auto", sae=SMALL))


@pytest.mark.parametrize("n_tokens", ["all", 50_000])
def test_a_short_text_is_taken_as_it_is(model: Path, tmp_path: Path, n_tokens: str | int) -> None:
    groups = found(config(model, written(tmp_path / "short.jsonl", n_texts=12), groups="auto", n_tokens=n_tokens))
    measured = groups.measured()
    assert measured is not None
    assert 100 < measured["n_tokens"] < 600
    assert measured["seconds"] > 0


def test_not_more_is_measured_than_trained_on(model: Path, text: Path) -> None:
    measured = found(config(model, text, groups="auto", n_tokens=640)).measured()
    assert measured is not None
    assert measured["n_tokens"] == 640


def test_hardly_any_text_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_text("ten words")
    with pytest.raises(UserError, match=r'`groups` "auto" needs at least 20 rows to measure layers on. Got \d+\. Give'):
        found(config(model, tmp_path / "tiny.txt", groups="auto"))


def test_groups_that_were_found_make_a_page(model: Path, text: Path, tmp_path: Path) -> None:
    groups = found(config(model, text, groups="auto", n_tokens=1000, sweep=("k=4,8",)))
    groups.write(tmp_path)
    record = read_record(tmp_path / "groups")
    assert groups.sites is not None
    assert record["groups"] == [list(sites) for sites in groups.sites]
    assert (record["config"]["sae_k"], record["config"]["expansion_factor"]) == (4, 2)
    page = write_groups_report(tmp_path / "groups").read_text(encoding="utf-8")
    assert f"{len(groups.sites)} SAEs for 3 layers" in page


def test_more_active_latents_than_there_are(model: Path, text: Path) -> None:
    wide = SAEConfig(expansion_factor=2, k=65, batch_size=64)
    with pytest.raises(UserError, match=r"`SAEConfig.k` must be in \[1, d_sae\]. Got k=65 with d_sae=64"):
        found(config(model, text, groups="auto", sae=wide))
    swept = found(config(model, text, groups="auto", n_tokens=640, sae=wide, sweep=("k=4,8",)))
    assert swept.record is not None
    assert swept.record["config"]["sae_k"] == 4


def test_a_model_whose_cost_cannot_be_counted_is_grouped_all_the_same(
    model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untold(*given: Any, **named: Any) -> float:
        raise UserError("The cost of a forward needs a model with attention heads.")

    monkeypatch.setattr("strata.lm.flops.forward_flops_of", untold)
    groups = found(config(model, text, groups="auto", n_tokens=640))
    assert groups.record is not None
    assert groups.record["flops_per_token"]["forward"] is None
    assert all(row["cost_share"] is None for row in groups.record["table"])
    assert groups.sites is not None


def test_going_on_measures_nothing(model: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never_measured(monkeypatch)
    groups = found(config(model, text, groups="auto"), before={"groups": IN_TWO})
    assert (groups.named(), groups.measured()) == (IN_TWO, None)
    assert found(config(model, text, groups="auto"), before={"groups": None}).sites is None  # refused by `check_same`


def test_a_file_that_changed_is_not_gone_on_with(model: Path, text: Path, tmp_path: Path, capsys: Any) -> None:
    file, out = tmp_path / "groups.json", tmp_path / "run"
    file.write_text("[[0, 1], [2]]")
    words = ["train", "--model", str(model), "--data", str(text), "--context-tokens", "32", "--out", str(out)]
    words += ["--n-tokens", "640", "--sae.batch-size", "64", "--sae.expansion-factor", "2", "--sae.k", "4"]
    words += ["--no-report", "--groups", str(file)]
    assert main(words) == 0
    assert main([*words, "--resume"]) == 2
    assert "`resume` needs a run that is not finished" in capsys.readouterr().err
    file.write_text("[[0], [1, 2]]")
    assert main([*words, "--resume"]) == 2
    complaint = capsys.readouterr().err.replace("\n", " ")
    assert "`resume` needs the groups of the run before, layers.0-1, layers.2." in complaint
    assert "holds layers.0, layers.1-2 now" in complaint
    file.unlink()
    assert main([*words, "--resume"]) == 2
    assert "is not there" in capsys.readouterr().err
    assert json.loads((out / "run.json").read_text())["groups"] == IN_TWO


@pytest.mark.parametrize(
    ("groups", "complaint"),
    [
        ("[[0, 1], [2]", r"`groups` must be JSON. \[\[0, 1\], \[2\] cannot be read as such"),
        ("[]", "`groups` must be a list of lists of layers"),
        ("[[0, 1], [0, 1]]", "`groups` must name each group once. Got layers.0-1 twice"),
        ("[[1, 0]]", "`groups` must be of layers side by side, in order"),
        ('[["layers.1.mlp"]]', "`groups` must name layers by number or site. Got 'layers.1.mlp'"),
        ("nowhere.json", "`groups` must be a file or folder with groups. nowhere.json is not there"),
    ],
)
def test_mistakes_are_said_before_a_model_is_loaded(groups: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        check_groups(TrainConfig(model="of-nobody", groups=groups))


def test_a_run_asks_before_it_loads_a_model(tmp_path: Path, capsys: Any) -> None:
    words = ["--model", str(tmp_path / "nowhere"), "--groups", "[[1, 0]]", "--out", str(tmp_path / "run")]
    assert main(["train", *words]) == 2
    assert "`groups` must be of layers side by side, in order" in capsys.readouterr().err


def test_layers_that_the_model_lacks(model: Path, text: Path) -> None:
    with pytest.raises(UserError, match=r"`groups` must hold layers that are read. Got 'layers.3'"):
        found(config(model, text, groups="[[2, 3]]"))


def test_a_run_records_what_measuring_took(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["train", "--model", str(model), "--data", str(text), "--context-tokens", "32", "--out", str(out)]
    words += ["--n-tokens", "640", "--sae.batch-size", "64", "--sae.expansion-factor", "2", "--sae.k", "4"]
    assert main([*words, "--no-report", "--groups", "auto"]) == 0
    record = json.loads((out / "run.json").read_text())
    assert record["groups_measured"]["n_tokens"] == 640
    assert record["groups_measured"]["seconds"] > 0
    assert torch.tensor(read_record(out / "groups")["distances"]).shape == (3, 3)
