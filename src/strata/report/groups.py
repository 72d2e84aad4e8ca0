"""The whole way of `strata groups`: measure, choose, and show it as figures, a table and a page."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from strata.amounts import counted
from strata.config.groups import GroupsConfig
from strata.config.layer_groups import group_name
from strata.groups.command import groups_run
from strata.groups.files import read_record
from strata.groups.record import chosen_row
from strata.report.group_figures import curve, heatmap
from strata.report.numbers import MISSING, moment, show
from strata.report.templates import filled, write_pages

_Row = Mapping[str, Any]
_COLUMNS: tuple[tuple[str, str, Callable[[_Row], str]], ...] = (  # title, definition, a row's cell
    ("K", "Groups of neighbouring layers, without the last layer's own SAE where it was left out.",
     lambda row: str(row["k"])),
    ("Layers of each group", "Not contiguous where “published” joins layers that are no neighbours.",
     lambda row: layers_text(row["groups"])),
    ("SAEs", "One for each group, and one for a last layer that was left out.", lambda row: str(row["n_saes"])),
    ("AMAD", ("Mean of the K groups' largest distances, 0 for a single layer. A distance is the mean angle between the"
             " layers' centred activations of a token, in units of π: ½ is at right angles."),
     lambda row: show(row["amad"], "ratio")),
    ("Worst diameter", "The largest distance between two layers of one group.",
     lambda row: show(row["worst_diameter"], "ratio")),
    ("SAE cost", ("SAEs over layers: of the cost of training one SAE per layer, if each SAE sees equally many rows. A"
                 " budget is a share of this cost."), lambda row: show(row["sae_share"], "share")),
    ("Total cost", ("The same with the language model's pass, in counted FLOPs per token: 2·d·h + 10·k·d for an SAE's"
                   " step, 2·P + 4·C·H·d_head for each block. Of a store the pass is paid already."),
     lambda row: show(row["cost_share"], "share")),
    ("Saving", "What is left of one SAE per layer's cost: 1 − total cost.", lambda row: show(row["saving"], "share")),
    ("Total cost, Group-SAE", "The same as its authors count it (arXiv 2410.21508): 10·d·h for an SAE's step, dense.",
     lambda row: show(row["published_cost_share"], "share")),
)  # fmt: skip


def groups_and_report(config: GroupsConfig, *, progress: bool = True) -> Path:
    """Find groups as described, and write what there is to see of them.

    Returns:
        The page, index.html, in the folder of groups.json, heatmap.svg, amad.svg and groups.md.

    Raises:
        UserError: what cannot be done.
    """
    return write_groups_report(groups_run(config, progress=progress))


def write_groups_report(folder: Path) -> Path:
    """Write heatmap.svg, amad.svg, groups.md and index.html from groups.json, in the place of those that stand there.

    Args:
        folder: that `strata groups` wrote, or groups/ of a run that found its groups by itself.

    Raises:
        UserError: there is no groups.json, or it is damaged; or a file cannot be written, those that stand there are
            then whole.
    """
    record = read_record(folder)
    distances = heatmap(
        record["distances"], sites=record["sites"], groups=record["groups"], title="Angular distance between layers"
    )
    by_threshold = record["config"]["k"] == "auto" and record["config"]["budget"] == "none"
    drawn = curve(record["table"], chosen=record["k"], threshold=record["threshold"] if by_threshold else None)
    page = filled("groups.html", _content(record, distances, drawn))
    texts = {"heatmap.svg": distances, "amad.svg": drawn, "groups.md": _markdown(record), "index.html": page}
    write_pages(folder, texts)
    return folder / "index.html"


def _content(record: dict[str, Any], distances: str, drawn: str) -> dict[str, Any]:
    chosen = chosen_row(record)
    cka = record["cka"]
    if cka is not None:
        cka = heatmap(cka, sites=record["sites"], groups=record["groups"], title="Linear CKA between layers")
    return {
        "kind": "layer groups",
        "title": _model(record),
        "about": _about(record),
        "verdict": _verdict(record),
        "tiles": [
            ("SAEs", str(chosen["n_saes"]), f"for {len(record['sites'])} layers"),
            ("AMAD", show(chosen["amad"], "ratio"), "mean diameter of the groups"),
            ("Worst diameter", show(chosen["worst_diameter"], "ratio"), "largest distance in a group"),
            ("SAE cost", show(chosen["sae_share"], "share"), "of one SAE per layer"),
            ("Predicted saving", show(chosen["saving"], "share"), "in FLOPs, with the language model"),
        ],
        "heatmap": Markup(distances),  # escaped where it was made
        "cka": None if cka is None else Markup(cka),
        "curve": Markup(drawn),
        "method": record["method"],
        "columns": [(label, definition) for label, definition, _ in _COLUMNS],
        "rows": [{"chosen": row["k"] == record["k"], "cells": _cells(row)} for row in record["table"]],
        "facts": _facts(record),
        "version": record["versions"].get("strata-sae") or "",
    }


def _cells(row: _Row) -> list[str]:
    return [cell(row) for _, _, cell in _COLUMNS]


def layers_text(groups: list[list[str]] | None) -> str:
    """Groups in a line: "0–2 · 3 · 4–7"."""
    if groups is None:
        return "not contiguous"
    return " · ".join(group_name(group).removeprefix("layers.").replace("-", "–") for group in groups)


def _verdict(record: dict[str, Any]) -> str:
    chosen, config = chosen_row(record), record["config"]
    if config["k"] != "auto":
        why = f"K = {config['k']}, as asked for"
    elif config["budget"] != "none":
        why = f"the most groups within {100 * config['budget']:g} % of the SAEs' cost of one per layer"
    else:
        why = f"the fewest groups with AMAD below {record['threshold']:g}"
    alone = "" if record["last_layer"] else " The last layer has its own."
    saes, layers = counted(chosen["n_saes"], "SAE"), counted(len(record["sites"]), "layer")
    return (
        f"{saes} for {layers}: {layers_text(chosen['groups'])}.{alone} Chosen: {why}. Predicted, of the FLOPs with one"
        f" SAE per layer: {show(chosen['sae_share'], 'share')} for the SAEs,"
        f" {show(chosen['cost_share'], 'share')} with the language model's pass. What it costs in quality, an"
        " evaluation has to show."
    )


def _about(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("Text", str(record.get("text", {}).get("texts", {}).get("source", MISSING))),
        ("Rows", show(record["n_tokens"], "count")),
        ("Layers", str(len(record["sites"]))),
        ("Date", moment(record["date"])),
    ]


def _facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    flops, model, text = record["flops_per_token"], record.get("model", {}), record.get("text", {})
    pairs = [
        ("Model", f"{_model(record)} ({model.get('model_class', MISSING)})"),
        ("Weights", str(model.get("weights_sha256", MISSING))[:16]),
        ("Text", str(text.get("texts", {}).get("fingerprint", MISSING))),
        ("Context", f"{text.get('context_tokens', MISSING)} tokens"),
        ("Rows for the means", show(record["n_mean_rows"], "count")),
        ("Rows for the distances", f"{show(record['n_rows'], 'count')} (attention sinks left out)"),
        ("Forward of the language model", _flops(flops["forward"], of="token")),
        ("Step of an SAE", _flops(flops["sae_step"], of="row")),
        ("Measuring", f"{show(record['n_tokens'], 'count')} rows in {show(record['seconds'], 'quantity')} s"),
    ]
    return pairs + [(key, str(value)) for key, value in {**record["config"], **record["versions"]}.items()]


def _flops(value: float | None, *, of: str) -> str:
    return MISSING if value is None else f"{show(value / 1e6, 'quantity')} MFLOP per {of}"


def _markdown(record: dict[str, Any]) -> str:
    head = "| " + " | ".join(label for label, _, _ in _COLUMNS) + " |"
    rule = "|" + "|".join("--:" if place != 1 else ":--" for place in range(len(_COLUMNS))) + "|"
    lines: list[str] = []
    for row in record["table"]:
        cells = _cells(row)
        lines.append("| " + " | ".join(f"**{c}**" if row["k"] == record["k"] else c for c in cells) + " |")
    title = f"# Layer groups of {_model(record)}".replace("\n", " ")
    return "\n\n".join([title, _verdict(record), "\n".join([head, rule, *lines])]) + "\n"


def _model(record: dict[str, Any]) -> str:
    return str(record.get("model", {}).get("name", MISSING))
