"""Which versions of libraries are installed."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """The version of each, by its name; None where it is not installed."""
    return {name: _version(name) for name in distributions}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
