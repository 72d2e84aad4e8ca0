"""What `strata export` and `strata import` do: folders, precision, the model card, the push, and every refusal."""

import json
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from format_cases import D_SAE, assert_same_function, make
from strata.errors import UserError
from strata.export import ExportConfig, ImportConfig, export, import_
from strata.formats import dictionary_learning, gemma_scope, sparsify
from strata.formats.registry import FORMATS
from strata.sae.model import SAE

EVALUATION = {"explained_variance": 0.91234567, "l0": 31.5, "ce_loss_score": 0.99, "silent_share": 0.125}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with two SAEs, of which one was evaluated."""
    folder = tmp_path / "run"
    make("topk", dataset_path="stdlib").save(folder / "sae" / "layers.3")
    make("jumprelu", site="layers.10", training_architecture="batchtopk").save(folder / "sae" / "layers.10")
    (folder / "run.json").write_text("{}")
    (folder / "evaluation.json").write_text(json.dumps({"sites": {"layers.3": EVALUATION}}))
    return folder


def settings(source: Path, **more) -> ExportConfig:
    return ExportConfig(source=source, out=source.parent / "out", **more)


def unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.name != ".cache"]


# --- export ---------------------------------------------------------------------------------------------------------


def test_a_run_is_exported_whole(run, tmp_path):
    folders = export(settings(run))
    assert folders == [tmp_path / "out" / "layers.3", tmp_path / "out" / "layers.10"]
    for folder, kind in zip(folders, ("topk", "jumprelu"), strict=True):
        assert_same_function(SAE.load(folder), make(kind))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "export.json", "layers.10", "layers.3",
    ]  # fmt: skip
    assert not unfinished(tmp_path)


@pytest.mark.parametrize("name", FORMATS)
def test_one_sae_to_every_format_and_back(tmp_path, name):
    kind = "topk" if name == "sparsify" else "relu"
    make(kind).save(tmp_path / "sae")
    config = ExportConfig(source=tmp_path / "sae", format=name)
    assert config.folder() == tmp_path / f"sae-{name}"
    assert export(config) == [config.folder()]
    assert_same_function(FORMATS[name].load(config.folder()), make(kind))
    back = ImportConfig(source=config.folder())
    assert import_(back) == [tmp_path / f"sae-{name}-strata"]
    again = SAE.load(back.folder())
    assert_same_function(again, make(kind))
    assert again.metadata["hook_name"] == "blocks.3.hook_resid_post"
    assert again.metadata["l0"] == 4.5


def test_any_format_can_be_the_source(tmp_path):
    dictionary_learning.save(make("topk"), tmp_path / "sae")
    export(settings(tmp_path / "sae", format="sparsify"))
    assert_same_function(sparsify.load(tmp_path / "out"), make("topk"))


@pytest.mark.parametrize(
    ("dtype", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision(tmp_path, dtype, kind):
    make("jumprelu").save(tmp_path / "sae")
    export(settings(tmp_path / "sae", dtype=dtype))
    tensors = load_file(tmp_path / "out" / "sae_weights.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {kind}
    assert SAE.load(tmp_path / "out").dtype == kind
    torch.testing.assert_close(tensors["W_enc"].float(), make("jumprelu").W_enc.data, rtol=1e-2, atol=1e-2)


def test_weights_too_large_for_fp16_are_named(tmp_path):
    sae = make("relu")
    sae.b_dec[3] = 1e6
    sae.save(tmp_path / "sae")
    with pytest.raises(UserError, match=r"`dtype`.*b_dec is too large for float16.*bf16"):
        export(settings(tmp_path / "sae", dtype="fp16"))
    assert not (tmp_path / "out").exists()
    assert not unfinished(tmp_path)


def test_a_topk_transcoder_becomes_a_sparsify_folder_and_it_is_said(run, tmp_path, capsys):
    make("topk transcoder").save(run / "sae" / "layers.4")
    export(settings(run))
    said = capsys.readouterr()
    assert said.out == ""
    assert "layers.4: SAELens has no TopK transcoder; written as a sparsify folder" in said.err
    assert said.err.count("\n") == 1
    assert_same_function(sparsify.load(tmp_path / "out" / "layers.4"), make("topk transcoder"))
    formats = {sae["name"]: sae["format"] for sae in json.loads((tmp_path / "out" / "export.json").read_text())["saes"]}
    assert formats == {"layers.3": "saelens", "layers.4": "sparsify", "layers.10": "saelens"}


def test_gated_as_jumprelu_is_said(tmp_path, capsys):
    make("gated").save(tmp_path / "sae")
    export(settings(tmp_path / "sae", format="gemma_scope"))
    assert "Gated is written as the JumpReLU" in capsys.readouterr().err
    assert_same_function(gemma_scope.load(tmp_path / "out"), make("gated"))


def test_one_that_cannot_be_held_stops_all(run, tmp_path):
    with pytest.raises(UserError, match=r"layers\.10: sparsify has TopK SAEs only.*'jumprelu'"):
        export(settings(run, format="sparsify"))
    assert not (tmp_path / "out").exists()
    assert not unfinished(tmp_path)


def test_what_stands_there_is_replaced_on_request_only(run, tmp_path):
    export(settings(run))
    (tmp_path / "out" / "layers.3" / "cfg.json").write_text("broken")
    (tmp_path / "out" / "layers.99").mkdir()
    with pytest.raises(UserError, match=r"`out` must be a new folder.*exists already.*overwrite"):
        export(settings(run))
    folders = export(settings(run, overwrite=True))
    assert_same_function(SAE.load(folders[0]), make("topk"))
    assert not (tmp_path / "out" / "layers.99").exists()
    assert not unfinished(tmp_path)


def test_overwrite_never_deletes_what_no_export_made(run):
    with pytest.raises(UserError, match=r"holds no export\.json"):
        export(ExportConfig(source=run / "sae" / "layers.3", out=run, overwrite=True))
    assert SAE.load(run / "sae" / "layers.3").d_sae == D_SAE
    assert (run / "run.json").exists()


def test_an_empty_folder_may_be_filled(run, tmp_path):
    (tmp_path / "out").mkdir()
    assert len(export(settings(run))) == 2


def test_sources_that_hold_no_sae(tmp_path):
    (tmp_path / "run" / "sae").mkdir(parents=True)
    for source, message in ((tmp_path / "run", "must be the folder of an SAE"), (tmp_path / "missing", "is none")):
        with pytest.raises(UserError, match=message):
            export(settings(source))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "safetensors"}, r"`ExportConfig\.format` must be 'saelens' or"),
        ({"dtype": "fp8"}, r"`ExportConfig\.dtype`"),
        ({"push_to_hub": "my-saes"}, r"`push_to_hub` must be org/name\. Got 'my-saes'"),
        ({"format": "gemma_scope", "dtype": "bf16"}, "`dtype` must be fp32 or auto for format 'gemma_scope'"),
        ({"formt": "saelens"}, "Did you mean 'format'"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        ExportConfig(source=tmp_path, **given)


# --- the model card -------------------------------------------------------------------------------------------------


def test_the_model_card(run, tmp_path):
    export(settings(run))
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith(
        "---\nlibrary_name: saelens\ntags:\n- mechanistic-interpretability\n- saelens\n- sparse-autoencoder\n- strata\n"
        'base_model:\n- "EleutherAI/pythia-70m"\n---\n\n# Sparse autoencoders for pythia-70m\n'
    )
    assert "| folder | site | architecture | d_in | d_sae | L0 | explained variance | CE loss score |" in card
    assert "| `layers.3` | layers.3 | given by the test | 12 | 40 | 31.5 | 0.9123 | 0.99 | 0.125 |" in card
    assert "| `layers.10` | layers.10 | batchtopk | 12 | 40 | – | – | – | – |" in card
    assert "trained on stdlib" in card
    assert 'SAE.load_from_disk("layers.3")' in card
    assert 'strata.SAE.load("layers.3")' in card


def test_the_model_card_finds_the_run_of_one_sae(run, tmp_path):
    export(settings(run / "sae" / "layers.3"))
    assert not (tmp_path / "out").exists()
    assert "| 31.5 |" in (run / "sae" / "out" / "README.md").read_text()


def test_the_model_card_of_sae_without_a_run_or_a_public_model(tmp_path):
    make("relu", hf_model_name="demo", model_name="demo").save(tmp_path / "sae")
    export(settings(tmp_path / "sae", format="gemma_scope"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model" not in card
    assert "explained variance" not in card
    assert "strata import" in card


def test_a_damaged_evaluation_is_said(run, tmp_path, capsys):
    for content in ("{", "[]", '{"sites": 3}', "{}"):
        (run / "evaluation.json").write_text(content)
        export(settings(run, overwrite=True))
        assert "evaluation.json is damaged" in capsys.readouterr().err
        assert "explained variance" not in (tmp_path / "out" / "README.md").read_text()


# --- the push -------------------------------------------------------------------------------------------------------


class FakeHub:
    """What an HfApi is asked to do."""

    calls: ClassVar[list[tuple]]
    error: ClassVar[Exception | None]

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.calls.append(("create", repo_id, private))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert commit_message
        if self.error is not None:
            raise self.error
        found = sorted(path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file())
        self.calls.append(("upload", repo_id, found))


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    FakeHub.calls, FakeHub.error = [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_given_by_the_test")
    return FakeHub


def test_a_push_uploads_the_export(run, fake_hub, capsys):
    export(settings(run, push_to_hub="me/my-saes", private=True))
    files = [f"{site}/{name}" for site in ("layers.10", "layers.3") for name in ("cfg.json", "sae_weights.safetensors")]
    assert fake_hub.calls == [
        ("create", "me/my-saes", True),
        ("upload", "me/my-saes", ["README.md", "export.json", *files]),
    ]
    assert "https://huggingface.co/me/my-saes" in capsys.readouterr().err


def test_the_card_of_a_push_says_how_to_fetch_it(run, fake_hub, tmp_path):
    export(settings(run, push_to_hub="me/my-saes"))
    assert "hf download me/my-saes" in (tmp_path / "out" / "README.md").read_text()


def test_nothing_is_pushed_unasked(run, fake_hub):
    export(settings(run))
    assert fake_hub.calls == []


def test_without_a_token_nothing_is_written(run, fake_hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match=r"no token on this machine.*hf auth login"):
        export(settings(run, push_to_hub="me/my-saes"))
    assert fake_hub.calls == []
    assert not (tmp_path / "out").exists()


class Refused(Exception):
    """An answer of the Hub."""

    def __init__(self, status: int) -> None:
        super().__init__("the answer")
        self.response = type("Response", (), {"status_code": status})()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Refused(401), "token on this machine was refused.*hf auth login"),
        (Refused(403), "repository that you may write. me/my-saes is refused"),
        (Refused(500), "answered 500: the answer"),
        (ConnectionError("no route"), r"needs the network.*ConnectionError: no route"),
    ],
)
def test_a_push_that_fails_is_explained_and_keeps_the_export(run, fake_hub, tmp_path, error, message):
    fake_hub.error = error
    with pytest.raises(UserError, match=f"{message}.*out is complete"):
        export(settings(run, push_to_hub="me/my-saes"))
    assert_same_function(SAE.load(tmp_path / "out" / "layers.3"), make("topk"))


def test_offline_is_explained_by_the_library_itself(run, monkeypatch):
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        pytest.skip("tests may use the network")
    monkeypatch.setenv("HF_TOKEN", "hf_given_by_the_test")
    with pytest.raises(UserError, match="needs the network"):
        export(settings(run, push_to_hub="me/my-saes"))


# --- import ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_many_is_imported(tmp_path):
    for layer, kind in ((2, "topk"), (10, "topk transcoder")):
        sparsify.save(make(kind), tmp_path / "theirs" / f"layers.{layer}")
    gemma_scope.save(make("relu"), tmp_path / "theirs" / "layer_20" / "width_16k")
    folders = import_(ImportConfig(source=tmp_path / "theirs", out=tmp_path / "ours"))
    names = ["layer_20/width_16k", "layers.2", "layers.10"]
    assert folders == [tmp_path / "ours" / name for name in names]
    for folder, kind in zip(folders, ("relu", "topk", "topk transcoder"), strict=True):
        assert_same_function(SAE.load(folder), make(kind))


def test_a_file_or_a_named_format_will_do(tmp_path):
    gemma_scope.save(make("relu"), tmp_path / "sae")
    import_(ImportConfig(source=tmp_path / "sae" / "params.npz", out=tmp_path / "one"))
    import_(ImportConfig(source=tmp_path / "sae", out=tmp_path / "two", format="gemma_scope"))
    for name in ("one", "two"):
        assert_same_function(SAE.load(tmp_path / name), make("relu"))
    with pytest.raises(UserError, match=r"must hold cfg\.json"):
        import_(ImportConfig(source=tmp_path / "sae", format="sparsify"))


def test_import_replaces_on_request_only(tmp_path):
    sparsify.save(make("topk"), tmp_path / "theirs")
    make("relu").save(tmp_path / "ours")
    config = {"source": tmp_path / "theirs", "out": tmp_path / "ours"}
    with pytest.raises(UserError, match="exists already"):
        import_(ImportConfig(**config))
    assert_same_function(SAE.load(tmp_path / "ours"), make("relu"))
    import_(ImportConfig(**config, overwrite=True))
    assert_same_function(SAE.load(tmp_path / "ours"), make("topk"))


def test_one_that_is_damaged_stops_all(tmp_path):
    for layer in (1, 2):
        sparsify.save(make("topk"), tmp_path / "theirs" / f"layers.{layer}")
    (tmp_path / "theirs" / "layers.2" / "sae.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"layers\.2.*damaged"):
        import_(ImportConfig(source=tmp_path / "theirs", out=tmp_path / "ours"))
    assert not (tmp_path / "ours").exists()
