"""What a frozen description may hold: kinds of values, ranges, unknown names; each complaint one sentence."""

import functools
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from strata.errors import UserError, did_you_mean

Auto = Literal["auto"]
_SET_BY = {"d_sae": ("expansion_factor", "d_sae = expansion_factor · d_in")}  # settings of other libraries


def require(ok: bool, setting: str, rule: str, given: object, way_out: str) -> None:
    """That a setting keeps its rule.

    Raises:
        UserError: it does not; the sentence names setting, rule, what was given and the way out.
    """
    if not ok:
        raise UserError(f"`{setting}` must {rule}. Got {given}. {way_out}")


def folder_named_after(model: str, data: str, *, inside: str) -> Path:
    """inside/<model>-<data>, of their last path components; "auto" are the embedded model and the standard library."""
    model, data = ("demo" if model == "auto" else model), ("stdlib" if data == "auto" else data)
    return Path(inside) / f"{Path(model).name}-{Path(data).stem}"


def fits(value: object, kind: Any) -> bool:
    """Whether a value is of the annotated kind; whole numbers are real ones too, and nothing but a bool is a bool."""
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, option) for option in options)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in options)
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(item, options[0]) for item in cast("tuple[object, ...]", value))
    if kind in (int, float):
        return not isinstance(value, bool) and isinstance(value, Integral if kind is int else Real)
    return isinstance(value, str | Path if kind is Path else kind)


def named(kind: Any) -> str:
    """The kind as a person would say it."""
    if get_origin(kind) is Literal:
        return " or ".join(repr(option) for option in get_args(kind))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(named(option) for option in get_args(kind))
    if get_origin(kind) is tuple:
        return f"several of {named(get_args(kind)[0])}"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", Path: "a path"}
    return words[kind] if kind in words else str(getattr(kind, "__name__", kind))


def check_kinds(config: Any) -> None:
    """That every field holds what its annotation says.

    Raises:
        UserError: one does not.
    """
    kind_of_config = config.__class__
    for name, kind in get_type_hints(kind_of_config).items():
        value = getattr(config, name)
        if not fits(value, kind):
            raise UserError(f"`{kind_of_config.__name__}.{name}` must be {named(kind)}. Got {value!r}.")


def instead_of(name: str, known: Sequence[str], *, listed: bool = True) -> str:
    """The end of an error sentence on an unknown setting: what it is set by here, or else as `did_you_mean` says it.

    Args:
        name: what was given, a field or a flag.
        known: those that there are, written alike.
        listed: whether `did_you_mean` lists them.
    """
    setting, formula = _SET_BY.get(_bare(name), ("", ""))
    ours = next((one for one in known if _bare(one) == setting), None)
    return did_you_mean(name, known, listed=listed) if ours is None else f" Give {ours!r}: {formula}."


def _bare(name: str) -> str:
    """A flag as its field is called; fields as they are."""
    return name.rpartition(".")[2].lstrip("-").replace("-", "_")


Described = TypeVar("Described")


def names_unknown_settings(cls: type[Described]) -> type[Described]:
    """Class decorator: an unknown keyword is a UserError that names the nearest setting."""
    described = cast(Any, cls)  # a dataclass, which a type variable cannot say of a class that is being made
    known = [field.name for field in fields(described)]
    make = described.__init__

    @functools.wraps(make)
    def __init__(self: Any, **settings: Any) -> None:
        for name in settings:
            if name not in known:
                raise UserError(f"`{cls.__name__}` has no setting {name!r}.{instead_of(name, known)}")
        make(self, **settings)

    described.__init__ = __init__
    return cls


def said_of(description: type) -> dict[str, str]:
    """What is said of each setting of a description, as one paragraph; of nested descriptions not."""
    from docstring_parser import parse_from_object

    bases = [kind for kind in reversed(description.__mro__) if is_dataclass(kind)]
    texts = {text.arg_name: text.description for kind in bases for text in parse_from_object(kind).params}
    return {name: " ".join(text.split()) for name, text in texts.items() if text}
