"""The blocks of a language model compiled by torch.compile, where a long run on CUDA pays for it."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from strata.errors import UserError, is_out_of_memory
from strata.lm.flops import forward_flops_of
from strata.lm.hooks import replaced_forwards
from strata.lm.model import LanguageModel
from strata.log import say

_LONG_FLOPS = 1e17  # of all forwards: some minutes of a large GPU, against up to one of compiling (an estimate)
COMPILES = ("auto", "on", "off")


class CompiledBlocks:
    """The blocks before the deepest site, compiled each by itself; torch compiles blocks of the same code once.

    A block with a site inside stays as it is, and so does everything between the blocks: what reads the sites are
    hooks, and they act outside of compiled code. Only whole batches are compiled; others (the last one, one with pads)
    run as they do without. If compiling fails, one line says so, and nothing is compiled from then on.

    Not executed yet on a GPU; the tests run it on the CPU.

    Args:
        lm: the language model.
        sites: that are read.
        backend: of torch.compile.
        say: what the line is given to.
    """

    def __init__(
        self,
        lm: LanguageModel,
        sites: Sequence[str],
        *,
        backend: str | Callable[..., Any] = "inductor",
        say: Callable[[str], None] = say,
    ) -> None:
        self._lm, self._say, self.failed = lm, say, False
        paths = [lm.site(name).path for name in lm.sites]
        inside = [lm.site(site).path for site in sites]
        self._blocks: list[nn.Module] = [
            lm.model.get_submodule(path) for path in paths if not any(site.startswith(f"{path}.") for site in inside)
        ]
        self._n_sequences = 0
        self._forwards = [self._either(block.forward, backend) for block in self._blocks]

    @contextmanager
    def used_for(self, n_sequences: int) -> Generator[None, None, None]:
        """As long as the context lasts, passes of so many sequences run the compiled blocks, or of as many of them as
        the model takes at once: see `strata.lm.microbatch`.
        """
        self._n_sequences = n_sequences
        with replaced_forwards(zip(self._blocks, self._forwards, strict=True)):
            yield

    def _either(self, plain: Callable[..., Any], backend: str | Callable[..., Any]) -> Callable[..., Any]:
        """A block's forward that chooses between its own and the compiled one, which is made when first needed."""
        compiled: list[Callable[..., Any]] = []

        def forward(*args: Any, **kwargs: Any) -> Any:
            n_sequences, context_tokens = (args[0] if args else kwargs["hidden_states"]).shape[:2]
            whole = self._lm.microbatch.size(self._n_sequences, context_tokens=context_tokens)
            if self.failed or n_sequences != whole:
                return plain(*args, **kwargs)
            try:
                if not compiled:
                    compiled.append(torch.compile(plain, dynamic=False, backend=backend))
                return compiled[0](*args, **kwargs)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                self._give_up(error)
            return plain(*args, **kwargs)

        return forward

    def _give_up(self, error: Exception) -> None:
        self.failed = True
        reason = " ".join(str(error).split())[:160]
        self._say(f"The language model runs as it is: compiling it failed ({type(error).__name__}: {reason}).")


def pays(lm: LanguageModel, sites: Sequence[str], *, n_tokens: int, context_tokens: int) -> bool:
    """Whether compiling is expected to gain more time than it takes: on CUDA, with Triton, for many tokens.

    Args:
        lm: the language model.
        sites: that are read.
        n_tokens: of all forwards.
        context_tokens: of a sequence.
    """
    if lm.device.type != "cuda" or find_spec("triton") is None:
        return False
    try:
        return forward_flops_of(lm, sites, context_tokens=context_tokens) * n_tokens >= _LONG_FLOPS
    except UserError:  # a model that cannot be counted
        return False
