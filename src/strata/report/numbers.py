"""Numbers and times of a run, which may be missing or not finite, as text: "0.104", "2.1 %", "1.2 M", "3 min 20 s"."""

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal

MISSING = "–"
NBSP = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"

Form = Literal["ratio", "share", "percent", "count", "mean_count", "nats", "quantity", "activation"]


def number(value: Any) -> float | None:
    """The value as a finite float, or None where it is missing, not a number, NaN or infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def numbers(values: Iterable[Any]) -> list[float]:
    """Those of the values that are finite numbers."""
    return [n for value in values if (n := number(value)) is not None]


def show(value: Any, form: Form) -> str:
    """A number as a table shows it, an en dash where there is none.

    Args:
        value: anything; what is no finite number counts as missing.
        form: "ratio" 0.104; "share" in [0, 1] as a percentage; "percent" a signed percentage that is one already;
            "count" an integer with separators; "mean_count" with one decimal; "nats" with three; "quantity" any
            magnitude in at most three digits, "activation" in exactly three.
    """
    n = number(value)
    if n is None:
        return MISSING
    match form:
        case "ratio" | "nats":
            text = _fixed(n, 3)
        case "share":
            text = _fixed(100 * n, 0 if n == 0 else 1) + NBSP + "%"
        case "percent":
            text = ("+" if n > 0 else "") + _fixed(n, 1) + NBSP + "%"
        case "count":
            text = f"{round(n):,}"
        case "mean_count":
            text = f"{n:,.1f}"
        case "activation":
            text = f"{n:#.3g}".rstrip(".") if abs(n) < 1000 else f"{n:,.0f}"
        case "quantity":
            text = f"{n:,.0f}" if abs(n) >= 1000 else f"{n:.3g}"
    return text.replace("-", MINUS, 1) if text.startswith("-") else text


def _fixed(n: float, n_decimals: int) -> str:
    """With that many decimals, or with two significant digits where those decimals would all be 0."""
    if n != 0 and abs(n) < 0.5 * 10**-n_decimals:
        return f"{n:.2g}" if abs(n) < 1e-4 else f"{n:.{1 - math.floor(math.log10(abs(n)))}f}"
    return f"{n:.{n_decimals}f}"


def spread(values: Iterable[Any], form: Form) -> str:
    """The smallest and the largest of the values, "0.812–0.934", or one of them where they read the same."""
    known = numbers(values)
    if not known:
        return MISSING
    low, high = show(min(known), form), show(max(known), form)
    if low == high:
        return low
    unit = NBSP + "%"
    return f"{low.removesuffix(unit) if high.endswith(unit) else low}–{high}"


def mean(values: Iterable[Any]) -> float | None:
    """The mean of those values that are finite numbers, or None."""
    known = numbers(values)
    return sum(known) / len(known) if known else None


def short_count(value: Any) -> str:
    """A large count in three digits: "812", "65.5 k", "1.05 M", "2.1 G"."""
    n = number(value)
    if n is None:
        return MISSING
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= 0.9995 * size:
            digits = f"{n / size:.3g}"
            return (f"{n / size:.0f}" if "e" in digits else digits) + NBSP + prefix
    return f"{n:.3g}"


def duration(seconds: Any) -> str:
    """Seconds as "0.8 s", "71 s", "3 min 20 s", "2 h 5 min"."""
    n = number(seconds)
    if n is None:
        return MISSING
    if n < 100:
        return (f"{n:.1f}" if n < 10 else f"{n:.0f}") + NBSP + "s"
    minutes, rest = divmod(round(n), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min" + (f" {rest}{NBSP}s" if rest else "")
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}{NBSP}h" + (f" {minutes}{NBSP}min" if minutes else "")


def moment(date: Any) -> str:
    """A time in the form of ISO 8601 as all pages show it, "2026-11-21 20:58 UTC"; anything else as it is.

    Args:
        date: of a record, which writes them in UTC; an en dash stands for none.
    """
    try:
        found = datetime.fromisoformat(date)
        found = found.astimezone(UTC) if found.tzinfo else found
    except (TypeError, ValueError, OverflowError):
        return str(date) if date else MISSING
    return f"{found:%Y-%m-%d %H:%M} UTC"
