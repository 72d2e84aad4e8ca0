"""README and the pages of docs/: every page is in the site's navigation, every link leads somewhere, every command line
parses, every block of Python compiles, and what a reader can run anywhere is run.
"""

import importlib
import importlib.util
import pkgutil
import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import strata.config
from pages import anchors, blocks, code_spans, compiled, links, read, run_python
from strata import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("*.ipynb"))]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
WRITTEN = [page for page in TEXTS if page.name not in ("LOG.md", "figures.md")]  # the log tells of what once was
_OF_OTHERS = {"--nproc-per-node", "--max-restarts", "--only"}  # torchrun, benchmarks/figures.py


def name_of(page: Path) -> str:
    return page.name


def test_blocks_know_their_lines_and_share_a_namespace(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n```python\nx = 1\n```\n\n<!-- not run: it fails -->\n```python\nraise SystemExit\n```\n\n"
        "```python\nassert x == 2\n```\n"
    )
    assert [(block.line, block.is_run) for block in blocks(page.read_text())] == [(4, True), (9, False), (13, True)]
    with pytest.raises(AssertionError) as failure:
        run_python(page)
    assert failure.traceback[-1].lineno + 1 == 13  # pytest counts from 0


def test_links_and_headings_are_found() -> None:
    text = "# A `b` c\n\nsee [x](y.md#z), ![p](q.png), not `[a](b)`\n\n```md\n[c](d)\n# e\n```\n<!-- [f](g) -->\n"
    assert links(text) == ["y.md#z", "q.png"] and anchors(text) == {"a-b-c"} and code_spans(text) == ["b", "[a](b)"]


def in_navigation(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for inner in (entry.values() if isinstance(entry, dict) else entry) for page in in_navigation(inner)]


def test_the_navigation_holds_every_page_once() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(in_navigation(settings["nav"])) == sorted(page.name for page in PAGES)


def test_the_site_asks_no_other_host_for_fonts_or_scripts() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["theme"]["font"] is False
    assert "extra_javascript" not in settings and not any("http" in sheet for sheet in settings["extra_css"])


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    wrong = []
    for link in links(read(page)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        outside = page.parent == DOCS and DOCS not in path.resolve().parents  # not on the site
        if not path.exists() or outside or (anchor and anchor not in anchors(read(path))):
            wrong.append(link)
    assert not wrong


def test_pages_that_code_names_exist() -> None:
    named = re.compile(r"\bdocs/([\w.-]+\.(?:md|ipynb|png|svg))\b")
    files = [path for folder in ("src", "benchmarks", "scripts", "tests") for path in (ROOT / folder).rglob("*.py")]
    files += [ROOT / "Makefile", ROOT / "pyproject.toml", *(ROOT / "src" / "strata").rglob("*.json")]
    wrong = [
        f"{path.relative_to(ROOT)}: docs/{page}"
        for path in files
        if path != Path(__file__)
        for page in named.findall(path.read_text(encoding="utf-8"))
        if not (DOCS / page).exists()
    ]
    assert not wrong


def command_lines(page: Path) -> list[list[str]]:
    """The words behind `strata` of a page's blocks for the shell."""
    found = []
    for block in blocks(read(page)):
        if block.language in ("bash", "text"):
            lines = re.sub(r"\\\n", " ", block.code).splitlines()
            words = [shlex.split(line, comments=True) for line in lines if re.match(r"(strata|torchrun) ", line)]
            found += [line[line.index("strata") + 1 :] for line in words if "..." not in line]
    return found


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_command_line_is_understood(page: Path) -> None:
    for words in command_lines(page):
        assert words[0] in cli.COMMANDS, words
        if "--help" not in words:
            assert cli.COMMANDS[words[0]].parse(words[1:]) is not None, words


def known_flags() -> set[str]:
    """The flags of all commands: the fields of what they describe."""
    configs = [f"strata.config.{found.name}" for found in pkgutil.iter_modules(strata.config.__path__)]
    things = [thing for name in ("strata.export", *configs) for thing in vars(importlib.import_module(name)).values()]
    names = {field.name.replace("_", "-") for thing in things if is_dataclass(thing) for field in fields(thing)}
    return {f"--{name}" for name in names} | {f"--no-{name}" for name in names} | {"--help", "--version"}


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_commands_and_flags_in_the_text_exist(page: Path) -> None:
    flags, wrong = known_flags() | _OF_OTHERS, []
    for span in code_spans(read(page)):
        words = span.split()
        if words[0] == "strata" and re.match("[a-z]", "".join(words[1:2])) and words[1] not in cli.COMMANDS:
            wrong.append(span)
        if words[0] == "strata" or words[0].startswith("--"):
            given = [word.partition("=")[0].replace("--sae.", "--") for word in words if word.startswith("--")]
            wrong += [flag for flag in given if flag not in flags]
    assert not wrong


def test_the_reference_has_every_command_and_every_public_name() -> None:
    commands = anchors(read(DOCS / "command-line.md"))
    assert set(cli.COMMANDS) <= commands
    shown = set(re.findall(r"^::: strata\.(\w+)$", read(DOCS / "reference.md"), re.MULTILINE))
    assert shown == set(strata.__all__)
    for page in DOCS.glob("*.md"):
        for name in re.findall(r"^::: ([\w.]+)$", read(page), re.MULTILINE):
            assert pkgutil.resolve_name(name) is not None


def test_settings_become_tables_of_flags() -> None:
    specification = importlib.util.spec_from_file_location("settings_hook", DOCS / "settings.py")
    assert specification and specification.loader
    hook = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hook)
    page = hook.on_page_markdown(read(DOCS / "command-line.md"))
    flags = set(re.findall(r"^\| `--([a-z.-]+)` \| .+ \|$", page, re.MULTILINE))
    assert "<!-- settings" not in page and {"sae.k", "n-tokens", "run", "push-to-hub", "price-per-hour"} <= flags
    assert {field.name.replace("_", "-") for field in fields(strata.TrainConfig) if field.name != "sae"} <= flags


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_python_compiles(page: Path) -> None:
    for block in blocks(read(page)):
        if block.language == "python":
            compiled(block, page)


@pytest.mark.parametrize(
    "page", ["README.md", "docs/quickstart.md", "docs/training.md", "docs/export.md", "docs/own-gates.md"]
)
def test_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from strata.sae.rules.registry import RULES

    monkeypatch.chdir(tmp_path)
    for name in RULES:
        monkeypatch.setitem(RULES, name, RULES[name])  # own-gates.md lends a name to its gate
    run_python(ROOT / page)


@pytest.mark.slow
def test_the_python_of_interpretation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_python(DOCS / "interpretation.md")


@pytest.mark.slow
def test_the_commands_of_the_quickstart_run(tmp_path: Path) -> None:
    wanted = [block for block in blocks(read(DOCS / "quickstart.md")) if block.language == "bash" and block.is_run]
    assert wanted
    for block in wanted:
        for line in block.code.splitlines():
            words = shlex.split(line, comments=True)
            assert words[0] == "strata"
            done = subprocess.run(
                [sys.executable, "-m", "strata", *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "first" / "report" / "index.html").is_file()
