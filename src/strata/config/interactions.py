"""What `strata interactions` is asked to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from strata.config.interpret import IndexConfig
from strata.config.settings import Auto, names_unknown_settings, require


@names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class InteractionsConfig(IndexConfig):
    """Which features fire together, and which contribute to which: what `strata interactions RUN` does."""

    rank_by: Literal["jaccard", "phi", "pearson", "lift", "count"] = "jaccard"
    """By which measure a feature's partners are ranked."""
    n_partners: int = 10
    """Partners of each feature, within its site and at each other site that is looked at."""
    across: Literal["none", "nearest", "all"] = "nearest"
    """Which two sites' features are looked for together, besides those of one site: those of neighbouring sites, or of
    any two (n sites have n(n − 1)/2 pairs, each as much work as a site)."""
    n_least: int = 10
    """Tokens on which two features must fire together to be partners."""
    least_jaccard: float = 0.1
    """The smallest Jaccard index of an edge of the co-activation graph."""
    n_edges: int = 2000
    """Edges of the co-activation graph, the strongest."""
    n_targets: int = 50
    """Features of each site but the first whose sources are looked for, one backward pass each; 0 is none."""
    targets: Literal["mass", "task"] = "mass"
    """Which: "mass", those whose activations have the largest sum on the text; "task", those with the largest effect on
    the answers of `task`, on whose prompts edges are then measured."""
    task: str = "none"
    """A downstream task, by name, for targets "task"."""
    n_sources: int = 10
    """Sources of each target in the attribution graph, at each upstream site."""
    upstream: Literal["nearest", "all"] = "nearest"
    """Where sources are looked for: at the site before the target's, or at all sites before it."""
    n_edge_tokens: int = 4096
    """Tokens of the index on which edges are measured, in whole sequences from all over it."""
    batch_sequences: int = 8
    """Sequences per forward and backward pass."""
    out: Path | Auto = "auto"
    """Folder of the results; "auto" is RUN/interactions."""
    overwrite: bool = False
    """Replace results that exist already."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_partners", "n_least", "n_edges", "n_sources", "n_edge_tokens", "batch_sequences"):
            require(getattr(self, name) >= 1, name, "be at least 1", getattr(self, name), "Give a larger number.")
        require(self.n_targets >= 0, "n_targets", "be at least 0", self.n_targets, "Give 0 for no edges.")
        low = self.least_jaccard
        require(0 <= low <= 1, "least_jaccard", "be between 0 and 1", low, "Give another number.")
        of_task = (self.targets == "task") == (self.task != "none")
        require(of_task, "task", 'be named with targets "task", and only then', self.task, "Give both or neither.")

    def folder(self) -> Path:
        """The folder of the results: `out`, or one inside the run's."""
        return Path(self.run) / "interactions" if self.out == "auto" else Path(self.out)
