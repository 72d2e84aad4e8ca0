"""What the doctor finds, in words and in numbers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from strata.doctor.words import listed

Severity = Literal["note", "warning", "error"]
RANKS: dict[str, int] = {"note": 0, "warning": 1, "error": 2}
_EXIT_CODES = {"note": 0, "warning": 3, "error": 4}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that somebody should know.

    Attributes:
        name: in a word or two with hyphens; the same for the same thing, and a row of docs/reading-a-run.md's table.
        severity: "note" is good to know, "warning" wastes time or quality, "error" spoils the result.
        what: one sentence.
        evidence: the numbers it rests on, in words.
        todo: one thing to do.
        numbers: the same evidence for scripts.
        sites: keys of the SAEs that it is about; empty for the run.
        weight: how bad, to compare the same finding between sites.
    """

    name: str
    severity: Severity
    what: str
    evidence: str
    todo: str
    numbers: Mapping[str, int | float] = field(default_factory=dict[str, int | float])
    sites: tuple[str, ...] = ()
    weight: int | float = 0.0

    def lines(self) -> list[str]:
        """For a page of findings."""
        of = f" · {listed(self.sites)}" if self.sites else ""
        worst = f" (the worst, {self.sites[0]})" if len(self.sites) > 1 else ""
        return [
            f"{self.severity.upper()} {self.name}{of}",
            f"  {self.what}",
            f"  Seen{worst}: {self.evidence}",
            f"  Do: {self.todo}",
        ]

    def line(self) -> str:
        """Above a progress bar."""
        of = f" [{listed(self.sites)}]" if self.sites else ""
        return f"{self.severity} · {self.name}{of}: {self.what} {self.evidence} {self.todo}"

    def as_json(self) -> dict[str, Any]:
        """What JSON can hold."""
        keys = ("name", "severity", "what", "evidence", "todo")
        return {key: getattr(self, key) for key in keys} | {"numbers": dict(self.numbers), "sites": list(self.sites)}


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """The same finding at several sites is one that names them, with the words of the worst; the worst come first."""
    together: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        together.setdefault((finding.name, finding.severity), []).append(finding)
    found: list[Finding] = []
    for same in together.values():
        ordered = sorted(same, key=lambda one: -one.weight)
        sites = tuple(dict.fromkeys(site for one in ordered for site in one.sites))
        found.append(replace(ordered[0], sites=sites))
    return sorted(found, key=lambda one: -RANKS[one.severity])


def exit_code(findings: Iterable[Finding]) -> int:
    """0 without more than notes, 3 with a warning, 4 with an error."""
    return max((_EXIT_CODES[finding.severity] for finding in findings), default=0)
