"""Features as text: their numbers, and excerpts whose tokens are shaded by how strongly the latent fired on them."""

import math
import re
from html import escape
from typing import Any, cast

from markupsafe import Markup

from strata.atomic import as_object
from strata.report.numbers import number, numbers, show
from strata.visible_text import visible

N_SHADES = 10
MOST_TOKENS_BEFORE, MOST_TOKENS_AFTER = 48, 24
MOST_LINES_BEFORE, MOST_LINES_AFTER = 3, 1

KIND_NOTES = {
    "strongest": "Among the strongest of the latents that fire neither nearly always nor nearly never",
    "random": "Drawn at random, not for looking good",
}
_CUT = '<span class="cut">…</span>'
_LINE_BREAK = '<span class="nl">↵</span>'


def feature_cards(features: Any) -> list[dict[str, Any]]:
    """The features of one site, ready for the page's template.

    Args:
        features: the site's list in features.json; what is no feature is left out.
    """
    return [_card(as_object(feature)) for feature in _listed(features) if isinstance(feature, dict)]


def _listed(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _card(feature: dict[str, Any]) -> dict[str, Any]:
    examples = [as_object(one) for one in _listed(feature.get("examples")) if isinstance(one, dict)]
    seen = [value for example in examples for value in numbers(_listed(example.get("activations")))]
    strongest = number(feature.get("max_activation"))
    strongest = max(seen, default=0.0) if strongest is None else strongest
    return {
        "latent": show(feature.get("latent"), "count").replace(",", ""),
        "kind": str(feature.get("kind") or ""),
        "kind_note": KIND_NOTES.get(str(feature.get("kind")), ""),
        "density": show(feature.get("density"), "share"),
        "one_in": _one_in(feature.get("density")),
        "max_activation": show(feature.get("max_activation"), "activation"),
        "examples": [snippet(example, full=strongest) for example in examples],
    }


def _one_in(density: Any) -> str:
    share = number(density)
    return f"1 row in {round(1 / share):,}" if share and 0 < share < 0.5 else ""


def snippet(example: dict[str, Any], *, full: float) -> dict[str, Any]:
    """An excerpt around the peak, escaped.

    Args:
        example: ``tokens``, ``activations`` and the index ``peak`` of the strongest.
        full: the activation that gets the strongest shade.

    Returns:
        ``html``: tokens that fired in ``<mark class="a1".."a10">`` with their value as title, the peak with class
        ``peak``, line breaks as ↵ and a break; ``peak``: its value as text.
    """
    tokens = [str(token) for token in _listed(example.get("tokens"))]
    values = [number(value) for value in _listed(example.get("activations"))]
    values = (values + [None] * len(tokens))[: len(tokens)]
    peak = example.get("peak")
    if not isinstance(peak, int) or not 0 <= peak < len(tokens):
        peak = max(range(len(tokens)), key=lambda i: values[i] or 0.0, default=0)
    start, stop = _window(tokens, peak)
    silent = [token.isspace() and not value for token, value in zip(tokens, values, strict=True)]
    while start < peak and silent[start]:
        start += 1
    while stop > peak + 1 and silent[stop - 1]:
        stop -= 1
    parts = [_CUT] if start > 0 else []
    for i in range(start, stop):
        value = values[i] or 0.0
        parts.append(
            _token(tokens[i], value, full=full, is_peak=i == peak) if value > 0 or i == peak else _plain(tokens[i])
        )
    parts += [_CUT] if stop < len(tokens) else []
    return {"html": Markup("".join(parts)), "peak": show(values[peak] if tokens else None, "activation")}


def _window(tokens: list[str], peak: int) -> tuple[int, int]:
    """First token and one past the last of an excerpt that holds the peak: few tokens, few lines."""
    start, n_lines = peak, 0
    while start > max(0, peak - MOST_TOKENS_BEFORE):
        n_lines += tokens[start - 1].count("\n")
        if n_lines > MOST_LINES_BEFORE:
            break
        start -= 1
    stop, n_lines = min(peak + 1, len(tokens)), tokens[peak].count("\n") if tokens else 0
    while stop < min(len(tokens), peak + 1 + MOST_TOKENS_AFTER) and n_lines <= MOST_LINES_AFTER:
        n_lines += tokens[stop].count("\n")
        stop += 1
    return start, stop


def _plain(text: str) -> str:
    """A token that did not fire, as HTML."""
    return escape(_visible(text)).replace("\n", _LINE_BREAK + "\n")


def _token(text: str, value: float, *, full: float, is_peak: bool) -> str:
    """A token that fired, as HTML. A line break ends its mark and a new one begins, so that no box spans two lines."""
    shade = min(N_SHADES, math.ceil(N_SHADES * value / full)) if value > 0 and full > 0 else 0
    mark = f'<mark class="a{shade}{" peak" if is_peak else ""}" title="{show(value, "activation")}">'
    html = ""
    for piece in filter(None, re.split("(\n)", _visible(text))):
        html += f"{mark}{_LINE_BREAK}</mark>\n" if piece == "\n" else f"{mark}{escape(piece)}</mark>"
    return html


def _visible(text: str) -> str:
    """All of a token but the line ends, which get their own sign, and the tabs, which keep code in columns."""
    pieces = re.split("([\n\t])", text.replace("\r\n", "\n"))
    return "".join(piece if piece in ("\n", "\t") else visible(piece) for piece in pieces)
