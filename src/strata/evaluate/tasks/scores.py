"""How well a language model, with or without SAEs in it, does a task."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.errors import UserError
from strata.evaluate.language_loss import predicts_next_token
from strata.evaluate.tasks.base import TaskPairs
from strata.lm.attach import Attachable
from strata.lm.model import LanguageModel

# Logits of one forward, as fp32.
_LOGITS_BYTES = 256 * 2**20


@torch.inference_mode()
def task_scores(lm: LanguageModel, pairs: TaskPairs, saes: Mapping[str, Attachable] | None = None) -> dict[str, float]:
    """Accuracy and logit difference over both prompts of every pair, read at the last position.

    Both prompts count alike: in the clean one ``answer`` has to beat ``wrong``, in the corrupt one ``wrong`` has to
    beat ``answer``. So whoever predicts without reading the prompt scores exactly 0.5 and 0, however much likelier one
    of the two tokens is by itself.

    Differs: Group-SAE and most others score the clean prompts alone; those numbers are here as ``clean_*``.

    Args:
        lm: the language model.
        pairs: from `strata.evaluate.tasks.registry.make_task`, with this model's tokenizer. Run so few at a time that
            their logits take at most 256 MB.
        saes: site → SAE, all in the model at once; None is the model itself. Special tokens (the prompt's first) keep
            their own activations.

    Returns:
        ``accuracy``, the share of prompts in which the right token has the larger logit; ``logit_difference``, the mean
        of right minus wrong, in nats; ``clean_accuracy`` and ``clean_logit_difference``, the same of the clean prompts
        alone; ``n_pairs``.

    Raises:
        UserError: a model that does not predict the next token, or what `LanguageModel.attach` and `logits` raise.
    """
    if not predicts_next_token(lm):
        raise UserError(f"`model` must predict the next token to do tasks. Got {lm.model_class}. Take a causal model.")
    differences = {
        side: torch.cat(list(_differences(lm, ids, pairs, saes=saes or {})))
        for side, ids in (("clean", pairs.clean_ids), ("corrupt", pairs.corrupt_ids))
    }
    clean, both = differences["clean"], torch.cat([differences["clean"], -differences["corrupt"]])
    return {
        "accuracy": (both > 0).double().mean().item(),
        "logit_difference": both.mean().item(),
        "clean_accuracy": (clean > 0).double().mean().item(),
        "clean_logit_difference": clean.mean().item(),
        "n_pairs": len(pairs),
    }


def _differences(
    lm: LanguageModel,
    ids: Int[Tensor, "n seq"],
    pairs: TaskPairs,
    *,
    saes: Mapping[str, Attachable],
) -> Iterator[Float[Tensor, " prompts"]]:
    """logit(answer) − logit(wrong) after each prompt, in batches, as fp64 on the CPU: halves must cancel in the sum."""
    special = torch.tensor(sorted(lm.special_token_ids), dtype=torch.long)
    size = max(1, _LOGITS_BYTES // (4 * lm.vocabulary_size * ids.shape[1]))
    batches = zip(*(torch.split(all_, size) for all_ in (ids, pairs.answer_ids, pairs.wrong_ids)), strict=True)
    for prompts, answers, wrongs in batches:
        with lm.attach(saes, mask=~torch.isin(prompts, special)):
            last = lm.logits(prompts)[:, -1].double().cpu()
        chosen = last.gather(1, torch.stack([answers, wrongs], dim=1))
        yield chosen[:, 0] - chosen[:, 1]
