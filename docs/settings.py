"""A hook of mkdocs: a line `<!-- settings: strata.config.train.TrainConfig -->` becomes the table of its flags."""

import ast
import inspect
import re
from dataclasses import MISSING, Field, fields, is_dataclass
from itertools import pairwise
from pkgutil import resolve_name
from typing import Any, get_type_hints

from strata.config.settings import named

_MARKER = re.compile(r"^<!-- settings: (?P<kind>[\w.]+)(?: behind (?P<prefix>[\w.]+))? -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What mkdocs calls with every page."""
    return _MARKER.sub(lambda found: table(resolve_name(found["kind"]), prefix=found["prefix"] or ""), markdown)


def table(description: type, *, prefix: str = "") -> str:
    """The flags of a description, as Markdown.

    Args:
        description: a dataclass whose fields have docstrings.
        prefix: of its flags, e.g. `sae.`.
    """
    kinds, said = get_type_hints(description), _docstrings(description)
    lines = ["| flag | |", "|---|---|"]
    for field in fields(description):
        if not is_dataclass(kinds[field.name]):
            flag = f"`--{prefix}{field.name.replace('_', '-')}`"
            lines.append(f"| {flag} | {said[field.name]}{_kind(kinds[field.name])}{_default(field)} |")
    return "\n".join(lines)


def _docstrings(description: type) -> dict[str, str]:
    """What stands below each field, also those of base classes."""
    found: dict[str, str] = {}
    for kind in reversed([kind for kind in description.__mro__ if is_dataclass(kind)]):
        [body] = [node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef)]
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                found[field.target.id] = _cell(str(ast.literal_eval(text.value)))
    return found


def _default(field: Field[Any]) -> str:
    made = field.default_factory() if field.default_factory is not MISSING else field.default
    if made is MISSING:
        return " Required."
    words = " ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in _several(made))
    return f" Default: `{words}`." if words else ""


def _several(made: Any) -> tuple[Any, ...]:
    return made if isinstance(made, tuple) else (made,)


def _kind(kind: Any) -> str:
    """The words that a setting may be, where they are few."""
    text = named(kind)
    return f" *({text}).*" if "'" in text else ""


def _cell(text: str) -> str:
    """A docstring in one line, with nothing outside of its code that would be markup."""
    parts = re.sub(r"\s+", " ", text).strip().replace("|", "\\|").split("`")
    return "`".join(part if place % 2 else part.replace("<", "&lt;") for place, part in enumerate(parts))
