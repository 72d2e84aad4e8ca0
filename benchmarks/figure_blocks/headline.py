"""The README's table: one line for each claim, its figure, and the command that makes it."""

from collections import Counter
from collections.abc import Callable, Mapping

from figure_blocks.groups import difference, findings_at_k_star, seconds_share
from figure_blocks.meaning import METHODS
from figure_blocks.results import Results, minutes, percent, plus_minus, signed, table
from figure_blocks.steps import reached, times

_PEERS = (("saelens", "SAELens"), ("sparsify", "sparsify"), ("dictionary_learning", "dictionary_learning"))
_POSSESSIVE = {"saelens": "SAELens'", "sparsify": "sparsify's", "dictionary_learning": "dictionary_learning's"}
Line = tuple[str, str]


def headline(results: Results) -> str:
    rows = []
    for names, about, lines in _PARTS:
        lacking = any(name not in results for name in names)
        found = [(about, "not measured")] if lacking else lines(results)
        rows += [[claim, figure, f"`--only {' '.join(names)}`"] for claim, figure in found]
    told = (
        f"Measured on {_machines(results)}. `python benchmarks/figures.py` with the words of the last column makes a"
        " figure again."
    )
    return f"{told}\n\n{table(['claim', 'figure', 'command'], rows, left=3)}"


def _machines(results: Results) -> str:
    """What the figures were measured on, the machine of the most of them first."""
    names = dict.fromkeys(name for names, _, _ in _PARTS for name in names if name in results)
    known = [machine for machine in map(results.machine, names) if machine]
    told = Counter(
        f"{one['n_cores']} cores of an {one['processor']} {'with' if one['fast_dtype'] == 'bfloat16' else 'without'}"
        " bf16 instructions"
        for one in known
    )
    first, *others = (machine for machine, _ in told.most_common())
    return first + (f" ([docs/figures.md](docs/figures.md) names those on {' and '.join(others)})" if others else "")


def _step(results: Results) -> list[Line]:
    found = []
    for name in ("bench-384", "bench-768"):
        record = results[name]
        shape = f"d_in {record['setting']['d_in']}, d_sae {record['setting']['d_sae']:,}"
        ratios = {shown: times(record, peer) for peer, shown in _PEERS}
        found.append((f"a training step, {shape}", _times_as_fast(ratios)))
    steps = results["bench-384"]["steps"]
    ours = steps["strata"]["peak_bytes"]
    shares = [f"{ours / steps[peer]['peak_bytes']:.2f} of {_POSSESSIVE[peer]}" for peer, _ in _PEERS if peer in steps]
    found.append(("peak memory of a step above the rows", f"{ours / 2**20:.0f} MiB: {', '.join(shares)}"))
    return found


def _times_as_fast(ratios: Mapping[str, float | None]) -> str:
    """`16.0 times as fast as SAELens, 6.1 as sparsify`; None for a peer that was not run."""
    told = [f"{ratio:.1f} as {shown}" for shown, ratio in ratios.items() if ratio]
    absent = [shown for shown, ratio in ratios.items() if not ratio]
    said = ", ".join(told).replace(" as ", " times as fast as ", 1)
    return said + (f" ({', '.join(absent)} not run)" if absent else "")


def _quality(results: Results) -> list[Line]:
    ratios = {dict(_PEERS)[one.peer]: one.ratio for one in reached(results) if one.ratio}
    return [("time to a peer's own final FVU, at the best rate that was run", _times_as_fast(ratios) or "not reached")]


def _suite(results: Results) -> list[Line]:
    found = results["suite"]["results"]
    ours = found["strata"]["tokens_per_second"]
    ratios = {shown: ours / found[peer]["tokens_per_second"] for peer, shown in _PEERS if peer in found}
    return [("from text to saved SAEs of all 8 layers", _times_as_fast(ratios))]


def _demo(results: Results) -> list[Line]:
    record = results["demo"]
    values = [one["explained_variance"] for one in record["sites"].values()]
    claim = f"`make demo`, once installed: {len(values)} SAEs on {record['n_rows']:,} rows each"
    told = f"{minutes(record['command_seconds'])}, explained variance {min(values):.3f} to {max(values):.3f}"
    return [(claim, told)]


def _dead(results: Results) -> list[Line]:
    one = results["long"]["methods"]["auto"]
    [site] = one["sites"].values()
    claim = f"latents silent for the last million of {one['n_rows']:,} rows"
    return [(claim, f"{percent(one['last_line']['silent_1m_share'], 2)}, held-out FVU {site['fvu']:.3f}")]


def _synthetic(results: Results) -> list[Line]:
    found = {run: sum(one["mcc"] for one in of) / len(of) for run, of in results["synthetic"]["results"].items()}
    ours = max(value for run, value in found.items() if run.startswith("strata"))
    theirs = max(value for run, value in found.items() if run.startswith("saelens"))
    claim = "known features found again, mean correlation coefficient"
    return [(claim, f"{ours:.3f}; SAELens' trainer at the best rate run {theirs:.3f}")]


def _groups(results: Results) -> list[Line]:
    found, k, star = findings_at_k_star(results)
    lost, half = difference(found, found.layer_wise, star)
    saved = f"{seconds_share(results, '2 groups'):.2f} of the SAEs' seconds with 2 groups"
    told = (
        f"{saved}; {plus_minus(lost, half, 4)} of explained variance lost with {k} groups and the last layer's own SAE"
    )
    return [("one SAE for neighbouring layers", told)]


def _group_features(results: Results) -> list[Line]:
    mean, half = results["group-features"]["compared"]["simulation"]["difference"]
    told = f"{signed(mean, 3)} ± {half:.3f} in mean correlation"
    return [("features of groups beside those of one SAE per layer, explained", told)]


def _distances(results: Results) -> list[Line]:
    share = results["distances"]["float32"]["shares"]["distances"]
    return [("distances of all layers add to an fp32 forward", percent(share))]


def _plan(results: Results) -> list[Line]:
    found = [one["ratio"] for one in results["plan"]["results"].values()]
    claim = f"`strata plan`, predicted over measured, {len(found)} trainings"
    return [(claim, f"{min(found):.2f} to {max(found):.2f}")]


def _index(results: Results) -> list[Line]:
    record = results["index"]
    building, asked = record["building"]["1 SAE"]["ratios"]["wall"]["building"], record["asking"]["open and ask"]
    told = f"{building:.2f} times forward and encoding; {asked['median_ms']:.0f} ms"
    return [("building the index of a text; asking it for a feature's texts", told)]


def _explain(results: Results) -> list[Line]:
    record = results["explain"]
    found, path = record["results"], "simulation.all.correlation"
    own, other = found["scores"][path]["mean"], found["shuffled"][path]["mean"]
    told = f"{record['times']['seconds']:.0f} s; mean correlation {own:.2f}, shuffled {abs(other):.2f}"
    return [(f"{found['n_features']:,} features explained by token patterns and scored", told)]


def _steering(results: Results) -> list[Line]:
    methods = results["steering"]["methods"]
    told = [
        f"{METHODS[name]} {methods[name]['score']:.2f}" for name in ("nothing", "sae-add", "sae-clamp", "diff-means")
    ]
    return [("steering, score from 0 to 1", "; ".join(told))]


def _modes(results: Results) -> list[Line]:
    told = []
    for one in results["modes"]["results"].values():
        seconds = one["seconds_per_step"]
        told.append(f"{seconds['streaming'] / seconds['collected']:.1f} ({one['n_layers']} layers of {one['d_in']})")
    return [("training on collected rows, times as fast as streaming", ", ".join(told))]


def _gates(results: Results) -> list[Line]:
    found = results["gates"]["results"]
    told = ", ".join(f"{name} {signed(one['off_k_percent'], 1)} %" for name, one in found.items() if name != "topk")
    return [("L0 is what `k` says: off k on held-out files, reopened in SAELens", told)]


def _gpu(results: Results) -> list[Line]:
    record = results["gpu"]
    told = ", ".join(f"{name} {one['summary']['rows_per_second']:,.0f}" for name, one in record["steps"].items())
    return [(f"rows per second of a step on {record['machine']['device']}", told)]


_PARTS: tuple[tuple[tuple[str, ...], str, Callable[[Results], list[Line]]], ...] = (
    (("bench-384", "bench-768"), "a training step beside the peers'", _step),
    (("quality", "bench-384"), "time to a peer's own final FVU", _quality),
    (("suite",), "text to saved SAEs of all 8 layers", _suite),
    (("demo",), "`make demo`", _demo),
    (("long",), "dead latents after ten million rows", _dead),
    (("synthetic",), "known features found again", _synthetic),
    (("gates",), "L0 is what `k` says", _gates),
    (("groups",), "one SAE for neighbouring layers", _groups),
    (("group-features",), "how well features of groups are explained", _group_features),
    (("distances",), "distances of all layers", _distances),
    (("plan",), "`strata plan`, predicted over measured", _plan),
    (("modes",), "collected rows beside streaming", _modes),
    (("index",), "the index of a text", _index),
    (("explain",), "features explained and scored", _explain),
    (("steering",), "steering", _steering),
    (("gpu",), "on a GPU", _gpu),
)
