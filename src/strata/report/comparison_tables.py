"""The tables of a comparison of runs, for Markdown and for the page alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strata.amounts import counted
from strata.evaluate.harness import harness_table
from strata.report.columns import FURTHER, HEADLINE
from strata.report.numbers import MISSING, NBSP, Form, duration, number, show

_COLUMNS = {column.key: column for column in (*HEADLINE, *FURTHER)}
_MEANS = ("explained_variance", "fvu", "l0", "dead_share", "ce_loss_score", "kl_div_score", "delta_ce_percent")
_BY_SITE = ("fvu", "l0", "dead_share", "ce_loss_score", "delta_ce_percent")
_LOSSES = ("ce_sae", "delta_ce_percent", "ce_loss_score")

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Text in rows; the first cell of each names it.

    Attributes:
        title: what it shows.
        note: how to read it; may be empty.
        head: names of the columns.
        rows: cells, as many as the head has.
    """

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table with its title and note."""
        cells = [[_escaped(cell) for cell in row] for row in (self.head, *self.rows)]
        lines = [f"| {' | '.join(row)} |" for row in cells]
        rule = f"|{'|'.join([' :-- ', *[' --: '] * (len(self.head) - 1)])}|"
        return "\n".join([f"## {self.title}", "", *([self.note, ""] if self.note else []), lines[0], rule, *lines[1:]])


def tables(found: Found) -> list[Table]:
    """All tables of what `strata.evaluate.compare.compare_runs` found; those that have nothing to say are left out."""
    made = [_suites(found), _together(found), _costs(found), *(_by_site(found, key) for key in _BY_SITE)]
    made += [_overlap(found), *_tasks(found), _lm_eval(found), _circuits(found)]
    return [table for table in made if table.rows]


def _suites(found: Found) -> Table:
    sites = found["mean_sites"]
    where = "each suite's own sites: they have none in common"
    if sites:
        where = f"the {counted(len(sites), 'site')} that all suites have"
    head = ["Suite", "SAEs", "Latents", "k", *(_COLUMNS[key].label for key in _MEANS)]
    rows: list[list[str]] = []
    for name, suite in found["suites"].items():
        shown = [show(suite["means"][key], _COLUMNS[key].form) for key in _MEANS]
        rows.append([name, _n_saes(suite), _latents(suite), str(suite["settings"]["k"]), *shown])
    random = any(suite["random_weights"] for suite in found["suites"].values())
    return Table(
        "Suites",
        f"Means over {where}. Losses are with one site replaced at a time."
        + (" A model with random weights has no loss to lose." if random else ""),
        head,
        rows,
    )


def _together(found: Found) -> Table:
    """The losses of suites of several sites: one site at a time, and all at once."""
    pairs = [(_COLUMNS[key].label, f"{_COLUMNS[key].label}, all") for key in _LOSSES]
    rows = [
        [name, str(len(suite["sites"])), show(suite["all_sites"]["ce_clean"], "nats")]
        + [show(suite[of][key], _COLUMNS[key].form) for key in _LOSSES for of in ("means", "all_sites")]
        for name, suite in found["suites"].items()
        if len(suite["sites"]) > 1 and number(suite["all_sites"]["ce_clean"]) is not None
    ]
    counts = {len(suite["sites"]) for suite in found["suites"].values()}
    return Table(
        "One site at a time, and all at once",
        "The language model's losses in nats per token, with one site replaced at a time (the mean of sites as above),"
        " and with all of a suite's sites replaced at once, where errors of one layer reach the next; its zeroed model"
        " is that of its last site."
        + (" Suites of few sites have less to lose all at once." if len(counts) > 1 else ""),
        ["Suite", "Sites", "CE clean", *(label for pair in pairs for label in pair)],
        rows,
    )


def _costs(found: Found) -> Table:
    suites = {name: suite["cost"] for name, suite in found["suites"].items() if suite["cost"] is not None}
    divided = any(cost["divided"] for cost in suites.values())
    grouped = any(cost["grouping_rows"] for cost in suites.values())
    elsewhere = len({cost["hardware"] for cost in suites.values()}) > 1
    head = ["Suite", "SAE steps", "Rows per SAE", "SAE FLOPs", "Model FLOPs", "SAE seconds", "Seconds for rows"]
    rows = [
        [
            name + (" *" if cost["divided"] else ""),
            show(cost["sae_steps"], "count"),
            show(cost["rows_per_sae"], "count"),
            _flops(cost["sae_flops"]),
            _flops(cost["lm_flops"]),
            duration(cost["sae_seconds"]),
            duration(cost["rows_seconds"]),
            *([_of_grouping(cost)] if grouped else []),
            *([cost["hardware"] or MISSING] if elsewhere else []),
        ]
        for name, cost in suites.items()
    ]
    return Table(
        "Cost of training",
        "FLOPs are counted (2·d·h + 10·k·d for each row and SAE; the language model's blocks up to the deepest"
        " site), seconds measured."
        + (
            " * trained side by side with others: its share of their SAE seconds, by FLOPs; alone it would have needed"
            " all the rows."
            if divided
            else ""
        )
        + (" What it took to find groups is part of the model's FLOPs and the rows' seconds." if grouped else "")
        + (" Seconds of different hardware say nothing side by side." if elsewhere else ""),
        [*head, *(["Of these to find groups"] if grouped else []), *(["Hardware"] if elsewhere else [])],
        rows,
    )


def _of_grouping(cost: Found) -> str:
    if not cost["grouping_rows"]:
        return MISSING
    parts = (
        f"{show(cost['grouping_rows'], 'count')} rows",
        _flops(cost["grouping_flops"]),
        duration(cost["grouping_seconds"]),
    )
    return ", ".join(parts)


def _by_site(found: Found, key: str) -> Table:
    """One row per site, one column per suite."""
    column, suites = _COLUMNS[key], found["suites"]
    sites = list(dict.fromkeys(site for suite in suites.values() for site in suite["sites"]))
    values = [[suite["sites"].get(site, {}).get(key) for suite in suites.values()] for site in sites]
    known = any(number(value) is not None for row in values for value in row)
    rows = [[site, *(show(value, column.form) for value in row)] for site, row in zip(sites, values, strict=True)]
    if key in _LOSSES and len(sites) > 1:
        together: list[dict[str, Any]] = [
            suite["all_sites"] if len(suite["sites"]) > 1 else {} for suite in suites.values()
        ]
        rows.append(["all at once", *(show(one.get(key), column.form) for one in together)])
    note = _dead_note(suites) if key == "dead_share" else column.definition
    return Table(f"{column.label} by site", note, ["Site", *suites], rows if known else [])


def _dead_note(suites: Found) -> str:
    """What dead means, with the windows of these suites."""
    measured = (numbers for suite in suites.values() for numbers in suite["sites"].values())
    windows = sorted({window for numbers in measured if (window := numbers.get("dead_window_rows")) is not None})
    shown = " to ".join(f"{window:,}" for window in dict.fromkeys([*windows[:1], *windows[-1:]]))
    return f"Share of latents that did not fire in the last {shown} rows of training; of a group, at any of its layers."


def _overlap(found: Found) -> Table:
    pairs = found["overlap"]
    sites = list(dict.fromkeys(site for pair in pairs for site in pair["sites"]))
    shown = [
        [f"{pair['a']} and {pair['b']}", _differ(pair), show(pair["mean"], "share")]
        + [show(pair["sites"].get(site), "share") for site in sites]
        for pair in pairs
    ]
    return Table(
        "Features in common",
        "Share of features that are each other's nearest, with a decoder cosine of at least 0.7. SAEs of one seed set"
        " out from the same random directions, and have more in common by that alone.",
        ["Suites", "They differ in", "Mean", *sites],
        shown,
    )


def _differ(pair: Found) -> str:
    return f"{pair['differ']}; same start" if pair["same_start"] else pair["differ"]


def _tasks(found: Found) -> list[Table]:
    """Accuracy and logit difference, one row per task, one column per suite."""
    names = list(found["suites"])
    made: list[Table] = []
    kinds: tuple[tuple[str, str, Form], ...] = (
        ("accuracy", "Task accuracy", "share"),
        ("logit_difference", "Task logit difference", "nats"),
    )
    for key, title, form in kinds:
        rows = [
            [_task_name(task, found), show(task["clean"][key], form)]
            + [show(task["suites"].get(name, {}).get(key), form) for name in names]
            for task in found["tasks"]
        ]
        note = "Right against wrong token at the prompt's end" + (
            "; 50 % is chance." if key == "accuracy" else ", in nats."
        )
        note += " All of a suite's SAEs stand in the model; with their errors added back it is the model itself."
        made.append(Table(title, note, ["Task", "model itself", *names], rows))
    return made


def _lm_eval(found: Found) -> Table:
    """One row per metric of a task, one column per suite; "0.750 ± 0.043"."""
    names = list(found["suites"])
    rows: list[list[str]] = []
    for of_model in found["lm_eval"]:
        clean = of_model["clean"]
        by_suite = {
            name: {_metric_key(row): row for row in harness_table(of)} for name, of in of_model["suites"].items()
        }
        for row in harness_table(clean):
            cells = [_with_stderr(by_suite.get(name, {}).get(_metric_key(row))) for name in names]
            n = clean.get("n-samples", {}).get(row["task"], {}).get("effective")
            task = _task_name({**row, "model": of_model["model"]}, found)
            rows.append([task, _metric(row), show(n, "count"), _with_stderr(row), *cells])
    return Table(
        "lm-evaluation-harness",
        "Each task's own metrics ± their standard errors. ↑ is better higher, ↓ lower. All of a suite's SAEs stand in"
        " the model.",
        ["Task", "Metric", "Documents", "model itself", *names],
        rows,
    )


def _metric_key(row: Found) -> tuple[str, str, str]:
    return row["task"], row["metric"], row["filter"]


def _metric(row: Found) -> str:
    chosen = "" if row["filter"] == "none" else f", {row['filter']}"
    return row["metric"] + chosen + {True: " ↑", False: " ↓"}.get(row["higher_is_better"], "")


def _with_stderr(row: Found | None) -> str:
    if row is None:
        return MISSING
    stderr = number(row["stderr"])
    return show(row["value"], "ratio") + ("" if stderr is None else f"{NBSP}±{NBSP}{show(stderr, 'ratio')}")


def _circuits(found: Found) -> Table:
    sizes = sorted({circuit["size"] for one in found["circuits"] for circuit in one["circuits"]})
    rows: list[list[str]] = []
    for one in found["circuits"]:
        by_size = {circuit["size"]: circuit["faithfulness"] for circuit in one["circuits"]}
        error = "kept" if one["with_error"] else "left out"
        rows.append([f"{one['task']}, {one['suite']}", error, *(show(by_size.get(size), "ratio") for size in sizes)])
    by = {"attribution": "attribution", "integrated": "attribution by integrated gradients"}
    methods = " or ".join(by[method] for method in dict.fromkeys(one["method"] for one in found["circuits"]))
    return Table(
        "Faithfulness of feature circuits",
        f"(m(C) − m(∅)) / (m(M) − m(∅)) of the circuit of so many features per site with the largest {methods}; the"
        " others are set to their means.",
        ["Task and suite", "SAE error", *(f"{size:,} per site" for size in sizes)],
        rows,
    )


def _task_name(task: Found, found: Found) -> str:
    return task["task"] if len(found["text"]["models"]) == 1 else f"{task['task']} ({task['model']})"


def _n_saes(suite: Found) -> str:
    n_sites, n_groups = len(suite["sites"]), len(suite["groups"])
    if suite["kind"] == "pca":
        return MISSING
    return str(n_groups) if n_groups == n_sites else f"{n_groups} for {n_sites} sites"


def _latents(suite: Found) -> str:
    widths: Sequence[int] = sorted(set(suite["d_sae"] or ()))
    return "–".join(f"{width:,}" for width in dict.fromkeys([widths[0], widths[-1]])) if widths else MISSING


def _flops(value: Any) -> str:
    n = number(value)
    if n is None:
        return MISSING
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if n >= size:
            return f"{n / size:.3g}{NBSP}{prefix}"
    return f"{n:.3g}"


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
