"""What `strata steer` is asked to do."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from strata.config.settings import Auto, check_kinds, names_unknown_settings, require

_OF_A_FEATURE = ("latent", "mode", "strength", "unit", "positions", "prompt")
_OF_AN_AMOUNT = ("strength", "unit")
_OF_BENCHMARK = ("quick", "concepts", "methods", "n_prompts", "out", "overwrite")


@names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class SteerConfig:
    """Write text with a feature of a finished run pushed, held or taken away: what `strata steer RUN` does.

    Shown beside the text that the language model writes by itself. The SAE's error is kept: nothing but the feature
    changes. With --benchmark features are compared with difference of means, contrastive activation addition and
    prompting instead, on concepts of Python source code, and what each costs is stated.
    """

    run: Path
    """Folder of the run."""
    site: str = "auto"
    """Where: layers.3; "auto" is the only one that has an SAE, and with --benchmark the middle one of several."""
    sae: str = "auto"
    """Which SAE, by its folder in the run's folder sae; needed where a site has several, as in a sweep."""
    latent: Literal["none"] | int = "none"
    """The feature's number; needed but for --benchmark."""
    mode: Literal["add", "clamp", "min_clamp", "ablate"] = "add"
    """"add" its direction, "clamp" its activation to a value, "min_clamp" to a value at least, "ablate" it (to 0)."""
    strength: tuple[float, ...] = (1.0, 2.0, 4.0)
    """How much, one text for each; "ablate" takes none."""
    unit: Literal["max_activation", "norm", "absolute"] = "max_activation"
    """What a strength of 1 is: the feature's largest activation (in the run's index if there is one, else in held-out
    text), the mean norm of the site's activations in held-out text, or 1."""
    positions: Literal["all", "generated", "prompt"] = "all"
    """Which tokens are steered; special ones, as BOS, never."""
    prompt: str = "def "
    """What the text begins with."""
    max_new_tokens: int = 40
    """Tokens to write at most."""
    temperature: float = 1.0
    """Of sampling; 0 takes the likeliest token."""
    seed: int = 0
    """Of sampling; texts with and without steering get the same draws, so that steering alone makes them differ."""
    benchmark: bool = False
    """Compare steering methods instead."""
    quick: bool = False
    """A small benchmark: two concepts, twelve prompts, three strengths."""
    concepts: tuple[str, ...] = ("all",)
    """Of the benchmark, by name: exceptions imports docstrings formatting comments loops; "all" are all."""
    methods: tuple[str, ...] = ("all",)
    """Of the benchmark, by name: nothing sae-add sae-clamp diff-means caa prompting; "all" are all."""
    n_prompts: int = 40
    """Of the benchmark; strengths are chosen on one half and judged on the other."""
    out: Path | Auto = "auto"
    """File of the benchmark's results; "auto" is RUN/steering.json."""
    overwrite: bool = False
    """Replace results of the benchmark that exist already."""
    device: str = "auto"
    """"auto" (CUDA where there is one), "cpu", "cuda", "cuda:1"."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    def __post_init__(self) -> None:
        check_kinds(self)
        require(
            self.benchmark or self.latent != "none",
            "latent",
            "be given",
            "none",
            "Give the feature's number with --latent, or --benchmark to compare methods.",
        )
        self._check_used()
        require(bool(self.prompt), "prompt", "hold some text", "nothing", 'Give e.g. --prompt "def add(".')
        require(bool(self.strength), "strength", "hold at least one number", "none", "Give e.g. --strength 1 2 4.")
        for value in self.strength:
            require(math.isfinite(value), "strength", "be finite", value, "Give another.")
            require(
                value >= 0 or self.mode == "add",
                "strength",
                f"be 0 or more for mode {self.mode}, since latents are never negative",
                value,
                "Use --mode add to push the other way.",
            )
        for name, least in (("max_new_tokens", 1), ("n_prompts", 4)):
            require(getattr(self, name) >= least, name, f"be at least {least}", getattr(self, name), "Give more.")
        require(
            0 <= self.temperature < math.inf,
            "temperature",
            "be finite and 0 or more",
            self.temperature,
            "0 takes the likeliest token.",
        )

    def _check_used(self) -> None:
        """That nothing is given that nobody would read."""
        rules = [
            (_OF_A_FEATURE, "be left out with --benchmark", "Leave it out, or --benchmark.")
            if self.benchmark
            else (_OF_BENCHMARK, "come with --benchmark", "Leave it out, or add --benchmark."),
            (
                _OF_AN_AMOUNT if self.mode == "ablate" else (),
                "be left out with mode ablate",
                "Leave it out, or --mode.",
            ),
        ]
        for names, rule, way_out in rules:
            for name in names:
                given = getattr(self, name)
                require(given == _default(name), name, rule, given, way_out)

    def results(self) -> Path:
        """The file of the benchmark's results."""
        return Path(self.run) / "steering.json" if self.out == "auto" else Path(self.out)


def _default(name: str) -> object:
    return next(field.default for field in fields(SteerConfig) if field.name == name)
