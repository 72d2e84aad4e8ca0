"""What is found about the layers of a model: the content of groups.json."""

import math
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from strata.atomic import as_json
from strata.config.groups import GroupsConfig
from strata.groups.choice import check_choice, choose, grouping_table
from strata.groups.cost import grouping_cost
from strata.groups.measured import Layers, measure
from strata.machine.versions import versions

_LIBRARIES = ("strata-sae", "torch", "transformers")


def groups_record(layers: Layers, config: GroupsConfig, *, progress: bool = True) -> dict[str, Any]:
    """Measure the layers, cut them into groups in every number, and choose one.

    Args:
        layers: of a text or a store.
        config: how; model, text and folder are not looked at.
        progress: say on stderr how far it is.

    Returns:
        `sites`, the chosen `groups` (of sites) and their `k`, the `table` of all numbers, `distances` and `cka` [L L]
        (None where it was not measured), `n_rows` and `n_mean_rows` of which they are, `n_tokens` and `seconds` of
        measuring, `flops_per_token`, the settings, and the model and text.

    Raises:
        UserError: what cannot be done; where that can be known, before anything is measured.
    """
    check_choice(config, n_layers=len(layers.sites))
    cost = grouping_cost(
        layers.d_in(), expansion_factor=config.expansion_factor, sae_k=config.sae_k, forward=layers.forward_flops()
    )
    measured = measure(layers, n_tokens=config.n_tokens, cka=config.cka, progress=progress)
    similarity = measured.similarity
    table = grouping_table(similarity, cost, method=config.method, last_layer=config.last_layer)
    chosen = choose(table, config)
    return {
        "sites": similarity.sites,
        "groups": chosen["groups"],
        "k": chosen["k"],
        "method": config.method,
        "threshold": config.amad_threshold(),
        "last_layer": config.last_layer,
        "table": table,
        "distances": similarity.angular.tolist(),
        "cka": _numbers(similarity.cka) if config.cka else None,
        "n_rows": similarity.n_rows,
        "n_mean_rows": similarity.n_mean_rows,
        "n_tokens": measured.n_tokens,
        "seconds": measured.seconds,
        "flops_per_token": asdict(cost),
        "config": as_json(asdict(config)),
        **layers.describe(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(_LIBRARIES),
    }


def chosen_row(record: dict[str, Any]) -> dict[str, Any]:
    """The row of the table that was chosen."""
    return next(row for row in record["table"] if row["k"] == record["k"])


def _numbers(matrix: Tensor) -> list[list[float | None]]:
    """As JSON has them, which knows no NaN."""
    rows: list[list[float]] = matrix.numpy().tolist()
    return [[value if math.isfinite(value) else None for value in row] for row in rows]
