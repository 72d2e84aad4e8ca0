"""Which layers of a described run share an SAE: none, those that are given, or those that lie near each other."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strata.amounts import counted
from strata.config.groups import GroupsConfig
from strata.config.layer_groups import checked_groups, group_name
from strata.config.sweep import sweep_configs
from strata.config.train import TrainConfig
from strata.errors import UserError
from strata.groups.choice import check_choice
from strata.groups.files import read_groups, write_groups
from strata.groups.measured import Layers, StoredLayers, TextLayers, residual_layers
from strata.groups.record import groups_record
from strata.log import say
from strata.run_rows import RunRows, StoredRows

_TOKENS = 100_000  # on which distances are measured
_LEAST_TOKENS = 20


@dataclass(frozen=True)
class RunGroups:
    """The groups of a run.

    Attributes:
        sites: of each group; None where every site has its own SAE.
        record: what `groups_record` found, where layers were measured for this run.
    """

    sites: list[tuple[str, ...]] | None = None
    record: dict[str, Any] | None = field(default=None, repr=False)

    def named(self) -> dict[str, list[str]] | None:
        """For run.json: the sites by the group's name."""
        return None if self.sites is None else {group_name(sites): list(sites) for sites in self.sites}

    def measured(self) -> dict[str, float] | None:
        """For run.json: the `seconds` of measuring and the `n_tokens` looked at; None where nothing was measured."""
        return None if self.record is None else {key: self.record[key] for key in ("seconds", "n_tokens")}

    def write(self, folder: Path) -> None:
        """What was found, into groups/ of a run's folder."""
        if self.record is not None:
            write_groups(folder / "groups", self.record)


def check_groups(config: TrainConfig) -> None:
    """What can be known of given groups before a model is loaded.

    Raises:
        UserError: they cannot be read, or hold no groups.
    """
    if config.groups not in ("none", "auto"):
        groups = read_groups(config.groups)
        checked_groups(groups, residual_layers({site for group in groups for site in group}))


def groups_of(
    config: TrainConfig, rows: RunRows, *, before: dict[str, Any] | None = None, progress: bool = True
) -> RunGroups:
    """The groups that a description asks for; for "auto" those of the record, if a run goes on.

    Distances are measured on the first 100,000 training tokens. Partitioned are all layers but the last, which gets its
    own SAE, into the fewest groups whose AMAD is below 0.2 (`strata groups` has flags for both).

    Args:
        config: the run.
        rows: of all its sites, whose layers are grouped.
        before: the record of a run that goes on.
        progress: say on stderr what happens.

    Raises:
        UserError: given groups that are not of this model's layers, or not those of the run before; or layers or text
            that are too few to be measured.
    """
    if config.groups == "none":
        return RunGroups()
    if config.groups != "auto":
        groups = RunGroups(checked_groups(read_groups(config.groups), residual_layers(rows.sites)))
        if before is not None and before.get("groups") not in (None, groups.named()):
            raise UserError(
                f"`resume` needs the groups of the run before, {', '.join(before['groups'])}. {config.groups} holds"
                f" {', '.join(groups.named() or ())} now. Start another run with --out."
            )
        return groups
    if before is not None:  # without groups it is another run, which is said later
        given = before.get("groups")
        say(f"groups as measured before: {', '.join(given or ())}", shown=progress and bool(given))
        return RunGroups(given and [tuple(sites) for sites in given.values()])
    return _measured(config, rows, progress=progress)


def _measured(config: TrainConfig, rows: RunRows, *, progress: bool) -> RunGroups:
    layers = _layers(config, rows)
    check_choice(GroupsConfig(), n_layers=len(layers.sites))
    say(f"measuring how alike {counted(len(layers.sites), 'layer')} are", shown=progress)
    n_tokens = layers.n_rows(_TOKENS if config.n_tokens == "all" else min(_TOKENS, config.n_tokens))
    if n_tokens < _LEAST_TOKENS:
        raise UserError(
            f'`groups` "auto" needs at least {_LEAST_TOKENS} rows to measure layers on. Got {n_tokens}. Give more text,'
            " or groups of your own."
        )
    record = groups_record(layers, _as_groups_config(config, layers, n_tokens=n_tokens), progress=progress)
    groups = [tuple(sites) for sites in record["groups"]]
    say(f"{counted(len(groups), 'group')}: {', '.join(map(group_name, groups))}", shown=progress)
    return RunGroups(groups, record)


def _layers(config: TrainConfig, rows: RunRows) -> Layers:
    if isinstance(rows, StoredRows):
        return StoredLayers(rows.store)
    return TextLayers(rows.language_model, rows.training_tokens(), lm_dtype=config.lm_dtype)


def _as_groups_config(config: TrainConfig, layers: Layers, *, n_tokens: int) -> GroupsConfig:
    """What `strata groups` would be told; of a sweep the first SAE is the one whose cost is predicted."""
    sae = sweep_configs(config.sae, config.sweep)[0]
    sae.d_sae(layers.d_in())
    source: dict[str, Any] = {"model": config.model, "data": config.data}
    if isinstance(layers, StoredLayers):
        source = {"activations": config.activations}
    return GroupsConfig(
        **source,
        n_tokens=n_tokens,
        context_tokens=config.context_tokens,
        text_batch_size=sae.text_batch_size,
        expansion_factor=sae.expansion_factor,
        sae_k=sae.k,
        cka=False,
        device=config.device,
        lm_dtype=config.lm_dtype,
        trust_remote_code=config.trust_remote_code,
    )
