"""The whole way of `strata scaling`: sweep, fit, and show it as a page."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from strata.amounts import counted
from strata.config.scaling import ScalingConfig
from strata.costs.scaling_law import Law
from strata.errors import UserError
from strata.report.numbers import MISSING, duration, moment, short_count, show
from strata.report.scaling_figures import Band, Plot, Series, amount, draw
from strata.report.scaling_tables import estimate, tables
from strata.report.templates import filled, write_pages
from strata.scaling.command import scaling_run
from strata.scaling.files import read_record

_LOSS = "FVU, held out"


def scaling_and_report(config: ScalingConfig, *, progress: bool = True) -> Path:
    """Train a sweep, fit its laws, and write what there is to see of them.

    Returns:
        The page, index.html, in the folder of scaling.json.

    Raises:
        UserError: what cannot be done.
    """
    return write_scaling_report(scaling_run(config, progress=progress))


def write_scaling_report(folder: Path) -> Path:
    """Write index.html from scaling.json, in the place of one that stands there.

    Args:
        folder: that `strata scaling` wrote.

    Raises:
        UserError: there is no scaling.json with a fit, or the page cannot be written.
    """
    record = read_record(folder)
    if record.get("fit") is None:
        raise UserError(f"The sweep in {folder} has no fit yet. Go on with --resume, or fit it with --fit-only.")
    page = filled("scaling.html", _content(record))
    write_pages(folder, {"index.html": page})
    return folder / "index.html"


def _content(record: Mapping[str, Any]) -> dict[str, Any]:
    fit = record["fit"]
    drawn = [(plot.title, draw(plot)) for plot in _plots(record)]
    return {
        "kind": "scaling",
        "title": str(record["model"].get("name", MISSING)),
        "about": _about(record),
        "verdict": verdict(fit),
        "notices": [warning(fit), *fit["caveats"]],
        "tiles": _tiles(record),
        "figures": [(caption, Markup(picture)) for caption, picture in drawn if picture],  # escaped where made
        "tables": tables(record),
        "facts": _facts(record),
        "version": record["versions"].get("strata-sae") or "",
    }


def verdict(fit: Mapping[str, Any]) -> str:
    """What the sweep says, in some sentences."""
    k, flat = f"{fit['at_k']:g}", fit["flat"]
    floor = next(one for one in fit["irreducible"] if one["k"] == fit["at_k"])
    said = f"At k = {k} the law leaves a loss of {estimate(floor)} however wide and long is trained. "
    if flat["n_latents"]["value"] is None:
        return said + "By this law doubling the width never stops to help within reach."
    said += (
        f"Doubling the width lowers the loss by less than {100 * flat['gain']:g} % from {estimate(flat['n_latents'])}"
        f" latents on, trained on {estimate(flat['n_tokens'])} tokens: {estimate(flat['flops'])} FLOPs for one site"
    )
    if flat["multiple"] is None:
        return said + ". What the language model's own training cost is not known."
    return said + f", {estimate(flat['multiple'])} times the language model's own training."


def warning(fit: Mapping[str, Any]) -> str:
    """How far what is foretold lies beyond what was measured."""
    flat = fit["flat"]
    orders, width = flat["orders_flops"], flat["orders_n_latents"]
    if orders["value"] is None:
        return "Where the loss becomes flat is not told by these points: the law has no such width."
    if orders["value"] <= 0:
        return "Where the loss becomes flat lies within the compute that was measured."
    return (
        f"Where the loss becomes flat is an extrapolation: {_orders(width)} orders of magnitude beyond the widest SAE"
        f" and {_orders(orders)} beyond the largest training. The interval knows the chance in these points only, not"
        " whether the law holds so far out."
    )


def _orders(found: Mapping[str, Any]) -> str:
    low, high = (MISSING if found[key] is None else f"{found[key]:.1f}" for key in ("low", "high"))
    return f"{found['value']:.1f} ({low} to {high if found['high'] is not None else 'no end'})"


def _tiles(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    fit, points = record["fit"], record["points"]
    flat, check = fit["flat"], next(iter(fit["checks"]), None)
    found = [
        ("SAEs", str(len(points)), f"in {counted(len(record['trainings']), 'training')}"),
        ("Lowest loss", show(min(p["fvu"] for p in points if p["fvu"] is not None), "ratio"), "measured"),
        ("Misfit", show(fit["rms"], "share"), "of single points, rms"),
        ("Flat from", _value(flat["n_latents"]), f"latents at k = {fit['at_k']:g}"),
        ("Its cost", _value(flat["multiple"]), "× the model's own training"),
    ]
    if check is not None:
        found.insert(3, ("Largest error", show(check["worst_error"], "share"), f"without {check['left_out']}"))
    return found


def _value(found: Mapping[str, Any] | None) -> str:
    return MISSING if found is None or found["value"] is None else amount(found["value"])


def _plots(record: Mapping[str, Any]) -> list[Plot]:
    fit = record["fit"]
    axes = ("d_sae", "n_tokens", "k", "flops", "fvu")
    law, points = (
        Law.from_json(fit["law"]),
        [{key: float(p[key]) for key in axes} for p in record["points"] if p["fvu"]],
    )
    ks = sorted({point["k"] for point in points})
    widest, longest = max(p["d_sae"] for p in points), max(p["n_tokens"] for p in points)
    return [
        Plot(
            title="Loss over compute, with the law of the lower envelope", x_title="FLOPs", y_title=_LOSS,
            series=[_over_compute(fit, points, k, place) for place, k in enumerate(ks)],
        ),
        _slice(f"Loss over width, on {amount(longest)} tokens", "latents", "d_sae",
               [p for p in points if p["n_tokens"] == longest], ks, lambda x, k: law.loss(x, longest, k)),
        _slice(f"Loss over tokens, with {amount(widest)} latents", "tokens", "n_tokens",
               [p for p in points if p["d_sae"] == widest], ks, lambda x, k: law.loss(widest, x, k)),
        _checked(fit),
        *_foretold(fit),
    ]  # fmt: skip


def _over_compute(fit: Mapping[str, Any], points: list[dict[str, float]], k: float, colour: int) -> Series:
    own = next(one for one in fit["compute"] if one["k"] == k)
    dots = [(p["flops"] + fit["forward_flops"] * p["n_tokens"], p["fvu"]) for p in points if p["k"] == k]
    line: list[tuple[float, float]] = []
    if own["law"] is not None:
        law, given = Law.from_json(own["law"]), [float(x) for x, _ in dots]
        xs = np.geomspace(min(given), max(given), 60)
        line = [(x, float(law.loss(1.0, x, 1.0))) for x in xs.tolist()]
    return Series(name=f"k = {k:g}", colour=colour, dots=dots, line=line)


def _slice(title: str, x_title: str, axis: str, points: list[dict[str, float]], ks: list[float],
           loss: Callable[[float, float], Any]) -> Plot:  # fmt: skip
    """Measured losses along one axis, and the law."""
    measured = [p[axis] for p in points]
    xs = np.geomspace(min(measured), max(measured), 60)
    series = [
        Series(
            name=f"k = {k:g}",
            colour=place,
            dots=[(p[axis], p["fvu"]) for p in points if p["k"] == k],
            line=[(x, float(loss(x, k))) for x in xs.tolist()],
        )
        for place, k in enumerate(ks)
    ]
    return Plot(title=title, x_title=x_title, y_title=_LOSS, series=series)


def _checked(fit: Mapping[str, Any]) -> Plot:
    series = [
        Series(
            name=check["left_out"],
            colour=place,
            dots=[(p["measured"], p["predicted"]) for p in check["points"]],
        )
        for place, check in enumerate(fit["checks"])
    ]
    ends = [value for one in series for pair in one.dots for value in pair]
    same = [(min(ends), min(ends)), (max(ends), max(ends))] if ends else []
    title = "Predicted against measured, for runs that the fit did not see"
    series.append(Series(name="", colour=-1, line=same, dashed=True))
    return Plot(title=title, x_title="measured loss", y_title="predicted loss", series=series)


def _foretold(fit: Mapping[str, Any]) -> list[Plot]:
    """Best width, best tokens and the loss there, over compute."""
    band, flat = fit["band"], fit["flat"]
    if band is None:
        return []
    pairs = {key: _pairs(band, key) for key in ("n_latents", "n_tokens", "loss")}
    marks = [(flat["flops"]["value"] or 0.0, "flat")]
    if flat["subject"]["flops"]:
        marks.append((flat["subject"]["flops"], "the model's own training"))
    k, beyond = f"{fit['at_k']:g}", band["largest"]
    named = (("n_latents", "Best width", "latents"), ("n_tokens", "Best number of tokens", "tokens"))
    drawn = [
        Plot(
            title=f"{title} for a budget, k = {k}", x_title="FLOPs", y_title=unit, measured_to=beyond,
            series=[Series(name="", line=pairs[key][0])], bands=[Band(low=pairs[key][1], high=pairs[key][2])],
        )
        for key, title, unit in named
    ]  # fmt: skip
    line, low, high = pairs["loss"]
    drawn.append(
        Plot(
            title=f"Loss at the best width and tokens, k = {k}", x_title="FLOPs", y_title=_LOSS, measured_to=beyond,
            series=[Series(name="", line=line)], bands=[Band(low=low, high=high)], marks=marks,
        )
    )  # fmt: skip
    return drawn


def _pairs(band: Mapping[str, Any], key: str) -> list[list[tuple[float, float]]]:
    return [list(zip(band["flops"], band[key][edge], strict=True)) for edge in ("value", "low", "high")]


def _about(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("Site", str(record["site"])),
        ("Text", str(record["text"].get("texts", {}).get("source", MISSING))),
        ("Rows", short_count(record["store"]["n_rows"])),
        ("Gate", str(record["architecture"])),
        ("Date", moment(record["date"])),
    ]


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    fit = record["fit"]
    subject, trainings = fit["flat"]["subject"], record["trainings"]
    forward = amount(fit["forward_flops"]) + " FLOPs" if fit["forward_flops"] else "not counted (rows of a store)"
    pairs = [
        ("Law", "L = exp(e − ε ln k) + exp(a − α ln n − γ ln k) + exp(b − β ln t − κ ln k + δ ln n); " + fit["form"]),
        ("Fit", f"Huber loss of ln L; {fit['n_agreeing']} of {fit['n_starts']} starts agree"),
        ("Intervals", f"90 %, points drawn anew {fit['n_bootstrap']} times within each number of tokens"),
        ("Cost of a token", "2·d·n + 10·k·d FLOPs in training"),
        ("Forward of the language model, per token", forward),
        ("Held-out rows", show(record["held_out_rows"], "count")),
        ("SAE seconds", duration(sum(one["seconds"]["sae"] for one in trainings))),
        ("Parameters of the model", _parameters(subject)),
        ("Tokens it was trained on", amount(subject["n_tokens"]) if subject["n_tokens"] else MISSING),
        ("Source of these", str(subject["source"])),
    ]
    return pairs + [
        (key, str(value)) for key, value in {**record["config"], **fit["settings"], **record["versions"]}.items()
    ]


def _parameters(subject: Mapping[str, Any]) -> str:
    """All of them, and those that its own training's cost counts where experts leave some out."""
    n, n_passed = subject["n_parameters"], subject["counted_parameters"]
    if not n:
        return MISSING
    return amount(n) if n_passed == n else f"{amount(n)}, of which a token passes {amount(n_passed)}"
