"""What `strata doctor` is asked to do."""

from dataclasses import dataclass
from pathlib import Path

from strata.config.settings import check_kinds, names_unknown_settings


@names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Look at a run, finished or still going, and say in words what is wrong with it: what `strata doctor RUN` does.

    Exit code: 0 nothing but notes, 3 the worst finding is a warning, 4 it is an error, 2 there is no run to look at.
    """

    run: Path
    """Folder of the run."""
    json: bool = False
    """Write the findings as one JSON object, for scripts."""

    def __post_init__(self) -> None:
        check_kinds(self)
