"""What every way to steer has in common: it learns a concept from texts, is applied at a strength, and has a cost."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from strata.costs.steering import SteeringCost
from strata.steer.intervention import Intervention, Number, Positions
from strata.steer.material import Contrast
from strata.steer.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Of the texts for which a cost per token is counted, in tokens on average.

    Attributes:
        prompt: before anything is written.
        written: after it.
    """

    prompt: float
    written: float


@dataclass(frozen=True)
class Applied:
    """A method at one strength, ready for `strata.steer.generation.generate`.

    Attributes:
        interventions: in the language model.
        prefix: text before every prompt.
    """

    interventions: tuple[Intervention, ...] = ()
    prefix: str = ""


@runtime_checkable
class Built(Protocol):
    """A method that has learned a concept."""

    @property
    def found(self) -> str:
        """What was learned, in a few words."""
        ...

    def at(self, strength: Number) -> Applied:
        """What is done at a strength."""
        ...

    def cost(self, strength: Number, lengths: Lengths) -> SteeringCost:
        """What that costs."""
        ...


@runtime_checkable
class Method(Protocol):
    """A way to steer; a new one is a class in a file of its own and a row in `strata.steer.methods.METHODS`."""

    @property
    def name(self) -> str:
        """By which tables and flags call it."""
        ...

    @property
    def unit(self) -> str:
        """What its strengths count."""
        ...

    @property
    def strengths(self) -> tuple[Number, ...]:
        """Those that are tried."""
        ...

    def build(self, subject: Subject, material: Contrast) -> Built:
        """Learn a concept from training material, and from nothing else."""
        ...


@dataclass(frozen=True)
class Nothing:
    """The language model as it is."""

    name: str = "nothing"
    unit: str = "none"
    strengths: tuple[Number, ...] = (0,)
    found: str = ""

    def build(self, subject: Subject, material: Contrast) -> "Nothing":
        """Nothing is learned."""
        return self

    def at(self, strength: Number) -> Applied:
        """Nothing is done."""
        return Applied()

    def cost(self, strength: Number, lengths: Lengths) -> SteeringCost:
        """It costs nothing."""
        return SteeringCost(training=0.0, concept=0.0, token=0.0)


def per_written(positions: Positions, lengths: Lengths) -> float:
    """Tokens that are steered for each that is written."""
    steered = {"all": lengths.prompt + lengths.written, "prompt": lengths.prompt, "generated": lengths.written}
    return steered[positions] / lengths.written
