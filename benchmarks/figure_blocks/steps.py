"""Blocks about speed: the step beside the peers', whole suites, both modes, stores."""

import statistics
from typing import Any

from figure_blocks.results import Results, percent, signed, table
from strata.bench.reached import Reached, all_reached

NAMES = {
    "strata": "Strata", "saelens": "SAELens", "sparsify": "sparsify", "dictionary_learning": "dictionary_learning",
    "forward": "the language model's forward alone",
}  # fmt: skip
_MODELS = {"demo": "embedded model", "deep": "random weights"}


def times(record: dict[str, Any], peer: str) -> float | None:
    """How many of Strata's steps a peer's step takes; None if it was not run."""
    steps = record["steps"]
    if peer not in steps:
        return None
    return steps[peer]["median_seconds"] / steps["strata"]["median_seconds"]


def product_seconds(record: dict[str, Any], dtype: str) -> float:
    """The score product alone, in the fastest piece."""
    return min(one["median_seconds"] for one in record["products"][dtype].values())


def step(results: Results) -> str:
    shapes = [results["bench-384"], results["bench-768"]]
    head = [""]
    for record in shapes:
        setting = record["setting"]
        head += [f"d_in {setting['d_in']}, d_sae {setting['d_sae']}", "of Strata's", "peak memory above the rows"]
    rows = []
    for name in ("strata", "saelens", "dictionary_learning", "sparsify"):
        cells = [NAMES[name]]
        for record in shapes:
            cells += _step_cells(record, name)
        rows.append(cells)
    for dtype, shown in (("float32", "fp32"), ("bfloat16", "bf16"), ("int8", "int8")):
        cells = [f"the score product alone, {shown}"]
        for record in shapes:
            found = product_seconds(record, dtype)
            cells += [_ms(found), f"{found / record['steps']['strata']['median_seconds']:.2f}", ""]
        rows.append(cells)
    setting, machine = shapes[0]["setting"], shapes[0]["machine"]
    told = (
        f"k {setting['k']}, {setting['rows']:,} rows a step; medians. Contenders take turns, each in its own process."
    )
    bf16 = "" if machine["fast_dtype"] == "bfloat16" else " This processor has no bf16 instructions and emulates them."
    return f"{told}{bf16}\n\n{table(head, rows)}"


def _step_cells(record: dict[str, Any], name: str) -> list[str]:
    if name not in record["steps"]:
        return ["not run", "", ""]
    found = record["steps"][name]
    peak = f"{found['peak_bytes'] / 2**20:.0f} MiB" if "peak_bytes" in found else ""
    return [_ms(found["median_seconds"]), f"{times(record, name):.1f}", peak]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def quality(results: Results) -> str:
    record = results["quality"]
    setting = record["setting"]
    rows = []
    for key, one in sorted(record["results"].items(), key=lambda item: item[1]["fvu"]):
        shares = [percent(one["silent_share"]), f"{one['seconds']:.0f}"]
        rows.append([f"`{key}`", f"{one['fvu']:.4f}", *shares])
    told = (
        f"d_sae {setting['d_sae']}, k {setting['k']}, {setting['steps']} steps of {setting['rows']:,} rows (`@` names"
        f" other numbers of steps, `:` the learning rate), {setting['held_out']:,} held-out rows, one seed."
    )
    silent = f"silent on {setting['held_out']:,} rows"
    found = [told, table(["training", "held-out FVU", silent, "seconds in steps"], rows)]
    if reached(results):
        found += ["How long Strata takes to each peer's final FVU at the best of its rates that were run:"]
        found += [table(["peer", "FVU", "its steps", "Strata's steps", "its seconds", "Strata's seconds", "ratio"],
                        [_reached(one) for one in reached(results)], left=1)]  # fmt: skip
    return "\n\n".join(found)


def reached(results: Results) -> list[Reached]:
    """How Strata fares to each peer's final FVU: steps of the trainings times the seconds of a step."""
    medians = {name: one["median_seconds"] for name, one in results["bench-384"]["steps"].items()}
    return all_reached(results["quality"], medians)


def _reached(one: Reached) -> list[str]:
    cells = [f"`{one.best}`", f"{one.fvu:.4f}", str(one.peer_steps)]
    if one.our_steps is None:
        return [*cells, "not reached", "", "", ""]
    ours = f"{one.our_steps} (`{one.ours}`)"
    if one.ratio is None:
        return [*cells, ours, "step not timed", "", ""]
    return [*cells, ours, f"{one.peer_seconds:.0f}", f"{one.our_seconds:.1f}", f"{one.ratio:.1f}"]


def suite(results: Results) -> str:
    record = results["suite"]
    ours = record["results"]["strata"]["tokens_per_second"]
    rows = []
    for name, one in record["results"].items():
        seconds, rate = statistics.median(one["seconds"]), one["tokens_per_second"]
        ratio = "1" if name == "strata" else f"{ours / rate:.2f}"
        rows.append([NAMES.get(name, name), f"{one['tokens']:,}", f"{seconds:.1f}", f"{rate:,.0f}", ratio])
    setting = record["setting"]
    told = (
        f"{setting['sites']} layers, k {setting['k']}, {setting['rows']:,} rows a step, {setting['rounds']} round; the"
        " memory settings of Strata's command for all. The peers get the model loaded and the text tokenised,"
        " uncounted."
    )
    return f"{told}\n\n{table(['', 'tokens', 'seconds', 'tokens/s', 'Strata is faster by'], rows)}"


def stream(results: Results) -> str:
    rows = []
    for name in ("stream-1-site", "stream-8-sites"):
        record = results[name]
        seconds = record["seconds_per_step"]
        label = record["sites"][0] if len(record["sites"]) == 1 else f"all {len(record['sites'])} layers"
        parts = [f"{seconds[part]:.3f}" for part in ("forward", "sae", "stream", "whole forward")]
        rows.append([label, *parts, f"{signed(100 * record['overhead'], 1)} %"])
    head = ["seconds per 4,096 rows", "forward to the last site", "SAE steps", "stream", "whole forward with logits",
            "stream over forward and steps"]  # fmt: skip
    return table(head, rows)


def modes(results: Results) -> str:
    rows = []
    for name, one in results["modes"]["results"].items():
        seconds = one["seconds_per_step"]
        layer = one["site"].removeprefix("layers.")
        shape = f"layer {layer} of {one['n_layers']}, d_in {one['d_in']}, d_sae {one['d_sae']:,}"
        parts = seconds["forward"] + seconds["step"]
        over = {what: signed(100 * (seconds[what] / seconds["step"] - 1), 0) for what in ("collected", "store")}
        rows.append([
            f"{_MODELS[name]}, {shape}", f"{1 / seconds['step']:.1f}",
            *(f"{1 / seconds[what]:.1f} ({over[what]} %)" for what in ("collected", "store")),
            f"{1 / seconds['forward']:.1f}", f"{1 / seconds['streaming']:.1f}",
            f"{signed(100 * (seconds['streaming'] / parts - 1), 0)} %",
            f"{seconds['streaming'] / seconds['collected']:.1f}",
        ])  # fmt: skip
    head = ["steps per second", "SAE step alone", "collected", "from a store", "forward alone", "streaming",
            "streaming over forward + step", "collected is faster by"]  # fmt: skip
    return table(head, rows)


def store(results: Results) -> str:
    record = results["store"]
    rows = []
    for dtype, one in record["reading"].items():
        for way, rate in one["bytes_per_second"].items():
            shown = "the disk itself" if way == "sequential" else way
            per_second = f"{one['rows_per_second'][way] / 1000:,.0f} k"
            share = percent(one["share_of_sequential"][way], 0)
            rows.append([f"{dtype}, {shown}", f"{rate / 1e9:.2f}", per_second, share])
    quality = record["quality"]
    on_int8, on_fp32 = (quality[f"fvu, trained {how}"] for how in ("on int8, measured on fp32", "and measured on fp32"))
    told = (
        f"Quality: an SAE trained on int8 rows has held-out FVU {on_int8:.4f}, trained on fp32 rows {on_fp32:.4f}; the"
        " rounding itself is"
        f" {quality['fvu of the rounding itself']:.5f} of the variance."
    )
    return f"{table(['', 'GB/s', 'rows/s', 'of the disk'], rows)}\n\n{told}"


def gpu(results: Results) -> str:
    record = results["gpu"]
    rows = []
    for name, one in record["steps"].items():
        found = one["summary"]
        peer = f"{found['times_fastest_peer']:.1f} ({found['fastest_peer']})" if found["fastest_peer"] else ""
        rows.append([name, f"{found['rows_per_second']:,.0f}", f"{found['steps_per_second']:,.0f}",
                     f"{found['over_score_product']:.2f}", peer])  # fmt: skip
    head = ["shape", "rows per second", "steps per second", "over the score product", "faster than the fastest peer"]
    streamed = record["stream"]
    told = (
        f"{record['machine']['device']}, kernels `{record['kernels']}`. A stream from a model of 8 billion"
        f" parameters with random weights ({streamed['site']}) reaches"
        f" {streamed['rows_per_second']['stream']:,.0f} rows per second, {percent(streamed['share_of_forward'], 0)}"
        " of the forward alone."
    )
    return f"{table(head, rows)}\n\n{told}"
