"""Which interpreter a command asks for, made."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from strata.explain_config import ExplainConfig
from strata.interpret.explain.interpreter import Interpreter
from strata.interpret.explain.n_grams import NGrams
from strata.interpret.explain.pieces import Pieces
from strata.interpret.explain.token_patterns import TokenPatterns
from strata.interpret.explain.wording import Wording
from strata.interpret.site_index import SiteIndex


class Choice:
    """The interpreter that a command asks for.

    Attributes:
        interpreter: who explains.
        is_free: whether asking it costs neither money nor much time.
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
        self.is_free = config.interpreter == "patterns"
        self._completer: Any = None
        if self.is_free:
            wording = Wording(vocabulary)
            patterns = TokenPatterns(sites, pieces=pieces, n_grams=NGrams.count(pieces), wording=wording)
            self.interpreter: Interpreter = patterns
            return
        from strata.interpret.prompted.interpreter import PromptedInterpreter

        make = _endpoint if config.interpreter == "http" else _local
        self._completer = make(config, progress=progress)
        self.interpreter = PromptedInterpreter(self._completer, vocabulary)

    def account(self) -> dict[str, Any]:
        """Requests, tokens and cost so far; empty of one that is free."""
        return {} if self._completer is None else asdict(self._completer.account)


def _endpoint(config: ExplainConfig, *, progress: bool) -> Any:
    from strata.interpret.prompted.cache import RequestCache
    from strata.interpret.prompted.endpoint import Endpoint
    from strata.interpret.prompted.endpoint_settings import EndpointSettings

    settings = EndpointSettings(
        model=config.model,
        base_url=config.base_url,
        api_key_variable=config.api_key_variable,
        simulation=config.simulation,
        n_concurrent=config.concurrency,
        price_per_million_input=float(config.price_per_million_input),
        price_per_million_output=float(config.price_per_million_output),
        max_cost=math.inf if config.max_cost == "none" else float(config.max_cost),
    )
    settings.api_key()  # before anything else takes its time
    return Endpoint(settings, cache=RequestCache(answers_path(config.index_folder)), progress=progress)


def _local(config: ExplainConfig, *, progress: bool) -> Any:
    from strata.interpret.prompted.local import LocalModel
    from strata.lm.loading import chosen_device

    return LocalModel(config.model, device=chosen_device(config.device), progress=progress)


def answers_path(index_folder: Path) -> Path:
    """Where the answers of endpoints are kept, beside the index: it may be made anew, they stay paid."""
    return index_folder.with_name("answers.sqlite")
