"""docs/figures.md: every figure on one page, with its command, its date and what was wanted of it."""

from figure_list import FIGURES, Figure

from figure_blocks.goals import goals, missed
from figure_blocks.registry import BLOCKS
from figure_blocks.results import Results

_HEAD = """# Figures

Every figure that a page of this repository names, the command that makes it, and when it was last made. This page is
written by `python benchmarks/figures.py`; a test fails when it is not what `benchmarks/results/` says.

```bash
python benchmarks/figures.py              # all, one at a time: 1 to {hours:.0f} hours on two otherwise idle cores
python benchmarks/figures.py --list       # their names
python benchmarks/figures.py --only gates # one
python benchmarks/figures.py --tables     # only this page and the tables in the others, from the results that are there
```

The commands below run one by itself. Those with peers need the extra `bench` (`--peers-python` names an interpreter
that has it). Times are of one machine and noisy: read the ratios.
"""


def whole_page(results: Results) -> str:
    """The page, from the title on."""
    parts = [_HEAD.format(hours=sum(figure.minutes for figure in FIGURES) / 60), "## What fell short", _short(results)]
    for figure in FIGURES:
        parts += [f"## {figure.name}", *_section(figure, results)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _short(results: Results) -> str:
    lacking = [figure.name for figure in FIGURES if figure.name not in results]
    lines = [f"- {sentence}" for sentence in missed(results)]
    if lacking:
        lines.append(f"- not measured: {', '.join(lacking)}")
    return "\n".join(["What was wanted and not found, and what was not measured:", "", *lines]) if lines else "Nothing."


def _section(figure: Figure, results: Results) -> list[str]:
    about = f"{figure.about[0].upper()}{figure.about[1:]}."
    found = [about, f"{results.source(figure.name)}."]
    if figure.name in results:
        found.append(_made_on(figure, results))
        for name, block in BLOCKS.items():
            shown_here = name != "headline" and block.figures[0] == figure.name
            if shown_here and all(one in results for one in block.figures):
                found.append(block.write(results))
        found.append(goals(results, (figure.name,)))
    return [part for part in found if part]


def _made_on(figure: Figure, results: Results) -> str:
    machine = results.machine(figure.name)
    if not machine:
        return ""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    device = machine.get("device", "cpu")
    where = machine["processor"] if device == "cpu" else f"{device}, {machine['processor']}"
    threads = f"{machine['n_threads']} thread{'s' if machine['n_threads'] > 1 else ''}"
    return f"{where}, {threads}; Python {machine['python']}, {packages}; load {machine['load_average']}."
