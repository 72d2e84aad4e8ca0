"""What the commands that interpret a run have in common: whose features, on which text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from strata.config.settings import check_kinds, names_unknown_settings, require


@names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """The index of a run's features: where on some text each of them fires, and how strongly."""

    run: Path
    """Folder of a run. Its index lies in RUN/index; one that was made before, of the same SAEs and text, is used."""
    sites: tuple[str, ...] = ("all",)
    """Whose features: sites ("layers.3"), folders below RUN/sae ("layers.0-2/layers.1"), or "all"."""
    n_tokens: int = 262_144
    """Tokens of text to read, all in one pass of the language model."""
    data: str = "auto"
    """The text; "auto" is that of the run."""
    reindex: bool = False
    """Make the index anew, and drop what was made from it."""
    device: str = "auto"
    """"auto" (CUDA where there is one), "cpu", "cuda", "cuda:1"."""
    lm_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the language model's forward; "auto" is bf16 where the hardware multiplies it fast."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    def __post_init__(self) -> None:
        check_kinds(self)
        require(self.n_tokens >= 1, "n_tokens", "be at least 1", self.n_tokens, "Give a larger number.")
        require(bool(self.sites), "sites", "name sites", "none", 'Give names or "all".')
        alone = "all" not in self.sites or len(self.sites) == 1
        require(alone, "sites", 'be "all" alone or names', " ".join(self.sites), 'Leave "all" out.')

    @property
    def index_folder(self) -> Path:
        """Where the run's index lies."""
        return self.run / "index"
