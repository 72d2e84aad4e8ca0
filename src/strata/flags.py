"""From flags to descriptions: tyro's work, its complaints as one sentence each."""

import io
import re
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass
from inspect import cleandoc
from types import MappingProxyType
from typing import Any

from strata.config.settings import instead_of, said_of
from strata.errors import UserError

# What Python and tyro say of a word of the wrong kind, and the kinds as people call them.
_KINDS = {"INT": "a whole number", "FLOAT": "a number", "PATH": "a path", "STR": "a word"}
_NUMBERS = {
    r"invalid literal for int\(\) with base 10": _KINDS["INT"],
    "could not convert string to float": _KINDS["FLOAT"],
}
_WRONG_KIND = re.compile(
    r"Error parsing (?P<flag>--\S+): no type matching (?P<kinds>\S+) could be instantiated from"
    r" \[(?P<given>.*?)\]\. Got errors:"
)
_PLANNING = "The cost of the following, before it is paid; its own flags, and beside them those of the plan.\n\n"


def parsed(
    description: type,
    words: Sequence[str],
    *,
    command: str,
    usage: str = "",
    default: Any = None,
    note: str = "",
    plan: bool = False,
) -> Any:
    """A description from flags; None when they asked for help.

    With `plan` it is a pair of the description and the `PlanOptions`, whose flags stand beside its own.

    Raises:
        UserError: what tyro or the description itself complains of, in one sentence.
    """
    import tyro

    fill: Any = tyro.cli  # its overloads know no type that is made here
    said = io.StringIO()
    kind, parts, start = _beside_plan(description, default) if plan else (description, [description], default)
    prog = f"strata plan {usage or command}" if plan else f"strata {usage or command}"
    if not {"-h", "--help"}.isdisjoint(words):
        for part in parts:
            _text_as_paragraphs(part)
    try:
        with redirect_stderr(said):
            return fill(
                kind,
                args=list(words),
                prog=prog,
                description=f"{_PLANNING if plan else ''}{cleandoc(description.__doc__ or '')}{note}",
                **({} if start is None else {"default": start}),
            )
    except SystemExit as stopped:
        if not stopped.code:
            return None
    raise UserError(_one_sentence(said.getvalue(), parts, command=f"plan {command}" if plan else command))


def _text_as_paragraphs(description: type) -> None:
    """Give tyro what is said of each setting as one paragraph: by itself it keeps the source's line breaks."""
    said = said_of(description)
    for setting in fields(description):
        if setting.name in said:
            setting.metadata = MappingProxyType({**setting.metadata, "help": said[setting.name]})
        if isinstance(setting.default_factory, type) and is_dataclass(setting.default_factory):
            _text_as_paragraphs(setting.default_factory)


def _beside_plan(description: type, default: Any) -> tuple[Any, list[type], Any]:
    """For tyro a pair whose flags stand side by side; its two descriptions; its defaults."""
    from typing import Annotated

    import tyro

    from strata.config.plan import PlanOptions

    flat = tyro.conf.arg(name="")
    kind = tuple[Annotated[description, flat], Annotated[PlanOptions, flat]]
    return kind, [description, PlanOptions], None if default is None else (default, PlanOptions())


def _one_sentence(complaint: str, descriptions: Sequence[type], *, command: str) -> str:
    """What tyro says in a box, as one sentence; unknown flags get the nearest known one."""
    lines = [re.sub(r"[│╭╮╰╯]", " ", line).strip() for line in complaint.splitlines()]
    inner = " ".join(lines)
    parts = re.split(r"\n[^\n]*[─-]{20,}[^\n]*", "\n" + "\n".join(lines))  # a terminal without UTF-8 gets dashes
    body = " ".join(next((part for part in parts if re.search(r"\w{3}.*[:.]", part, re.DOTALL)), inner).split())
    unknown = re.search(r"Unrecognized options: (\S+?),?(?:\s|$)", inner)
    if unknown:
        name = unknown[1].split("=")[0]
        if not name.startswith("-"):
            return f"Unexpected word {name!r} among the flags. `strata {command} --help` lists them."
        known = [flag for description in descriptions for flag in _flags(description)]
        near = instead_of(name, known, listed=False)
        return f"Unknown flag {name}.{near} `strata {command} --help` lists all."
    if wrong := _WRONG_KIND.match(body):
        kinds = [_KINDS.get(kind, kind.strip("{}")) for kind in wrong["kinds"].split("|")]
        body = f"`{wrong['flag']}` must be {' or '.join(kinds)}. Got {wrong['given']}"
    for said, kind in _NUMBERS.items():
        body = re.sub(rf"^Error parsing (--\S+): {said}: ", rf"`\1` must be {kind}. Got ", body)
    body = re.sub(r"^Error parsing \w+: ", "", body)  # what follows is the description's own sentence
    return f"{body.rstrip('.')}. `strata {command} --help` explains the flags."


def _flags(description: type, prefix: str = "") -> list[str]:
    found: list[str] = []
    for field in fields(description):
        name = f"{prefix}{field.name.replace('_', '-')}"
        nested = field.default_factory if is_dataclass(field.default_factory) else None
        found += _flags(nested, f"{name}.") if isinstance(nested, type) else [f"--{name}"]
    return found
