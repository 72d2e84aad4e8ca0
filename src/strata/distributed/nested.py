"""The nested dicts and lists that a state is made of, walked in one way: whatever is neither is a leaf."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

Keys = tuple[Any, ...]
"""The way to a leaf: keys of dicts and places in lists, from the outermost on."""


def leaves(state: Any, *, is_leaf: Callable[[Any], bool], path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """The leaves and the ways to them.

    Args:
        state: nested dicts, lists and tuples.
        is_leaf: of a dict or list, whether it is one all the same.
        path: to the state.
    """
    below = None if is_leaf(state) else _below(state)
    if below is None:
        yield path, state
        return
    for key, one in below:
        yield from leaves(one, is_leaf=is_leaf, path=(*path, key))


def with_leaves(
    state: Any,
    new: Callable[[Keys, Any], Any],
    *,
    is_leaf: Callable[[Any], bool] = lambda _: False,
    path: Keys = (),
) -> Any:
    """The same dicts, lists and tuples with other leaves.

    Args:
        state: nested dicts, lists and tuples; it stays as it is.
        new: what takes a leaf's place, from the way to it and the leaf.
        is_leaf: of a dict or list, whether it is one all the same.
        path: to the state.
    """
    below = None if is_leaf(state) else _below(state)
    if below is None:
        return new(path, state)
    made = {key: with_leaves(one, new, is_leaf=is_leaf, path=(*path, key)) for key, one in below}
    if isinstance(state, dict):
        return made
    return tuple(made.values()) if isinstance(state, tuple) else list(made.values())


def _below(state: Any) -> list[tuple[Any, Any]] | None:
    """What lies in a dict, list or tuple, by key or place; None for anything else."""
    if isinstance(state, dict):
        return list(cast(dict[Any, Any], state).items())
    return list(enumerate(cast(Sequence[Any], state))) if isinstance(state, list | tuple) else None
