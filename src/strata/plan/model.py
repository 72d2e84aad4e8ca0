"""A language model that is planned with: nothing but its configuration is read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from strata.costs.memory import forward_bytes
from strata.costs.step import Rates
from strata.errors import UserError
from strata.lm.flops import forward_flops_of
from strata.lm.model import LanguageModel
from strata.plan.rates import forward_key, measured_forward


@dataclass(frozen=True, kw_only=True)
class Model:
    """A language model and how it would be run.

    Attributes:
        name: as it was given.
        lm: its outline, or itself; None where there is none to be had (a store whose model is elsewhere).
        n_parameters: all of them; None without outline and without a record.
        context_tokens: length of the sequences.
        lm_dtype: precision of the forward, as in `TrainConfig`.
        device: of this machine, as in `TrainConfig`.
        on_device: whether it would run on an accelerator.
    """

    name: str
    lm: LanguageModel | None
    n_parameters: float | None
    context_tokens: int
    lm_dtype: str = "auto"
    device: str = "auto"
    on_device: bool = False
    _known: dict[tuple[Any, ...], Any] = field(default_factory=dict[tuple[Any, ...], Any], repr=False, compare=False)

    @classmethod
    def of(cls, lm: LanguageModel, *, context_tokens: int, lm_dtype: str, device: str, on_device: bool) -> "Model":
        """That of an outline or a loaded model."""
        n_parameters = float(sum(weight.numel() for weight in lm.model.parameters()))
        return cls(name=lm.name, lm=lm, n_parameters=n_parameters, context_tokens=context_tokens, lm_dtype=lm_dtype,
                   device=device, on_device=on_device)  # fmt: skip

    @property
    def itemsize(self) -> int:
        """Bytes of a weight, and of a number of its activations: half precision becomes fp32 on a CPU."""
        return 4 if self.lm is None or not self.on_device else self.lm.dtype.itemsize

    @property
    def weight_bytes(self) -> float:
        """Of all weights as they are loaded; 0 where the model is not known."""
        return 0.0 if self.n_parameters is None else self.n_parameters * self.itemsize

    @cached_property
    def active_parameters(self) -> float | None:
        """Those that a token passes, where experts leave some out; None of a dense model."""
        if self.lm is None or self.n_parameters is None:
            return None
        blocks = [self.lm.model.get_submodule(self.lm.site(site).path) for site in self.lm.sites]
        named = [(name.split("."), weight) for block in blocks for name, weight in block.named_parameters()]
        if not any("experts" in parts for parts, _ in named):
            return None
        try:
            active = forward_flops_of(self.lm, self.lm.sites, context_tokens=0) / 2
        except UserError:
            return None
        matrices = sum(weight.numel() for parts, weight in named if weight.ndim > 1 and not parts[-1].endswith("bias"))
        return self.n_parameters - (matrices - active)

    def once(self, key: tuple[Any, ...], find: Callable[[], Any]) -> Any:
        """What `find` gives, found once for each key: there are many ways to price."""
        if key not in self._known:
            self._known[key] = find()
        return self._known[key]

    def forward_bytes(self, *, n_tokens: int, n_numbers: int) -> float:
        """Memory of one pass beside the weights; 0 where the model is not known.

        Args:
            n_tokens: of the pass.
            n_numbers: of a token's activations at all sites that are read.
        """
        if self.lm is None:
            return 0.0
        lm, size = self.lm, float(self.itemsize)
        alone = self.once(("bytes", n_tokens), lambda: forward_bytes(lm, tokens=n_tokens, number_bytes=size))
        return alone + n_tokens * size * n_numbers

    @property
    def n_scores(self) -> int:
        """Of the vocabulary, for each token; 0 where the model gives none or is not known."""
        if self.lm is None or self.lm.model.get_output_embeddings() is None:
            return 0
        return self.lm.vocabulary_size

    def n_blocks(self, sites: Sequence[str]) -> int:
        """How many blocks are run for the deepest of some sites; all for one outside them."""
        assert self.lm is not None, "only of a model that is known"
        return self.once(("blocks", *sites), lambda: max(map(self._depth, sites)))

    def _depth(self, site: str) -> int:
        assert self.lm is not None, "only of a model that is known"
        path = f"{self.lm.site(site).path}."
        inside = (number for number, block in enumerate(self._paths, 1) if path.startswith(f"{block}."))
        return next(inside, len(self._paths))

    @cached_property
    def _paths(self) -> list[str]:
        return [] if self.lm is None else [self.lm.site(name).path for name in self.lm.sites]

    def forward_flops(self, sites: Sequence[str]) -> float | None:
        """Per token, as far as the deepest site; None where it is not known."""
        if self.lm is None or not self.lm.sites:
            return None
        depth = self.n_blocks(sites)
        return self.once(("flops", depth), lambda: self._counted(depth))

    def _counted(self, depth: int) -> float | None:
        """FLOPs per token through so many blocks."""
        assert self.lm is not None, "only of a model that is known"
        try:
            return forward_flops_of(self.lm, [self.lm.sites[depth - 1]], context_tokens=self.context_tokens)
        except UserError:
            return None

    def whole_flops(self) -> float | None:
        """Per token through all blocks and to the logits; None where it is not known."""
        if self.lm is None or not self.lm.sites:
            return None
        blocks = self.forward_flops(self.lm.sites)
        head = self.lm.model.get_output_embeddings()
        return None if blocks is None else blocks + (0.0 if head is None else 2.0 * head.weight.numel())

    def forward_seconds(self, sites: Sequence[str], rates: Rates) -> float | None:
        """Per token, as far as the deepest site: measured on this machine, else counted FLOPs at the machine's rate;
        None where neither is known.
        """
        if self.lm is None or not self.lm.sites:
            return None
        measured = None
        if rates.kind == "measured":
            depth = self.n_blocks(sites)
            measured = self.once(("seconds", depth, rates.name), lambda: self._measured(depth))
        flops = self.forward_flops(sites)
        return measured if measured is not None or flops is None else flops / rates.forward_flops_per_second

    def _measured(self, depth: int) -> float | None:
        """Seconds per token through so many blocks, where they were measured."""
        assert self.lm is not None, "only of a model that is known"
        key = forward_key(self.lm, context_tokens=self.context_tokens, lm_dtype=self.lm_dtype)
        return measured_forward(key, n_blocks=depth, device=self.device)

    def seconds_per_flop(self, rates: Rates) -> float | None:
        """Of the language model: from its forward to the last layer; None where it is not known."""
        if self.lm is None or not self.lm.sites:
            return None
        seconds, flops = self.forward_seconds(self.lm.sites, rates), self.forward_flops(self.lm.sites)
        return None if seconds is None or not flops else seconds / flops
