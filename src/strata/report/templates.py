"""Pages from templates beside this file, all with the same style."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent


def filled(template: str, content: Mapping[str, Any]) -> str:
    """A page; every text in it is escaped, and a name in the template that nothing fills is an error.

    Args:
        template: its file's name.
        content: what it shows; ``css`` comes from here.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render({**content, "css": inlined("style.css")})


def inlined(name: str) -> Markup:
    """A style or script of ours, as a page holds it."""
    return Markup((HERE / name).read_text(encoding="utf-8"))
