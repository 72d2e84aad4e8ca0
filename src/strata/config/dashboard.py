"""What `strata dashboard` is asked to do."""

from dataclasses import dataclass
from pathlib import Path

from strata.config.interpret import IndexConfig
from strata.config.settings import Auto, names_unknown_settings, require


@names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class DashboardConfig(IndexConfig):
    """Pages that show what the features of a run mean, for disk or any web server: what `strata dashboard RUN` does."""

    n_examples: int = 12
    """Texts of each feature on which it is strongest. Two from each of five parts of its activations, six drawn at
    random where it fires, and four where it does not, come beside them."""
    before_tokens: int = 24
    """Tokens shown before the one that a text is cut around."""
    after_tokens: int = 8
    """Tokens shown behind it."""
    explain: bool = True
    """Explain the features by token patterns where the run has no explanations yet."""
    neuronpedia: bool = False
    """Also write JSON in the shape that Neuronpedia imports (OUT/neuronpedia). It is several times as large."""
    out: Path | Auto = "auto"
    """Folder of the pages; "auto" is RUN/dashboard."""
    overwrite: bool = False
    """Replace a dashboard that exists already."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("n_examples", 1), ("before_tokens", 0), ("after_tokens", 0)):
            value = getattr(self, name)
            require(least <= value <= 200, name, f"be between {least} and 200", value, "Give another number.")

    def folder(self) -> Path:
        """The folder of the pages: `out`, or one inside the run's."""
        return Path(self.run) / "dashboard" if self.out == "auto" else Path(self.out)
