"""What `strata bench` is asked to measure."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from strata.config.settings import Auto, check_kinds, names_unknown_settings, require

RUN = re.compile(r"(?P<name>[a-z_]+(?:-[a-z0-9]+)*)(?:@(?P<steps>[1-9]\d*))?(?::(?P<rates>.+))?")
"""How runs of the quality comparison are written: contender[@steps][:learning rate,learning rate...]."""


@names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Measure one SAE training step on this machine beside the peers that are installed (pip install sae-lens
    eai-sparsify dictionary-learning), on identical rows, and beside what no step can do without: `strata bench`.

    The contenders take turns, each in a process of its own with the memory settings that its users have, so read
    the ratios rather than the seconds. With `--quality` all of them are trained and compared on held-out rows too:
    hours with the defaults, so give `--quality-file`, and an interrupted comparison goes on where it was. Strata's
    selection, its kernels and its precision are those that `strata train` would take here. The times are those of a
    quiet machine only: run nothing beside it.
    """

    d_in: int = 384
    """Width of the rows."""
    d_sae: int = 6144
    """Latents."""
    k: int = 32
    """Active latents per row."""
    rows: int = 4096
    """Rows per step."""
    rounds: int = 7
    """Rounds in which every contender has its turn, after one that is thrown away; medians are of all of them."""
    steps_per_round: int = 2
    """Timed steps of a turn, after one that is not timed. On a GPU they are timed together: give 20 and more there."""
    contenders: tuple[str, ...] = ("installed",)
    """Who is timed: "installed" is strata and every installed peer, with its defaults and with what makes it faster on
    this device. Known: strata, strata-fp32, strata-<revival method>, saelens, saelens-sparse, saelens-autocast,
    saelens-scaled, saelens-decay, saelens-revival, sparsify, sparsify-adam, sparsify-auxk, dictionary_learning,
    dictionary_learning-autocast, dictionary_learning-revival."""
    threads: int | Auto = "auto"
    """Processor threads; "auto" is torch's choice."""
    device: str = "auto"
    """"auto" (CUDA where there is one), "cpu", "cuda", "cuda:1"."""
    memory: bool = True
    """Measure each contender's peak memory above the loaded rows."""
    language_model: bool = True
    """Measure the forward of the embedded language model alone, in tokens per second."""
    widths: tuple[int, ...] = ()
    """Time Strata's step and the score product at these multiples of d_sae too, e.g. 1 2 4 8."""
    rows_from: Literal["synthetic", "demo"] | Path = "synthetic"
    """The rows: "synthetic" needs nothing and says nothing about quality; "demo" are activations of the embedded model,
    neighbouring layers side by side (d_in 192, 384 ... 1536), collected once and kept; or a safetensors file with
    `train` and `held_out`."""
    quality: bool = False
    """Train contenders and measure their held-out FVU."""
    quality_runs: tuple[str, ...] = (
        "strata",
        "saelens:default,1e-3,3e-3,6e-3",
        "saelens-scaled:1e-3,3e-3",
        "saelens-revival:3e-3",
        "sparsify:default,3e-3,1.6e-2",
        "sparsify-adam:default,1e-3,3e-3",
        "sparsify-auxk:default",
        "dictionary_learning:1e-3,3e-3",
    )
    """Which trainings, as `contender[@steps][:learning rate,...]`; "default" is the contender's own rate. The best of a
    peer's stands for it. strata@100 is a training of 100 steps, with its schedule."""
    steps: int = 300
    """Steps of a training."""
    held_out_rows: int = 8192
    """Rows on which FVU is measured."""
    curve_every: int = 10
    """Steps between two measurements of held-out FVU in a training."""
    quality_file: Path | Literal["none"] = "none"
    """A JSON file of trainings: those that it holds are not run again, and new ones are added as they end. Without
    `--quality` it is only read, and joined with the times measured now."""
    seed: int = 0
    """Seed of the initial weights."""
    json: Path | Literal["none"] = "none"
    """A file for all numbers, with machine, versions and date."""

    def __post_init__(self) -> None:
        check_kinds(self)
        for name in ("d_in", "d_sae", "rows", "rounds", "steps_per_round", "steps", "held_out_rows", "curve_every"):
            value = getattr(self, name)
            require(value >= 1, name, "be at least 1", value, "Give a positive number.")
        require(self.seed >= 0, "seed", "be at least 0", self.seed, "Give a whole number.")
        given = f"k={self.k} with d_sae={self.d_sae}"
        require(1 <= self.k <= self.d_sae, "k", "be in [1, d_sae]", given, "32 is usual.")
        if self.threads != "auto":
            require(self.threads >= 1, "threads", "be at least 1", self.threads, 'Or give "auto".')
        require(bool(self.contenders), "contenders", "name at least one", "none", "Leave it out for all of them.")
        ok = all(multiple >= 1 for multiple in self.widths)
        require(ok, "widths", "be multiples of d_sae of at least 1", self.widths, "Give e.g. 1 2 4 8.")
        self._check_quality()

    def _check_quality(self) -> None:
        rule, way_out = "be written as contender[@steps][:rate,rate...]", "Give e.g. saelens:1e-3,3e-3."
        for run in self.quality_runs:
            found = RUN.fullmatch(run)
            rates = [] if found is None else (found["rates"] or "default").split(",")
            ok = found is not None and all(rate == "default" or _is_rate(rate) for rate in rates)
            require(ok, "quality_runs", rule, repr(run), way_out)
        given = bool(self.quality_runs)
        require(given or not self.quality, "quality_runs", "name at least one training", "none", "Or drop --quality.")


def _is_rate(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False
