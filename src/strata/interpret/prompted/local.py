"""A Hugging Face model on this machine that answers: exact probabilities in blanks, greedy text."""

import inspect
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.config.settings import require
from strata.errors import UserError
from strata.interpret.explain.interpreter import Failed
from strata.interpret.prompted.account import Account
from strata.interpret.prompted.completer import Blanks, Chat, Reply, Request, Task
from strata.interpret.prompted.local_ids import PromptIds
from strata.lm.generation import continued, end_ids, pad_id, padded
from strata.log import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SECONDS_BETWEEN_LINES = 5.0


class LocalModel:
    """A `strata.interpret.prompted.completer.Completer` that runs a causal language model of `transformers`.

    Simulation and judging are one forward for each prompt: at each blank the softmax over the choices alone, exact, in
    fp32. Explanations are written greedily, whatever generation settings come with the checkpoint. The chat template is
    used where the tokenizer has one.

    Args:
        name_or_model: a name on the Hugging Face hub, a folder, or the model itself.
        tokenizer: the model's; None loads the one beside a name or folder.
        device: where it runs.
        batch_tokens: most tokens of one forward, padding included; a longer prompt goes alone. At least 1.
        trust_remote_code: run code that comes with the model.
        progress: say on stderr every few seconds how far it is.

    Raises:
        UserError: no tokenizer, or `batch_tokens` below 1.
    """

    def __init__(
        self,
        name_or_model: "str | Path | PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        device: str | torch.device = "cpu",
        batch_tokens: int = 4096,
        trust_remote_code: bool = False,
        progress: bool = True,
    ) -> None:
        require(batch_tokens >= 1, "batch_tokens", "be at least 1", batch_tokens, "Give e.g. 4096.")
        is_name = isinstance(name_or_model, str | Path)
        if tokenizer is None and not is_name:
            raise UserError(
                "`tokenizer` must be given along with a model that is loaded already. Got None. Give the model's, or a"
                " name in place of the model."
            )
        given: Any = tokenizer
        own = _loaded("AutoTokenizer", name_or_model, trust_remote_code=trust_remote_code) if given is None else given
        model: Any = name_or_model
        if is_name:
            model = _loaded("AutoModelForCausalLM", model, dtype="auto", trust_remote_code=trust_remote_code)
        self._model = model.to(device).eval()
        self._ids, self._ends = PromptIds(own), end_ids(model, own)
        self._pad = pad_id(own, ends=self._ends)
        self._device, self._batch_tokens, self._progress = torch.device(device), batch_tokens, progress
        self._name = str(name_or_model) if is_name else model.config._name_or_path or type(model).__name__
        self._most_tokens = int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)
        self._account = Account()

    @property
    def name(self) -> str:
        """The model's name or folder; its class where it has none."""
        return self._name

    @property
    def fills_in(self) -> frozenset[Task]:
        """Both kinds of work."""
        return frozenset({"simulate", "judge"})

    @property
    def account(self) -> Account:
        """What was asked since this object was made. It costs nothing."""
        return self._account

    def complete(self, requests: Sequence[Request]) -> list[Reply | Failed]:
        """Answers in the order of the requests. A prompt that is longer than the model reads is Failed.

        Raises:
            UserError: the tokenizer has no single token for one of the choices.
        """
        unique = list(dict.fromkeys(requests))
        answers: dict[Request, Reply | Failed] = {}
        blanks = [request for request in unique if isinstance(request, Blanks)]
        chats = [request for request in unique if isinstance(request, Chat)]
        said = _Said(len(unique), name=self._name, shown=self._progress)
        for part, batch in self._batches([self._ids.blanks(request) for request in blanks]):
            self._fill_in([blanks[place] for place in part], batch, answers)
            said.more(len(part))
        lengths = [request.max_tokens for request in chats]
        for part, batch in self._batches([(self._ids.chat(request), []) for request in chats], reserve=lengths):
            self._write([chats[place] for place in part], [ids for ids, _ in batch], answers)
            said.more(len(part))
        for request in unique:
            answers.setdefault(request, Failed(f"a prompt longer than the {self._most_tokens:,} tokens that it reads"))
        self._account.n_requests += len(requests)
        self._account.n_sent += (n_run := sum(isinstance(answer, Reply) for answer in answers.values()))
        self._account.n_answered += n_run
        found = [answers[request] for request in requests]
        self._account.n_failed += (n_failed := sum(isinstance(answer, Failed) for answer in found))
        self._account.n_cached += len(found) - n_failed - n_run
        return found

    def _batches(
        self, prompts: Sequence[tuple[list[int], list[int]]], *, reserve: Sequence[int] = ()
    ) -> "list[tuple[list[int], list[tuple[list[int], list[int]]]]]":
        """Prompts of like lengths together, those that are too long left out: places, and what stands there."""
        room = [self._most_tokens - length for length in reserve] or [self._most_tokens] * len(prompts)
        fitting = [place for place, (ids, _) in enumerate(prompts) if len(ids) <= room[place]]
        batches: list[list[int]] = []
        lengths = [len(ids) + self._most_tokens - room[place] for place, (ids, _) in enumerate(prompts)]
        for place in sorted(fitting, key=lengths.__getitem__):
            length = lengths[place]  # the largest of its batch
            if batches and length * (len(batches[-1]) + 1) <= self._batch_tokens:
                batches[-1].append(place)
            else:
                batches.append([place])
        return [(part, [prompts[place] for place in part]) for part in batches]

    @torch.inference_mode()
    def _fill_in(
        self, requests: Sequence[Blanks], batch: Sequence[tuple[list[int], list[int]]], answers: dict[Any, Any]
    ) -> None:
        """One forward; at each blank a softmax over the choices."""
        # Padding stands to the right, where nothing that is read can see it.
        ids, is_token = padded([own for own, _ in batch], pad=0, side="right")
        places = sorted({place for _, own in batch for place in own})
        logits = self._logits(
            ids.to(self._device), is_token.long().to(self._device), torch.tensor(places, device=self._device)
        )
        column = {place: i for i, place in enumerate(places)}
        for row, (request, (own, at)) in enumerate(zip(requests, batch, strict=True)):
            choices = torch.tensor([self._ids.choice(choice) for choice in request.choices], device=self._device)
            there = logits[row, [column[place] for place in at]][:, choices]
            told = there.float().softmax(-1).cpu().numpy().tolist()
            answers[request] = Reply(blanks=tuple(dict(zip(request.choices, p, strict=True)) for p in told))
            self._account.n_prompt_tokens += len(own)

    def _logits(self, ids: Tensor, mask: Tensor, places: Tensor) -> Float[Tensor, "rows places vocabulary"]:
        """At these places of every row; the vocabulary's product is spared elsewhere where the model can."""
        if "logits_to_keep" in inspect.signature(self._model.forward).parameters:
            return self._model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=places).logits
        return self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, places]

    @torch.inference_mode()
    def _write(self, requests: Sequence[Chat], batch: Sequence[list[int]], answers: dict[Any, Any]) -> None:
        """Greedy text."""
        longest = max(request.max_tokens for request in requests)
        told = continued(self._model, batch, max_new_tokens=longest, ends=self._ends, pad=self._pad)
        for request, own, row in zip(requests, batch, told, strict=True):
            written = row[: request.max_tokens]
            self._account.n_prompt_tokens += len(own)
            self._account.n_completion_tokens += len(written)
            answers[request] = Reply(text=self._ids.text(written))


class _Said:
    """Lines on how far it is."""

    def __init__(self, n: int, *, name: str, shown: bool) -> None:
        self._n, self._name, self._shown, self._n_done, self._last = n, name, shown, 0, time.monotonic()

    def more(self, n_done: int) -> None:
        self._n_done += n_done
        if time.monotonic() - self._last > _SECONDS_BETWEEN_LINES or self._n_done == self._n:
            self._last = time.monotonic()
            say(f"{self._name}: {self._n_done:,} of {self._n:,} prompts answered", shown=self._shown)


def check_model(name: str | Path, *, choices: Sequence[str], trust_remote_code: bool) -> None:
    """That a model and its tokenizer are there, and that the tokenizer has a token for each answer; loads no weights.

    Args:
        name: on the Hugging Face hub, or a folder.
        choices: the answers.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: one is not.
    """
    _loaded("AutoConfig", name, trust_remote_code=trust_remote_code)
    ids = PromptIds(_loaded("AutoTokenizer", name, trust_remote_code=trust_remote_code))
    for choice in choices:
        ids.choice(choice)


def _loaded(kind: str, name: Any, **how: Any) -> Any:
    """A config, a tokenizer or a model, by the name that its class has in `transformers`."""
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(name, **how)
    except (OSError, ValueError) as error:
        first, *_ = str(error).splitlines() or [type(error).__name__]
        raise UserError(
            "The interpreting model must be a causal language model with its tokenizer, on the Hugging Face hub or in a"
            f" folder. {name!s}: {first} Give another."
        ) from error
