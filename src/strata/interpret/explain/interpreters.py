"""The interpreters that a command may ask for: checked before anything takes its time, then made."""

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from strata.config.explain import ExplainConfig
from strata.interpret.explain.interpreter import Interpreter
from strata.interpret.explain.pieces import Pieces
from strata.interpret.explain.scoring import SCORERS
from strata.interpret.patterns.interpreter import TokenPatterns
from strata.interpret.patterns.n_grams import NGrams
from strata.interpret.patterns.wording import Wording
from strata.interpret.prompted.account import Account
from strata.interpret.prompted.cache import RequestCache
from strata.interpret.prompted.endpoint import Endpoint
from strata.interpret.prompted.endpoint_settings import EndpointSettings
from strata.interpret.prompted.exchange import check_library
from strata.interpret.prompted.interpreter import PromptedInterpreter
from strata.interpret.prompted.local import LocalModel, check_model
from strata.interpret.prompted.prompts import LEVELS, NO, YES
from strata.interpret.site_index import SiteIndex
from strata.lm.loading import chosen_device


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features that are to be explained, as far as an interpreter may have to know them.

    Attributes:
        sites: the SAEs of an index, by key.
        pieces: the text of that index.
        vocabulary: the text of each token id.
    """

    sites: Mapping[str, SiteIndex]
    pieces: Pieces
    vocabulary: list[str]


@dataclass(frozen=True)
class Opened:
    """An interpreter that is ready.

    Attributes:
        interpreter: who explains, simulates and judges.
        account: what it was asked so far and what that cost; None of one that is free.
    """

    interpreter: Interpreter
    account: Account | None = None


Open = Callable[[ExplainConfig, Features, bool], AbstractContextManager[Opened]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of interpreter.

    Attributes:
        open: makes one for a command's settings and features; the last argument: say on stderr how far it is.
        check: that it can be asked, as far as that shows without asking it; raises `UserError`.
        source: where it is asked, as `strata.interpret.explain.record.file_name` wants it.
        settings: on which fields of `ExplainConfig` its answers depend, beside those of every interpreter.
        shuffles: whether it scores shuffled explanations too where `ExplainConfig.shuffled` is "auto".
    """

    open: Open
    check: Callable[[ExplainConfig], None] = lambda config: None
    source: Callable[[ExplainConfig], str] = lambda config: ""
    settings: tuple[str, ...] = ()
    shuffles: bool = False


@contextmanager
def _patterns(config: ExplainConfig, features: Features, progress: bool) -> Generator[Opened]:
    pieces, wording = features.pieces, Wording(features.vocabulary)
    yield Opened(TokenPatterns(features.sites, pieces=pieces, n_grams=NGrams.count(pieces), wording=wording))


@contextmanager
def _endpoint(config: ExplainConfig, features: Features, progress: bool) -> Generator[Opened]:
    # Beside the index: it may be made anew, the answers stay paid.
    cache = RequestCache(config.index_folder.with_name("answers.sqlite"))
    try:
        endpoint = Endpoint(_endpoint_settings(config), cache=cache, progress=progress)
        yield Opened(PromptedInterpreter(endpoint, features.vocabulary), endpoint.account)
    finally:
        cache.close()


@contextmanager
def _local(config: ExplainConfig, features: Features, progress: bool) -> Generator[Opened]:
    model = LocalModel(config.model, device=chosen_device(config.device),
                       trust_remote_code=config.trust_remote_code, progress=progress)  # fmt: skip
    yield Opened(PromptedInterpreter(model, features.vocabulary), model.account)


def _check_endpoint(config: ExplainConfig) -> None:
    """A key, an address that can be one, the library."""
    _endpoint_settings(config).api_key()
    check_library()


def _check_local(config: ExplainConfig) -> None:
    """A model and a tokenizer that are there, and a token for each answer."""
    simulates = any(SCORERS[name].asks == "simulate" for name in config.scorers)
    choices = LEVELS if simulates else (NO, YES)
    check_model(config.model, choices=choices, trust_remote_code=config.trust_remote_code)


def _endpoint_settings(config: ExplainConfig) -> EndpointSettings:
    return EndpointSettings(
        model=config.model,
        base_url=config.base_url,
        api_key_variable=config.api_key_variable,
        simulation=config.simulation,
        n_concurrent=config.concurrency,
        n_top_tokens=config.n_top_tokens,
        timeout_seconds=float(config.timeout_seconds),
        n_retries=config.n_retries,
        price_per_million_input=float(config.price_per_million_input),
        price_per_million_output=float(config.price_per_million_output),
        max_cost=math.inf if config.max_cost == "none" else float(config.max_cost),
        extra_body=config.extra_fields(),
    )


INTERPRETERS: dict[str, Kind] = {
    "patterns": Kind(open=_patterns, shuffles=True),
    "http": Kind(
        open=_endpoint,
        check=_check_endpoint,
        source=lambda config: f"http {config.base_url}",
        settings=("n_explained", "base_url", "model", "simulation", "n_top_tokens", "extra_body"),
    ),
    "local": Kind(open=_local, check=_check_local, source=lambda config: "local", settings=("n_explained", "model")),
}
"""By name. A new one is a row here, and its name in `ExplainConfig.interpreter`."""
