"""Lengths of training with their unit: `"5%"` of the run, `"200 steps"`, `"1M tokens"`."""

import re
from dataclasses import dataclass
from typing import Literal

from strata.errors import UserError

_PATTERN = re.compile(r"^\s*(?P<amount>\d+(?:\.\d+)?)\s*(?P<scale>[kMG]?)\s*(?P<unit>%|steps?|tokens?)\s*$")
_UNITS: dict[str, Literal["percent", "steps", "tokens"]] = {"%": "percent", "s": "steps", "t": "tokens"}
_SCALES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True)
class Duration:
    """A length of training.

    Attributes:
        amount: how many of the unit.
        unit: ``"percent"`` of the run, ``"steps"`` of the optimiser, or ``"tokens"`` (one token is one row of a site).
    """

    amount: float
    unit: Literal["percent", "steps", "tokens"]

    @classmethod
    def parse(cls, text: str, *, setting: str) -> "Duration":
        """Read `"5%"`, `"200 steps"`, `"1M tokens"`, `"500k tokens"`.

        Args:
            text: the duration as written.
            setting: the name of the setting, for the error.

        Raises:
            UserError: the text is none of these, or more than 100 %.
        """
        match = _PATTERN.match(text)
        if match is None:
            raise UserError(f"`{setting}` must be a length such as '5%', '200 steps' or '1M tokens'. Got {text!r}.")
        unit = _UNITS[match["unit"][0]]
        amount = float(match["amount"]) * _SCALES[match["scale"]]
        if unit == "percent" and amount > 100:
            raise UserError(f"`{setting}` is a share of the run and must be at most 100%. Got {text!r}.")
        return cls(amount, unit)

    def steps(self, *, n_steps: int, batch_size: int) -> int:
        """The same length in optimiser steps of a run of `n_steps` with `batch_size` rows each, rounded."""
        per_unit = {"percent": n_steps / 100, "steps": 1.0, "tokens": 1 / batch_size}[self.unit]
        return round(self.amount * per_unit)
