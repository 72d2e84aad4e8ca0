"""Which interpreter a command asks for: checked before anything takes its time, then made."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strata.config.explain import ExplainConfig
from strata.interpret.explain.interpreter import Interpreter
from strata.interpret.explain.n_grams import NGrams
from strata.interpret.explain.pieces import Pieces
from strata.interpret.explain.token_patterns import TokenPatterns
from strata.interpret.explain.wording import Wording
from strata.interpret.site_index import SiteIndex

if TYPE_CHECKING:
    from strata.interpret.prompted.endpoint_settings import EndpointSettings


class Choice:
    """The interpreter that a command asks for. To be closed.

    Attributes:
        interpreter: who explains.
    """

    def __init__(
        self,
        config: ExplainConfig,
        *,
        vocabulary: list[str],
        sites: Mapping[str, SiteIndex],
        pieces: Pieces,
        progress: bool,
    ) -> None:
        self._completer: Any = None
        self._cache: Any = None
        if config.interpreter == "patterns":
            wording = Wording(vocabulary)
            patterns = TokenPatterns(sites, pieces=pieces, n_grams=NGrams.count(pieces), wording=wording)
            self.interpreter: Interpreter = patterns
            return
        from strata.interpret.prompted.interpreter import PromptedInterpreter

        if config.interpreter == "http":
            from strata.interpret.prompted.cache import RequestCache
            from strata.interpret.prompted.endpoint import Endpoint

            self._cache = RequestCache(answers_path(config.index_folder))
            self._completer = Endpoint(_endpoint_settings(config), cache=self._cache, progress=progress)
        else:
            from strata.interpret.prompted.local import LocalModel
            from strata.lm.loading import chosen_device

            self._completer = LocalModel(config.model, device=chosen_device(config.device),
                                         trust_remote_code=config.trust_remote_code, progress=progress)  # fmt: skip
        self.interpreter = PromptedInterpreter(self._completer, vocabulary)

    def account(self) -> dict[str, Any]:
        """Requests, tokens and cost so far; empty of one that is free."""
        return {} if self._completer is None else asdict(self._completer.account)

    def close(self) -> None:
        """Close the file of answers."""
        if self._cache is not None:
            self._cache.close()


def check(config: ExplainConfig) -> None:
    """That the interpreter can be asked, as far as that shows without asking it.

    Raises:
        UserError: no key, an address that cannot be, a local model or tokenizer that is not there, or a tokenizer
            without a token for each answer.
        MissingExtraError: a library that it needs is not installed.
    """
    if config.interpreter == "http":
        from strata.interpret.prompted.exchange import check_library

        _endpoint_settings(config).api_key()
        check_library()
    if config.interpreter == "local":
        from strata.interpret.prompted.local import check_model
        from strata.interpret.prompted.prompts import LEVELS, NO, YES

        choices = LEVELS if "simulation" in config.scorers else (NO, YES)
        check_model(config.model, choices=choices, trust_remote_code=config.trust_remote_code)


def source_of(config: ExplainConfig) -> str:
    """Where the interpreter is asked, as `strata.interpret.explain.record.file_name` wants it."""
    return {"patterns": "", "http": f"http {config.base_url}", "local": "local"}[config.interpreter]


def _endpoint_settings(config: ExplainConfig) -> "EndpointSettings":
    from strata.interpret.prompted.endpoint_settings import EndpointSettings

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


def answers_path(index_folder: Path) -> Path:
    """Where the answers of endpoints are kept, beside the index: it may be made anew, they stay paid."""
    return index_folder.with_name("answers.sqlite")
