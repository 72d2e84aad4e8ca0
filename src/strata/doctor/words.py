"""Numbers as a person says them."""

from collections.abc import Sequence


def percent(share: int | float) -> str:
    """`87.5 %`, `0.4 %`, `9 %`; what is not quite nothing is `<0.1 %`."""
    value = 100 * share
    if 0 < value < 0.05:
        return "<0.1 %"
    return f"{value:.3g} %" if value >= 0.1 or value == 0 else f"{value:.1f} %"


def number(value: int | float) -> str:
    """Three digits that count, thousands separated: `0.0623`, `12,800`."""
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def span(seconds: int | float) -> str:
    """A length of time in the unit that suits it: `7.4 minutes`."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.3g} seconds"


def between(values: Sequence[int | float], *, shown: str = "number") -> str:
    """`0.04 to 0.12`, or one number where all look the same."""
    say = percent if shown == "percent" else number
    low, high = say(min(values)), say(max(values))
    return low if low == high else f"{low} to {high}"


def listed(names: tuple[str, ...]) -> str:
    """The first three names, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
