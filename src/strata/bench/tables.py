"""What was measured as Markdown tables, the ones that README shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from strata.bench.registry import OURS


def lines_of(record: Mapping[str, Any]) -> list[str]:
    """Lines of all tables of a record that `strata bench` writes."""
    parts = [_heading(record), _steps(record), _floors(record)]
    if record["widths"]:
        parts.append(_widths(record["widths"]))
    if record["quality"] is not None:
        parts.append(_trainings(record["quality"]))
    if record["reached"]:
        parts.append(_reached(record["reached"]))
    return [line for number, part in enumerate(parts) for line in ([""] if number else []) + part]


def _heading(record: Mapping[str, Any]) -> list[str]:
    setting, machine = record["setting"], record["machine"]
    where = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    shape = ", ".join(f"{name} {setting[name]}" for name in ("d_in", "d_sae", "k", "rows"))
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return [f"{shape}; {where}, {machine['n_threads']} threads, {machine['date']}; {packages}"]


def _steps(record: Mapping[str, Any]) -> list[str]:
    steps, floor = record["steps"], record["floor"]["seconds"]
    ours = steps.get(OURS, {})
    rows: list[list[str]] = []
    for name, one in steps.items():
        seconds, peak = one["median_seconds"], one.get("peak_bytes")
        rows.append(
            [
                name,
                _ms(seconds),
                f"{_ms(one['min_seconds'])} to {_ms(one['max_seconds'])}",
                f"{one['rows_per_second']:,.0f}",
                f"{seconds / ours['median_seconds']:.2f}" if ours else "",
                f"{seconds / floor:.2f}",
                "" if peak is None else f"{peak / 2**20:,.0f}",
            ]
        )
    heads = ["step", "median ms", "min to max ms", "rows/s", "against Strata", "against the product", "peak MiB"]
    return _table(heads, rows)


def _floors(record: Mapping[str, Any]) -> list[str]:
    flops = 2.0 * record["setting"]["rows"] * record["setting"]["d_in"] * record["setting"]["d_sae"]
    found: list[str] = []
    for dtype, pieces in record["products"].items():
        piece, one = min(pieces.items(), key=lambda item: item[1]["median_seconds"])
        seconds = one["median_seconds"]
        found.append(
            f"the score product alone, {dtype}: {_ms(seconds)} ms ({flops / seconds / 1e9:,.0f} GFLOP/s, {piece})"
        )
    own = record["selection"]
    found.append(f"Strata's product and choice of winners, {own['dtype']}: {_ms(own['median_seconds'])} ms")
    found.append(f"copying memory: {record['copy_bytes_per_second'] / 1e9:,.1f} GB/s, read and written")
    for lm_dtype, rate in record["forward_tokens_per_second"].items():
        found.append(f"the embedded language model's forward alone, {lm_dtype}: {rate:,.0f} tokens/s")
    return found


def _widths(widths: Sequence[Mapping[str, Any]]) -> list[str]:
    first = widths[0]
    rows = [
        [
            f"{one['d_sae']}",
            _ms(one["step_seconds"]),
            _ms(one["product_seconds"]),
            f"{one['ratio']:.2f}",
            f"{one['step_seconds'] / first['step_seconds']:.2f}",
            f"{one['product_seconds'] / first['product_seconds']:.2f}",
        ]
        for one in widths
    ]
    return _table(["d_sae", "step ms", "product ms", "step / product", "step grew", "product grew"], rows)


def _trainings(quality: Mapping[str, Any]) -> list[str]:
    setting, results = quality["setting"], quality["results"]
    rows = [
        [
            key,
            f"{one['fvu']:.4f}",
            f"{100 * one['silent_share']:.1f} %",
            f"{one['l0']:.1f}",
            f"{one['seconds']:.0f}",
        ]
        for key, one in sorted(results.items(), key=lambda item: item[1]["fvu"])
    ]
    about = f"After {setting['steps']} steps of {setting['rows']} rows, on {setting['held_out']} held-out ones:"
    heads = ["training", "held-out FVU", "silent", "L0", "seconds (not in turn)"]
    return [f"{about} {setting['source']}.", "", *_table(heads, rows)]


def _reached(reached: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [
            f"{one['peer']} ({one['best']})",
            f"{one['fvu']:.4f}",
            f"{one['peer_steps']}",
            _number(one["peer_seconds"], 1),
            "not reached" if one["our_steps"] is None else f"{one['our_steps']} ({one['ours']})",
            _number(one["our_seconds"], 1),
            _number(one["ratio"], 1),
        ]
        for one in reached
    ]
    heads = ["to the best final FVU of", "FVU", "its steps", "its seconds", "our steps", "our seconds", "times as long"]
    return _table(heads, rows)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _ms(seconds: float) -> str:
    """Milliseconds, with three digits at least."""
    return f"{1000 * seconds:.1f}" if seconds >= 0.01 else f"{1000 * seconds:.3f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]
