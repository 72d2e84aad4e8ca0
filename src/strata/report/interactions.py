"""The whole way of `strata interactions`: find, then files and a page of what was found."""

from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from strata.atomic import as_json
from strata.config.interactions import InteractionsConfig
from strata.interactions.command import interactions
from strata.interactions.files import GRAPHS, RECORD, write_interactions
from strata.out_folder import check_free, new_folder
from strata.report.numbers import moment
from strata.report.templates import filled

_MOST_ROWS = 200


def interactions_and_report(config: InteractionsConfig, *, progress: bool = True) -> Path:
    """Find interactions (`strata.interactions.command.interactions`) and write a folder, whole or not at all.

    It holds interactions.json, for each graph GraphML and SVG, and index.html, which needs nothing but itself.

    Args:
        config: the run, and what to look for.
        progress: say on stderr what happens.

    Returns:
        The page.

    Raises:
        UserError: what cannot be found, see there; or a folder that exists or cannot be written.
    """
    folder = config.folder()
    check_free(folder, record=RECORD, what="interactions", overwrite=config.overwrite)
    found = interactions(config, progress=progress)
    with new_folder(folder) as unfinished:
        about = as_json(asdict(config)) | {
            "strata_version": version("strata-sae"),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        record = write_interactions(found, unfinished, about=about)
        pictures = {
            name: path.read_text(encoding="utf-8") for name in GRAPHS if (path := unfinished / f"{name}.svg").exists()
        }
        page = page_of(record, pictures).encode("utf-8", errors="replace")
        (unfinished / "index.html").write_bytes(page)
    return folder / "index.html"


def page_of(record: dict[str, Any], pictures: dict[str, str]) -> str:
    """The page of what interactions.json holds.

    Args:
        record: interactions.json.
        pictures: SVG by graph, as `strata.interactions.picture.draw` makes it (which escapes every text).
    """
    about, counts = record["about"], record["counts"]
    n_rows = counts["coactivation"]["pairs_of_saes"][0]["n_rows"]
    content = {
        "kind": "interactions",
        "title": about["run"],
        "about": [("SAEs", ", ".join(record["keys"])), ("Rows", f"{n_rows:,}"), ("Date", moment(about["date"]))],
        "counts": counts,
        "graphs": [_shown(record, name, title, pictures) for name, title in GRAPHS.items()],
        "targets": record["targets"],
        "version": about["strata_version"],
    }
    return filled("interactions.html", content)


def _shown(record: dict[str, Any], name: str, title: str, pictures: dict[str, str]) -> dict[str, Any]:
    graph = record[name]
    said = {node["id"]: node["explanation"] for node in graph["nodes"]}
    columns = [
        c for c in dict.fromkeys(key for edge in graph["edges"] for key in edge) if c not in ("source", "target")
    ]
    return {
        "title": title,
        "file": name,
        "picture": Markup(pictures[name]) if name in pictures else None,
        "n_nodes": len(graph["nodes"]),
        "n_edges": len(graph["edges"]),
        "columns": columns,
        "rows": [
            {
                "ends": [(edge[end], said[edge[end]]) for end in ("source", "target")],
                "cells": [_number(edge.get(column)) for column in columns],
            }
            for edge in graph["edges"][:_MOST_ROWS]
        ],
    }


def _number(value: float | int | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
