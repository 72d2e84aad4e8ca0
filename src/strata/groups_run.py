"""What `strata groups` does: measure the layers, find the groups, write them down."""

import math
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from strata.activations.distances import LayerSimilarity, layer_similarity, shuffled_rows, streamed_rows
from strata.activations.harvest import token_stream
from strata.activations.source import SiteRows
from strata.activations.store import open_store
from strata.atomic import as_json
from strata.groups import GroupingCost, check_choice, choose, grouping_cost, grouping_table
from strata.groups_config import GroupsConfig
from strata.groups_file import check_folder, write_groups
from strata.lm.model import LanguageModel
from strata.log import say

_SECONDS_BETWEEN_LINES = 5
_LIBRARIES = ("strata-sae", "torch", "transformers")


def groups_run(config: GroupsConfig, *, progress: bool = True) -> Path:
    """Measure the layers, find the groups and write them as groups.json.

    Args:
        config: what to do.
        progress: say on stderr what happens.

    Returns:
        The folder.

    Raises:
        UserError: whatever in the description cannot be done; a folder that exists stays as it is.
    """
    folder = config.folder()
    check_folder(folder, overwrite=config.overwrite)
    start = time.perf_counter()
    similarity, cost, origin = _measure(config, progress=progress)
    table = grouping_table(similarity, cost, method=config.method, last_layer=config.last_layer)
    chosen = choose(table, config)
    record = {
        "sites": similarity.sites,
        "groups": chosen["groups"],
        "k": chosen["k"],
        "method": config.method,
        "threshold": config.threshold,
        "last_layer": config.last_layer,
        "table": table,
        "distances": similarity.angular.tolist(),
        "cka": _numbers(similarity.cka) if config.cka else None,
        "n_rows": similarity.n_rows,
        "n_mean_rows": similarity.n_mean_rows,
        "flops_per_token": asdict(cost),
        "config": as_json(asdict(config)),
        **origin,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in _LIBRARIES},
    }
    write_groups(folder, record)
    say(
        f"{len(similarity.sites)} layers in {chosen['n_saes']} SAEs (worst diameter {chosen['worst_diameter']:.3f},"
        f" AMAD {chosen['amad']:.3f}): {100 * chosen['saving']:.0f} % less FLOPs than one per layer;"
        f" {similarity.n_rows + similarity.n_mean_rows} rows in {time.perf_counter() - start:.0f} s",
        shown=progress,
    )
    return folder


def _measure(config: GroupsConfig, *, progress: bool) -> tuple[LayerSimilarity, GroupingCost, dict[str, Any]]:
    """Similarity, cost, and of which model and text they are."""
    return (_measure_store if config.from_store() else _measure_stream)(config, progress=progress)


def _measure_store(config: GroupsConfig, *, progress: bool) -> tuple[LayerSimilarity, GroupingCost, dict[str, Any]]:
    store = open_store(Path(config.activations))
    sites = _residual(store.sites)
    cost = grouping_cost(None, sites, config, d_in=store.d_in(sites[0] if sites else store.sites[0]))
    check_choice(config, cost, n_layers=len(sites))
    say(f"{config.activations}: {store.n_rows()} rows of {len(sites)} layers", shown=progress)
    n_tokens = min(config.n_tokens, store.n_rows())
    similarity = _similarity(shuffled_rows(store.only(sites)), sites, config, n_tokens=n_tokens, progress=progress)
    return similarity, cost, store.describe()


def _measure_stream(config: GroupsConfig, *, progress: bool) -> tuple[LayerSimilarity, GroupingCost, dict[str, Any]]:
    model = "demo" if config.model == "auto" else config.model
    data = "stdlib" if config.data == "auto" else config.data
    lm = LanguageModel(model, device=config.device, trust_remote_code=config.trust_remote_code)
    sites, width = list(lm.sites), lm.d_in(lm.middle_site)
    cost = grouping_cost(lm, sites, config, d_in=width)
    check_choice(config, cost, n_layers=len(sites))
    say(f"{lm.name}: {len(sites)} layers of width {width}; text: {data}", shown=progress)
    tokens = token_stream(
        lm, data, context_tokens=config.context_tokens, text_batch_size=config.text_batch_size, split="train"
    )
    rows = streamed_rows(lm, tokens, sites, lm_dtype=config.lm_dtype)
    similarity = _similarity(rows, sites, config, n_tokens=config.n_tokens, progress=progress)
    return similarity, cost, {"mode": "stream", "model": lm.fingerprint(), "text": tokens.describe()}


def _similarity(
    rows: Iterable[SiteRows], sites: list[str], config: GroupsConfig, *, n_tokens: int, progress: bool
) -> LayerSimilarity:
    counted = _counted(rows, n_tokens=n_tokens, shown=progress)
    return layer_similarity(counted, sites, n_tokens=n_tokens, cka=config.cka)


def _counted(rows: Iterable[SiteRows], *, n_tokens: int, shown: bool) -> Iterator[SiteRows]:
    """The same, with a line every few seconds."""
    n_rows, last = 0, time.monotonic()
    for batch in rows:
        yield batch
        n_rows += len(next(iter(batch.values())))
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"row {min(n_rows, n_tokens)}/{n_tokens}", shown=shown)


def _residual(sites: Iterable[str]) -> list[str]:
    numbers = sorted(int(match[1]) for site in sites if (match := re.fullmatch(r"layers\.(\d+)", site)))
    return [f"layers.{number}" for number in numbers]


def _numbers(matrix: Tensor) -> list[list[float | None]]:
    """As JSON has them, which knows no NaN."""
    return [[value if math.isfinite(value) else None for value in row] for row in matrix.tolist()]


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
