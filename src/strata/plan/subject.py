"""What is planned: a described training, its language model as its configuration states it, its text's length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from strata.activations.store_layout import Manifest, Part, read_manifest, read_part
from strata.assignments import Assignment, assign, sites_read
from strata.config.layer_groups import checked_groups
from strata.config.sweep import check_sweep, sweep_configs
from strata.config.train import SAEConfig, TrainConfig
from strata.errors import UserError, did_you_mean
from strata.groups.files import read_groups
from strata.lm.model import LanguageModel
from strata.lm.outline import outline
from strata.plan.model import Model
from strata.plan.rows import RowShape, row_shape
from strata.plan.saes import PlannedSAE, planned_saes
from strata.plan.text import TokenCount, count_tokens
from strata.run_rows import chosen_sites


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A training that is planned.

    Attributes:
        config: as described, model and data named.
        model: of the rows.
        saes: all that are trained side by side.
        sites: that are read.
        targets: that transcoders predict.
        widths: of these sites and of `layers`.
        layers: all residual sites that could have SAEs, of one width; none where they are not known.
        tokens: rows of one epoch.
        store: of the rows, if they are of one.
        notes: what was assumed, in sentences.
    """

    config: TrainConfig
    model: Model
    saes: list[PlannedSAE]
    sites: list[str]
    targets: list[str]
    widths: dict[str, int]
    layers: list[str]
    tokens: TokenCount
    store: Manifest | None = None
    notes: list[str] = field(default_factory=list[str])

    @property
    def n_rows(self) -> int:
        """Rows of one epoch."""
        return self.tokens.n_tokens

    @property
    def n_steps(self) -> int:
        """Of the whole training."""
        return self.n_rows * self.config.sae.num_epochs // self.config.sae.batch_size

    @property
    def configs(self) -> list[SAEConfig]:
        """Of the SAEs: one, or those of a sweep."""
        return sweep_configs(self.config.sae, self.config.sweep)

    def shape(self) -> RowShape:
        """Of a row of the described training."""
        return row_shape(self.saes, self.widths, targets=self.targets)


def described_assignments(
    config: TrainConfig, sites: Sequence[str], layers: Sequence[str]
) -> tuple[dict[str, Assignment], list[str]]:
    """What a description makes, and what had to be assumed for it, in sentences.

    Groups that are measured when a run starts are not known before: pairs of neighbouring layers stand for them, and
    the last layer for itself.

    Args:
        config: the run.
        sites: that it names.
        layers: of which groups are.

    Raises:
        UserError: a sweep or groups that are none, or a transcoder of several sites.
    """
    check_sweep(sweep_configs(config.sae, config.sweep))
    groups: list[tuple[str, ...]] | None = None
    notes: list[str] = []
    if config.groups == "auto":
        first = list(layers[:-1]) or list(layers)
        groups = [tuple(first[start : start + 2]) for start in range(0, len(first), 2)]
        groups += [(layers[-1],)] if len(layers) > 1 else []
        notes.append(
            f"Groups are measured when the run starts: {len(groups)} SAEs stand for them here (pairs of neighbours, and"
            " the last layer); the table of groups has every number."
        )
    elif config.groups != "none":
        groups = checked_groups(read_groups(config.groups), layers)
    targets = {}
    if config.target_site != "same":
        if len(sites) > 1:
            raise UserError(f"`target_site` is for a single site. Got {len(sites)} sites. Give --sites with one name.")
        targets = {sites[0]: config.target_site}
    configs = sweep_configs(config.sae, config.sweep)
    return assign(sites, configs, target_sites=targets, skip=config.skip, groups=groups), notes


def model_of(lm: LanguageModel, config: TrainConfig, *, on_device: bool) -> Model:
    """A description's language model, outlined or loaded."""
    return Model.of(lm, context_tokens=config.context_tokens, lm_dtype=config.lm_dtype, device=config.device,
                    on_device=on_device)  # fmt: skip


def subject_of(config: TrainConfig, *, on_device: bool) -> Subject:
    """What a described training would be, no weights read.

    Args:
        config: the training.
        on_device: whether an accelerator runs it.

    Raises:
        UserError: a model, site, store or text that is none, or a text whose tokens cannot be known beforehand.
    """
    if config.activations not in ("stream", "collected"):
        return _of_store(config, on_device=on_device)
    named = {"model": ("demo", config.model), "data": ("stdlib", config.data)}
    config = replace(config, **{key: auto if given == "auto" else given for key, (auto, given) in named.items()})
    lm = outline(config.model, trust_remote_code=config.trust_remote_code, tokenizer=config.n_tokens == "all")
    if lm.max_positions is not None and config.context_tokens > lm.max_positions:
        raise UserError(
            f"`context_tokens` must be at most {lm.max_positions}, the model's longest text. Got"
            f" {config.context_tokens}. Lower it."
        )
    tokens = tokens_of(config, lm.tokenizer)
    sites = chosen_sites(lm, ("all",) if config.groups != "none" else config.sites)
    assignments, notes = described_assignments(config, sites, lm.sites)
    widths = {site: lm.d_in(site) for site in dict.fromkeys([*sites_read(assignments), *lm.sites])}
    return _subject(config, model_of(lm, config, on_device=on_device), assignments, widths, tokens, notes)


def tokens_of(config: TrainConfig, tokenizer: Any) -> TokenCount:
    """Rows of one epoch of a described training.

    Raises:
        UserError: too few for a batch, or a number that cannot be known.
    """
    if config.n_tokens != "all":
        return TokenCount(config.n_tokens, "given")
    tokens = count_tokens(config.data, tokenizer)
    if tokens.n_tokens * config.sae.num_epochs < config.sae.batch_size:
        raise UserError(
            f"The text must give at least one batch of `batch_size`={config.sae.batch_size} rows. It gives"
            f" {tokens.n_tokens} a pass. Give more text or lower batch_size."
        )
    return tokens


def _subject(
    config: TrainConfig,
    model: Model,
    assignments: Mapping[str, Assignment],
    widths: dict[str, int],
    tokens: TokenCount,
    notes: list[str],
    *,
    layers: list[str] | None = None,
    store: Manifest | None = None,
) -> Subject:
    found = model.lm.sites if layers is None and model.lm is not None else layers or []
    return Subject(
        config=config,
        model=model,
        saes=planned_saes(assignments, widths),
        sites=sites_read(assignments),
        targets=[one.target_site for one in assignments.values() if one.target_site is not None],
        widths=widths,
        layers=found if len({widths[site] for site in found}) == 1 else [],
        tokens=tokens,
        store=store,
        notes=notes,
    )


def _of_store(config: TrainConfig, *, on_device: bool) -> Subject:
    folder = Path(config.activations)
    manifest = read_manifest(folder)
    n_rows = stored_rows(folder, manifest)
    stored = list(manifest.sites)
    chosen = {"all": stored, "middle": [stored[(len(stored) - 1) // 2]]}
    given = ("all",) if config.groups != "none" else config.sites
    sites = list(dict.fromkeys(site for name in given for site in chosen.get(name, [name])))
    for site in [*sites, *([] if config.target_site == "same" else [config.target_site])]:
        if site not in stored:
            raise UserError(f"`sites` must be sites of the store. Got {site!r}.{did_you_mean(site, stored)}")
    config = replace(config, context_tokens=manifest.text["context_tokens"])
    layers = [site for site in stored if site.removeprefix("layers.").isdecimal()]
    assignments, notes = described_assignments(config, sites, layers)
    model, said = _model_of_store(config, manifest, on_device=on_device)
    tokens = TokenCount(n_rows, "counted: the store's rows")
    return _subject(
        config, model, assignments, dict(manifest.sites), tokens, notes + said, layers=layers, store=manifest
    )


def stored_rows(folder: Path, manifest: Manifest) -> int:
    """Rows of each site that a store holds by now.

    Raises:
        UserError: none.
    """
    parts = [read_part(folder, Part(index, manifest.n_parts)) for index in range(manifest.n_parts)]
    n_rows = sum(shard.rows for part in parts for shard in part.shards)
    if n_rows == 0:
        raise UserError(f"A store must hold rows. {folder} holds none yet. Collect them first.")
    return n_rows


def _model_of_store(config: TrainConfig, manifest: Manifest, *, on_device: bool) -> tuple[Model, list[str]]:
    name = str(manifest.model["name"]) if config.model == "auto" else config.model
    try:
        lm = outline(name, trust_remote_code=config.trust_remote_code)
        if all(lm.d_in(site) == width for site, width in manifest.sites.items()):
            return model_of(lm, config, on_device=on_device), []
        why = f"{name} has sites of another width than the store's"
    except UserError as error:
        why = str(error)
    known = manifest.model.get("n_parameters")
    said = f"The store's model is not at hand, so that what needs it is not reckoned ({why})."
    n_parameters = None if known is None else float(known)
    context_tokens = manifest.text["context_tokens"]
    return Model(name=name, lm=None, n_parameters=n_parameters, context_tokens=context_tokens, on_device=on_device), [
        said
    ]
