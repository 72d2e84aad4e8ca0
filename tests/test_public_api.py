"""The public names: each is documented completely. And the settings: each is read by somebody."""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from types import ModuleType
from typing import Any

import pytest
from docstring_parser import parse

import strata
import strata.config
from strata.config.settings import said_of
from test_house import modules

ALSO_PUBLIC = ("strata.sae.metrics", "strata.grouping", "strata.recipes")


def public() -> Iterator[tuple[str, Any]]:
    """The names of the facade, and the functions of the modules that the contract names."""
    for name in strata.__all__:
        yield f"strata.{name}", getattr(strata, name)
    for path in ALSO_PUBLIC:
        module = importlib.import_module(path)
        for name, found in vars(module).items():
            if inspect.isfunction(found) and found.__module__ == path and not name.startswith("_"):
                yield f"{path}.{name}", found


def callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public functions, and the public methods that public classes of ours define."""
    for name, found in public():
        if inspect.isfunction(found):
            yield name, found
        elif inspect.isclass(found):
            for owner in found.__mro__:
                if owner.__module__.startswith("strata"):
                    for key, member in vars(owner).items():
                        function = getattr(member, "__func__", member)
                        if inspect.isfunction(function) and (key == "__init__" or not key.startswith("_")):
                            yield f"{name}.{key}", function


CALLABLES = {name: function for name, function in callables() if not getattr(function, "__isabstractmethod__", False)}


def told(name: str, function: Callable[..., Any]) -> set[str]:
    """The arguments that its docstring describes; those of __init__ may stand in the class's."""
    texts = [function.__doc__ or ""]
    if name.endswith(".__init__"):
        owner = dict(public())[name.removesuffix(".__init__")]
        if is_dataclass(owner):  # its fields have docstrings of their own
            return set(said_of(owner))
        texts.append(owner.__doc__ or "")
    return {one.arg_name.lstrip("*") for text in texts for one in parse(text).params}


@pytest.mark.parametrize("name", sorted(dict(public())))
def test_public_names_have_a_docstring(name: str) -> None:
    assert inspect.getdoc(dict(public())[name]), name


@pytest.mark.parametrize("name", sorted(CALLABLES))
def test_arguments_of_public_functions_are_described(name: str) -> None:
    function = CALLABLES[name]
    wanted = [key for key in inspect.signature(function).parameters if key not in ("self", "cls") and key[0] != "_"]
    missing = [key for key in wanted if key not in told(name, function)]
    assert function.__doc__ or name.endswith("__init__"), name
    assert len(wanted) < 2 or not missing, f"{name} does not describe {missing}"


def descriptions() -> list[type]:
    """Every dataclass of the room config."""
    rooms = [
        importlib.import_module(f"strata.config.{one.name}") for one in pkgutil.iter_modules(strata.config.__path__)
    ]
    found = [kind for room in rooms for kind in vars(room).values() if is_dataclass(kind) and is_own(kind, room)]
    assert len(found) >= 13
    return found


def is_own(kind: Any, room: ModuleType) -> bool:
    return isinstance(kind, type) and kind.__module__ == room.__name__


@cache
def attributes_read() -> dict[str, set[str]]:
    """Names behind a dot that are read, by module."""
    found: dict[str, set[str]] = {}
    for module, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)]
        found[module] = {node.attr for node in nodes}
    return found


@pytest.mark.parametrize("description", descriptions(), ids=lambda kind: kind.__name__)
def test_every_setting_is_described_and_read(description: type) -> None:
    said, read = said_of(description), set().union(*attributes_read().values())
    names = [field.name for field in fields(description)]
    assert [name for name in names if name not in said] == [], "not described"
    assert [name for name in names if name not in read] == [], "nobody reads it"


def test_a_setting_that_nobody_reads_would_be_seen() -> None:
    assert "expansion_factor" in set().union(*attributes_read().values())
    assert "a_setting_that_is_not_there" not in set().union(*attributes_read().values())
