"""Findings while a run goes on: lines above the progress bar."""

import logging
from collections.abc import Mapping
from typing import Any

from strata.doctor.checks.registry import LIVE, Check
from strata.doctor.facts import facts_of
from strata.doctor.findings import RANKS, merged
from strata.doctor.record import Record, is_line

_MOST_LINES, _FIRST, _NEWEST = 40, 4, 16
_EVERY = 8  # lines between two looks, once there are _MOST_LINES


class Watch:
    """Looks at each logged line. Keeps at most 40 of them, the older the fewer; never stops a training.

    Args:
        facts: what the run says of itself, as in run.json; what is missing there is not looked at.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._given, self._facts = facts, None
        self._lines: list[Mapping[str, Any]] = []
        self._told: dict[str, int] = {}
        self._n_seen = 0

    def see(self, line: Mapping[str, Any]) -> list[str]:
        """New findings, one text each: what was told before is told again only if it has become worse.

        Args:
            line: as it stands in metrics.jsonl.
        """
        try:
            return self._see(line)
        except Exception:
            logging.getLogger(__name__).debug("the doctor stumbled", exc_info=True)
            return []

    def _see(self, line: Mapping[str, Any]) -> list[str]:
        if not is_line(line):
            return []
        self._facts = self._facts or facts_of(self._given)
        self._lines.append(line)
        self._n_seen += 1
        if len(self._lines) > _MOST_LINES:
            lines = self._lines
            self._lines = lines[:_FIRST] + lines[_FIRST:-_NEWEST:2] + lines[-_NEWEST:]
        last = self._facts.n_steps is not None and line["step"] >= self._facts.n_steps
        if self._n_seen > _MOST_LINES and self._n_seen % _EVERY and not last:
            return []
        record = Record(self._facts, self._lines)
        found = merged(finding for check in LIVE for finding in _found(check, record))
        new = [finding for finding in found if RANKS[finding.severity] > self._told.get(finding.name, -1)]
        for finding in reversed(new):
            self._told[finding.name] = max(RANKS[finding.severity], self._told.get(finding.name, -1))
        return [finding.line() for finding in new]


def _found(check: Check, record: Record) -> list[Any]:
    """What a check finds; one that stumbles does not keep the others from looking."""
    try:
        return check(record)
    except Exception:
        logging.getLogger(__name__).debug("%s stumbled", check.__name__, exc_info=True)
        return []
