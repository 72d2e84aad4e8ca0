"""What a circuit is about: by how much a prompt's answer beats the wrong one, with sites of the model edited."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from strata.errors import UserError
from strata.evaluate.language_loss import predicts_next_token
from strata.evaluate.tasks.base import TaskPairs
from strata.lm.model import LanguageModel
from strata.lm.sites import as_grid, first_tensor, with_first
from strata.sae.model import SAE, Transcoder

# A site's activations [batch seq d_in] → what the rest of the model reads instead, of the same shape and dtype.
Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Prompts:
    """Prompts of one side of some pairs, and the two tokens between which they decide.

    Attributes:
        ids: token ids.
        is_row: False at special tokens, where no SAE stands in for the model.
        answer_ids: right for the clean prompt.
        wrong_ids: right for the corrupt prompt.
    """

    ids: Int[Tensor, "batch seq"]
    is_row: Bool[Tensor, "batch seq"]
    answer_ids: Int[Tensor, " batch"]
    wrong_ids: Int[Tensor, " batch"]


def prompts_of(lm: LanguageModel, pairs: TaskPairs, *, batch_size: int) -> Iterator[tuple[Prompts, Prompts]]:
    """Clean and corrupt prompts of all pairs, `batch_size` pairs at a time."""
    special = torch.tensor(sorted(lm.special_token_ids), dtype=torch.long)
    for start in range(0, len(pairs), batch_size):
        part = slice(start, start + batch_size)
        answers = (pairs.answer_ids[part], pairs.wrong_ids[part])
        clean, corrupt = pairs.clean_ids[part], pairs.corrupt_ids[part]
        yield (
            Prompts(clean, ~torch.isin(clean, special.to(clean.device)), *answers),
            Prompts(corrupt, ~torch.isin(corrupt, special.to(corrupt.device)), *answers),
        )


def answer_margins(lm: LanguageModel, prompts: Prompts, edits: Mapping[str, Edit]) -> Float[Tensor, " batch"]:
    """m = logit(answer) − logit(wrong) at the last position, in nats, fp32 or wider, with sites edited.

    Follows the caller's gradient mode.

    Args:
        lm: the language model.
        prompts: what it reads.
        edits: site → edit, all at once, each in the order in which the model comes to its site.

    Raises:
        UserError: an unknown site, or one that has no vector for each position.
    """
    batch, seq = prompts.ids.shape
    with _edited(lm, edits, batch=batch, seq=seq):
        last = lm.logits(prompts.ids)[:, -1]
    last = last if last.dtype == torch.float64 else last.float()
    both = torch.stack([prompts.answer_ids, prompts.wrong_ids], dim=1).to(last.device, torch.long)
    answer, wrong = last.gather(1, both).unbind(1)
    return answer - wrong


@contextmanager
def _edited(lm: LanguageModel, edits: Mapping[str, Edit], *, batch: int, seq: int) -> Generator[None, None, None]:
    def hook(site: str, edit: Edit) -> Callable[..., Any]:
        def replace(module: Any, args: Any, output: Any) -> Any:
            own = first_tensor(output)
            out = edit(as_grid(own, batch=batch, seq=seq, site=site)).reshape(own.shape)
            return with_first(output, out)

        return replace

    handles: list[RemovableHandle] = []
    try:
        for site, edit in edits.items():
            module = lm.model.get_submodule(lm.site(site).path)
            handles.append(module.register_forward_hook(hook(site, edit)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_circuit_input(lm: LanguageModel, saes: Mapping[str, SAE], pairs: TaskPairs, *, batch_size: int) -> None:
    """Raise a `UserError` for SAEs that cannot stand in this model, a model without answers, or no pairs."""
    if not predicts_next_token(lm):
        raise UserError(
            f"`model` must predict the next token to have circuits. Got {lm.model_class}. Take a causal model."
        )
    if not saes:
        raise UserError("`saes` must hold at least one SAE. Got none. Give them as {site: SAE}.")
    transcoders = [site for site, sae in saes.items() if isinstance(sae, Transcoder)]
    if transcoders:
        raise UserError(
            f"`saes` must reconstruct the sites at which they stand. Got a transcoder at {transcoders[0]!r}; "
            "leave it out."
        )
    with lm.attach(saes):  # checks the sites' names and widths
        pass
    if len(pairs) == 0:
        raise UserError("`pairs` must hold at least one pair. Got none. Make more.")
    check_positive("batch_size", batch_size)


def check_positive(setting: str, given: int) -> None:
    """Raise a `UserError` for a count below 1."""
    if given < 1:
        raise UserError(f"`{setting}` must be at least 1. Got {given}. Leave it out for the default.")


def check_ran(sites: Sequence[str], seen: Mapping[str, Tensor]) -> None:
    """Raise a `UserError` for a site through which the forward pass did not come."""
    unseen = [site for site in sites if site not in seen]
    if unseen:
        raise UserError(
            f"`saes` must stand where the model's forward pass comes through. {unseen[0]!r} took no part in it; "
            "leave it out."
        )
