"""Modules of a running model, watched or replaced as long as a context lasts, and as they were when it ends."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

Forward = Callable[..., Any]
Hook = Callable[[nn.Module, Any, Any], Any]
"""Is given a module, its arguments and its output; what it returns, unless None, replaces the output."""


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Hook]]) -> Generator[None, None, None]:
    """Hooks behind the forwards of modules, in the order in which they are given."""
    handles: list[RemovableHandle] = []
    try:
        handles.extend(module.register_forward_hook(hook) for module, hook in hooks)
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced_forwards(forwards: Iterable[tuple[nn.Module, Forward]]) -> Generator[None, None, None]:
    """Other forwards in place of the modules' own."""
    new = list(forwards)
    before = [module.__dict__.get("forward") for module, _ in new]  # accelerate puts one there
    try:
        for module, forward in new:
            module.forward = forward
        yield
    finally:
        for (module, _), forward in zip(new, before, strict=True):
            if forward is not None:
                module.forward = forward
            elif "forward" in module.__dict__:
                del module.forward
