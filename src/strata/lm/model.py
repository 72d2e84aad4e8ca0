"""The language model: loaded from anywhere, read at its sites, never trained."""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from strata.errors import UserError
from strata.lm.attach import Attachable, Attachment, attach
from strata.lm.capture import capture
from strata.lm.inputs import checked_ids, checked_mask, max_positions, vocabulary_size
from strata.lm.loading import adopted_model, load_model, load_tokenizer
from strata.lm.microbatch import Microbatch, Request, positions_between
from strata.lm.sites import Site, SiteMap
from strata.lm.tokenization import special_token_ids
from strata.lm.transfer import moved

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from strata.config.train import SAEConfig
    from strata.sae.model import SAE

_HASHED_ENTRIES = 64  # of each weight, in the fingerprint: enough to tell two trainings apart, at once for any model
Ids = Int[Tensor, "batch seq"] | Sequence[Sequence[int]]
AttentionMask = Bool[Tensor, "batch seq"] | Int[Tensor, "batch seq"] | Sequence[Sequence[int]]


class LanguageModel:
    """A Hugging Face causal language model or encoder whose activations are read.

    Attributes:
        name: ``"demo"``, the folder or the Hugging Face id; for a model that was loaded already its own name, else its
            class.
        model: the Hugging Face model, in evaluation mode, with frozen weights.
        tokenizer: its tokenizer; None if there is none.
        sites: the residual sites in order, ``["layers.0", ...]``; see `strata.lm.sites` for the others.
        n_layers: how many blocks it has.
        vocabulary_size: token ids have to be below this.
        max_positions: the longest sequence in tokens; None if the model's configuration states none.
        microbatch: how many sequences of a batch `rows` runs at once.
    """

    def __init__(
        self,
        model: "str | nn.Module" = "demo",
        *,
        tokenizer: Any = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        trust_remote_code: bool = False,
        **from_pretrained: Any,
    ) -> None:
        """Load a model, or take one that is loaded already.

        Args:
            model: ``"demo"`` (the embedded model), a local folder, a Hugging Face id, or a loaded `PreTrainedModel`. A
                loaded model is used itself, not copied: it is put into evaluation mode and its weights are frozen.
            tokenizer: a tokenizer, or the folder or id of one; None takes the model's own (a loaded model then has
                none).
            device: ``"auto"`` is CUDA if there is one, else the CPU; a loaded model stays where it is.
            dtype: ``"auto"``, ``"fp32"``, ``"bf16"``, ``"fp16"`` or the torch dtype. ``"auto"`` is the checkpoint's
                own, but fp32 for half precision on a CPU; a loaded model stays as it is.
            trust_remote_code: whether Python code that comes with the checkpoint may run.
            **from_pretrained: handed on to Hugging Face: ``revision``, ``device_map``, ``quantization_config``,
                ``token`` ...

        Raises:
            UserError: no such model, a folder without configuration or weights, no network, an unknown device or dtype.
        """
        if isinstance(model, str):
            self.model: Any = load_model(
                model, device=device, dtype=dtype, trust_remote_code=trust_remote_code, options=from_pretrained
            )
            self.name = model
            tokenizer = model if tokenizer is None else tokenizer
        else:
            self.model = adopted_model(model, device=device, dtype=dtype, options=from_pretrained)
            self.name = self.model.config.name_or_path or type(model).__name__
        if isinstance(tokenizer, str):
            tokenizer = load_tokenizer(tokenizer, trust_remote_code=trust_remote_code, options=from_pretrained)
        self.tokenizer: PreTrainedTokenizerBase | None = tokenizer
        self.model.eval().requires_grad_(False)
        self._site_map = SiteMap(self.model, self.model.config)
        self.sites = list(self._site_map.names)
        self.n_layers = len(self.sites)
        self.vocabulary_size = vocabulary_size(self.model)
        self.max_positions = max_positions(self.model)
        self._widths: dict[str, int] = {}
        self.microbatch = Microbatch()

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, {self.model_class}, {self.n_layers} layers, {self.dtype}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the model reads its token ids."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's weights, and of the activations that are read."""
        return self.model.dtype

    @property
    def model_class(self) -> str:
        """The class of the Hugging Face model, e.g. ``"GPTNeoXForCausalLM"``."""
        return type(self.model).__name__

    @property
    def middle_site(self) -> str:
        """The residual stream after half of the blocks: ``layers.3`` of 8. What is read when no site is named.

        Raises:
            UserError: the model's blocks were not found.
        """
        if not self.sites:
            raise UserError(
                f"`sites` must be given for {self.name!r}, whose blocks were not found. Name module paths of the model."
            )
        return self.sites[(self.n_layers - 1) // 2]

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Tokens that are no text: BOS, EOS, pad, mask, chat markers. Their positions are, by default, never rows.

        From the tokenizer: its named special tokens and those added with ``special=True``. Without a tokenizer: BOS,
        EOS and pad of the configuration, if the model comes from a checkpoint; one built from a bare configuration has
        ids that nobody chose, and then there are none.
        """
        if self.tokenizer is not None:
            return special_token_ids(self.tokenizer)
        if not self.model.config.name_or_path:
            return frozenset()
        text_config = self.model.config.get_text_config()
        stated = [getattr(text_config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")]
        flat: list[Any] = []
        for ids in stated:
            flat += ids if isinstance(ids, (list, tuple)) else [ids]
        return frozenset(i for i in flat if isinstance(i, int) and 0 <= i < self.vocabulary_size)

    def fingerprint(self) -> dict[str, str | int]:
        """Which model this was: name, class, number of parameters, hashes of configuration and of a few of each
        weight.
        """
        config = self.model.config.to_dict()
        kept = {key: value for key, value in config.items() if key not in ("transformers_version", "_name_or_path")}
        text = json.dumps(kept, sort_keys=True, default=str)
        weights = (weight.detach().reshape(-1)[:_HASHED_ENTRIES].cpu() for weight in self.model.parameters())
        beginnings = [weight.contiguous().view(torch.uint8).numpy().tobytes() for weight in weights]
        return {
            "name": self.name,
            "model_class": self.model_class,
            "n_parameters": sum(weight.numel() for weight in self.model.parameters()),
            "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "weights_sha256": hashlib.sha256(b"".join(beginnings)).hexdigest(),
        }

    def site(self, name: str) -> Site:
        """The site of that name with its module's path.

        Raises:
            UserError: no such site, with the nearest name.
        """
        return self._site_map.resolve(name)

    def d_in(self, site: str) -> int:
        """The width of the activations at a site, in coordinates; where the configuration does not tell, one token is
        run once.

        Raises:
            UserError: no such site, or one without a vector for each position.
        """
        if site not in self._widths:
            width = self._site_map.width(self.site(site))
            self._widths[site] = self._width_when_run(site) if width is None else width
        return self._widths[site]

    def _width_when_run(self, site: str) -> int:
        return self.activations([[0]], [site])[site].shape[-1]

    def activations(
        self,
        input_ids: Ids,
        sites: Sequence[str] | str | None = None,
        *,
        attention_mask: AttentionMask | None = None,
        autocast_dtype: torch.dtype | None = None,
    ) -> dict[str, Float[Tensor, "batch seq _"]]:
        """Activations at sites, in one pass that runs no further than the last of them: no later block, no logits.

        Without gradient (`torch.no_grad`), without a KV cache; nothing but what is wanted is kept. Within `attach` it
        reads what the rest of the model reads: the reconstruction.

        Args:
            input_ids: token ids ``[batch seq]``, a tensor on any device or lists of equal length.
            sites: names of sites; None means `middle_site`.
            attention_mask: ``[batch seq]``, 1 or True where a token is, 0 or False at pads. Activations at pads are
                meaningless.
            autocast_dtype: run the pass under `torch.autocast` in this dtype, e.g.
                `strata.lm.precision.fast_dtype(lm.device)`: faster where the hardware is fast at it, at that dtype's
                precision inside matrix products.

        Returns:
            Site → ``[batch seq d_in]`` in the model's dtype (with autocast too), on the device of that part of the
            model, in the order in which the sites were named.

        Raises:
            UserError: unknown site; ids of a wrong shape or outside the vocabulary; a text too long for the model, or
                empty.
        """
        names = [self.middle_site] if sites is None else [sites] if isinstance(sites, str) else list(sites)
        if not names:
            raise UserError(
                "`sites` must name at least one site. Got an empty list. Leave it out for the middle layer."
            )
        modules = {name: self._site_map.module(self.site(name)) for name in names}
        inputs = self._inputs(*self._checked(input_ids, attention_mask))
        batch, seq = inputs["input_ids"].shape
        with self._autocast(autocast_dtype):
            read = capture(lambda: self.model(**inputs), modules, batch=batch, seq=seq)
        return {name: tensor.to(self.dtype) for name, tensor in read.items()}

    def rows(
        self,
        input_ids: Ids,
        wanted: Mapping[str, tuple[str, Int[Tensor, " rows"] | None]],
        *,
        attention_mask: AttentionMask | None = None,
        autocast_dtype: torch.dtype | None = None,
    ) -> dict[str, Float[Tensor, "rows _"]]:
        """Rows at some positions of sites, as `activations` reads them; nothing else is copied.

        In one pass, or in a few where the batch does not fit the memory: see `strata.lm.microbatch`.

        Args:
            input_ids: token ids ``[batch seq]``.
            wanted: key → a site, and the places in the flattened ``[batch seq]`` that are read there, ascending; None
                is all.
            attention_mask: as in `activations`.
            autocast_dtype: as in `activations`.

        Returns:
            Key → ``[rows d_in]``.

        Raises:
            UserError: as `activations`, and not even one sequence fits the memory.
        """
        modules = {key: self._site_map.module(self.site(site)) for key, (site, _) in wanted.items()}
        ids, mask = self._checked(input_ids, attention_mask)
        batch, seq = ids.shape
        positions = {key: where for key, (_, where) in wanted.items() if where is not None}
        n_rows = {key: len(positions[key]) if key in positions else batch * seq for key in wanted}

        def part(first: int, end: int) -> dict[str, Tensor]:
            whole = end - first == batch
            here = {k: p if whole else positions_between(p, first * seq, end * seq) for k, p in positions.items()}
            inputs = self._inputs(ids[first:end], None if mask is None else mask[first:end])
            with self._autocast(autocast_dtype):
                read = capture(lambda: self.model(**inputs), modules, batch=end - first, seq=seq, positions=here)
            flat = {key: tensor if key in positions else tensor.flatten(0, 1) for key, tensor in read.items()}
            return {key: tensor.to(self.dtype) for key, tensor in flat.items()}

        sites = {key: site for key, (site, _) in wanted.items()}
        return self.microbatch.run(part, Request(self, sites, n_rows, n_sequences=batch, context_tokens=seq))

    def logits(
        self, input_ids: Ids, *, attention_mask: AttentionMask | None = None
    ) -> Float[Tensor, "batch seq vocab"]:
        """The model's scores for each token of the vocabulary at each position (for a causal model: of the next token).

        Follows the caller's gradient mode: without attached SAEs nothing in the model needs a gradient.

        Args:
            input_ids: token ids ``[batch seq]``.
            attention_mask: ``[batch seq]``, False at pads.

        Raises:
            UserError: the model has no language-model head; wrong ids, as in `activations`.
        """
        output = self.model(**self._inputs(*self._checked(input_ids, attention_mask)))
        if getattr(output, "logits", None) is None:
            raise UserError(f"`model` must have a language-model head to give logits. Got {self.model_class}.")
        return output.logits

    def attach(
        self, saes: Mapping[str, Attachable], *, keep_error: bool = False, mask: Bool[Tensor, "batch seq"] | None = None
    ) -> AbstractContextManager[Attachment]:
        """The model with SAEs in it; a context manager that yields an `Attachment`: see `strata.lm.attach.attach`.

        Args:
            saes: by site; what comes out of each takes the place of the site's activations.
            keep_error: add what the SAE leaves out, so that the model computes what it would without SAEs.
            mask: True where activations are replaced; None is everywhere.
        """
        return attach(self.model, self._site_map, saes, keep_error=keep_error, mask=mask)

    def train_sae(
        self,
        dataset: Any,
        site: str | None = None,
        *,
        target_site: str | None = None,
        config: "SAEConfig",
        **options: Any,
    ) -> "SAE":
        """Train an SAE on activations at a site, streaming: see `strata.train.train_suite`.

        Args:
            dataset: texts (a list, an iterator, a path, a Hugging Face dataset or its id, "stdlib") or token ids.
            site: whose activations; None is the middle layer.
            target_site: makes a transcoder, which predicts the activations there.
            config: the SAE, and how it is trained.
            **options: of `train_suite`: ``n_tokens``, ``skip`` (a skip connection), ``recording``, ``progress`` ...
        """
        from strata.train import train_at_site

        return train_at_site(self, dataset, site, target_site=target_site, config=config, **options)

    def top_features(self, text: str, sae: Any, **options: Any) -> Any:
        """The features of an SAE that are strongest on a text: see `strata.interpret.text_features.top_features`.

        Args:
            text: to be looked at.
            sae: of a site of this model.
            **options: of the function named.
        """
        from strata.interpret.text_features import top_features

        return top_features(self, text, sae, **options)

    def _checked(self, input_ids: Any, attention_mask: Any) -> tuple[Tensor, Tensor | None]:
        ids = checked_ids(input_ids, vocabulary=self.vocabulary_size, positions=self.max_positions)
        return ids, checked_mask(attention_mask, batch=ids.shape[0], seq=ids.shape[1])

    def _inputs(self, ids: Tensor, mask: Tensor | None) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": moved(ids, self.device)}
        if mask is not None:
            inputs["attention_mask"] = moved(mask.long(), self.device)
        if "use_cache" in inspect.signature(self.model.forward).parameters:
            inputs["use_cache"] = False
        return inputs

    def _autocast(self, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
        # Autocast to the dtype that the weights have already would only add checks; to fp32 it does nothing.
        if dtype is None or dtype in (torch.float32, self.dtype):
            return nullcontext()
        return torch.autocast(device_type=self.device.type, dtype=dtype)
