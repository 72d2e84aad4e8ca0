"""Steering with a vector from contrasting texts: difference of means, contrastive activation addition."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from strata.costs.steering import SteeringCost, addition_flops
from strata.steer.intervention import Intervention, Number, Positions, Strength, norms
from strata.steer.material import Contrast
from strata.steer.method import Applied, Lengths, per_written
from strata.steer.subject import Means, Subject, means


@dataclass(frozen=True)
class VectorMethod:
    """A vector from contrasting texts, added in units of the site's mean norm.

    Attributes:
        name: of the method.
        vector: from the subject and the material, with what the texts did at the site.
        strengths: times the mean norm of the site's activations over the training texts.
        unit: in words.
        positions: which tokens are steered.
    """

    name: str
    vector: Callable[[Subject, Contrast], tuple[Tensor, Means, Means]]
    strengths: tuple[Number, ...]
    unit: str = "x mean norm"
    positions: Positions = "all"

    def build(self, subject: Subject, material: Contrast) -> "BuiltVector":
        """Two passes as far as the site."""
        vector, with_it, without = self.vector(subject, material)
        n_rows = with_it.n_rows + without.n_rows
        norm = (with_it.norm * with_it.n_rows + without.norm * without.n_rows) / n_rows
        return BuiltVector(self, subject, vector, norm, with_it.n_tokens + without.n_tokens)


@dataclass(frozen=True, eq=False)
class BuiltVector:
    """A vector that was found for a concept.

    Attributes:
        method: how it is used.
        subject: where.
        vector: [d_in].
        norm: the site's mean norm over the training texts.
        n_tokens: of these.
    """

    method: VectorMethod
    subject: Subject
    vector: Tensor
    norm: float
    n_tokens: int

    @property
    def found(self) -> str:
        """How long it is."""
        return f"norm {float(norms(self.vector)):.3g} of {self.norm:.3g}"

    def at(self, strength: Number) -> Applied:
        """Its intervention."""
        amount = Strength(value=strength, unit="norm", size=self.norm)
        where, positions = self.subject.site, self.method.positions
        return Applied((Intervention(site=where, direction=self.vector, strength=amount, positions=positions),))

    def cost(self, strength: Number, lengths: Lengths) -> SteeringCost:
        """No training; forwards over the concept's texts; an addition for each token."""
        token = addition_flops(self.subject.sae.d_in) * per_written(self.method.positions, lengths)
        return SteeringCost(training=0.0, concept=self.n_tokens * self.subject.site_flops, token=token)


def difference_of_means(subject: Subject, material: Contrast) -> tuple[Tensor, Means, Means]:
    """Mean activation over all tokens of texts with the concept, minus that of texts without; they are not paired."""
    with_it, without = means(subject, material.positive), means(subject, material.negative)
    return with_it.activation - without.activation, with_it, without


def contrastive_addition(subject: Subject, material: Contrast) -> tuple[Tensor, Means, Means]:
    """Mean over pairs of the difference of activations at the last token (Rimsky et al. 2023, arXiv 2312.06681).

    Differs: there the pairs are questions with a letter as answer, read at that letter; here they are beginnings of
    code, read at the token that shows the concept.
    """
    with_it = means(subject, [positive for positive, _ in material.pairs])
    without = means(subject, [negative for _, negative in material.pairs])
    return with_it.last - without.last, with_it, without
