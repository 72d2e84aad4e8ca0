"""The report of a run: one HTML file that needs nothing but itself."""

from pathlib import Path
from typing import Any

from strata.report.charts import MANY_SITES, bars, curves
from strata.report.columns import FURTHER, HEADLINE, dead_window, table
from strata.report.numbers import number
from strata.report.run_files import RunFiles, read_run
from strata.report.snippets import feature_cards
from strata.report.summary import facts, heading, held_out, notices, tiles, verdict
from strata.report.templates import filled, inlined, write_pages

MOST_SITES_UNFOLDED = 2
_CURVES = (("fvu", "FVU, training batches (log scale)", "log"), ("dead_share", "Dead latents", "percent"))


def write_report(run_folder: Path) -> Path:
    """Writes ``report/index.html`` into a run folder, in place of one that is there already.

    The page opens from disk without network. Every text of the run is escaped, and a content security policy keeps
    whatever a text may hold from loading or sending anything.

    Args:
        run_folder: a folder with ``run.json``; ``metrics.jsonl``, ``evaluation.json``, ``features.json`` and
            ``sae/`` may be missing, and the report then says so.

    Returns:
        The path of the page.

    Raises:
        UserError: there is no ``run.json``, or a file is not the JSON that it should be; or the page cannot be written.
    """
    files = read_run(run_folder)
    page = filled("page.html", _content(files))
    folder = run_folder / "report"
    folder.mkdir(exist_ok=True)
    write_pages(folder, {"index.html": page})
    return folder / "index.html"


def _content(files: RunFiles) -> dict[str, Any]:
    sites = files.sites
    main = table(files, HEADLINE)
    about = heading(files)
    cards = {site: feature_cards(files.features.get(site)) for site in sites}
    return {
        "js": inlined("page.js"),
        "kind": "report",
        "title": about["model"],
        "about": [("Text", about["data"]), ("Sites", about["sites"]), ("Date", about["date"])],
        "verdict": verdict(files),
        "notices": notices(files),
        "tiles": tiles(files),
        "held_out": held_out(files),
        "dead_window": dead_window(files),
        "table": main,
        "further": table(files, FURTHER),
        "layers": _layers(files, sites),
        "curves": _curves(files, files.trained or sites),
        "many_sites": len(sites) > MANY_SITES,
        "unfold_all": len(sites) <= MOST_SITES_UNFOLDED,
        "cards": {site: found for site, found in cards.items() if found},
        "anchors": {site: f"site-{place}" for place, site in enumerate(sites)},
        "facts": facts(files),
        "version": files.run.get("strata_version") or "",
    }


def _layers(files: RunFiles, sites: list[str]) -> dict[str, Any] | None:
    values = {site: number(files.measured(site).get("fvu")) for site in sites}
    known = [v for v in values.values() if v is not None]
    return (
        bars("layers", title="FVU by site" + ("" if files.evaluation else ", in training"), values=values)
        if len(known) > 1
        else None
    )


def _curves(files: RunFiles, sites: list[str]) -> list[dict[str, Any]]:
    rows = [number(line.get("rows")) for line in files.metrics]
    drawn = [
        curves(
            key,
            title=title,
            rows=rows,
            lines={site: files.logged(site, key) for site in sites},
            log=scale == "log",
            percent=scale == "percent",
        )
        for key, title, scale in _CURVES
    ]
    return [chart for chart in drawn if chart["lines"]]
