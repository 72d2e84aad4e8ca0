"""Pages from templates beside this file, all with the same style."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from strata.atomic import write_whole
from strata.errors import UserError

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


def write_pages(folder: Path, texts: Mapping[str, str]) -> None:
    """Write pages and what belongs to them, each whole or not at all, in the place of those that stand there.

    Args:
        folder: for them.
        texts: by name of the file. A lone surrogate, as a token may hold one, becomes a question mark.

    Raises:
        UserError: one cannot be written.
    """
    try:
        for name, text in texts.items():
            write_whole(folder / name, text.encode("utf-8", errors="replace"))
    except OSError as error:
        raise UserError(
            f"`out` must be a folder that can be written. {folder}: {error.strerror or error}. Make room, or give"
            " another."
        ) from error


def inlined(name: str) -> Markup:
    """A style or script of ours, as a page holds it."""
    return Markup((HERE / name).read_text(encoding="utf-8"))
