"""The exceptions that a user can meet. Each message is one sentence or two: the setting, the rule, what was given, the
way out.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend: a setting, a file, a text. The command line prints it without a traceback and exits
    with 2.
    """


class MissingExtraError(UserError):
    """A library that an optional feature needs is not installed.

    Args:
        library: the import name of the library that is missing, e.g. ``"datasets"``.
        extra: the extra of this package that brings it, e.g. ``"data"``.
        purpose: what it is needed for, as the subject of a sentence, e.g. ``"Reading Hugging Face datasets"``.
    """

    def __init__(self, library: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the library `{library}`. Install it with `pip install 'strata-sae[{extra}]'`."
        )


_OUT_OF_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory was not to be had: torch's on CUDA, its allocator's on the CPU, Python's.

    Args:
        error: anything that a forward or a step may raise.
    """
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str | None = None, listed: bool = True) -> str:
    """The end of an error sentence on an unknown name: the nearest known one if there is one near, and the first twelve
    of them.

    Args:
        name: what was given.
        known: the names that would have been right.
        otherwise: the one to guess where none is near.
        listed: whether the known ones are listed.

    Returns:
        Text that starts with a space or is empty, e.g. ``" Did you mean 'layers.3'? Known are: 'layers.0',
        'layers.1'."``.
    """
    names = list(known)
    near = difflib.get_close_matches(name.lstrip("-"), [n.lstrip("-") for n in names], n=1)
    near = [n for n in names if (n.lstrip("-") == near[0] if near else n == otherwise)]
    guess = f" Did you mean {near[0]!r}?" if near else ""
    if not (names and listed):
        return guess
    shown = ", ".join(repr(n) for n in names[:12])
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"{guess} Known are: {shown}{more}."
