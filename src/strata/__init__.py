"""Strata trains sparse autoencoders on the activations of language models.

The public names are loaded when they are first used, so that ``import strata`` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strata.activations.collected import Activations as Activations
    from strata.activations.harvest import collect_activations as collect_activations
    from strata.config.train import SAEConfig as SAEConfig
    from strata.config.train import TrainConfig as TrainConfig
    from strata.errors import UserError as UserError
    from strata.interpret.explain.command import explain as explain
    from strata.interpret.index import FeatureIndex as FeatureIndex
    from strata.interpret.index_building import build_index as build_index
    from strata.lm.model import LanguageModel as LanguageModel
    from strata.recording import Recording as Recording
    from strata.sae.group import GroupSAE as GroupSAE
    from strata.sae.model import SAE as SAE
    from strata.shapes import SparseCode as SparseCode
    from strata.steer.generation import generate as generate
    from strata.steer.intervention import Feature as Feature
    from strata.steer.intervention import Intervention as Intervention
    from strata.steer.intervention import Strength as Strength
    from strata.train import Trainer as Trainer
    from strata.train import train_suite as train_suite

_HOMES = {
    "Activations": "strata.activations.collected",
    "Feature": "strata.steer.intervention",
    "FeatureIndex": "strata.interpret.index",
    "GroupSAE": "strata.sae.group",
    "Intervention": "strata.steer.intervention",
    "LanguageModel": "strata.lm.model",
    "Recording": "strata.recording",
    "SAE": "strata.sae.model",
    "SAEConfig": "strata.config.train",
    "SparseCode": "strata.shapes",
    "Strength": "strata.steer.intervention",
    "TrainConfig": "strata.config.train",
    "Trainer": "strata.train",
    "UserError": "strata.errors",
    "build_index": "strata.interpret.index_building",
    "collect_activations": "strata.activations.harvest",
    "explain": "strata.interpret.explain.command",
    "generate": "strata.steer.generation",
    "train_suite": "strata.train",
}
__all__ = [
    "SAE",
    "Activations",
    "Feature",
    "FeatureIndex",
    "GroupSAE",
    "Intervention",
    "LanguageModel",
    "Recording",
    "SAEConfig",
    "SparseCode",
    "Strength",
    "TrainConfig",
    "Trainer",
    "UserError",
    "build_index",
    "collect_activations",
    "explain",
    "generate",
    "train_suite",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'strata' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
