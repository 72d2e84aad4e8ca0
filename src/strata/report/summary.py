"""A run in few words: what it was, how well it went, the headline figures, and the full facts."""

from typing import Any, cast

from strata.amounts import counted
from strata.atomic import as_object
from strata.report.columns import dead_window
from strata.report.numbers import MISSING, NBSP, duration, mean, moment, number, short_count, show, spread
from strata.report.run_files import RunFiles


def heading(files: RunFiles) -> dict[str, str]:
    """Model, data, sites and date, as text; "–" where the run does not say."""
    sites = files.sites
    named = ", ".join(sites) if len(sites) <= 3 else f"{sites[0]} … {sites[-1]} ({len(sites)} sites)"
    date = moment(files.run.get("date"))
    return {"model": _model(files), "data": _data(files), "sites": named or MISSING, "date": date}


def _model(files: RunFiles) -> str:
    given = files.run.get("model")
    return str(
        (given if isinstance(given, str) else files.at("model", "name")) or files.at("config", "model") or MISSING
    )


def _data(files: RunFiles) -> str:
    given = files.run.get("text")
    if isinstance(given, str):
        return given
    paths = (("text", "source"), ("text", "texts", "source"), ("text", "name"), ("config", "data"))
    return str(next((found for path in paths if (found := files.at(*path))), MISSING))


def verdict(files: RunFiles) -> str:
    """The outcome in a sentence or two, of the numbers that are there."""
    sites = files.sites
    if not sites:
        return "Nothing has been logged yet."
    measured = [files.measured(site) for site in sites]
    parts = [_trained(files)]
    variance = [m.get("explained_variance") for m in measured]
    if mean(variance) is not None:
        parts.append(f"explained variance {spread(variance, 'ratio')}")
    elif mean(m.get("fvu") for m in measured) is not None:
        parts.append(f"FVU {spread((m.get('fvu') for m in measured), 'ratio')} in training")
    if (score := mean(m.get("ce_loss_score") for m in measured)) is not None and score > 0:
        parts.append(f"{show(score, 'share')} of the language model's loss recovered")
    if (dead := mean(m.get("dead_share") for m in measured)) is not None:
        window = dead_window(files)
        parts.append(f"{show(dead, 'share')} dead" + (f" (not fired {window})" if window else ""))
    return "; ".join(parts) + "." + _weakest(files)


def _trained(files: RunFiles) -> str:
    widths = sorted({d_sae for _, d_sae in files.widths.values()})
    saes = counted(len(files.sites), "SAE")
    if widths:
        saes += f" of {spread(widths, 'count')} latents"
    tokens, rows = number(files.last.get("tokens")), number(files.run.get("n_rows")) or number(files.last.get("rows"))
    seen = f" on {short_count(tokens)} tokens" if tokens else f" on {short_count(rows)} rows" if rows else ""
    seconds = number(files.at("seconds", "total")) or number(files.last.get("seconds"))
    spent = f" in {duration(seconds)}" if seconds else ""
    return f"{saes}, trained{'' if files.finished else ' so far'}{seen}{spent}"


def _weakest(files: RunFiles) -> str:
    """Which site is reconstructed worst, where that says something."""
    found = {site: v for site in files.sites if (v := number(files.measured(site).get("fvu"))) is not None}
    if len(found) < 2 or not files.evaluation or min(found.values()) <= 0:
        return ""
    worst = max(found, key=lambda site: found[site])
    return (
        f" Weakest is {worst}, at FVU {show(found[worst], 'ratio')}."
        if found[worst] > 1.2 * min(found.values())
        else ""
    )


def notices(files: RunFiles) -> list[str]:
    """What is missing from this report, and why."""
    said: list[str] = []
    step, n_steps = number(files.last.get("step")), number(files.run.get("n_steps"))
    if not files.finished:
        status = files.run.get("status")
        place = f" Last logged: step {show(step, 'count')} of {show(n_steps, 'count')}." if step is not None else ""
        said.append(f"This run has not finished{f' (status: {status})' if status else ''}.{place}")
    if not files.evaluation:
        said.append(
            "Not evaluated on held-out text: the numbers are those of the last logged training step, on its own batch."
        )
    if not files.features:
        said.append("No features were collected for this run.")
    if not files.metrics:
        said.append("No training step was logged, so there are no training curves.")
    return said


def tiles(files: RunFiles) -> list[tuple[str, str, str]]:
    """The headline figures: label, value and note; those that are unknown are left out."""
    measured = [files.measured(site) for site in files.sites]
    many = len(measured) > 1
    shown: list[tuple[str, str, str]] = []

    def add(label: str, value: str, note: str) -> None:
        if value != MISSING:
            shown.append((label, value, note))

    def over_sites(key: str, label: str, form: Any, note: str = "") -> None:
        values = [m.get(key) for m in measured]
        add(label, show(mean(values), form), note or (f"mean; {spread(values, form)}" if many else ""))

    over_sites("explained_variance", "Explained variance", "ratio")
    if not files.evaluation:
        over_sites("fvu", "FVU in training", "ratio")
    over_sites("ce_loss_score", "CE loss score", "ratio")
    together = files.evaluation.get("all_sites")
    if many and isinstance(together, dict) and not files.at("config", "sweep"):
        add("All SAEs at once", show(together.get("ce_loss_score"), "ratio"), "CE loss score, every site replaced")
    over_sites("dead_share", "Dead latents", "share", f"not fired {window}" if (window := dead_window(files)) else "")
    over_sites("l0", "Active latents", "mean_count", _of_latents(files))
    seconds = number(files.at("seconds", "total")) or number(files.last.get("seconds"))
    add("Time", duration(seconds), _of_time(files, seconds))
    return shown


def _of_latents(files: RunFiles) -> str:
    widths = [d_sae for _, d_sae in files.widths.values()]
    return f"of {spread(widths, 'count')} per row" if widths else "per row"


def _of_time(files: RunFiles, seconds: float | None) -> str:
    parts = {"language model": files.at("seconds", "language_model"), "SAEs": files.at("seconds", "sae")}
    said = [f"{name} {duration(value)}" for name, value in parts.items() if number(value) is not None]
    speed = _speed(files, seconds)
    return " · ".join([*said, *([] if speed == MISSING else [f"{speed} rows per second and SAE"])])


def _speed(files: RunFiles, seconds: float | None) -> str:
    rows = number(files.run.get("n_rows")) or number(files.last.get("rows"))
    if rows and seconds:
        return short_count(rows / seconds)
    return short_count(mean(line.get("rows_per_second") for line in files.metrics))


def facts(files: RunFiles) -> list[dict[str, Any]]:
    """Everything run.json says, in tables: ``title`` and ``rows`` of (dotted key, value as text)."""
    known = {
        "config": "Configuration",
        "model": "Language model",
        "text": "Text",
        "hardware": "Hardware",
        "seconds": "Time",
    }
    rest = {key: value for key, value in files.run.items() if key not in known}
    tables = [{"title": "Run", "rows": _flat(rest)}]
    tables += [
        {"title": title, "rows": _flat(files.run.get(key), unit="s" if key == "seconds" else "")}
        for key, title in known.items()
    ]
    if files.evaluation:
        evaluation = {key: value for key, value in files.evaluation.items() if key != "sites"}
        tables.append({"title": "Evaluation", "rows": _flat(evaluation)})
    return [t for t in tables if t["rows"]]


def _flat(value: Any, prefix: str = "", *, unit: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        inside = as_object(value).items()
        return [row for key, inner in inside for row in _flat(inner, f"{prefix}.{key}".lstrip("."), unit=unit)]
    if value is None and not prefix:
        return []
    return [(prefix or "value", _fact(value) + (f"{NBSP}{unit}" if unit and number(value) is not None else ""))]


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_fact, cast("list[Any]", value))) or MISSING
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if number(value) is None:
            return MISSING
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.6g}"
    return MISSING if value is None else str(value)


def held_out(files: RunFiles) -> str:
    """On what the table's numbers were measured."""
    if not files.evaluation:
        return "Last logged training step, measured on its own batch."
    rows, tokens = number(files.evaluation.get("n_rows")), number(files.evaluation.get("n_tokens"))
    context = number(files.evaluation.get("context_tokens"))
    counts = [f"{rows:,.0f} rows" if rows else "", f"{tokens:,.0f} tokens" if tokens else ""]
    of = " of ".join(filter(None, counts))
    return (
        "Measured on "
        + (of + " of " if of else "")
        + "held-out text"
        + (f", {context:,.0f} tokens of context." if context else ".")
    )
