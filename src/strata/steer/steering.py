"""A language model that is steered while a context lasts: interventions at its sites, in every pass."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from strata.errors import UserError
from strata.lm.hooks import hooked
from strata.lm.model import LanguageModel
from strata.lm.sites import as_grid, first_tensor, with_first
from strata.sae.model import SAE
from strata.shapes import SparseCode
from strata.steer.intervention import Feature, Intervention

PromptTokens = int | Literal["unknown"]


class Steering:
    """Interventions on their way into a model's passes.

    Attributes:
        prompt_tokens: how many columns of a sequence are the prompt, pads on its left included; ``"unknown"`` where
            nobody has said, which only interventions at all positions can do with.
    """

    def __init__(
        self,
        interventions: Sequence[Intervention],
        *,
        special: frozenset[int],
        prompt_tokens: PromptTokens,
        keep_special: bool,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self._special = sorted(special) if keep_special else []
        self._of_site: dict[str, list[Intervention]] = {}
        for one in interventions:
            self._of_site.setdefault(one.site, []).append(one)
        self._vectors = {id(one): one.vector for one in interventions}
        self._is_token: Tensor = torch.zeros(0, 0, dtype=torch.bool)
        self._first_column = 0

    def note_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the model: which columns of the whole sequence this pass holds, and which of them are tokens."""
        ids: Tensor | None = kwargs.get("input_ids", args[0] if args else None)
        given: Tensor = ids if ids is not None else kwargs["inputs_embeds"]
        batch, seq = given.shape[:2]
        self._first_column = _cached_tokens(kwargs)
        self._is_token = torch.ones(batch, seq, dtype=torch.bool, device=given.device)
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self._is_token &= mask[:, mask.shape[1] - seq :].to(given.device) != 0
        if ids is not None and self._special:
            self._is_token &= ~torch.isin(ids, torch.tensor(self._special, device=ids.device))

    def steer(self, site: str, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of a site's module: the same output with its (first) tensor steered."""
        own = first_tensor(output)
        batch, seq = self._is_token.shape
        x = as_grid(own, batch=batch, seq=seq, site=site)
        h = x
        codes: dict[int, SparseCode] = {}
        for one in self._of_site[site]:
            v = self._vectors[id(one)]
            if v.shape[0] != x.shape[-1]:
                raise UserError(
                    f"`direction` must be as wide as its site. Got {v.shape[0]} at {site!r}, which is {x.shape[-1]}"
                    " wide. Steer where it was found."
                )
            v = v.to(device=x.device, dtype=torch.promote_types(torch.float32, x.dtype))
            coefficient = self._coefficient(one, x, h, v, codes)
            # Where there is nothing to add, the activation stays what it was to the last bit: -0.0 + 0.0 is not -0.0.
            changed = (coefficient != 0) & self._chosen(one).to(x.device)
            h = torch.where(changed[..., None], (h + coefficient[..., None] * v).to(x.dtype), h)
        return with_first(output, h.reshape(own.shape))

    def _coefficient(
        self,
        one: Intervention,
        x: Float[Tensor, "batch seq d_in"],
        h: Float[Tensor, "batch seq d_in"],
        v: Float[Tensor, " d_in"],
        codes: dict[int, SparseCode],
    ) -> Float[Tensor, "batch seq"]:
        """What v is multiplied with at each position.

        Args:
            one: the intervention.
            x: the site's own activations, which codes are of.
            h: what the interventions before this one made of them.
            v: its vector.
            codes: of x, by SAE; each is computed once.
        """
        if one.mode == "project_out":
            return -(h.to(v.dtype) @ v)
        target = 0.0 if one.mode == "ablate" else one.strength.amount
        if one.mode == "add":
            return torch.full(x.shape[:2], target, dtype=v.dtype, device=v.device)
        assert isinstance(one.direction, Feature)
        sae = one.direction.sae_at(one.site)
        if id(sae) not in codes:
            codes[id(sae)] = _encoded(sae, x)
        f = _latent(codes[id(sae)], one.direction.latent).to(v)
        return (target - f).clamp_min(0.0) if one.mode == "min_clamp" else target - f

    def _chosen(self, one: Intervention) -> Bool[Tensor, "batch seq"]:
        """Where an intervention acts in this pass."""
        if one.positions == "all":
            return self._is_token
        assert isinstance(self.prompt_tokens, int)
        columns = self._first_column + torch.arange(self._is_token.shape[1], device=self._is_token.device)
        in_prompt = columns < self.prompt_tokens
        return self._is_token & (in_prompt if one.positions == "prompt" else ~in_prompt)


@contextmanager
def steered(
    lm: LanguageModel,
    interventions: Sequence[Intervention],
    *,
    prompt_tokens: PromptTokens = "unknown",
    keep_special: bool = True,
) -> Generator[Steering]:
    """The language model with interventions in it as long as the context lasts; hooks are removed in any case.

    Works in every pass: `lm.logits`, `lm.activations` (which then read what was steered), `generate` with and without
    a KV cache. Pads are never steered. Interventions of a site act in the order given. Latents are read from the site's
    own activation, so that clamping several of an SAE at once is clamping them together, and its code is computed once;
    ``project_out`` takes its part out of what those before it left.

    Args:
        lm: the language model.
        interventions: what to do; an addition of strength 0 is left out, and the model is then untouched.
        prompt_tokens: how many columns are the prompt; needed where an intervention is not at all positions.
        keep_special: leave BOS, EOS and other special tokens as they are.

    Yields:
        The `Steering`, whose `prompt_tokens` may be changed between passes.

    Raises:
        UserError: an unknown site, a direction of another width than the site, two names of one site, or positions of
            a prompt whose length nobody has said.

    Differs: a SAELens tutorial leaves out passes of one token and so steers only the prompt where there is a KV cache;
        another steers BOS.
    """
    modules = {one.site: lm.model.get_submodule(lm.site(one.site).path) for one in interventions}
    _check(lm, interventions, prompt_tokens)
    working = [one for one in interventions if not one.does_nothing]
    special = lm.special_token_ids
    steering = Steering(working, special=special, prompt_tokens=prompt_tokens, keep_special=keep_special)
    hooks = [(modules[site], partial(steering.steer, site)) for site in dict.fromkeys(one.site for one in working)]
    if not hooks:
        yield steering
        return
    handle = lm.model.register_forward_pre_hook(steering.note_pass, with_kwargs=True)
    try:
        with hooked(hooks):
            yield steering
    finally:
        handle.remove()


def _check(lm: LanguageModel, interventions: Sequence[Intervention], prompt_tokens: PromptTokens) -> None:
    names: dict[str, str] = {}
    for one in interventions:
        other = names.setdefault(lm.site(one.site).path, one.site)
        if other != one.site:
            raise UserError(f"`site` must be named one way. {other!r} and {one.site!r} are the same place. Choose one.")
        if isinstance(one.direction, Feature):
            one.direction.sae_at(one.site)
        if one.vector.shape[0] != (width := lm.d_in(one.site)):
            raise UserError(
                f"`direction` must be as wide as its site. Got {one.vector.shape[0]} at {one.site!r}, which is {width}"
                " wide. Steer where it was found."
            )
        if one.positions != "all" and prompt_tokens == "unknown":
            raise UserError(
                f"`prompt_tokens` must be given for positions {one.positions!r}. Got none. Give the prompt's length, or"
                " use `strata.steer.generation.generate`, which knows it."
            )


def _cached_tokens(kwargs: dict[str, Any]) -> int:
    """How many columns earlier passes have put into the KV cache; 0 without one."""
    cache: Any = kwargs.get("past_key_values")
    return int(cache.get_seq_length()) if cache is not None and hasattr(cache, "get_seq_length") else 0


def _encoded(sae: SAE, x: Float[Tensor, "batch seq d_in"]) -> SparseCode:
    with torch.autocast(device_type=sae.device.type, enabled=False):
        return sae.encode_sparse(x.to(device=sae.device, dtype=sae.dtype))


def _latent(code: SparseCode, latent: int) -> Float[Tensor, "batch seq"]:
    """The activations of one latent."""
    return torch.where(code.indices == latent, code.values, 0.0).sum(-1)
