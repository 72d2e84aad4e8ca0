"""Recipes: functions that return a run's description. The first word after `strata train` names one."""

from collections.abc import Callable

from strata.config import SAEConfig, TrainConfig


def demo() -> TrainConfig:
    """SAEs on every layer of the embedded language model, trained on the Python standard library's source.

    `strata train demo`: no network, no GPU. Hardware, time and the numbers to expect stand in docs/LOG.md.
    """
    sae = SAEConfig(expansion_factor=16, k=32, batch_size=4096)
    return TrainConfig(sites=("all",), n_tokens=320_000, held_out_tokens=8_192, sae=sae)


def default() -> TrainConfig:
    """The middle layer of any model on any text, as the flags say."""
    return TrainConfig()


RECIPES: dict[str, Callable[[], TrainConfig]] = {"demo": demo, "default": default}
