"""Running a language model from the middle on: blocks whose result is known already are not computed again."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from strata.errors import UserError
from strata.lm.hooks import hooked, replaced_forwards
from strata.lm.model import LanguageModel
from strata.lm.sites import first_tensor, returns_several

_PROBE_TOKENS = 8
_PROBE_TOLERANCE = 1e-4  # of the largest logit; a pass that lacks something a block needs is off by far more


@dataclass
class _Probe:
    """A model run once on a few tokens: what every block returned, and where starting was found to work."""

    ids: list[list[int]]
    outputs: list[Any]
    logits: Tensor
    starts: set[int]


_probes: WeakKeyDictionary[nn.Module, _Probe] = WeakKeyDictionary()


def can_start_at(lm: LanguageModel, block: int) -> bool:
    """Whether a model gives the same logits when it is started at a block with that block's input.

    Found out by doing it once, on eight tokens. It is False for a model whose blocks were not found, and where a block
    needs more of earlier blocks than the residual stream: keys and values that blocks share, a running state.

    Args:
        lm: the language model. No SAEs may be attached the first time a block is asked for.
        block: number of a block, 1 … `n_layers`; `n_layers` is what follows the last block.
    """
    if not 1 <= block <= lm.n_layers:
        return False
    try:
        probe = _probe(lm)
        if block not in probe.starts:
            with torch.no_grad(), _skipping(lm, block, first_tensor(probe.outputs[block - 1]), probe.outputs):
                logits = lm.logits(probe.ids)
            error = (logits - probe.logits).abs().max()
            if not bool(error <= _PROBE_TOLERANCE * probe.logits.abs().max()):
                return False
            probe.starts.add(block)
    except Exception:  # noqa: BLE001 - a foreign model's own code: whatever goes wrong in it, a full pass is right
        return False
    return True


def first_needed_block(lm: LanguageModel, site: str) -> int:
    """From which block on a pass has to run for a change at a site; all earlier ones give what they gave without it.

    Args:
        lm: the language model, as in `can_start_at`.
        site: a site's name.

    Returns:
        For the residual stream after block l: l + 1. For a site inside block l: l. 0, a full pass, for any other site
        and where the model cannot be started there.

    Raises:
        UserError: no such site.
    """
    path = lm.site(site).path
    blocks = _blocks_path(lm)
    if not blocks or not path.startswith(f"{blocks}."):
        return 0
    number, _, inside = path[len(blocks) + 1 :].partition(".")
    block = int(number) if inside else int(number) + 1
    return block if can_start_at(lm, block) else 0


@contextmanager
def starting_at(
    lm: LanguageModel, block: int, hidden: Float[Tensor, "batch seq d_model"]
) -> Generator[None, None, None]:
    """As long as the context lasts, `lm.logits` skips the blocks before this one, and this one receives `hidden`.

    Embeddings, masks and position tables are still made by the model itself; the skipped blocks hand their input
    through, the last of them returns `hidden`. Hooks on a skipped block run, hooks inside it do not: so
    `lm.attach({"layers.2": sae})` within ``starting_at(lm, 3, hidden)`` replaces `hidden`.

    Args:
        lm: the language model.
        block: number of the block, 1 … `n_layers`; with `n_layers` only what follows the blocks is run.
        hidden: the residual stream after block ``block - 1``, as it was in a full pass (see `block_outputs`), for the
            same ids and mask as will be given to `lm.logits`. It is not written to.

    Raises:
        UserError: the model cannot be started there, or (in a pass) `hidden` is of another shape than the text.
    """
    if not can_start_at(lm, block):
        raise UserError(
            f"`block` must be a block of 1 to {lm.n_layers} at which {lm.name!r} can be started. Got {block}."
            " Run the whole model."
        )
    with _skipping(lm, block, hidden, _probe(lm).outputs):
        yield


@contextmanager
def block_outputs(
    lm: LanguageModel, blocks: Sequence[int]
) -> Generator[dict[int, Float[Tensor, "batch seq d_model"]], None, None]:
    """Keep what some blocks return in the passes within this context: what `starting_at` takes later.

    Yields:
        Number of a block → copy of its output in the last pass, in the dtype in which the next block read it (under
        autocast it may differ from the weights').
    """
    found: dict[int, Tensor] = {}
    modules = _blocks(lm)

    def keep(block: int, module: nn.Module, args: Any, output: Any) -> None:
        found[block] = first_tensor(output).clone()  # a copy: the next block may add to it in place

    with hooked((modules[block], partial(keep, block)) for block in blocks):
        yield found


def _blocks_path(lm: LanguageModel) -> str:
    return lm.site(lm.sites[0]).path.rpartition(".")[0] if lm.sites else ""


def _blocks(lm: LanguageModel) -> list[nn.Module]:
    return [lm.model.get_submodule(lm.site(site).path) for site in lm.sites]


def _probe(lm: LanguageModel) -> _Probe:
    """The model's probe; the tokens are run at the first call."""
    if lm.model not in _probes:
        n_tokens = min(_PROBE_TOKENS, lm.max_positions or _PROBE_TOKENS)
        ids = [[i % lm.vocabulary_size for i in range(n_tokens)]]
        outputs: list[Any] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            outputs.append(output)

        watched = hooked((block, keep) for block in _blocks(lm))
        with watched, torch.inference_mode(False), torch.no_grad():  # kept: for any gradient mode
            logits = lm.logits(ids)
        assert len(outputs) == lm.n_layers, "every block runs once"
        _probes[lm.model] = _Probe(ids, outputs, logits, set())
    return _probes[lm.model]


def _skipping(lm: LanguageModel, block: int, hidden: Tensor, like: Sequence[Any]) -> AbstractContextManager[None]:
    """The blocks before `block` pass their input through, each in the structure of its output in `like`."""
    return replaced_forwards(
        (module, _pass_through(like[number], hidden if number == block - 1 else None))
        for number, module in enumerate(_blocks(lm)[:block])
    )


def _pass_through(like: Any, hidden: Tensor | None) -> Callable[..., Any]:
    """A forward that returns its input, or `hidden` in its place, where the block's own returns the residual stream."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        given: Tensor = args[0] if args else kwargs["hidden_states"]
        if hidden is not None and hidden.shape != given.shape:
            raise UserError(
                f"`hidden` must have the shape of the text's residual stream, {list(given.shape)}."
                f" Got {list(hidden.shape)}. Take both from the same batch."
            )
        out = given if hidden is None else hidden.to(given.device)
        # What else a block returns (attention weights, a cache) was not asked for.
        return type(like)((out, *(None for _ in like[1:]))) if returns_several(like) else out

    return forward
