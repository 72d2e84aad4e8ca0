"""Bytes of SAEs' tensors: in training, in a checkpoint, in a run's folder, in an index."""

from collections.abc import Sequence
from functools import cache

import torch

from strata.config.train import SAEConfig
from strata.costs.step import SAEShape
from strata.sae.recent import MOST_RECENT_ROWS
from strata.sae.rules.registry import RULES


def checkpoint_bytes(saes: Sequence[SAEShape]) -> float:
    """Bytes of one checkpoint on disk: weights, Adam's moments, firing record, last rows."""
    return sum(3 * weight_bytes(sae) + recent_bytes(sae) + 4.0 * sae.d_sae for sae in saes)


def folder_bytes(saes: Sequence[SAEShape]) -> float:
    """Bytes of a run's `sae` folder. A group's has encoder and decoder once, and once more for each of its layers."""
    total = 0.0
    for sae in saes:
        d_out = sae.d_out or sae.d_in
        own = 4.0 * (_n_vectors(sae.architecture)[1] * sae.d_sae + d_out)
        matrices = 4.0 * sae.d_sae * (sae.d_in + d_out)
        copies = sae.n_sites + 1 if sae.n_sites > 1 else 1
        total += copies * matrices + (2 if sae.n_sites > 1 else 1) * sae.n_sites * own
    return total


def index_bytes(saes: Sequence[SAEShape], *, n_tokens: int) -> float:
    """Bytes of an index (`strata.interpret.index_layout`): four for each firing, beside which the rest is little.

    Args:
        saes: all of them, with k as the number that fires (of a sweep, whose SAEs come one after the other in a report,
            it is at most so much).
        n_tokens: of the text.
    """
    return sum(4.0 * n_tokens * sae.n_sites * sae.k for sae in saes)


def weight_bytes(sae: SAEShape) -> float:
    """Of everything that is trained, once."""
    d_out = sae.d_out or sae.d_in
    return 4.0 * (sae.d_sae * (sae.d_in + d_out + _n_vectors(sae.architecture)[0]) + d_out)


@cache
def _n_vectors(architecture: str) -> tuple[int, int]:
    """Tensors [d_sae] that an SAE trains, and that its folder holds."""
    rule = RULES[architecture](SAEConfig(), d_sae=1)
    own = rule.own_tensors(torch.ones(()))
    gate, _ = rule.finished(own, None)
    return len(own), len({rule.bias, *gate.tensors})


def recent_bytes(sae: SAEShape) -> float:
    """Of the last rows, from which thresholds are set."""
    n_rows = min(RULES[sae.architecture].n_recent_rows * sae.n_sites, MOST_RECENT_ROWS)
    return 4.0 * n_rows * (sae.d_in + (sae.d_out or 0))
