"""What `strata scaling` is asked to do."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from strata.config.settings import Auto, check_kinds, names_unknown_settings, require
from strata.config.train import Architecture, SAEConfig
from strata.errors import UserError

_SCALES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_AMOUNT = re.compile(r"^\s*(\d+(?:\.\d+)?(?:e\+?\d+)?)\s*([kMG]?|%|h)\s*$")
_AXES = ("widths", "k", "n_tokens", "seeds")


@names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """A sweep over widths, sparsities and tokens from one store, and the laws that its losses follow. The same command
    with --resume goes on where it was interrupted.
    """

    activations: Path
    """The store that `strata collect` wrote, with held-out rows."""
    site: str = "middle"
    """Whose rows; "middle" is the middle one of the store's sites."""
    widths: tuple[int, ...] = (4, 8, 16, 32)
    """Latents per dimension of the site: d_sae = width · d_in. Three or more different ones show a law."""
    k: tuple[int, ...] = (16, 32, 64)
    """Active latents per row (L0)."""
    n_tokens: tuple[str, ...] = ("12.5%", "25%", "50%", "100%")
    """Rows to train on: shares of the store's, or numbers such as 250k or 1M, rounded down to whole batches. Each is a
    training of its own, whose learning rate decays at its own end; all begin with the same rows."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the initial weights; the order of the rows is that of the first."""
    batch_size: int = 4096
    """Rows per step."""
    architecture: Architecture = "topk"
    """The gate of all SAEs."""
    side_by_side: int | Auto = "auto"
    """SAEs that are trained at once on the same batches; "auto" is as many as fit into three quarters of the memory
    that is free when the command starts."""
    held_out_rows: int = 32_768
    """Rows of the store's held-out documents on which the loss is measured, at most."""
    form: Literal["auto", "additive", "coupled"] = "auto"
    """The law's form: in "coupled" each latent more asks for more tokens, in "additive" it does not; "auto" takes the
    one with the lower AICc."""
    at_k: int | Auto = "auto"
    """The k for which widths and tokens are optimised; "auto" is the middle one of those swept."""
    budget: tuple[str, ...] = ()
    """For which the best width and tokens are told: FLOPs such as 1e15, or hours such as 2h at this sweep's speed."""
    streamed: bool = False
    """Count the language model's forward in the cost of a token, as where rows are streamed for one SAE."""
    flat_gain: float = 0.01
    """The loss is flat where doubling the width lowers it by less than this share."""
    training_tokens: float | Auto = "auto"
    """Tokens that the language model was trained on, for its own cost 6·N·tokens, N being the parameters that a token
    passes; "auto" is what is known of its family."""
    n_bootstrap: int = 200
    """How often the points are drawn anew for the 90 % intervals."""
    fit_seed: int = 0
    """Seed of these draws."""
    fit_only: bool = False
    """Fit again from the folder's scaling.json, without training; the sweep's own settings are those it was made
    with."""
    out: Path | Auto = "auto"
    """The folder to write; "auto" is scaling/<store>."""
    resume: bool = False
    """Go on with the folder's sweep."""
    overwrite: bool = False
    """Replace what stands in that folder already."""
    device: str = "auto"
    """"auto" (CUDA where there is one), "cpu", "cuda", "cuda:1"."""
    trust_remote_code: bool = False
    """Run code that comes with the model (only its outline is made, for what its forward and its own training cost)."""

    def __post_init__(self) -> None:
        check_kinds(self)
        for name in _AXES:
            given = getattr(self, name)
            require(bool(given), name, "name at least one value", "none", "Give some, or leave it out.")
            require(len(set(given)) == len(given), name, "name each value once", _words(given), "Leave one out.")
        self.sae_configs()
        for text in self.n_tokens:
            self._amount("n_tokens", text, units=("", "k", "M", "G", "%"), example="50%, 250k or 1000000")
        for text in self.budget:
            self._amount("budget", text, units=("", "h"), example="1e15 (FLOPs) or 2h")
        for name, least in (("held_out_rows", 2), ("n_bootstrap", 20), ("fit_seed", 0)):
            value = getattr(self, name)
            require(value >= least, name, f"be at least {least}", value, "Give a larger number.")
        for name in ("side_by_side", "training_tokens"):
            value = getattr(self, name)
            require(value == "auto" or value >= 1, name, "be at least 1", value, 'Or give "auto".')
        require(
            0 < self.flat_gain < 1, "flat_gain", "be a share between 0 and 1", self.flat_gain, "0.01 is one hundredth."
        )
        rule, way_out = "be one of the swept values of k", f"Those are {_words(self.k)}."
        require(self.at_k == "auto" or self.fit_only or self.at_k in self.k, "at_k", rule, self.at_k, way_out)
        given = [name for name in ("resume", "overwrite", "fit_only") if getattr(self, name)]
        if len(given) > 1:
            require(False, given[0], f"not be given with {given[1]}", "both", "Choose one.")

    def sae_configs(self) -> list[SAEConfig]:
        """The SAEs of one token budget: all combinations, the widest last.

        Raises:
            UserError: a setting that `SAEConfig` refuses.
        """
        return [
            SAEConfig(
                expansion_factor=width, k=k, seed=seed, batch_size=self.batch_size, architecture=self.architecture
            )
            for width in sorted(self.widths)
            for k in self.k
            for seed in self.seeds
        ]

    def steps(self, n_rows: int) -> list[int]:
        """The steps of each token budget, from the shortest on.

        Args:
            n_rows: of the store.

        Raises:
            UserError: less than a batch, more than the store holds, or two that come to the same.
        """
        found: dict[int, str] = {}
        for text in self.n_tokens:
            amount, unit = self._amount("n_tokens", text)
            rows = amount / 100 * n_rows if unit == "%" else amount * _SCALES[unit]
            steps = int(rows + 1e-6) // self.batch_size
            held = f"in a store of {n_rows} rows"
            within = rows <= n_rows * (1 + 1e-9)
            require(within, "n_tokens", "be at most the store's rows", f"{text} {held}", "Collect a larger store.")
            rule, given = f"be at least one batch of {self.batch_size} rows", f"{text} {held}"
            require(steps >= 1, "n_tokens", rule, given, "Give more, or lower batch_size.")
            twice = f"{found.get(steps)} and {text}, both {steps} steps"
            require(steps not in found, "n_tokens", "differ in whole batches", twice, "Leave one out.")
            found[steps] = text
        return sorted(found)

    def budgets(self, flops_per_second: float | None) -> list[tuple[str, float]]:
        """What was given as `budget`, and its FLOPs.

        Args:
            flops_per_second: of the sweep; None where nothing was trained.

        Raises:
            UserError: hours without a speed.
        """
        found: list[tuple[str, float]] = []
        for text in self.budget:
            amount, unit = self._amount("budget", text)
            if unit == "h" and flops_per_second is None:
                raise UserError(f"`budget` in hours needs a sweep with a speed. Got {text}. Give FLOPs such as 1e15.")
            found.append((text, amount * 3600 * (flops_per_second or 0.0) if unit == "h" else amount))
        return found

    def folder(self) -> Path:
        """`out`, or scaling/<store>."""
        return Path("scaling") / Path(self.activations).name if self.out == "auto" else Path(self.out)

    def _amount(
        self, setting: str, text: str, *, units: tuple[str, ...] = ("", "k", "M", "G", "%", "h"), example: str = ""
    ) -> tuple[float, str]:
        match = _AMOUNT.match(text)
        amount, unit = (float(match[1]), match[2]) if match else (0.0, "")
        right = amount > 0 and unit in units and (unit != "%" or amount <= 100)
        alone = f"Give a number above 0, alone or with {' or '.join(one for one in units if one)}."
        way_out = "A share is at most 100%." if unit == "%" and "%" in units and amount > 100 else alone
        require(right, setting, f"be written such as {example}", repr(text), way_out)
        return amount, unit


def _words(values: tuple[object, ...]) -> str:
    return " ".join(map(str, values))
