"""What `strata plan` is asked besides the command that it plans."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from strata.config.settings import Auto, check_kinds, names_unknown_settings, require

_OF_TRAININGS = ("n_devices", "n_trainings", "training_tokens", "explainer_parameters")


@names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """How a price is reckoned: on which machine, for how many trainings, against what."""

    hardware: str = "this"
    """The machine: "this" is the one that it runs on, as `--calibrate` measured it or else as assumed of its kind; or a
    name such as h100, whose data sheet is taken."""
    calibrate: bool = False
    """Measure this machine first, some seconds (with the language model's forward if its weights are there), and keep
    what was found for later plans."""
    price_per_hour: float | Literal["none"] = "none"
    """What an hour of one device (or, without one, of the machine) costs, in any currency."""
    n_devices: int = 1
    """The most devices to quote for: 1, 2, 4 and so on, and this many."""
    n_trainings: int = 1
    """How often the same activations will be trained on: how much a store is used again."""
    training_tokens: float | Auto = "auto"
    """Tokens that the language model itself was trained on; "auto" is what its family states, where that is known."""
    explainer_parameters: float = 8e9
    """Parameters of the language model that would explain features."""
    explain: bool = False
    """Show the formulas, assumptions and units."""
    json: Path | Literal["none"] = "none"
    """A file for all numbers."""

    def __post_init__(self) -> None:
        check_kinds(self)
        for name in ("n_devices", "n_trainings"):
            value = getattr(self, name)
            require(value >= 1, name, "be at least 1", value, "Give a larger number.")
        if self.price_per_hour != "none":
            rule = "be a price of at least 0"
            require(
                0 <= self.price_per_hour < float("inf"), "price_per_hour", rule, self.price_per_hour, "Give e.g. 2.5."
            )
        for name, example in (("training_tokens", "3e11"), ("explainer_parameters", "8e9")):
            value = getattr(self, name)
            known = isinstance(value, str) or 0 < value < float("inf")
            require(known, name, "be a number above 0", value, f"Give e.g. {example}.")
        this = self.hardware == "this"
        rule = "be given for this machine alone"
        require(not self.calibrate or this, "calibrate", rule, f"hardware={self.hardware}", "Leave one of the two out.")

    def check_for(self, command: str) -> None:
        """Refuse what only the plan of a training answers.

        Args:
            command: that is planned, not `train`.

        Raises:
            UserError: a setting that this command's plan does not look at.
        """
        rule = f"be left out of `strata plan {command}`, which does not look at it"
        for field in fields(self):
            value = getattr(self, field.name)
            alone = field.name in _OF_TRAININGS
            require(not alone or value == field.default, field.name, rule, value, "It is for `strata plan train`.")
