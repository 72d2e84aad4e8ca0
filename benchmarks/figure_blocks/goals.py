"""What was wanted of each figure before it was measured (docs/LOG.md), beside what was found."""

from collections.abc import Callable
from dataclasses import dataclass

from figure_blocks.results import Results, percent, plain, table
from figure_blocks.steps import reached, times


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A bound.

    Attributes:
        figure: whose.
        what: in words.
        bound: the number wanted.
        at_most: whether it is an upper bound, else a lower one.
        found: reads the number; None where it was not measured.
        shown: how both are written.
    """

    figure: str
    what: str
    bound: float
    at_most: bool = False
    found: Callable[[Results], float | None]
    shown: Callable[[float], str] = lambda number: plain(number, 1)

    def reached(self, number: float) -> bool:
        """Whether a number is on the right side."""
        return number <= self.bound if self.at_most else number >= self.bound


def _peak_share(results: Results, peer: str) -> float | None:
    steps = results["bench-384"]["steps"]
    if peer not in steps or "peak_bytes" not in steps[peer]:
        return None
    return steps["strata"]["peak_bytes"] / steps[peer]["peak_bytes"]


def _sooner(results: Results, peer: str) -> float | None:
    return next((one.ratio for one in reached(results) if one.peer == peer), None) if "bench-384" in results else None


def _suite(results: Results, peer: str) -> float | None:
    found = results["suite"]["results"]
    if peer not in found:
        return None
    return found["strata"]["tokens_per_second"] / found[peer]["tokens_per_second"]


def _worst_mode(results: Results, what: str) -> float:
    """By how much the slowest model's training is over its parts."""
    found = []
    for one in results["modes"]["results"].values():
        seconds = one["seconds_per_step"]
        parts = seconds["step"] + (seconds["forward"] if what == "streaming" else 0)
        found.append(seconds[what] / parts - 1)
    return max(found)


def _plan_off(results: Results) -> float:
    return max(abs(one["ratio"] - 1) for one in results["plan"]["results"].values())


def _share(digits: int) -> Callable[[float], str]:
    return lambda number: percent(number, digits).replace("-", "−")


def _digits(digits: int) -> Callable[[float], str]:
    return lambda number: plain(number, digits)


def _ratio(figure: str, peer: str) -> Callable[[Results], float | None]:
    return lambda results: times(results[figure], peer)


def _overhead(figure: str) -> Callable[[Results], float]:
    return lambda results: results[figure]["overhead"]


def _of_disk(dtype: str, way: str) -> Callable[[Results], float]:
    return lambda results: results["store"]["reading"][dtype]["share_of_sequential"][way]


def _right(results: Results) -> float:
    found = results["doctor"]["results"].values()
    return sum(one["right"] for one in found) / len(found)


_STEPS = (
    Goal(figure="bench-384", what="step, times as fast as SAELens'", bound=22, found=_ratio("bench-384", "saelens")),
    Goal(figure="bench-384", what="step, times as fast as sparsify's", bound=7, found=_ratio("bench-384", "sparsify")),
    Goal(figure="bench-768", what="step, times as fast as SAELens'", bound=20, found=_ratio("bench-768", "saelens")),
    Goal(
        figure="bench-384", what="peak memory above the rows, of SAELens'", bound=0.25, at_most=True,
        found=lambda results: _peak_share(results, "saelens"), shown=_digits(2),
    ),
    Goal(
        figure="bench-384", what="peak memory above the rows, of sparsify's", bound=0.4, at_most=True,
        found=lambda results: _peak_share(results, "sparsify"), shown=_digits(2),
    ),
    Goal(
        figure="quality", what="times sooner at SAELens' final FVU", bound=20,
        found=lambda results: _sooner(results, "saelens"),
    ),
    Goal(
        figure="quality", what="times sooner at sparsify's final FVU", bound=8,
        found=lambda results: _sooner(results, "sparsify"),
    ),
    Goal(
        figure="suite", what="times as fast as sparsify's trainer", bound=4,
        found=lambda results: _suite(results, "sparsify"),
    ),
    Goal(
        figure="suite", what="times as fast as SAELens' runner", bound=12,
        found=lambda results: _suite(results, "saelens"),
    ),
)  # fmt: skip
_ROWS = (
    Goal(
        figure="gates", what="BatchTopK's held-out L0, off k", bound=0.02, at_most=True, shown=_share(1),
        found=lambda results: abs(results["gates"]["results"]["batchtopk"]["off_k_percent"]) / 100,
    ),
    Goal(
        figure="modes", what="collected rows over the step alone, the worse of two models", bound=0.05, at_most=True,
        found=lambda results: _worst_mode(results, "collected"), shown=_share(1),
    ),
    Goal(
        figure="modes", what="rows from a store over the step alone, the worse of two", bound=0.05, at_most=True,
        found=lambda results: _worst_mode(results, "store"), shown=_share(1),
    ),
    Goal(
        figure="modes", what="streaming over forward and step, the worse of two models", bound=0.1, at_most=True,
        found=lambda results: _worst_mode(results, "streaming"), shown=_share(1),
    ),
    Goal(
        figure="stream-1-site", what="stream over its parts, one layer", bound=0.1, at_most=True,
        found=_overhead("stream-1-site"), shown=_share(1),
    ),
    Goal(
        figure="stream-8-sites", what="stream over its parts, all layers", bound=0.1, at_most=True,
        found=_overhead("stream-8-sites"), shown=_share(1),
    ),
    *(
        Goal(
            figure="store", what=f"{dtype}, {way}, of the disk's rate", bound=0.8, shown=_share(0),
            found=_of_disk(dtype, way),
        )
        for dtype in ("fp16", "int8") for way in ("first epoch", "later epoch")
    ),
    Goal(
        figure="store", what="what training on int8 adds to held-out FVU", bound=0.002, at_most=True, shown=_digits(4),
        found=lambda results: results["store"]["quality"]["effect of int8 on training"],
    ),
    Goal(
        figure="distances", what="distances of all layers, of an fp32 forward", bound=0.1, at_most=True,
        found=lambda results: results["distances"]["float32"]["shares"]["distances"], shown=_share(1),
    ),
    Goal(
        figure="plan", what="predicted seconds off those taken, the worst case", bound=0.2, at_most=True,
        found=_plan_off, shown=_share(0),
    ),
)  # fmt: skip
_FEATURES = (
    Goal(
        figure="index", what="building over forward and encoding, one SAE", bound=1.3, at_most=True, shown=_digits(2),
        found=lambda results: results["index"]["building"]["1 SAE"]["ratios"]["wall"]["building"],
    ),
    Goal(
        figure="index", what="a query, 99th percentile, ms", bound=50, at_most=True,
        found=lambda results: results["index"]["asking"]["open and ask"]["p99_ms"],
    ),
    Goal(
        figure="index", what="10 million tokens at 32 active latents, GB", bound=2, at_most=True,
        found=lambda results: results["index"]["keeping"]["10_million_tokens_at_k_32_gigabytes"],
    ),
    Goal(
        figure="explain", what="explaining and scoring one SAE's features, seconds", bound=60, at_most=True,
        found=lambda results: results["explain"]["times"]["seconds"],
    ),
    Goal(
        figure="doctor", what="trainings of which the doctor says what it should", bound=1, shown=_share(0),
        found=_right,
    ),
)  # fmt: skip
GOALS = (*_STEPS, *_ROWS, *_FEATURES)


def goals(results: Results, figures: tuple[str, ...]) -> str:
    """A table of the goals of some figures; empty where none was set."""
    rows = []
    for goal in GOALS:
        if goal.figure not in figures or goal.figure not in results:
            continue
        number = goal.found(results)
        bound = f"{'at most' if goal.at_most else 'at least'} {goal.shown(goal.bound)}"
        if number is None:
            rows.append([goal.what, bound, "not measured", ""])
        else:
            rows.append([goal.what, bound, goal.shown(number), "yes" if goal.reached(number) else "**no**"])
    return table(["goal", "wanted", "found", "reached"], rows, left=4) if rows else ""


def missed(results: Results) -> list[str]:
    """What fell short, in words, over all figures."""
    found = []
    for goal in GOALS:
        number = goal.found(results) if goal.figure in results else None
        if number is not None and not goal.reached(number):
            bound = f"{'at most' if goal.at_most else 'at least'} {goal.shown(goal.bound)}"
            found.append(f"{goal.figure}: {goal.what}: {goal.shown(number)}, wanted {bound}")
    return found
