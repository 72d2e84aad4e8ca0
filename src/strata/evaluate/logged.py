"""The few numbers of held-out rows that a training logs."""

from collections.abc import Mapping

from torch import Tensor

from strata.evaluate.held_out import reconstruction_quality
from strata.evaluate.prediction import prediction_quality
from strata.sae.group import GroupSAE
from strata.sae.model import SAE

_LOGGED = ("fvu", "l0", "silent_share")


def logged_quality(
    sae: SAE | GroupSAE, rows: Mapping[str, Tensor], *, site: str, target_site: str | None = None
) -> dict[str, float | None]:
    """``fvu``, ``l0`` and ``silent_share`` on held-out rows.

    Args:
        sae: as it is now; of a group's the numbers are means over its layers.
        rows: by site held-out rows in the model's scale [rows d_in].
        site: what the SAE reads.
        target_site: what a transcoder predicts.
    """
    if isinstance(sae, GroupSAE):
        found = [logged_quality(sae.at(layer), rows, site=layer) for layer in sae.sites]
        return {key: _mean([numbers[key] for numbers in found]) for key in _LOGGED}
    x = rows[site]
    found = reconstruction_quality(sae, x) if target_site is None else prediction_quality(sae, x, rows[target_site])
    return {key: found[key] for key in _LOGGED}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
