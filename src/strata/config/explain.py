"""What `strata explain` is asked to do."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from strata.config.interpret import IndexConfig
from strata.config.settings import names_unknown_settings, require
from strata.errors import UserError


@names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class ExplainConfig(IndexConfig):
    """Explanations of a run's features, scored on documents that the explainer did not see: `strata explain RUN`."""

    interpreter: Literal["patterns", "http", "local"] = "patterns"
    """Who explains, simulates and judges. "patterns" needs no language model: tokens and left contexts that predict
    firing. "http" is an endpoint that speaks OpenAI's protocol (extra `openai`), "local" a Hugging Face model."""
    scorers: tuple[Literal["simulation", "detection", "fuzzing"], ...] = ("simulation", "detection", "fuzzing")
    """How explanations are scored."""
    shuffled: Literal["auto", "yes", "no"] = "auto"
    """Score each explanation on another feature's windows too, as a baseline; "auto" does with patterns, where it costs
    next to nothing. It doubles what scoring with a language model costs."""
    n_features: Literal["all"] | int = "all"
    """Explain so many live features of each SAE, drawn at random."""
    latents: tuple[int, ...] = ()
    """Explain these instead, of one SAE: name it with --sites where the run has several."""
    least_firings: int = 10
    """A feature that fires fewer times on the text is not live: it is not explained."""
    window_tokens: int = 64
    """Length of the windows that are shown."""
    n_explained: int = 8
    """Windows in an explainer's prompt, half of them the strongest, half spread over all strengths. Patterns learn from
    all firings in the documents to explain from, whatever this is."""
    n_top: int = 10
    """Windows to score on where the feature is strongest."""
    n_random: int = 20
    """Windows to score on where it fires, spread over all strengths."""
    n_silent: int = 20
    """Windows to score on in which it does not fire."""
    seed: int = 0
    """Of the deal of documents to explaining and scoring, and of what is drawn."""
    base_url: str = "https://api.openai.com/v1"
    """Where the endpoint of "http" is. It is written into the records; keys are not to be in it."""
    model: str = ""
    """The language model that answers: its name at the endpoint, or of the Hugging Face model."""
    api_key_variable: str = "auto"
    """The environment variable that holds the endpoint's key; "auto" is OPENAI_API_KEY for api.openai.com, and none for
    any other endpoint."""
    simulation: Literal["chat", "completions"] = "chat"
    """How the endpoint simulates: "chat" writes levels, "completions" reads them off a prompt in one forward each
    (servers such as vLLM)."""
    price_per_million_input: float = 0.0
    """What a million tokens that the endpoint reads cost."""
    price_per_million_output: float = 0.0
    """What a million tokens that it writes cost."""
    max_cost: Literal["none"] | float = "none"
    """Ask nothing more of the endpoint when it would cost more than this, in the currency of the prices."""
    concurrency: int = 16
    """Requests to the endpoint at a time."""
    timeout_seconds: float = 60.0
    """How long one attempt of a request to the endpoint may take."""
    n_retries: int = 5
    """Further attempts after a timeout, a broken connection or a busy server."""
    n_top_tokens: int = 20
    """How many of the likeliest tokens, with their probabilities, the endpoint is asked for at each place, 1 to 20;
    some servers give fewer than 20."""
    extra_body: str = "{}"
    """More fields of every request to the endpoint, a JSON object, e.g. {"reasoning_effort": "low"}. They are written
    into the records."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.scorers), "scorers", "name at least one", "none", "Give e.g. simulation.")
        counts = ("least_firings", "window_tokens", "n_explained", "n_top", "n_random", "n_silent", "concurrency")
        for name in counts:
            value = getattr(self, name)
            require(value >= 1, name, "be at least 1", value, "Give a larger number.")
        enough = self.n_features == "all" or self.n_features >= 1
        require(enough, "n_features", "be at least 1", self.n_features, 'Give a larger number or "all".')
        require(self.seed >= 0, "seed", "be at least 0", self.seed, "Give a larger number.")
        require(all(latent >= 0 for latent in self.latents), "latents", "be at least 0", min(self.latents, default=0),
                "Give numbers of latents.")  # fmt: skip
        self._check_endpoint()
        named = self.interpreter == "patterns" or bool(self.model)
        require(named, "model", f"be given with the interpreter {self.interpreter!r}", "none", "Give --model NAME.")

    def _check_endpoint(self) -> None:
        prices = (self.price_per_million_input, self.price_per_million_output)
        for name, price in zip(("price_per_million_input", "price_per_million_output"), prices, strict=True):
            require(price >= 0, name, "be at least 0", price, "Give a price.")
        if self.max_cost != "none":
            priced = self.interpreter == "http" and max(prices) > 0
            require(priced, "max_cost", "come with prices of an endpoint", f"{self.max_cost} without",
                    "Give --price-per-million-input and --price-per-million-output.")  # fmt: skip
            require(self.max_cost >= 0, "max_cost", "be at least 0", self.max_cost, "Give an amount.")
        require(self.timeout_seconds > 0, "timeout_seconds", "be above 0", self.timeout_seconds, "Give e.g. 60.")
        require(self.n_retries >= 0, "n_retries", "be at least 0", self.n_retries, "Give 0 for none.")
        require(1 <= self.n_top_tokens <= 20, "n_top_tokens", "be 1 to 20", self.n_top_tokens, "Give e.g. 5.")
        self.extra_fields()

    def extra_fields(self) -> Mapping[str, Any]:
        """The fields of `extra_body`.

        Raises:
            UserError: it is no JSON object.
        """
        try:
            found: Any = json.loads(self.extra_body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UserError(
                f"`extra_body` must be a JSON object. Got {self.extra_body!r}. Give e.g."
                """ '{"reasoning_effort": "low"}'."""
            )
        return cast("dict[str, Any]", found)
