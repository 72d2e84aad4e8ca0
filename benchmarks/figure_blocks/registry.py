"""Every block by name: the figures that it shows, and what writes it."""

from collections.abc import Callable
from dataclasses import dataclass

from figure_list import FIGURES

from figure_blocks import groups, meaning, prices, steps, training
from figure_blocks.headline import headline
from figure_blocks.results import Results


@dataclass(frozen=True)
class Block:
    """A row.

    Attributes:
        figures: whose results it reads; the block says that they are not there until all are.
        write: gives the Markdown.
    """

    figures: tuple[str, ...]
    write: Callable[[Results], str]


BLOCKS = {
    "headline": Block(tuple(figure.name for figure in FIGURES), headline),
    "demo-sites": Block(("demo",), training.demo_sites),
    "step": Block(("bench-384", "bench-768"), steps.step),
    "quality": Block(("quality", "bench-384"), steps.quality),
    "suite": Block(("suite",), steps.suite),
    "gates": Block(("gates",), training.gates),
    "synthetic": Block(("synthetic",), training.synthetic),
    "dead": Block(("dead",), training.dead),
    "dead-long": Block(("long",), training.dead_long),
    "modes": Block(("modes",), steps.modes),
    "stream": Block(("stream-1-site", "stream-8-sites"), steps.stream),
    "store": Block(("store",), steps.store),
    "distances": Block(("distances",), groups.distances),
    "groups-methods": Block(("groups",), groups.methods),
    "groups-ranks": Block(("groups",), groups.ranks),
    "groups-flops": Block(("groups",), groups.flops),
    "groups-seconds": Block(("groups",), groups.seconds),
    "groups-findings": Block(("groups",), groups.findings),
    "group-features": Block(("group-features",), meaning.group_features),
    "plan": Block(("plan",), prices.plan),
    "scaling": Block(("scaling",), prices.scaling),
    "scaling-checks": Block(("scaling",), prices.scaling_checks),
    "scaling-coverage": Block(("scaling-coverage",), prices.scaling_coverage),
    "doctor": Block(("doctor",), prices.doctor),
    "index": Block(("index",), meaning.index),
    "explain": Block(("explain",), meaning.explain),
    "dashboard": Block(("dashboard",), meaning.dashboard),
    "steering": Block(("steering",), meaning.steering),
    "interactions": Block(("interactions",), meaning.interactions),
    "gpu": Block(("gpu",), steps.gpu),
}


def rendered(name: str, results: Results) -> str:
    """A block as it stands in a page: its table, and the commands with their dates."""
    block = BLOCKS[name]
    if name == "headline":
        return block.write(results)
    sources = "\n".join(
        f"{results.source(figure)}.{'' if figure == block.figures[-1] else '<br>'}" for figure in block.figures
    )
    if any(figure not in results for figure in block.figures):
        return sources
    return f"{block.write(results)}\n\n{sources}"
