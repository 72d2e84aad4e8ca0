"""The learning rules by the name of their architecture. A new one is a class in this package and a row here."""

from strata.config.train import SAEConfig
from strata.sae.rules.base import Rule
from strata.sae.rules.gated import Gated
from strata.sae.rules.jumprelu import JumpReLU
from strata.sae.rules.matryoshka import Matryoshka
from strata.sae.rules.relu import ReLU
from strata.sae.rules.threshold import ThresholdRule
from strata.sae.rules.topk import BatchTopK, TopK

RULES: dict[str, type[Rule]] = {
    "topk": TopK,
    "batchtopk": BatchTopK,
    "matryoshka": Matryoshka,
    "jumprelu": JumpReLU,
    "relu": ReLU,
    "gated": Gated,
}


def has_penalty(architecture: str) -> bool:
    """Whether a sparsity coefficient decides its L0, steered or fixed; False of an architecture that is not known."""
    return issubclass(RULES.get(architecture, Rule), ThresholdRule)


def make_rule(config: SAEConfig, *, d_sae: int) -> Rule:
    """The rule of the architecture that the config names."""
    return RULES[config.architecture](config, d_sae=d_sae)
