"""Mutation check: change the mathematics in one small place at a time and see whether a test fails.

    make mutants                                       # a tenth of all mutants, drawn by a seed
    .venv/bin/python scripts/mutants.py --share 1 --files src/strata/grouping.py --tests tests/test_grouping.py

One process imports everything and runs the tests once, noting which lines each of them reaches. For every mutant a copy
of it (fork) exchanges the code of one function and runs the tests that reach the changed line, the quickest first,
until one fails; the files stay as they are. Not mutated: annotations, decorators, messages of errors, assertions,
strings, defaults of dataclasses. The type checks of `make test` (jaxtyping, beartype) are off here: values must tell.

A survivor is either equivalent (another way to say the same) or a hole in the tests. It is printed, and is a row of
`build/mutants.jsonl` with its file, line and change.
"""

import argparse
import ast
import copy
import gc
import json
import os
import random
import re
import resource
import signal
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    "src/strata/kernels/reference.py",
    "src/strata/grouping.py",
    "src/strata/sae/*.py",
    "src/strata/sae/rules/*.py",
)
TESTS = ("metrics", "kernels", "coefficient", "recent", "revival", "pieces", "learner", "gates", "grouping")
TESTS += ("layer_groups", "gate_edges", "rules", "padded_lists", "optim", "folding", "initial")
MARKERS = "not gpu and not network and not slow and not saelens and not lm_eval"
OUTCOMES = ("killed", "timed out", "survived", "not reached", "refused")
_SWAPPED: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
_COMPARED: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}  # fmt: skip
_SIBLINGS = {"max": "min", "min": "max", "sum": "mean", "mean": "sum", "maximum": "minimum", "minimum": "maximum"}
_SIBLINGS |= {"all": "any", "any": "all", "argmax": "argmin", "argmin": "argmax", "zeros_like": "ones_like"}
_SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "type_params"}
_SKIPPED_NODES = (ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)


@dataclass(frozen=True)
class Mutant:
    """One change: the node at a place of `ast.walk`'s order becomes another.

    Attributes:
        path: the file.
        place: of the node.
        variant: which of the node's changes.
        function: name and line of the outermost function around it; None for a constant of the module.
        lines: the statement's.
        what: the change, to be read.
    """

    path: Path
    place: int
    variant: int
    function: tuple[str, int] | None
    lines: range
    what: str


def variants(node: ast.AST) -> list[ast.AST]:
    """What a node may become."""
    found: list[ast.AST] = []

    def changed(**fields: Any) -> None:
        other = copy.copy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        found.append(other)

    match node:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in _SWAPPED:
            changed(op=_SWAPPED[type(op)]())
        case ast.Compare(ops=[op]):
            for other in _COMPARED[type(op)]:
                changed(ops=[other()])
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            found.append(operand)
        case ast.Constant(value=bool() as value):
            changed(value=not value)
        case ast.Constant(value=int() | float() as value):
            changed(value=value + 1)
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) if not isinstance(test, ast.Compare):
            changed(test=ast.UnaryOp(ast.Not(), test))
        case ast.Call(func=func, args=args, keywords=keywords):
            for place in range(len(keywords)):
                changed(keywords=keywords[:place] + keywords[place + 1 :])
            if isinstance(func, ast.Attribute):
                if func.attr in _SIBLINGS:
                    changed(func=ast.Attribute(func.value, _SIBLINGS[func.attr], ast.Load()))
                if args and len(args) <= 2:
                    changed(args=args[:-1])
                if not (isinstance(func.value, ast.Name) and func.value.id in ("torch", "np", "self", "cls")):
                    found.append(func.value)  # without the call
    match node:
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Break() | ast.Continue():
            found.append(ast.Pass())
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            found.append(ast.Pass())
    return found


def mutants(path: Path) -> Iterator[Mutant]:
    """All of a file."""
    tree = ast.parse(path.read_text())
    places = {node: place for place, node in enumerate(ast.walk(tree))}

    def visit(node: ast.AST, owner: tuple[str, int] | None, name: str, lines: range) -> Iterator[Mutant]:
        if isinstance(node, _SKIPPED_NODES):
            return
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            name = f"{name}.{node.name}" if name else node.name
        if isinstance(node, ast.FunctionDef) and owner is None:
            owner = (name, node.decorator_list[0].lineno if node.decorator_list else node.lineno)
            lines = range(node.body[0].lineno, (node.end_lineno or 0) + 1)  # of defaults: whoever enters
        elif isinstance(node, ast.stmt) and owner is not None:
            body = getattr(node, "body", None)
            lines = range(node.lineno, body[0].lineno if body else (node.end_lineno or node.lineno) + 1)
        in_constant = owner is None and isinstance(node, ast.Constant) and isinstance(node.value, int | float)
        if (owner is not None and not isinstance(node, ast.FunctionDef)) or (in_constant and name == ""):
            for number, other in enumerate(variants(node)):
                what = f"{ast.unparse(node)}  →  {ast.unparse(ast.fix_missing_locations(other))}".replace("\n", "; ")
                yield Mutant(path, places[node], number, owner, lines, what)
        if isinstance(node, ast.Raise):
            return
        for field, value in ast.iter_fields(node):
            if field in _SKIPPED_FIELDS or (name and owner is None and field not in ("body", "args")):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visit(child, owner, name, lines)

    yield from visit(tree, None, "", range(1, 1_000_000))


def mutated(mutant: Mutant) -> tuple[ast.Module, ast.AST]:
    """The module's tree with the change, and the changed node."""
    tree = ast.parse(mutant.path.read_text())
    nodes = list(ast.walk(tree))
    old = nodes[mutant.place]
    new = ast.copy_location(variants(old)[mutant.variant], old)
    for parent in nodes:
        for field, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, field, new)
            elif isinstance(value, list) and any(one is old for one in value):
                value[[one is old for one in value].index(True)] = new
    return ast.fix_missing_locations(tree), new


def functions_of(paths: set[str]) -> dict[tuple[str, str, int], list[FunctionType]]:
    """All function objects that are there, by file, name and line: whoever holds them, decorated or not."""
    found = defaultdict(list)
    for one in gc.get_objects():
        if type(one) is FunctionType and one.__code__.co_filename in paths:
            found[one.__code__.co_filename, one.__code__.co_qualname, one.__code__.co_firstlineno].append(one)
    return found


def codes(code: CodeType) -> Iterator[CodeType]:
    """A module's code objects."""
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from codes(one)


class Check:
    """The plugin that pytest runs: it replaces the loop over the tests."""

    def __init__(self, found: list[Mutant], *, limit_seconds: float, record: Path) -> None:
        self.mutants, self.limit_seconds, self.record = found, limit_seconds, record
        self.paths = {str(mutant.path) for mutant in found}
        self.failed = self.is_fork = False
        self.outcomes: dict[Path, Counter[str]] = defaultdict(Counter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure."""
        self.failed |= report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> None:
        """A mutant is killed as soon as something fails; what a report of it would say nobody reads."""
        if self.is_fork and call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
            os._exit(1)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests once, then every mutant against those that reach it."""
        import torch

        torch.set_num_threads(1)
        reached = self.measure(session.items)
        functions = functions_of(self.paths)
        gc.disable()
        gc.freeze()  # so that forks share their memory
        with self.record.open("w", encoding="utf-8") as record:
            for mutant in self.mutants:
                lines = [(str(mutant.path), line) for line in mutant.lines]
                tests = {item: seconds for line in lines for item, seconds in reached.get(line, {}).items()}
                outcome, n_tests = self.judge(mutant, tests, functions)
                self.outcomes[mutant.path][outcome] += 1
                name, line = str(mutant.path.relative_to(ROOT)), mutant.lines.start
                row = {"file": name, "line": line, "what": mutant.what, "outcome": outcome, "n_tests": n_tests}
                print(json.dumps(row, ensure_ascii=False), file=record, flush=True)
                if outcome != "killed":
                    print(f"{outcome}: {name}:{line}: {mutant.what}", flush=True)
        self.print_table()
        return True

    def print_table(self) -> None:
        """Per file the mutants, and what became of them."""
        print(f"\n| file | mutants | {' | '.join(OUTCOMES)} |\n|---|{'---|' * (len(OUTCOMES) + 1)}")
        for path, found in self.outcomes.items():
            counts = " | ".join(str(found[outcome]) for outcome in OUTCOMES)
            print(f"| `{path.relative_to(ROOT)}` | {found.total()} | {counts} |")

    def measure(self, items: list[pytest.Item]) -> dict[tuple[str, int], dict[pytest.Item, float]]:
        """File and line → the tests that reach it, with their seconds. Those that fail as things are count nothing."""
        reached: dict[tuple[str, int], dict[pytest.Item, float]] = defaultdict(dict)
        for item in items:
            lines: set[tuple[str, int]] = set()

            def local(frame: FrameType, event: str, arg: Any, lines: set[tuple[str, int]] = lines) -> Any:
                lines.add((frame.f_code.co_filename, frame.f_lineno))
                return local

            def entered(frame: FrameType, event: str, arg: Any, local: Callable[..., Any] = local) -> Any:
                return local if frame.f_code.co_filename in self.paths else None

            started, self.failed = time.process_time(), False
            sys.settrace(entered)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            sys.settrace(None)
            seconds = time.process_time() - started
            if self.failed:
                print(f"fails without a mutant: {item.nodeid}")
                continue
            for line in lines:
                reached[line][item] = seconds
        return reached

    def judge(
        self, mutant: Mutant, tests: dict[pytest.Item, float], functions: dict[tuple[str, str, int], list[FunctionType]]
    ) -> tuple[str, int]:
        """What becomes of a mutant, and how many tests were to be run."""
        chosen: list[pytest.Item] = []
        seconds = 0.0
        for item in sorted(tests, key=lambda one: tests[one]):
            if chosen and seconds + tests[item] > self.limit_seconds:
                break
            chosen.append(item)
            seconds += tests[item]
        if not chosen:
            return "not reached", 0
        child = os.fork()
        if child == 0:
            self.is_fork = True
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + 3 + 3 * seconds),) * 2)
            limit_memory()
            signal.alarm(600)  # of a machine that is busy
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            try:
                with warnings.catch_warnings(action="ignore"):
                    apply(mutant, functions)
                os._exit(self.fails(chosen))
            finally:
                os._exit(3)  # a change that Python refuses, such as one that takes the only `super()` out
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 3:
            return "refused", 0
        timed_out = status in (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGALRM)
        return ("timed out" if timed_out else "killed" if status else "survived"), len(chosen)

    def fails(self, items: list[pytest.Item]) -> int:
        """1 where one of the tests fails."""
        self.failed = False
        for item in items:
            try:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            except BaseException:  # noqa: BLE001 - whatever a mutant does
                return 1
            if self.failed:
                return 1
        return 0


def limit_memory() -> None:
    """To 3 GiB more than now: a loop that does not end may grow a list. Only Linux tells how much that is."""
    if (statm := Path("/proc/self/statm")).exists():
        held_bytes = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held_bytes + (3 << 30),) * 2)


def apply(mutant: Mutant, functions: dict[tuple[str, str, int], list[FunctionType]]) -> None:
    """Exchange the code of the function, its default, or the module's constant."""
    tree, new = mutated(mutant)
    module = next(one for one in sys.modules.values() if getattr(one, "__file__", None) == str(mutant.path))
    if mutant.function is None:
        statement = next(one for one in tree.body if any(node is new for node in ast.walk(one)))
        exec(compile(ast.Module([statement], []), str(mutant.path), "exec"), module.__dict__)
        return
    changed = {(one.co_qualname, one.co_firstlineno): one for one in codes(compile(tree, str(mutant.path), "exec"))}
    definition = next(
        one
        for one in ast.walk(tree)
        if isinstance(one, ast.FunctionDef)
        and (one.decorator_list[0].lineno if one.decorator_list else one.lineno) == mutant.function[1]
    )
    for function in functions[(str(mutant.path), *mutant.function)]:
        function.__code__ = changed[mutant.function]
        for argument, default in zip(definition.args.kwonlyargs, definition.args.kw_defaults, strict=True):
            if default is not None and any(node is new for node in ast.walk(default)):
                value = eval(compile(ast.Expression(default), str(mutant.path), "eval"), module.__dict__)
                function.__kwdefaults__ = {**(function.__kwdefaults__ or {}), argument.arg: value}
        for place, default in enumerate(definition.args.defaults):
            if any(node is new for node in ast.walk(default)):
                value = eval(compile(ast.Expression(default), str(mutant.path), "eval"), module.__dict__)
                given = list(function.__defaults__ or ())
                given[place] = value
                function.__defaults__ = tuple(given)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", nargs="+", type=Path, help="to mutate; all of the mathematics if left out")
    parser.add_argument("--tests", nargs="+", help="test files that judge; those of the mathematics if left out")
    parser.add_argument("-k", default="", help="which tests of these, as pytest's")
    parser.add_argument("--share", type=float, default=0.1, help="of the mutants, drawn by the seed")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--seconds", type=float, default=10.0, help="of tests for one mutant, the quickest first")
    parser.add_argument("--only", default="", help="a regular expression: mutants whose FILE:LINE: CHANGE it finds")
    parser.add_argument("--record", type=Path, default=ROOT / "build" / "mutants.jsonl", help="one JSON row per mutant")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # a fork has no other threads
    files = args.files or [path for pattern in FILES for path in sorted(ROOT.glob(pattern))]
    tests = args.tests or [str(ROOT / "tests" / f"test_{name}.py") for name in TESTS]
    draw = random.Random(args.seed)
    found = [one for path in files for one in mutants(path.resolve()) if draw.random() < args.share]
    found = [one for one in found if re.search(args.only, f"{one.path.name}:{one.lines.start}: {one.what}")]
    print(f"{len(found)} mutants")
    args.record.parent.mkdir(parents=True, exist_ok=True)
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-n", "0", "-m", MARKERS, "-k", args.k]
    return pytest.main([*options, *tests], plugins=[Check(found, limit_seconds=args.seconds, record=args.record)])


if __name__ == "__main__":
    sys.exit(main())
