"""Plans as plain text: aligned columns, units in headers, at most 120 characters wide."""

import textwrap
from collections.abc import Mapping, Sequence

from strata.amounts import MISSING, counted, prefixed, share, spent
from strata.costs.step import Rates
from strata.plan.quote import Quote
from strata.plan.ways import Ways, shown_groups

WIDTH = 120
_MOST_DEVICE_COLUMNS = 4
_MOST_QUOTES_IN_PARTS = 4


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table: the first column to the left, the others to the right.

    Args:
        header: of the columns.
        rows: each as long as the header.
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(w) if n == 0 else cell.rjust(w) for n, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    return [line(lines[0]), line(["-" * w for w in widths]), *map(line, lines[1:])]


def wrapped(text: str, *, indent: str = "") -> list[str]:
    """A paragraph in lines of at most 120 characters, all but the first indented."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def listed(texts: Sequence[str]) -> list[str]:
    """Sentences as a list."""
    return [line for text in texts for line in wrapped(f"- {text}", indent="  ")]


def quotes_table(
    quotes: Sequence[Quote], *, assumed: bool, n_trainings: int = 1, by_devices: bool = False
) -> list[str]:
    """One row for each way.

    Args:
        quotes: the ways.
        assumed: seconds are not measured ones and are marked with "~".
        n_trainings: more than one adds a column with the time of all.
        by_devices: the rows are called after the number of devices.
    """
    with_device = any(quote.device_bytes for quote in quotes)
    with_price = any(quote.price is not None for quote in quotes)
    header = ["", "SAEs", "LM FLOP", "SAE FLOP", "moved B", "RAM B"]
    header += ["device B"] if with_device else []
    header += ["disk B", "time"]
    header += [f"{n_trainings} times"] if n_trainings > 1 else []
    header += ["price"] if with_price else []
    return aligned([*header, "fits"], [
        [
            counted(quote.n_devices, "device") if by_devices else quote.name,
            f"{quote.n_saes}",
            prefixed(quote.lm_flops),
            prefixed(quote.sae_flops),
            prefixed(quote.n_bytes),
            _total(quote.ram_bytes),
            *([_total(quote.device_bytes)] if with_device else []),
            _total(quote.disk_bytes),
            timed(quote.total_seconds, assumed=assumed),
            *([timed(quote.seconds_of(n_trainings), assumed=assumed)] if n_trainings > 1 else []),
            *([_money(quote.price, assumed=assumed)] if with_price else []),
            "yes" if quote.fits else "no",
        ]
        for quote in quotes
    ])  # fmt: skip


def groups_table(ways: Ways, *, assumed: bool) -> list[str]:
    """SAEs on all layers, by their number: work, memory and disk, time for each number of devices, from how many on it
    fits.

    What has no room in 120 columns is left out, and a line says so.
    """
    shown = [ways.groups[k] for k in shown_groups(max(ways.groups))]
    whole = ways.groups[max(ways.groups)][0]
    counts = [quote.n_devices for quote in shown[0]]
    counts = counts if len(counts) <= _MOST_DEVICE_COLUMNS else [*counts[: _MOST_DEVICE_COLUMNS - 1], counts[-1]]
    ones = [quotes[0] for quotes in shown]
    on_one = " on 1" if len(counts) > 1 else ""
    columns = {"all layers": [one.name for one in ones], "SAE FLOP": [prefixed(one.sae_flops) for one in ones]}
    columns |= {"all FLOP": [prefixed(_all_flops(one)) for one in ones]}
    columns |= {"of per-layer": [share(_ratio(_all_flops(one), _all_flops(whole))) for one in ones]}
    columns |= {"moved B": [prefixed(one.n_bytes) for one in ones]}
    columns |= {f"RAM B{on_one}": [_total(one.ram_bytes) for one in ones]}
    if any(one.device_bytes for one in ones):
        columns |= {f"device B{on_one}": [_total(one.device_bytes) for one in ones]}
    columns |= {"disk B": [_total(one.disk_bytes) for one in ones]}
    for n in counts:
        title = counted(n, "device") if on_one else "time"
        quotes = [next(quote for quote in each if quote.n_devices == n) for each in shown]
        columns[title] = [timed(quote.total_seconds, assumed=assumed) for quote in quotes]
    if whole.price is not None:
        columns[f"price{on_one}"] = [_money(one.price, assumed=assumed) for one in ones]
    columns["fits"] = [_fitting(quotes) for quotes in shown]
    ram = f"RAM B{on_one}" if any(one.device_bytes for one in ones) else ""
    return _narrowed(columns, ("moved B", "disk B", ram, f"price{on_one}", "SAE FLOP"))


def _all_flops(quote: Quote) -> float | None:
    return None if quote.lm_flops is None else quote.lm_flops + quote.sae_flops


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _fitting(quotes: Sequence[Quote]) -> str:
    """From how many devices on a way fits."""
    fewest = next((quote.n_devices for quote in quotes if quote.fits), None)
    return "no" if fewest is None else "yes" if fewest == 1 else f"from {fewest}"


def _narrowed(columns: Mapping[str, Sequence[str]], spare: Sequence[str]) -> list[str]:
    """A table without as many of the spare columns as make it fit, the first of them first, and a line that says so."""
    columns = dict(columns)
    left_out: list[str] = []

    def table() -> list[str]:
        return aligned(list(columns), list(zip(*columns.values(), strict=True)))

    for name in spare:
        if len(table()[1]) <= WIDTH:
            break
        if columns.pop(name, None) is not None:
            left_out.append(name)
    return [*table(), *(wrapped(f"No room for {', '.join(left_out)}: `--json FILE` has them.") if left_out else [])]


def plan_of_quotes(
    headline: str, rates: Rates, quotes: Sequence[Quote], *, parts: bool, said: Sequence[str], explained: Sequence[str]
) -> list[str]:
    """The text of a plan that is no training's.

    Args:
        headline: what is planned.
        rates: of the machine.
        quotes: its ways.
        parts: also where the seconds go, of four ways at most.
        said: sentences behind the tables.
        explained: paragraphs behind these; none of them unless `--explain` asks.
    """
    assumed = rates.kind == "assumed"
    lines = [*wrapped(headline, indent="  "), machine_line(rates), "", *quotes_table(quotes, assumed=assumed), ""]
    lines += [*parts_table(quotes[:_MOST_QUOTES_IN_PARTS], assumed=assumed), ""] if parts else []
    return [*lines, *listed(said), *(["", *listed(explained)] if explained else [])]


def machine_line(rates: Rates) -> str:
    """On which machine, and whether its speeds were measured."""
    return f"on {rates.name} ({rates.source if rates.kind == 'measured' else 'assumed'})"


def parts_table(quotes: Sequence[Quote], *, assumed: bool) -> list[str]:
    """Where the seconds go: a row for each part, a column for each way."""
    names = list(dict.fromkeys(part for quote in quotes for part in quote.seconds))
    rows = [[name, *(_part(quote.seconds, name, assumed=assumed) for quote in quotes)] for name in names]
    return aligned(["seconds of", *(quote.name for quote in quotes)], rows)


def timed(seconds: float | None, *, assumed: bool) -> str:
    """A time; "~" before one that was not measured on the machine."""
    text = spent(seconds)
    return f"~{text}" if assumed and text != MISSING else text


def _part(seconds: Mapping[str, float | None], name: str, *, assumed: bool) -> str:
    return timed(seconds[name], assumed=assumed) if name in seconds else "–"


def _total(parts: Mapping[str, float]) -> str:
    return prefixed(sum(parts.values(), 0.0))


def _money(price: float | None, *, assumed: bool) -> str:
    if price is None:
        return MISSING
    return f"{'~' if assumed else ''}{price:,.2f}" if price < 1000 else f"{'~' if assumed else ''}{price:,.0f}"
