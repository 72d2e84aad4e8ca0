"""How much of a batch goes through the language model at once: all of it, or as much as the memory holds."""

import gc
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.costs import memory as costs
from strata.errors import UserError, is_out_of_memory
from strata.log import say
from strata.machine.free_memory import free_memory

_SHARE = 0.5  # of the free memory that a pass may take: shuffle buffer and SAEs are often made only after the first one
_EAGER_COPIES = 3  # of an eager attention's scores: before, in and after the softmax


@runtime_checkable
class Readable(costs.Readable, Protocol):
    """What of a language model decides what reading rows takes; `strata.lm.model.LanguageModel` is one."""

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights and of the rows."""
        ...

    def d_in(self, site: str) -> int:
        """Width of a site's rows."""
        ...


@dataclass(frozen=True)
class Request:
    """Rows that are wanted of a batch.

    Attributes:
        lm: the language model.
        sites: key → the site it is read at.
        n_rows: by key, of the whole batch.
        n_sequences: of the batch.
        context_tokens: of each.
    """

    lm: Readable
    sites: Mapping[str, str]
    n_rows: Mapping[str, int]
    n_sequences: int = field(kw_only=True)
    context_tokens: int = field(kw_only=True)

    def bytes(self, n_sequences: int) -> float:
        """Memory that a pass of some of the sequences takes beside the weights: its vectors and its rows, and those of
        the whole batch where it is done in pieces. 0 where the configuration does not tell what is needed to count.
        """
        config: Any = self.lm.model.config.get_text_config()
        if not isinstance(getattr(config, "hidden_size", None), int):
            return 0.0
        row_bytes = {key: self.lm.d_in(site) * self.lm.dtype.itemsize for key, site in self.sites.items()}
        rows = float(sum(self.n_rows[key] * row_bytes[key] for key in self.sites))
        try:
            found = costs.forward_bytes(self.lm, tokens=n_sequences * self.context_tokens)
        except UserError:  # experts of which nobody knows how many are active
            return 0.0
        found += rows * n_sequences / self.n_sequences + (rows if n_sequences < self.n_sequences else 0.0)
        n_heads = getattr(config, "num_attention_heads", None)
        if getattr(config, "_attn_implementation", None) == "eager" and isinstance(n_heads, int):
            found += 4.0 * _EAGER_COPIES * n_sequences * n_heads * self.context_tokens**2
        return found


class Microbatch:
    """The size of the pieces in which a language model takes its batches.

    All of a batch at once where that fits into half of what is free of the memory, else the largest halving that does.
    A pass that runs out of memory all the same is repeated in pieces half as large, and that size is kept. Each time
    one line says so.

    Guaranteed whatever the size: the same rows, of the same positions, in the same order; their values agree up to
    rounding, because a matrix product of fewer rows may add in another order. Two runs are the same bitwise only where
    their pieces are.

    Args:
        say: what a line is given to.

    Attributes:
        say: the same; may be replaced.
    """

    def __init__(self, *, say: Callable[[str], None] = say) -> None:
        self.say = say
        self._most_tokens = sys.maxsize  # of a pass: more was too much once
        self._fits: dict[tuple[int, int, tuple[str, ...]], int] = {}

    def run(
        self, part: Callable[[int, int], dict[str, Tensor]], request: Request
    ) -> dict[str, Float[Tensor, "rows _"]]:
        """The rows of a batch, from as few passes as the memory allows.

        Args:
            part: the rows of the sequences from one number to before another, by key.
            request: what is wanted.

        Raises:
            UserError: not even one sequence fits.
        """
        size = first = self._size(request)
        while (found := _attempt(part, request, size)) is None:
            size = (size + 1) // 2
            self._most_tokens = size * request.context_tokens
            _release(request.lm.device)
        if size < first:
            self.say(
                f"Out of memory in a forward of {first} sequences of {request.context_tokens} tokens: from now on"
                f" {size} at a time. The rows are the same up to rounding."
            )
        return found

    def size(self, n_sequences: int, *, context_tokens: int) -> int:
        """Sequences of a batch of so many that are run at once, by what is known so far."""
        shape = (n_sequences, context_tokens)
        return min([self._known(*shape), *(fits for (*seen, _), fits in self._fits.items() if tuple(seen) == shape)])

    def _known(self, n_sequences: int, context_tokens: int) -> int:
        return min(n_sequences, max(1, self._most_tokens // context_tokens))

    def _size(self, request: Request) -> int:
        """Sequences that are run at once; when such a batch is met first, by what is free then."""
        known = self._known(request.n_sequences, request.context_tokens)
        key = (request.n_sequences, request.context_tokens, tuple(request.sites))
        if key not in self._fits:
            self._fits[key] = self._fitting(known, request)
        return min(known, self._fits[key])

    def _fitting(self, n_sequences: int, request: Request) -> int:
        """The largest halving that is expected to fit; says if it is one."""
        device, context_tokens = request.lm.device, request.context_tokens
        free, size = _free_bytes(device), n_sequences
        while size > 1 and request.bytes(size) > _SHARE * free:
            size = (size + 1) // 2
        if size == 1 and device.type == "cpu" and request.bytes(1) > free:
            needed = f"It would need about {request.bytes(1) / 1e9:.1f} GB; {free / 1e9:.1f} GB is free."
            raise _too_large(context_tokens, needed)
        if size < n_sequences:
            self.say(
                f"The language model takes {size} of {request.n_sequences} sequences of {context_tokens} tokens at a"
                f" time: {n_sequences} would need about {request.bytes(n_sequences) / 1e9:.1f} GB, and"
                f" {free / 1e9:.1f} GB is free."
            )
        return size


def positions_between(where: Int[Tensor, " rows"], first: int, end: int) -> Int[Tensor, " some"]:
    """Of ascending places in a flattened batch those from `first` to before `end`, counted from `first`."""
    bounds = torch.searchsorted(where, torch.tensor([first, end], device=where.device))
    start, stop = cast(list[int], bounds.tolist())
    return where[start:stop] - first


def _attempt(part: Callable[[int, int], dict[str, Tensor]], request: Request, size: int) -> dict[str, Tensor] | None:
    """The rows in pieces of a size; None if the memory did not hold one. What the failed pass had made is free when
    this has returned: its frames go with the exception.
    """
    try:
        whole = size >= request.n_sequences
        return part(0, request.n_sequences) if whole else _joined(part, request, size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if size == 1:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise _too_large(request.context_tokens, f"It ran out: {reason[:200]}") from error
        return None


def _joined(part: Callable[[int, int], dict[str, Tensor]], request: Request, size: int) -> dict[str, Tensor]:
    """The rows of all pieces, each written to its place at once: joined later, all would be there twice."""
    whole: dict[str, Tensor] = {}
    filled = dict.fromkeys(request.n_rows, 0)
    for first in range(0, request.n_sequences, size):
        for key, rows in part(first, min(first + size, request.n_sequences)).items():
            if key not in whole:
                whole[key] = rows.new_empty((request.n_rows[key], *rows.shape[1:]))
            whole[key][filled[key] : filled[key] + len(rows)] = rows
            filled[key] += len(rows)
    assert filled == dict(request.n_rows), "each row comes from one piece"
    return whole


def _free_bytes(device: torch.device) -> float:
    """What nobody has taken, and on CUDA what torch holds without using it."""
    if device.type != "cuda":
        return free_memory(device)
    return free_memory(device) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _too_large(context_tokens: int, reason: str) -> UserError:
    return UserError(
        f"`context_tokens` must be so few that one sequence fits the memory, whatever `text_batch_size` is. Got"
        f" {context_tokens}. {reason} Lower context_tokens, read an earlier site, or load the model in bf16."
    )
