"""What a measurement was made on: `strata.bench.machine`, under the name that the programs beside it import."""

from strata.bench.machine import describe

__all__ = ["describe"]
