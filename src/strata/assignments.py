"""What a training is to make: for each result its site or group, its target, its config, and what it is called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strata.config.layer_groups import Group, group_name
from strata.config.sweep import check_sweep, labels
from strata.config.train import SAEConfig
from strata.errors import UserError, did_you_mean
from strata.sae.group import GroupSAE
from strata.sae.model import SAE


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One SAE, transcoder or group's SAE to train.

    Attributes:
        site: what it reads; of a group the group's name.
        config: how it is trained.
        target_site: what it predicts; None is the site itself (an SAE).
        skip: a transcoder with a skip connection.
        init: what it starts from; None is random weights.
        group: the layers that share it; None is a site by itself.
    """

    site: str
    config: SAEConfig
    target_site: str | None = None
    skip: bool = False
    init: SAE | GroupSAE | None = None
    group: Group | None = None

    @property
    def name(self) -> str:
        """`layers.3`, or `layers.3.to.layers.4` of a transcoder."""
        return self.site if self.target_site is None else f"{self.site}.to.{self.target_site}"

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that it reads."""
        return (self.site,) if self.group is None else self.group.sites

    @property
    def read(self) -> str | Group:
        """What a batch has to hold for it."""
        return self.site if self.group is None else self.group


def assign(
    sites: Sequence[str],
    config: SAEConfig | Sequence[SAEConfig],
    *,
    target_sites: Mapping[str, str] | None = None,
    skip: bool = False,
    init: Mapping[str, SAE | GroupSAE] | None = None,
    groups: Sequence[Sequence[str]] | None = None,
) -> dict[str, Assignment]:
    """One assignment per site and config, by the key under which its result is found.

    Args:
        sites: what is read.
        config: of every SAE, or the configs of a sweep: the keys are then `layers.3/k=16`.
        target_sites: for transcoders, site → target.
        skip: transcoders get a skip connection.
        init: site (or group's name) → what its SAEs start from.
        groups: sites that share an SAE, which then takes the place of one SAE per site; see
            `strata.config.layer_groups.checked_groups`.

    Raises:
        UserError: configs that cannot be trained side by side; a target or an init of a site that is not trained; a
            skip connection without a transcoder.
    """
    configs = [config] if isinstance(config, SAEConfig) else list(config)
    check_sweep(configs)
    if groups is not None and target_sites:
        raise UserError("`target_sites` is for single sites. Got it with groups. Leave one of the two out.")
    together = {group_name(group): Group(tuple(group)) for group in groups or () if len(group) > 1}
    if groups is not None:
        sites = [group_name(group) for group in groups]
    targets, starts = dict(target_sites or {}), dict(init or {})
    for setting, named in (("target_sites", targets), ("init", starts)):
        for site in named:
            if site not in sites:
                raise UserError(f"`{setting}` names a site that is not trained: {site!r}.{did_you_mean(site, sites)}")
    if skip and not targets:
        raise UserError("`skip` must be False for an SAE. Got True without a target site. Give target_site too.")
    assignments: dict[str, Assignment] = {}
    for site in sites:
        target = targets.get(site)
        for own, label in zip(configs, labels(configs), strict=True):
            start, skips = starts.get(site), skip and target is not None
            group = together.get(site)
            one = Assignment(site=site, config=own, target_site=target, skip=skips, init=start, group=group)
            assignments[f"{one.name}/{label}" if label else one.name] = one
    return assignments


def sites_read(assignments: Mapping[str, Assignment]) -> list[str]:
    """All sites whose rows are needed, each once: what is read, then what is predicted."""
    read = [site for one in assignments.values() for site in one.sites]
    return list(dict.fromkeys([*read, *(one.target_site for one in assignments.values() if one.target_site)]))


def reads(assignments: Mapping[str, Assignment]) -> list[str | Group]:
    """What a batch has to hold, each once."""
    wanted = [read for one in assignments.values() for read in (one.read, one.target_site) if read is not None]
    return list(dict.fromkeys(wanted))
