"""Steering with a feature of an SAE, chosen on training texts."""

from dataclasses import dataclass

from strata.costs.interpretation import statistics_flops
from strata.costs.steering import SteeringCost, addition_flops, clamp_flops
from strata.errors import UserError
from strata.steer.intervention import Feature, Intervention, Mode, Number, Positions, Strength
from strata.steer.material import Contrast
from strata.steer.method import Applied, Lengths, per_written
from strata.steer.subject import Subject, means


@dataclass(frozen=True)
class FeatureMethod:
    """A feature of the SAE: the latent whose mean activation differs most between texts with and without the concept.

    Attributes:
        name: of the method.
        mode: ``add`` or ``clamp``.
        strengths: times the latent's maximum over the training texts.
        unit: in words.
        positions: which tokens are steered.
    """

    name: str
    mode: Mode
    strengths: tuple[Number, ...]
    unit: str = "x max activation"
    positions: Positions = "all"

    def build(self, subject: Subject, material: Contrast) -> "BuiltFeature":
        """Choose the latent; two passes as far as the site, with the encoder.

        Raises:
            UserError: no latent fires more on texts with the concept.
        """
        with_it = means(subject, material.positive, with_latents=True)
        without = means(subject, material.negative, with_latents=True)
        difference = with_it.latents - without.latents
        latent = int(difference.argmax())
        if not float(difference[latent]) > 0:
            raise UserError(
                f"The SAE must have a latent that fires more on texts with {material.concept!r} than on others. Got"
                f" none at {subject.site}. Train it longer."
            )
        most = max(float(with_it.most[latent]), float(without.most[latent]))
        return BuiltFeature(self, subject, latent, most, with_it.n_tokens + without.n_tokens)


@dataclass(frozen=True)
class BuiltFeature:
    """A latent that was chosen for a concept.

    Attributes:
        method: how it is used.
        subject: where.
        latent: its number.
        max_activation: over the training texts.
        n_tokens: of these.
    """

    method: FeatureMethod
    subject: Subject
    latent: int
    max_activation: float
    n_tokens: int

    @property
    def found(self) -> str:
        """The latent."""
        return f"latent {self.latent}, max {self.max_activation:.3g}"

    def at(self, strength: Number) -> Applied:
        """Its intervention."""
        amount = Strength(value=strength, unit="max_activation", size=self.max_activation)
        direction = Feature(self.subject.sae, self.latent)
        one = Intervention(
            site=self.subject.site,
            direction=direction,
            mode=self.method.mode,
            strength=amount,
            positions=self.method.positions,
        )
        return Applied((one,))

    def cost(self, strength: Number, lengths: Lengths) -> SteeringCost:
        """The SAE's training; encoding the concept's texts; for each token an addition, or the encoder's product."""
        sae, adds = self.subject.sae, self.method.mode == "add"
        encode = 2.0 * sae.d_in * sae.d_sae
        token = addition_flops(sae.d_in) if adds else clamp_flops(sae.d_in, sae.d_sae)
        return SteeringCost(
            training=self.subject.sae_training_flops,
            concept=statistics_flops(self.n_tokens, forward_flops=self.subject.site_flops, encode_flops=encode),
            token=token * per_written(self.method.positions, lengths),
        )
