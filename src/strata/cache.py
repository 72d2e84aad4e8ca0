"""Where Strata keeps what it made once for this machine: compiled kernels, calibrations, benchmark rows."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$STRATA_CACHE, else `strata` in the user's cache folder. It need not exist."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("STRATA_CACHE") or Path(user) / "strata")
