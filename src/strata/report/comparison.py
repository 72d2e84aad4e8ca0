"""The whole way of `strata evaluate`: compare runs, then tables, plots and a page of what was found."""

import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from strata.atomic import write_json
from strata.config.evaluate import EvaluateConfig
from strata.evaluate.compare import compare_runs
from strata.out_folder import check_free, new_folder, unfinished_beside
from strata.report.comparison_tables import tables
from strata.report.cost_plot import cost_plot, left_out, points
from strata.report.numbers import moment
from strata.report.templates import filled

_RECORD = "evaluation.json"


def evaluate_and_report(config: EvaluateConfig, *, progress: bool = True) -> Path:
    """Evaluate runs as described (`strata.evaluate.compare.compare_runs`) and write a folder.

    The folder holds evaluation.json (everything), evaluation.md (the tables), fvu.svg and delta_ce.svg (quality against
    cost, of the suites with the sites that all have; left out where none has both) and index.html (all of it, needing
    nothing but itself). It appears whole or not at all. What is found before the end lies beside it, under a hidden
    name: the same command, given again after an interruption, goes on with it.

    Args:
        config: the evaluation.
        progress: say on stderr what happens.

    Returns:
        The page.

    Raises:
        UserError: what cannot be evaluated, see `compare_runs`; or a folder that exists or cannot be written.
        KeyboardInterrupt: as it came, with a sentence on how to go on.
    """
    folder = config.folder()
    check_free(folder, record=_RECORD, what="evaluations", overwrite=config.overwrite)
    try:
        compared = compare_runs(config, keep=unfinished_beside(folder) / "parts.json", progress=progress)
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt("interrupted. The same command goes on with what it had found.") from stopped
    found = {
        "strata_version": version("strata-sae"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **compared,
    }
    write_comparison(found, folder)
    return folder / "index.html"


def write_comparison(found: dict[str, Any], folder: Path) -> None:
    """Write what was found as a folder, in place of one that is there already.

    Args:
        found: as evaluation.json holds it.
        folder: a new one or that of an evaluation before.

    Raises:
        UserError: it cannot be written.
    """
    plots = _plots(found)
    title = _title([name for name, suite in found["suites"].items() if suite["kind"] == "sae"])
    kept = unfinished_beside(folder)  # with the parts, which stay if it fails
    with new_folder(folder, at=kept / "whole") as whole:
        write_json(whole / _RECORD, found)
        (whole / "evaluation.md").write_text(_markdown(found, title, list(plots)), encoding="utf-8")
        for name, plot in plots.items():
            (whole / f"{name}.svg").write_text(plot + "\n", encoding="utf-8")
        (whole / "index.html").write_text(_page(found, title, plots), encoding="utf-8")
    shutil.rmtree(kept, ignore_errors=True)


def _plots(found: dict[str, Any]) -> dict[str, str]:
    """File name → SVG."""
    fvu = points(found, lambda suite: suite["means"]["fvu"])
    loss = points(found, lambda suite: suite["means"]["delta_ce_percent"])
    drawn = {
        "fvu": cost_plot(fvu, title="FVU against cost", y_title="FVU, mean over sites"),
        "delta_ce": cost_plot(loss, title="ΔCE against cost", y_title="ΔCE in %, mean over sites"),
    }
    return {name: plot for name, plot in drawn.items() if plot}


def _title(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _markdown(found: dict[str, Any], title: str, plots: list[str]) -> str:
    text = found["text"]
    models = (f"{name}: {n['n_rows']:,} rows of {n['n_tokens']:,} tokens" for name, n in text["models"].items())
    about = (
        f"Held-out documents of {text['data']}, {text['context_tokens']} tokens of context ({'; '.join(models)})."
        f" Strata {found['strata_version']}, {moment(found['date'])}."
    )
    drawn = [f"![{name}]({name}.svg)" for name in plots] + left_out(found)
    shown = ["## Quality against cost", *drawn] if drawn else []
    return "\n\n".join([f"# Evaluation of {title}", about, *shown, *(t.markdown() for t in tables(found))]) + "\n"


def _page(found: dict[str, Any], title: str, plots: dict[str, str]) -> str:
    text = found["text"]
    models = [(name, f"{n['n_rows']:,} rows of {n['n_tokens']:,} tokens") for name, n in text["models"].items()]
    content = {
        "kind": "evaluation",
        "title": title,
        "about": [
            ("Text", f"{text['data']}, held-out documents"),
            *models,
            ("Context", f"{text['context_tokens']} tokens"),
            ("Date", moment(found["date"])),
        ],
        "plots": [Markup(plot) for plot in plots.values()],
        "left_out": left_out(found),
        "tables": tables(found),
        "version": found["strata_version"],
    }
    return filled("comparison.html", content)
