"""`strata doctor`: a run's folder in, words and an exit code out."""

import json

from strata.config.doctor import DoctorConfig
from strata.doctor.examine import examine


def doctor(config: DoctorConfig) -> tuple[list[str], int]:
    """The lines for stdout and the exit code.

    Raises:
        UserError: there is no run to look at.
    """
    found = examine(config.run)
    lines = [json.dumps(found.as_json(), indent=1)] if config.json else found.lines()
    return lines, found.exit_code
