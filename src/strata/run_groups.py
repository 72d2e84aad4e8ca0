"""Which layers of a described run share an SAE: none, those of a file, or those that lie near each other."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strata.activations.distances import LayerSimilarity, layer_similarity, measured_similarity, shuffled_rows
from strata.config import TrainConfig
from strata.groups import find_groups
from strata.groups_file import read_groups, write_groups
from strata.layer_groups import checked_groups, group_name
from strata.log import say
from strata.run_rows import RunRows, StoredRows

_TOKENS = 100_000  # on which distances are measured


@dataclass(frozen=True)
class RunGroups:
    """The groups of a run.

    Attributes:
        sites: of each group; None where every site has its own SAE.
        similarity: of the layers, where it was measured for this run.
    """

    sites: list[tuple[str, ...]] | None = None
    similarity: LayerSimilarity | None = field(default=None, repr=False)

    def named(self) -> dict[str, list[str]] | None:
        """For run.json: the sites by the group's name."""
        return None if self.sites is None else {group_name(sites): list(sites) for sites in self.sites}

    def write(self, folder: Path) -> None:
        """What was measured, into groups/ of a run's folder."""
        measured = self.similarity
        if measured is not None and self.sites is not None:
            record = {
                "sites": measured.sites,
                "groups": [list(sites) for sites in self.sites],
                "distances": measured.angular.tolist(),
                "n_rows": measured.n_rows,
                "n_mean_rows": measured.n_mean_rows,
            }
            write_groups(folder / "groups", record)


def groups_of(
    config: TrainConfig, rows: RunRows, *, before: dict[str, Any] | None = None, progress: bool = True
) -> RunGroups:
    """The groups that a description asks for; those of the record of a run that goes on.

    Distances are measured on the first 100,000 training tokens. Partitioned are all layers but the last, which gets its
    own SAE, into the fewest groups whose AMAD is below 0.2 (`strata groups` has flags for both).

    Raises:
        UserError: a file that holds no groups of this model's layers.
    """
    if config.groups == "none":
        return RunGroups()
    if before is not None and before.get("groups"):
        return RunGroups([tuple(sites) for sites in before["groups"].values()])
    if config.groups != "auto":
        return RunGroups(checked_groups(read_groups(Path(config.groups)), rows.sites))
    say(f"measuring how alike {len(rows.sites)} layers are", shown=progress)
    similarity = _measured(config, rows)
    groups = [tuple(sites) for sites in find_groups(similarity)]
    say(f"{len(groups)} groups: {', '.join(map(group_name, groups))}", shown=progress)
    return RunGroups(groups, similarity)


def _measured(config: TrainConfig, rows: RunRows) -> LayerSimilarity:
    if isinstance(rows, StoredRows):
        source = rows.store.only(rows.sites)
        n_tokens = min(_TOKENS, source.n_rows())
        return layer_similarity(shuffled_rows(source), rows.sites, n_tokens=n_tokens, cka=False)
    return measured_similarity(
        rows.language_model,
        config.data,
        n_tokens=_TOKENS if config.n_tokens == "all" else min(_TOKENS, config.n_tokens),
        cka=False,
        split="train",
        context_tokens=config.context_tokens,
        text_batch_size=config.sae.text_batch_size,
        lm_dtype=config.lm_dtype,
    )
