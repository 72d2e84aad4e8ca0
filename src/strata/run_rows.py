"""Where a described run gets its rows: a stream, activations in memory, or a store; and rows to measure it on."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from strata.activations.collected import Activations
from strata.activations.harvest import collect, token_stream
from strata.activations.source import RowSource
from strata.activations.store import open_store
from strata.activations.stream import Stream
from strata.amounts import counted
from strata.config.train import TrainConfig
from strata.distributed.ranks import ALONE, Ranks
from strata.distributed.rows import SharedStream
from strata.errors import UserError, did_you_mean
from strata.evaluate.held_out_text import held_out_batches
from strata.lm.model import LanguageModel
from strata.lm.random_weights import with_random_weights
from strata.lm.text import open_texts
from strata.lm.tokens import TokenBatch, TokenStream


class RunRows:
    """The rows of a run that come from a language model and a text: streamed, or collected in memory first.

    Args:
        config: the run; its model and data may be "auto", which are the embedded model and the standard library.

    Attributes:
        config: the same with model and data named.
        sites: those that the description names.
        streams: whether the language model runs while it is trained.
    """

    def __init__(self, config: TrainConfig) -> None:
        model = "demo" if config.model == "auto" else config.model
        data = "stdlib" if config.data == "auto" else config.data
        self.config = replace(config, model=model, data=data)
        self.streams = config.activations == "stream"
        self.sites = chosen_sites(self.language_model, ("all",) if config.groups != "none" else config.sites)

    @cached_property
    def language_model(self) -> LanguageModel:
        """The model that the rows come from; loaded when it is first asked for.

        Raises:
            UserError: it cannot be.
        """
        config = self.config
        lm = LanguageModel(config.model, device=config.device, trust_remote_code=config.trust_remote_code)
        if config.random_weights:
            lm = with_random_weights(lm, seed=config.sae.seed)
        self._check_model(lm)
        return lm

    def summary(self) -> str:
        """What is trained on, in a line."""
        lm = self.language_model
        return (
            f"{lm.name}: {counted(len(self.sites), 'site')} of width {lm.d_in(self.sites[0])}; text: {self.config.data}"
        )

    def open(self, sites: list[str], *, ranks: Ranks = ALONE) -> RowSource:
        """The rows of these sites: the training documents of the text.

        Args:
            sites: where to read.
            ranks: the processes that share the work.

        Raises:
            UserError: an unknown site, a text that is none, or rows in memory for several processes.
        """
        config, lm = self.config, self.language_model
        n_tokens = None if config.n_tokens == "all" else config.n_tokens
        tokens = self.training_tokens()
        if not self.streams and ranks.size > 1:
            raise UserError(
                f'`activations` must be "stream" or a store for several processes. Got {config.activations!r} with'
                f" {ranks.size}. Use strata collect, then --activations FOLDER."
            )
        if not self.streams:
            rows = collect(lm, tokens, sites=sites, lm_dtype=config.lm_dtype, n_tokens=n_tokens)
            return Activations(rows, origin={"model": lm.fingerprint(), "text": tokens.describe()})
        buffer_tokens = None if config.buffer_tokens == "auto" else config.buffer_tokens
        given: dict[str, Any] = {"n_tokens": n_tokens, "buffer_tokens": buffer_tokens, "lm_dtype": config.lm_dtype}
        if ranks.size > 1:
            return SharedStream(lm, tokens, ranks=ranks, sites=sites, **given)
        return Stream(lm, tokens, sites=sites, **given)

    def held_out(self, sites: list[str]) -> dict[str, Tensor]:
        """Rows of held-out documents by site, on the CPU, to measure the training on; none if there are none."""
        n_rows = self.config.held_out_rows
        batches = self.held_out_text(n_rows) if n_rows else []
        if not any(bool(batch.is_row.any()) for batch in batches):
            return {}
        return collect(self.language_model, batches, sites=sites, lm_dtype=self.config.lm_dtype, n_tokens=n_rows)

    def held_out_text(self, n_tokens: int) -> list[TokenBatch]:
        """Held-out documents in the language model's tokens, about so many; none if the text has no such document."""
        return held_out_batches(
            self.language_model,
            self.config.data,
            n_tokens=n_tokens,
            context_tokens=self.config.context_tokens,
            text_batch_size=self.config.sae.text_batch_size,
        )

    def _check_model(self, lm: LanguageModel) -> None:
        """That it is the one that the rows come from: by making, where they are made."""

    def training_tokens(self) -> TokenStream:
        """Training documents in the language model's tokens."""
        config = self.config
        return token_stream(
            self.language_model,
            config.data,
            context_tokens=config.context_tokens,
            text_batch_size=config.sae.text_batch_size,
            split="train",
        )


class StoredRows(RunRows):
    """The rows of a run that were collected before. Its language model is loaded only for what needs it.

    Args:
        config: the run; a model or data that it names must be those of the store.

    Raises:
        UserError: no store, another model or text than the store's, a site that it lacks, or a number of tokens.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.store = open_store(Path(config.activations))
        if config.random_weights:
            raise UserError("`random_weights` must be False for rows of a store. Got True. Collect from such a model.")
        if config.n_tokens != "all":
            raise UserError(
                f'`n_tokens` must be "all" for rows of a store. Got {config.n_tokens}. Leave it out, or collect a'
                f" smaller store."
            )
        described = self.store.describe()
        text = described["text"]
        model = described["model"]["name"] if config.model == "auto" else config.model
        data = text["texts"]["source"] if config.data == "auto" else config.data
        self.config = replace(config, model=model, data=data, context_tokens=text["context_tokens"])
        self.streams = False
        if config.data != "auto":
            _check_text(config.data, text["texts"], store=str(config.activations))
        if config.model != "auto":
            _ = self.language_model  # looked at when it is loaded
        self.sites = _stored_sites(self.store.sites, ("all",) if config.groups != "none" else config.sites)

    def summary(self) -> str:
        """What is trained on, in a line."""
        store, config = self.store, self.config
        width = store.d_in(self.sites[0])
        return f"{config.activations}: {store.n_rows()} rows of {counted(len(self.sites), 'site')} of width {width}"

    def open(self, sites: list[str], *, ranks: Ranks = ALONE) -> RowSource:
        """The store's rows of these sites; every process reads them for itself."""
        return self.store.only(_stored_sites(self.store.sites, sites))

    def held_out(self, sites: list[str]) -> dict[str, Tensor]:
        """The store's own held-out rows; none if it was collected without."""
        if self.config.held_out_rows == 0:
            return {}
        found = {site: self.store.held_out(self.config.held_out_rows, site=site) for site in sites}
        return found if all(len(rows) for rows in found.values()) else {}

    def _check_model(self, lm: LanguageModel) -> None:
        self.store.check_model(lm.fingerprint())


def open_rows(config: TrainConfig) -> RunRows:
    """The rows that a run describes.

    Raises:
        UserError: a model, text, store or site that cannot be read.
    """
    return RunRows(config) if config.activations in ("stream", "collected") else StoredRows(config)


def chosen_sites(lm: LanguageModel, sites: Sequence[str]) -> list[str]:
    """The sites that a description names: "all" is every layer, "middle" the middle one.

    Raises:
        UserError: an unknown site.
    """
    named = {"all": lambda: lm.sites, "middle": lambda: [lm.middle_site]}
    found = [site for name in sites for site in (named[name]() if name in named else [name])]
    for site in found:
        lm.site(site)
    return list(dict.fromkeys(found))


def _stored_sites(stored: Sequence[str], sites: Sequence[str]) -> list[str]:
    """The same of a store, whose sites may not be all of the model's: "middle" is the middle one of them."""
    named = {"all": list(stored), "middle": [stored[(len(stored) - 1) // 2]]}
    found = [site for name in sites for site in named.get(name, [name])]
    for site in found:
        if site not in stored:
            raise UserError(f"`sites` must be sites of the store. Got {site!r}.{did_you_mean(site, stored)}")
    return list(dict.fromkeys(found))


def _check_text(data: str, stored: dict[str, Any], *, store: str) -> None:
    given, known = open_texts(data, split=stored.get("split", "train")).fingerprint, stored.get("fingerprint")
    if given != known and "unknown" not in (given, known):
        raise UserError(
            f"`data` must be the text that the store was collected from, {stored.get('source')!r}. Got {data!r}, whose"
            f" content is another, with the store {store}. Leave data out."
        )
