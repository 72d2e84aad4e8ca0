"""The house rules that a machine can check: who imports whom, what starts fast, how long things may get."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"

# A module belongs to the layer that names it or, failing that, its nearest parent.
# It may import from its own layer and from lower ones, which stand above.
LAYERS = (
    (
        "words",
        ("strata.shapes", "strata.durations", "strata.errors", "strata.amounts", "strata.cache", "strata.visible_text"),
    ),
    (
        "intent",
        ("strata.config", "strata.recipes"),
    ),
    ("mathematics", ("strata.sae", "strata.kernels", "strata.grouping", "strata.similarity", "strata.costs")),
    (
        "world",
        (
            *("strata.lm", "strata.activations", "strata.atomic", "strata.checkpoint", "strata.formats"),
            *("strata.log", "strata.loggers", "strata.signals", "strata.memory", "strata.machine"),
            "strata.out_folder",
            "strata.distributed",
        ),
    ),
    (
        "programs",
        (
            *("strata.assignments", "strata.origins", "strata.distributed.spread", "strata.distributed.rows"),
            *("strata.prepare", "strata.recording", "strata.loop", "strata.train", "strata.training_facts"),
            *("strata.run", "strata.run_rows", "strata.run_folder", "strata.collect", "strata.export", "strata.groups"),
            *("strata.evaluate", "strata.interpret", "strata.interactions", "strata.steer"),
            *("strata.plan", "strata.doctor", "strata.scaling", "strata.bench"),
        ),
    ),
    ("edge", ("strata.cli", "strata.flags", "strata.report", "strata.__main__")),
)

# Methods of the public contract that hand on to a higher room: {(module, function): (room, why)}. Thin: see the test.
DELEGATES = {
    ("strata.lm.model", "LanguageModel.train_sae"): ("strata.train", "the contract's `lm.train_sae(...)`"),
    ("strata.lm.model", "LanguageModel.top_features"): (
        "strata.interpret",
        "the notebook's `lm.top_features(text, sae)`",
    ),
    ("strata.sae.group", "GroupSAE.save"): ("strata.formats", "as `sae.save(folder)`, for groups"),
    ("strata.sae.group", "GroupSAE.load"): ("strata.formats", "as `SAE.load(folder)`, for groups"),
    ("strata.grouping", "layer_distances"): ("strata.activations", "the contract's `layer_distances(lm, texts)`"),
    ("strata.sae.model", "SAE.save"): ("strata.formats", "the contract's `sae.save(folder)`"),
    ("strata.sae.model", "SAE.load"): ("strata.formats", "the contract's `SAE.load(folder)`"),
}
MOST_STATEMENTS_OF_A_DELEGATE = 5

# Slow to import, or extras: only inside the functions that use them.
HEAVY = frozenset(
    {
        *("transformers", "datasets", "pyarrow", "pandas", "sae_lens", "wandb", "tensorboard", "huggingface_hub"),
        *("lm_eval", "accelerate", "scipy", "openai", "networkx"),
    }
)
SILENT_START = HEAVY | {"torch", "tyro", "rich", "jinja2"}

MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 80
NAMELESS = frozenset({"utils.py", "util.py", "helpers.py", "common.py", "misc.py"})


@dataclass(frozen=True)
class Import:
    """One imported module, where it is imported, and whether that happens when the file is loaded."""

    target: str
    name: str | None
    line: int
    function: str | None
    only_for_types: bool

    @property
    def on_load(self) -> bool:
        return self.function is None and not self.only_for_types


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a package counts as the module of its ``__init__``."""
    paths = {}
    for path in sorted((SOURCE / "strata").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def is_package(module: str) -> bool:
    return modules()[module].name == "__init__.py"


def layer(module: str) -> int | None:
    owners = {name: level for level, (_, names) in enumerate(LAYERS) for name in names}
    parts = module.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((owners[prefix] for prefix in prefixes if prefix in owners), None)


def imports_below(
    node: ast.AST, known: frozenset[str], scope: str = "", *, inside: str | None = None, typing: bool = False
) -> Iterator[Import]:
    """All imports below a syntax node, in the order of the file; ``from a import b`` of a module b has target a.b."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, None, child.lineno, inside, typing) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.module, f"line {child.lineno}: relative import"
            assert child.level == 0, f"line {child.lineno}: relative import"
            for alias in child.names:
                whole = f"{child.module}.{alias.name}"
                target, name = (whole, None) if whole in known else (child.module, alias.name)
                yield Import(target, name, child.lineno, inside, typing)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            own = inside or scope + child.name
            yield from imports_below(child, known, f"{scope}{child.name}.", inside=own, typing=typing)
        elif isinstance(child, ast.ClassDef):
            yield from imports_below(child, known, f"{scope}{child.name}.", inside=inside, typing=typing)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from imports_below(child, known, scope, inside=inside, typing=True)
        else:
            yield from imports_below(child, known, scope, inside=inside, typing=typing)


@cache
def imports(module: str) -> tuple[Import, ...]:
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    return tuple(imports_below(tree, frozenset(modules())))


def imports_of_ours() -> Iterator[tuple[str, Import]]:
    for module in modules():
        if module != "strata":  # the facade may import everything; nobody may import it
            yield from ((module, i) for i in imports(module) if i.target.split(".")[0] == "strata")


def functions(module: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions and methods of a module with their qualified names."""

    def below(node: ast.AST, scope: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield scope + child.name, child
            deeper = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            yield from below(child, f"{scope}{child.name}." if deeper else scope)

    yield from below(ast.parse(modules()[module].read_text(encoding="utf-8")), "")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(p for p in (str(SOURCE), os.environ.get("PYTHONPATH")) if p)
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


def test_every_module_has_a_layer() -> None:
    homeless = [m for m in modules() if m != "strata" and layer(m) is None]
    assert not homeless, f"{homeless} have no layer: add them to LAYERS (and to the design's table of rooms)"


def test_no_room_stands_in_two_layers() -> None:
    names = [name for _, names in LAYERS for name in names]
    assert len(names) == len(set(names))


def test_lower_layers_never_import_higher_ones() -> None:
    wrong = []
    for module, found in imports_of_ours():
        mine, theirs = layer(module), layer(found.target)
        room, _ = DELEGATES.get((module, found.function or ""), (None, ""))
        handed_on = room is not None and (found.target + ".").startswith(room + ".")
        if mine is not None and theirs is not None and theirs > mine and not handed_on:
            names = LAYERS[mine][0], LAYERS[theirs][0]
            wrong.append(f"{module}:{found.line} ({names[0]}) imports {found.target} ({names[1]})")
    assert not wrong, "\n".join(wrong)


def test_delegates_are_thin() -> None:
    wrong = []
    for module, name in DELEGATES:
        # One that is not there yet is no fault; one that has gone has to leave the table.
        body = next((f.body for n, f in functions(module) if n == name), None) if module in modules() else None
        if body is None:
            wrong.append(f"{module} has no {name}: take it out of DELEGATES")
        elif len(body) > MOST_STATEMENTS_OF_A_DELEGATE:
            wrong.append(f"{module}: {name} does more than hand on: {len(body)} statements")
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_from_a_package() -> None:
    wrong = [
        f"{module}:{found.line}: {found.name or 'itself'} from {found.target}"
        for module, found in imports_of_ours()
        if found.target in modules() and is_package(found.target)
    ]
    assert not wrong, "Import from the module that defines the name:\n" + "\n".join(wrong)


def test_rooms_have_empty_inits() -> None:
    rooms = [m for m in modules() if m != "strata" and is_package(m)]
    full = [room for room in rooms if modules()[room].read_text(encoding="utf-8").strip()]
    assert not full, f"the __init__.py of {full} must stay empty"


def test_no_import_cycles() -> None:
    edges = {m: sorted({i.target for i in imports(m) if i.on_load and i.target in modules()}) for m in modules()}
    done: set[str] = set()

    def cycle_from(module: str, way: tuple[str, ...]) -> tuple[str, ...] | None:
        if module in way:
            return (*way[way.index(module) :], module)
        if module in done:
            return None
        found = next((c for target in edges[module] if (c := cycle_from(target, (*way, module)))), None)
        done.add(module)
        return found

    cycles = [" -> ".join(cycle) for module in edges if (cycle := cycle_from(module, ()))]
    assert not cycles, "\n".join(cycles)


def test_heavy_libraries_are_imported_where_used() -> None:
    wrong = [
        f"{module}:{found.line}: {found.target}"
        for module in modules()
        for found in imports(module)
        if found.on_load and found.target.split(".")[0] in HEAVY
    ]
    assert not wrong, "Import inside the function that uses it:\n" + "\n".join(wrong)


def test_import_is_silent_and_fast() -> None:
    code = f"import sys, strata; print(sorted({set(SILENT_START)!r} & set(sys.modules)), file=sys.stderr)"
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert (result.stdout, result.stderr) == ("", "[]\n")


def test_command_starts_without_heavy_libraries() -> None:
    result = run_python(f"import sys, strata.cli; print(sorted({set(HEAVY)!r} & set(sys.modules)))")
    assert result.returncode == 0, result.stderr
    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.mark.parametrize("module", sorted(modules()))
def test_files_say_what_they_are_and_stay_short(module: str) -> None:
    path = modules()[module]
    text = path.read_text(encoding="utf-8")
    assert path.name not in NAMELESS, "name the file after what it is about"
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "no docstring"
    assert text.count("\n") <= MOST_LINES_OF_A_FILE
    lengths = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in functions(module)}
    assert {name: n for name, n in lengths.items() if n > MOST_LINES_OF_A_FUNCTION} == {}


def committed_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    paths = [ROOT / os.fsdecode(name) for name in listed.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_paths_of_one_machine() -> None:
    machine = re.compile(r"(?<![\w.~-])/(?:root|work|home|Users)/")
    wrong = []
    for path in committed_files():
        if path.is_relative_to(ROOT / "tests"):
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:  # pictures, weights
            continue
        wrong += [f"{path.relative_to(ROOT)}:{n}" for n, line in enumerate(lines, 1) if machine.search(line)]
    assert not wrong, "\n".join(wrong)


def test_pages_name_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.compile(r"(?:`|^\s*)make ([a-z]+)", re.MULTILINE)
    pages = [path for name in ("README.md", "CONTRIBUTING.md") if (path := ROOT / name).exists()]
    wrong = [(p.name, t) for p in pages for t in named.findall(p.read_text(encoding="utf-8")) if t not in targets]
    assert not wrong


def test_imports_are_read_where_they_hide() -> None:
    code = (
        "from strata.sae import model\nfrom strata.sae.model import SAE\nimport strata.lm.text\n"
        "if TYPE_CHECKING:\n    import strata.cli\n"
        "class A:\n    def f(self):\n        def g():\n            from strata.train import train\n"
    )
    known = frozenset({"strata.sae", "strata.sae.model"})
    assert list(imports_below(ast.parse(code), known)) == [
        Import("strata.sae.model", None, 1, None, False),
        Import("strata.sae.model", "SAE", 2, None, False),
        Import("strata.lm.text", None, 3, None, False),
        Import("strata.cli", None, 5, None, True),
        Import("strata.train", "train", 9, "A.f", False),
    ]
    assert layer("strata.sae.gates") == 2
    assert layer("strata.saelens") is None
