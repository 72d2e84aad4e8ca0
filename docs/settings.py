"""A hook of mkdocs: a line `<!-- settings: strata.config.train.TrainConfig -->` becomes the table of its flags."""

import re
from dataclasses import MISSING, Field, fields, is_dataclass
from pkgutil import resolve_name
from typing import Any, get_type_hints

from strata.config.settings import named, said_of

_MARKER = re.compile(r"^<!-- settings: (?P<kind>[\w.]+)(?: behind (?P<prefix>[\w.]+))? -->$", re.MULTILINE)


def on_config(config: Any) -> None:
    """Let blocks of Mermaid be drawn; where its script cannot be fetched the page shows their words."""
    from pymdownx.superfences import fence_code_format

    fence = {"name": "mermaid", "class": "mermaid", "format": fence_code_format}
    config["mdx_configs"]["pymdownx.superfences"] = {"custom_fences": [fence]}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What mkdocs calls with every page."""
    return _MARKER.sub(lambda found: table(resolve_name(found["kind"]), prefix=found["prefix"] or ""), markdown)


def table(description: type, *, prefix: str = "") -> str:
    """The flags of a description, as Markdown.

    Args:
        description: a dataclass whose fields have docstrings.
        prefix: of its flags, e.g. `sae.`.
    """
    kinds, said = get_type_hints(description), said_of(description)
    lines = ["| flag | |", "|---|---|"]
    for field in fields(description):
        if not is_dataclass(kinds[field.name]):
            flag = f"`--{prefix}{field.name.replace('_', '-')}`"
            lines.append(f"| {flag} | {_cell(said[field.name])}{_kind(kinds[field.name])}{_default(field)} |")
    return "\n".join(lines)


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
    """A text with nothing outside of its code that would be markup."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if place % 2 else part.replace("<", "&lt;") for place, part in enumerate(parts))
