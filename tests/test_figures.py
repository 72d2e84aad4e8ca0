"""Every figure of README and docs has a command, a result, and stands in the pages as the result says."""

import json
import platform
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strata.cli import COMMANDS

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
ABOUT_FIGURES = {"figures.py", "recorded.py"}  # programs that make none themselves


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The programs import from the folder in which they lie; what they imported is forgotten again."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").is_relative_to(BENCHMARKS):
            del sys.modules[name]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Pages and results, to be spoilt."""
    (tmp_path / "docs").mkdir()
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        shutil.copy(page, tmp_path / page.relative_to(ROOT))
    shutil.copytree(BENCHMARKS / "results", tmp_path / "benchmarks" / "results")
    return tmp_path


def test_every_command_can_be_given() -> None:
    from figure_list import FIGURES

    for figure in FIGURES:
        program, *words = figure.words(figure.result)
        if program == "-m":
            assert words[:2] == ["strata", "bench"]
            COMMANDS["bench"].parse(words[2:])
        else:
            parser = runpy.run_path(str(ROOT / program))["arguments"]()
            parser.parse_args(words)
            assert "--json" in parser.format_help()


def test_every_program_makes_a_figure() -> None:
    from figure_list import FIGURES

    programs = {path.name for path in BENCHMARKS.glob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8")}
    assert programs == {Path(f.command[0]).name for f in FIGURES if f.command[0] != "-m"} | ABOUT_FIGURES


def test_every_result_is_made_by_a_command() -> None:
    from figure_list import BY_NAME, FIGURES

    results = {path.stem for path in (BENCHMARKS / "results").iterdir()}
    assert results <= {*BY_NAME, "when"}
    names = [figure.name for figure in FIGURES]
    assert all(names.index(needed) < names.index(figure.name) for figure in FIGURES for needed in figure.after)


def test_results_name_neither_machine_nor_folders() -> None:
    for path in (BENCHMARKS / "results").iterdir():
        text = path.read_text("utf-8")
        found = re.search(r'"/\w+[^"]*"', text)
        assert found is None, f"{path.name} names {found}"
        assert str(Path.home()) not in text
        assert f'"{platform.node()}' not in text


def test_pages_say_what_the_results_say() -> None:
    from figure_pages import outdated

    assert outdated(ROOT) == []


def test_every_block_is_shown() -> None:
    from figure_blocks.registry import BLOCKS
    from figure_pages import marked, pages

    shown = {name for page in pages(ROOT) for name, *_ in marked((ROOT / page).read_text("utf-8"), where=str(page))}
    assert shown == set(BLOCKS)


def test_a_changed_number_is_found_and_mended(copy: Path) -> None:
    from figure_pages import outdated, write_pages

    page = copy / "docs" / "planning.md"
    right = page.read_text("utf-8")
    start = right.index("<!-- figures:plan -->")
    number = re.compile(r"\d\.\d\d").search(right, start)
    assert number is not None
    page.write_text(f"{right[: number.start()]}9.99{right[number.end() :]}", encoding="utf-8")
    assert outdated(copy) == ["docs/planning.md: the block 'plan' is not what the results say"]
    assert write_pages(copy) == ["docs/planning.md (plan)"]
    assert page.read_text("utf-8") == right


def test_a_changed_result_is_found(copy: Path) -> None:
    from figure_pages import outdated

    path = copy / "benchmarks" / "results" / "plan.json"
    record = json.loads(path.read_text("utf-8"))
    next(iter(record["results"].values()))["ratio"] = 3.0
    path.write_text(json.dumps(record), encoding="utf-8")
    assert set(outdated(copy)) == {
        "README.md: the block 'headline' is not what the results say",
        "docs/planning.md: the block 'plan' is not what the results say",
        "docs/figures.md is not what the results say",
    }


def test_what_was_not_measured_is_said(copy: Path) -> None:
    from figure_blocks.registry import rendered
    from figure_blocks.results import Results

    (copy / "benchmarks" / "results" / "gates.json").unlink()
    assert rendered("gates", Results(copy)).startswith("Not measured yet: `python benchmarks/gates.py --steps 300")
    assert "| L0 is what `k` says | not measured | `--only gates` |" in rendered("headline", Results(copy))


def test_every_machine_is_named(copy: Path) -> None:
    from figure_blocks.registry import rendered
    from figure_blocks.results import Results

    path = copy / "benchmarks" / "results" / "gates.json"
    record = json.loads(path.read_text("utf-8"))
    record["machine"] |= {"n_cores": 64, "processor": "abacus", "fast_dtype": "bfloat16"}
    path.write_text(json.dumps(record), encoding="utf-8")
    told, *_ = rendered("headline", Results(copy)).split(". ")
    assert told.startswith("Measured on 2 cores of an ")
    assert told.endswith("names those on 64 cores of an abacus with bf16 instructions)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n<!-- figures:speed -->\n", "page.md, line 2: there is no block 'speed'. Known are: headline, "),
        ("<!-- figures:plan -->\n1\n", "page.md, line 1: the block 'plan' has no end. Put `<!-- /figures:plan -->` "),
        ("<!-- /figures:plan -->\n", "page.md, line 1: the block 'plan' ends and has not begun."),
        ("<!-- figures:plan -->\n<!-- figures:gates -->\n", "page.md, line 2: 'gates' begins within 'plan'."),
    ],
)
def test_wrong_markers_end_in_a_sentence(text: str, message: str) -> None:
    from figure_pages import PageError, marked

    with pytest.raises(PageError, match=re.escape(message)):
        list(marked(text, where="page.md"))


def test_goals_that_are_missed_are_named(copy: Path) -> None:
    from figure_blocks.goals import goals, missed
    from figure_blocks.results import Results

    path = copy / "benchmarks" / "results" / "explain.json"
    record = json.loads(path.read_text("utf-8"))
    for seconds, reached in ((59.0, "yes"), (61.0, "**no**")):
        record["times"]["seconds"] = seconds
        path.write_text(json.dumps(record), encoding="utf-8")
        assert f"| at most 60.0 | {seconds} | {reached} |" in goals(Results(copy), ("explain",))
        assert any(one.startswith("explain: ") for one in missed(Results(copy))) == (reached != "yes")


def a_round(folder: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, str]) -> Any:
    """`figures.py` in a folder of its own, with small programs for figures."""
    import figure_list
    import figures

    rows = []
    for name, program in programs.items():
        (folder / f"{name}.py").write_text(program, encoding="utf-8")
        rows.append(figure_list.Figure(name=name, about=name, command=(f"{name}.py", "RESULT"), minutes=1))
    for module in (figures, figure_list):
        monkeypatch.setattr(module, "FIGURES", tuple(rows))
        monkeypatch.setattr(module, "BY_NAME", {row.name: row for row in rows})
    monkeypatch.setattr(figures, "ROOT", folder)
    (folder / "benchmarks" / "results").mkdir(parents=True, exist_ok=True)
    (folder / "build").mkdir(exist_ok=True)
    return figures.Round(Path(sys.executable), new=False, only=None), rows


WRITES = "import sys, pathlib\npathlib.Path(sys.argv[1]).write_text('{\"n\": 1}')\n"
COUNTS = WRITES + "print('once more', file=open('count.txt', 'a'))\n"
FAILS = WRITES + "sys.exit('the disk is full')\n"
FALLS_SHORT = WRITES + "sys.exit(3)\n"


def test_a_round_goes_on_after_a_failure_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = {"bad": FAILS, "good": COUNTS, "short": FALLS_SHORT}
    made, rows = a_round(tmp_path, monkeypatch, programs)
    (tmp_path / "benchmarks" / "results" / "bad.json").write_text('"as it was"')
    assert made.make(rows) == ["bad"]
    told = capsys.readouterr().out
    assert "the disk is full" in told
    assert "failed: bad\n" in told
    assert "measured, and short of its goal: short\n" in told
    results = tmp_path / "benchmarks" / "results"
    assert (results / "bad.json").read_text() == '"as it was"', "a failure replaces nothing"
    assert (results / "good.json").read_text() == '{"n": 1}'
    when = json.loads((results / "when.json").read_text())
    assert set(when) == {"good", "short"}
    assert when["good"]["command"] == "python good.py benchmarks/results/good.json"
    programs["bad"] = WRITES
    made, rows = a_round(tmp_path, monkeypatch, programs)
    assert made.make(rows) == []
    assert (tmp_path / "count.txt").read_text().count("once more") == 1, "what was made is not made again"
    assert (results / "bad.json").read_text() == '{"n": 1}'


def test_what_cannot_be_made_here_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import dataclasses

    made, rows = a_round(tmp_path, monkeypatch, {"lonely": COUNTS, "late": COUNTS})
    lonely = dataclasses.replace(rows[0], packages=("no_such_package",))
    late = dataclasses.replace(rows[1], after=("lonely",))
    assert made.make([lonely, late]) == []
    told = capsys.readouterr().out
    assert "no_such_package must be installed" in told
    assert "it reads what lonely leaves (benchmarks/results/lonely.json), which is not there" in told
    assert not (tmp_path / "count.txt").exists()


def test_recorded_runs_are_those_that_were_measured() -> None:
    import recorded
    from figure_blocks.results import Results

    text = recorded.FILE.read_text("utf-8")
    assert recorded.written(recorded.refreshed(json.loads(text), Results(ROOT))) == text
