"""What a user can do wrong ends in one clear sentence and leaves what was there untouched (issue 2, "Bad input")."""

import gzip
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import strata
from strata.cli import main
from tiny_models import save_tiny_model, tiny_model, tiny_tokenizer

CONFIG = strata.SAEConfig(expansion_factor=2, k=4, batch_size=64, text_batch_size=4)
TEXT = "def add(a, b):\n    return a + b\n\n\n" * 40
# A run of the tiny model that would take no second if nothing were wrong.
FLAGS = [
    *("--context-tokens", "32", "--sae.batch-size", "64", "--sae.expansion-factor", "2", "--sae.k", "4"),
    *("--sae.text-batch-size", "4", "--device", "cpu", "--lm-dtype", "fp32", "--no-report"),
]


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
def lm(model_folder: Path) -> strata.LanguageModel:
    return strata.LanguageModel(str(model_folder), device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"# file {number}\n{TEXT}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, data: Path) -> Path:
    """The folder of a run that is done: no failing command may change it."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["train", "--model", str(model_folder), "--data", str(data), "--out", str(out), *FLAGS]) == 0
    return out


@pytest.fixture
def broken_folder(tmp_path: Path) -> Path:
    """A model with one NaN among the weights of its second block: sites before it are finite, sites behind are not."""
    model = tiny_model("gpt_neox")
    model.gpt_neox.layers[1].mlp.dense_4h_to_h.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    tiny_tokenizer().save_pretrained(tmp_path / "broken")
    return tmp_path / "broken"


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder: its time of change and its bytes."""
    found = sorted(folder.rglob("*")) if folder.exists() else []
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in found
    }


def has_all(sentence: str, *words: str) -> None:
    for word in words:
        assert word in sentence, f"{word!r} is missing in: {sentence}"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, model_folder: Path, data: Path) -> Callable[..., str]:
    """Runs a train command that must be refused, in a fresh `out`; gives the sentence."""

    def run(*words: str, model: Path | str | None = None, source: Path | str | None = None) -> str:
        own_out = "--out" in words
        out = [] if own_out else ["--out", str(tmp_path / "new-run")]
        given = ["--model", str(model or model_folder), "--data", str(source or data), *FLAGS, *out, *words]
        capsys.readouterr()
        assert main(["train", *given]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert not (tmp_path / "new-run").exists(), "a run that did not start left a folder, which blocks the next try"
        return one_sentence(said.err)

    return run


def one_sentence(err: str) -> str:
    """The one error line, which is the last one (lines of progress may stand before it)."""
    lines = err.splitlines()
    assert "Traceback" not in err
    assert sum(line.startswith("strata: ") for line in lines) == 1, err
    assert lines[-1].startswith("strata: "), err
    assert len(lines[-1]) < 600
    return lines[-1]


# --- a process of its own: exit code, stderr, the folder that was there -----------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "demoo"], r"strata: .*'demoo'.*'demo'"),
        (["train", "--sae.expansion", "3"], r"strata: .*--sae\.expansion\b.*--sae\.expansion-factor"),
    ],
)
def test_the_process_ends_with_2_and_one_line(words: list[str], sentence: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "strata", *words], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.match(sentence, done.stderr)
    assert list(tmp_path.iterdir()) == []


# --- unknown site ---------------------------------------------------------------------------------------------------


def test_unknown_site(lm: strata.LanguageModel, refused: Callable[..., str]) -> None:
    calls: list[Callable[[], object]] = [
        lambda: lm.activations([[1, 2]], sites=["layers.33"]),
        lambda: strata.collect_activations(lm, [TEXT], sites=["layers.33"]),
        lambda: lm.train_sae(dataset=[TEXT], site="layers.33", config=CONFIG, progress=False),
        lambda: strata.train_suite(lm, [TEXT], sites=["layers.0", "layers.33"], config=CONFIG, progress=False),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"site") as caught:
            call()
        assert isinstance(caught.value, strata.UserError)
        has_all(str(caught.value), "'layers.33'", "layers.0", "layers.2")
    has_all(refused("--sites", "layers.0", "layers.33"), "site", "'layers.33'", "layers.2")


def test_a_site_that_was_not_collected(lm: strata.LanguageModel) -> None:
    acts = strata.collect_activations(lm, [TEXT], sites=["layers.0"])
    with pytest.raises(strata.UserError, match=r"layers\.1.*layers\.0"):
        acts["layers.1"]


def test_several_sites_in_a_trainer(lm: strata.LanguageModel) -> None:
    acts = strata.collect_activations(lm, [TEXT], sites=["layers.0", "layers.1"])
    with pytest.raises(strata.UserError, match=r"one site.*layers\.0, layers\.1.*train_suite"):
        strata.Trainer(CONFIG, progress=False).train(acts)


# --- unknown command, recipe, flag, value ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["tarin"], ["'tarin'", "'train'"]),
        (["train", "defualt"], ["recipe", "'defualt'", "'default'", "'demo'"]),
        (["train", "--site", "layers.1"], ["--site", "--sites", "--help"]),
        (["train", "--sae.kk", "4"], ["--sae.kk", "--sae.k", "--help"]),
        (["train", "--batch-size", "64"], ["--batch-size", "--sae.batch-size"]),
        (["train", "--sae.d-sae", "64"], ["--sae.d-sae", "'--sae.expansion-factor'", "expansion_factor · d_in"]),
        (["train", "--sae.k", "many"], ["--sae.k", "many"]),
        (["train", "--sae.k", "0"], ["SAEConfig.k", "0", "at least 1"]),
        (["train", "--sae.lr", "-1"], ["SAEConfig.lr", "-1", "above 0", "auto"]),
        (["train", "--sae.revival", "magic"], ["revival", "magic", "auxk", "ghost"]),
        (["train", "--sae.warmup", "soon"], ["SAEConfig.warmup", "soon", "5%"]),
        (["train", "--n-tokens", "100"], ["n_tokens", "100", "4096", "batch"]),
        (["train", "--sites"], ["sites"]),
        (["train", "--out"], ["--out"]),
        (["train", "demo", "more"], ["more"]),
        (["train", "--resume", "--overwrite"], ["resume", "overwrite"]),
        (["train", "--sae.use-ghost-grads", "--sae.revival", "auxk"], ["revival", "use_ghost_grads", "auxk"]),
    ],
    ids=lambda given: " ".join(given) if given and given[0] in ("train", "tarin") else "",
)
def test_unknown_words_and_values(
    words: list[str],
    parts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1, said.err
    has_all(one_sentence(said.err), *parts)
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


# --- k > d_sae ------------------------------------------------------------------------------------------------------


def test_k_above_d_sae(lm: strata.LanguageModel, refused: Callable[..., str]) -> None:
    config = strata.SAEConfig(expansion_factor=2, k=65, batch_size=64)
    calls: list[Callable[[], object]] = [
        lambda: strata.Trainer(config, progress=False).train(torch.randn(128, 32)),
        lambda: lm.train_sae(dataset=[TEXT], config=config, progress=False),
    ]
    for call in calls:
        with pytest.raises(strata.UserError) as caught:
            call()
        has_all(str(caught.value), "SAEConfig.k", "[1, d_sae]", "k=65", "d_sae=64", "Lower k")
    has_all(refused("--sae.k", "65"), "SAEConfig.k", "k=65", "d_sae=64", "Lower k")


def test_the_width_is_set_by_its_factor() -> None:
    with pytest.raises(strata.UserError, match=r"no setting 'd_sae'\. Give 'expansion_factor': d_sae = expansion_f"):
        strata.SAEConfig(d_sae=4096)  # pyright: ignore[reportCallIssue]


def test_k_of_d_sae_is_allowed() -> None:
    sae = strata.Trainer(strata.SAEConfig(expansion_factor=1, k=8, batch_size=64), progress=False).train(
        torch.randn(128, 8)
    )
    assert sae.encode_sparse(torch.randn(3, 8)).values.shape == (3, 8)


# --- empty text, too little text ------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [[], [""], ["", "  \n"]], ids=repr)
def test_empty_text(lm: strata.LanguageModel, texts: list[str]) -> None:
    calls: list[Callable[[], object]] = [
        lambda: strata.collect_activations(lm, texts),
        lambda: strata.collect_activations(lm, iter(texts)),
        lambda: lm.train_sae(dataset=texts, config=CONFIG, progress=False),
        lambda: strata.train_suite(lm, texts, config=CONFIG, n_tokens=64, progress=False),
    ]
    for call in calls:
        with pytest.raises(strata.UserError, match=r"[Tt]ext.* (must|needs) .*"):
            call()


def test_empty_text_at_the_command(refused: Callable[..., str], tmp_path: Path) -> None:
    for name, content in (("empty.txt", ""), ("blank.txt", " \n\n"), ("blank.jsonl", '{"text": ""}\n')):
        (tmp_path / name).write_text(content)
        has_all(refused(source=tmp_path / name), name, "text")
    (tmp_path / "no-texts").mkdir()
    (tmp_path / "no-texts" / "photo.png").write_bytes(b"\x89PNG")
    has_all(refused(source=tmp_path / "no-texts"), "no-texts", ".jsonl")


def test_too_little_text_for_a_batch(lm: strata.LanguageModel, refused: Callable[..., str], tmp_path: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: lm.train_sae(dataset=["x = 1\n"], config=CONFIG, progress=False),
        lambda: strata.Trainer(CONFIG, progress=False).train(torch.randn(63, 32)),
    ]
    for call in calls:
        with pytest.raises(strata.UserError) as caught:
            call()
        has_all(str(caught.value), "batch_size", "64", "more text")
    (tmp_path / "short.txt").write_text("x = 1\n")
    has_all(refused(source=tmp_path / "short.txt"), "batch_size", "64", "6", "more text")


def test_a_buffer_that_holds_no_batch(lm: strata.LanguageModel, refused: Callable[..., str]) -> None:
    with pytest.raises(strata.UserError, match=r"buffer_tokens.*10.*at least"):
        lm.train_sae(dataset=[TEXT], config=CONFIG, buffer_tokens=10, context_tokens=32, progress=False)
    has_all(refused("--buffer-tokens", "10"), "buffer_tokens", "10", "at least")


# --- files that cannot be read --------------------------------------------------------------------------------------


def bad_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files that cannot be read, and a word of the reason."""
    yield folder / "missing.txt", "exists"
    for name, content, reason in (
        ("latin.txt", b"caf\xe9 " * 100, "UTF-8"),
        ("cut.txt.gz", gzip.compress(TEXT.encode())[:40], "could not be read"),
        ("no.txt.gz", b"this is not compressed", "could not be read"),
        ("torn.jsonl", b'{"text": "a"}\n{"text": "b\n', "line 2"),
        ("column.jsonl", b'{"body": "a"}\n', "text"),
        ("paper.pdf", b"%PDF-1.4", ".jsonl"),
    ):
        (folder / name).write_bytes(content)
        yield folder / name, reason


def test_unreadable_files(lm: strata.LanguageModel, refused: Callable[..., str], tmp_path: Path) -> None:
    for path, reason in bad_files(tmp_path):
        with pytest.raises(strata.UserError) as caught:
            strata.collect_activations(lm, str(path))
        has_all(str(caught.value), path.name, reason)
        has_all(refused(source=path), path.name, reason)


# --- models ---------------------------------------------------------------------------------------------------------


def bad_models(folder: Path) -> Iterator[tuple[Path, str]]:
    """Folders without a model, and a word of the reason."""
    yield folder / "missing", "no such folder"
    (folder / "empty").mkdir()
    yield folder / "empty", "config.json"
    whole = save_tiny_model(folder / "headless")
    (whole / "model.safetensors").unlink()
    yield whole, "weights"
    torn = save_tiny_model(folder / "torn")
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    yield torn, "torn"
    garbled = save_tiny_model(folder / "garbled")
    (garbled / "config.json").write_text("{")
    yield garbled, "garbled"


def test_folders_without_a_model(refused: Callable[..., str], tmp_path: Path) -> None:
    for folder, reason in bad_models(tmp_path):
        with pytest.raises(strata.UserError, match=r"`model` must") as caught:
            strata.LanguageModel(str(folder))
        has_all(str(caught.value), str(folder), reason)
        has_all(refused(model=folder), "`model` must", str(folder), reason)


def test_a_model_without_a_tokenizer(refused: Callable[..., str], tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "mute", tokenizer=False)
    has_all(refused(model=folder), "tokenizer")


# --- activations that are not finite --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_activations_that_are_not_finite(bad: float) -> None:
    rows = torch.randn(256, 8)
    rows[100, 3] = bad
    with pytest.raises(strata.UserError, match=r"finite.*(fp32|bf16)"):
        strata.Trainer(CONFIG, progress=False).train(rows)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_rows_that_come_late_are_met_too(bad: float) -> None:
    rows = torch.randn(70_000, 4)
    seen_first = torch.randperm(70_000, generator=torch.Generator().manual_seed(0))[: 2**16]
    late = torch.ones(70_000, dtype=torch.bool)
    late[seen_first] = False  # rows that no first look at 2^16 shuffled ones would meet
    rows[late.nonzero()[: int(late.sum()) // 2, 0]] = bad
    with pytest.raises(strata.UserError, match="finite"):
        strata.Trainer(strata.SAEConfig(expansion_factor=2, k=2, batch_size=2000), progress=False).train(rows)


def test_a_model_with_nan(broken_folder: Path, refused: Callable[..., str]) -> None:
    lm = strata.LanguageModel(str(broken_folder), device="cpu")
    with pytest.raises(strata.UserError, match=r"finite.*layers\.1"):
        lm.train_sae(dataset=[TEXT], site="layers.1", config=CONFIG, progress=False)
    has_all(refused("--sites", "layers.1", model=broken_folder), "finite", "layers.1")
    assert lm.train_sae(dataset=[TEXT], site="layers.0", config=CONFIG, progress=False).d_in == 32


def test_rows_that_are_all_equal() -> None:
    with pytest.raises(strata.UserError, match=r"differ"):
        strata.Trainer(CONFIG, progress=False).train(torch.ones(256, 8))


def test_too_narrow_a_type_for_the_activations(lm: strata.LanguageModel) -> None:
    model = tiny_model("gpt_neox")
    model.gpt_neox.embed_in.weight.data.mul_(1e6)
    big = strata.LanguageModel(model, tokenizer=lm.tokenizer)
    with pytest.raises(strata.UserError, match=r"fp16.*bf16"):
        strata.collect_activations(big, [TEXT], sites=["layers.0"], dtype="fp16")


@pytest.mark.parametrize("given", [{"lm_dtype": "fp8"}, {"dtype": "int4"}])
def test_unknown_types(lm: strata.LanguageModel, given: dict[str, str]) -> None:
    [(name, value)] = given.items()
    with pytest.raises(strata.UserError, match=rf"`{name}` must.*{value}"):
        strata.collect_activations(lm, [TEXT], **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("acts", [torch.randn(4, 5, 6), torch.randn(7), torch.ones(9, 3, dtype=torch.int64)])
def test_what_is_no_rows(acts: object) -> None:
    with pytest.raises(strata.UserError, match=r"rows d_in"):
        strata.Trainer(CONFIG, progress=False).train(acts)  # type: ignore[arg-type]


# --- run folders ----------------------------------------------------------------------------------------------------


def test_a_run_that_exists_is_never_overwritten(finished_run: Path, refused: Callable[..., str]) -> None:
    before = contents(finished_run)
    has_all(refused("--out", str(finished_run)), "out", str(finished_run), "exists", "--resume", "--overwrite")
    assert contents(finished_run) == before


def test_a_finished_run_is_not_resumed(finished_run: Path, refused: Callable[..., str]) -> None:
    before = contents(finished_run)
    has_all(refused("--out", str(finished_run), "--resume"), "resume", str(finished_run), "finished", "--out")
    assert contents(finished_run) == before


def test_a_folder_of_something_else_is_never_overwritten(refused: Callable[..., str], tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years of work")
    before = contents(thesis)
    for flag in ([], ["--overwrite"], ["--resume"]):
        has_all(refused("--out", str(thesis), *flag), str(thesis))
        assert contents(thesis) == before


def test_out_is_a_file(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    for out in (tmp_path / "notes", tmp_path / "notes" / "run"):
        for flag in ([], ["--overwrite"]):
            has_all(refused("--out", str(out), *flag), "out", str(tmp_path / "notes"))
    assert (tmp_path / "notes").read_text() == "mine"


def test_resume_without_a_run(refused: Callable[..., str], tmp_path: Path) -> None:
    has_all(refused("--out", str(tmp_path / "nothing"), "--resume"), "resume", str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    "wrong",
    ["unknown site", "k too large", "no model", "no text", "too little text", "not UTF-8", "blank", "buffer", "NaN"],
)
def test_overwrite_deletes_nothing_when_the_new_run_cannot_start(
    wrong: str, finished_run: Path, broken_folder: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("x = 1\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    (tmp_path / "blank.txt").write_text(" \n\n")
    words, given = {
        "unknown site": (["--sites", "layers.33"], {}),
        "k too large": (["--sae.k", "65"], {}),
        "no model": ([], {"model": tmp_path / "none"}),
        "no text": ([], {"source": tmp_path / "none.txt"}),
        "too little text": ([], {"source": short}),
        "not UTF-8": (["--n-tokens", "64"], {"source": tmp_path / "latin.txt"}),  # not counted first
        "blank": (["--n-tokens", "64"], {"source": tmp_path / "blank.txt"}),
        "buffer": (["--buffer-tokens", "10"], {}),
        "NaN": (["--sites", "layers.1"], {"model": broken_folder}),
    }[wrong]
    run = shutil.copytree(finished_run, tmp_path / "before")
    before = contents(run)
    refused("--out", str(run), "--overwrite", *words, **given)
    now = contents(run)
    assert sorted(now) == sorted(before)
    assert now == before


def interrupted_copy(run: Path, copy: Path) -> Path:
    """A run whose run.json says that it is not done."""
    copy.mkdir()
    record = json.loads((run / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record | {"status": "training"}))
    return copy


def test_resume_needs_a_checkpoint(finished_run: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    run = interrupted_copy(finished_run, tmp_path / "interrupted")
    before = contents(run)
    has_all(refused("--out", str(run), "--resume"), "resume", "checkpoint", str(run))
    assert contents(run) == before


def test_resume_with_other_settings(finished_run: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    run = interrupted_copy(finished_run, tmp_path / "interrupted")
    before = contents(run)
    has_all(refused("--out", str(run), "--resume", "--sae.seed", "5"), "resume", "sae")
    assert contents(run) == before


@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
def test_resume_of_a_damaged_run(content: str, refused: Callable[..., str], tmp_path: Path) -> None:
    run = tmp_path / "damaged"
    run.mkdir()
    (run / "run.json").write_text(content)
    has_all(refused("--out", str(run), "--resume"), "run.json", str(run))
    assert (run / "run.json").read_text() == content


# --- SAE folders ----------------------------------------------------------------------------------------------------


def test_folders_without_an_sae(finished_run: Path, tmp_path: Path) -> None:
    sae = next((finished_run / "sae").iterdir())
    with pytest.raises(strata.UserError, match=r"cfg\.json"):
        strata.SAE.load(tmp_path / "missing")
    for name in ("cfg.json", "sae_weights.safetensors"):
        for content in (None, b"", b"{"):
            broken = tmp_path / f"{name}-{content!r}".replace("'", "")
            broken.mkdir()
            for part in sae.iterdir():
                (broken / part.name).write_bytes(part.read_bytes())
            if content is None:
                (broken / name).unlink()
            else:
                (broken / name).write_bytes(content)
            with pytest.raises(strata.UserError, match=re.escape(name)):
                strata.SAE.load(broken)


def test_activations_of_another_width() -> None:
    sae = strata.Trainer(CONFIG, progress=False).train(torch.randn(128, 8))
    for call in (sae, sae.encode, sae.encode_sparse):
        with pytest.raises(strata.UserError, match=r"d_in=8"):
            call(torch.randn(3, 9))
    with pytest.raises(strata.UserError, match=r"init.*d_in=8.*d_in=9"):
        strata.Trainer(CONFIG, init=sae, progress=False).train(torch.randn(128, 9))
