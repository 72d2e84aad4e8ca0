"""Amounts as people say them: "3.4 GB", "1.2 P", "6.2·10^18", "2 h 05 min"."""

import itertools

MISSING = "?"
_PREFIXES = (
    *(("Q", 1e30), ("R", 1e27), ("Y", 1e24), ("Z", 1e21), ("E", 1e18)),
    *(("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)),
)
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def prefixed(amount: float | None) -> str:
    """Three digits with an SI prefix: "3.42 G"; "0" and "?" for none."""
    if amount is None:
        return MISSING
    for prefix, size in _PREFIXES:
        if abs(amount) >= 0.9995 * size:
            return f"{_digits(amount / size)} {prefix}"
    return _digits(amount)


def sized(amount: float | None, unit: str) -> str:
    """The same with its unit: "3.42 GB"."""
    text = prefixed(amount)
    return f"{text}{unit}" if text[-1].isalpha() else f"{text} {unit}"


def powered(amount: float) -> str:
    """Two digits and a power of ten, for what has no prefix: "6.2·10^18", "10^30"."""
    digits, exponent = f"{amount:.1e}".split("e")
    power = f"10^{int(exponent)}"
    return power if digits == "1.0" else f"{digits}·{power}"


def spent(seconds: float | None) -> str:
    """A time in its two largest units: "2 h 05 min", "3 min 20 s", "4.2 s", "35 ms"."""
    if seconds is None:
        return MISSING
    if seconds < 0.9995:
        return f"{1e3 * seconds:.2g} ms" if seconds < 0.0995 else f"{seconds:.2g} s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for (size, unit), (smaller, below) in itertools.pairwise(_UNITS):
        if whole >= size:
            rest = round(whole % size / smaller)
            if rest * smaller == size:
                return f"{whole // size + 1} {unit}"
            return f"{whole // size} {unit} {rest:02d} {below}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def counted(n: int, noun: str) -> str:
    """How many of a thing: "1 site", "3 sites", "12,000 rows"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def share(part: float | None) -> str:
    """A share as a percentage."""
    return MISSING if part is None else f"{_digits(100 * part)} %"


def _digits(amount: float) -> str:
    """Three significant ones, whole numbers from 100 on."""
    if amount == 0:
        return "0"
    return f"{amount:,.0f}" if abs(amount) >= 99.95 else f"{amount:.3g}"
