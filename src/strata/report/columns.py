"""The measurements of a site, one column each: what it is called, how it is computed, how it is shown."""

from dataclasses import dataclass
from typing import Any, Literal

from strata.report.numbers import Form, mean, number, numbers, short_count, show
from strata.report.run_files import RunFiles


@dataclass(frozen=True, kw_only=True)
class Column:
    """One measurement. ``bar`` is the value that fills its bar: a number, the column's largest, or none for no bar."""

    key: str
    label: str
    definition: str
    form: Form
    bar: float | Literal["largest", "none"] = "none"


HEADLINE = (
    Column(
        key="fvu",
        label="FVU",
        form="ratio",
        bar="largest",
        definition="Fraction of variance unexplained: Σ‖x − x̂‖² / Σ‖x − mean‖² over all rows, the mean taken per "
        "dimension. 0 is perfect, 1 is no better than always answering the mean.",
    ),
    Column(
        key="explained_variance",
        label="Explained variance",
        form="ratio",
        bar=1.0,
        definition="1 − FVU over all rows at once. 1 is perfect, 0 is the mean predictor, below 0 is worse than that.",
    ),
    Column(
        key="l0",
        label="L0",
        form="mean_count",
        definition="Active latents per row: the mean number of latents above 0.",
    ),
    Column(
        key="dead_share",
        label="Dead",
        form="share",
        bar="largest",
        definition="Share of latents that have not fired once in the last rows of training; the window is "
        "stated with the number.",
    ),
    Column(
        key="silent_share",
        label="Silent",
        form="share",
        bar="largest",
        definition="Share of latents that fire on none of the held-out rows. Rare features count here as well, so it "
        "depends on the number of rows and lies above the dead share.",
    ),
    Column(
        key="ce_loss_score",
        label="CE loss score",
        form="ratio",
        bar=1.0,
        definition="Share of the language model's loss that the SAE recovers when its reconstruction replaces the "
        "site: (CE_zero − CE_SAE) / (CE_zero − CE_clean), zero meaning that the site is set to 0. 1 is all, 0 is none.",
    ),
    Column(
        key="delta_ce_percent",
        label="ΔCE",
        form="percent",
        bar="largest",
        definition="Rise of the language model's loss when the reconstruction replaces the site: "
        "100 · (CE_SAE − CE_clean) / CE_clean.",
    ),
    Column(
        key="n_sink_rows",
        label="Sinks",
        form="count",
        definition="Held-out rows far from all others (‖x − median‖ more than 10 times its median: attention sinks). "
        "They are left out of the measures of reconstruction and sparsity, not of the language model's losses.",
    ),
)

FURTHER = (
    Column(
        key="n_trained_rows",
        label="Rows trained",
        form="count",
        definition="Rows of this site that the SAE was trained on, attention sinks left out; a group's SAE sees one "
        "layer of each token.",
    ),
    Column(key="mse", label="MSE", form="quantity", definition="Squared error summed over d_in, mean over rows."),
    Column(
        key="cosine",
        label="Cosine",
        form="ratio",
        definition="Cosine between activation and reconstruction, mean over rows.",
    ),
    Column(
        key="l2_ratio", label="L2 ratio", form="ratio", definition="‖x̂‖/‖x‖, mean over rows. Below 1 means shrinkage."
    ),
    Column(
        key="relative_reconstruction_bias",
        label="Bias",
        form="ratio",
        definition="Relative reconstruction bias E‖x̂‖² / E⟨x, x̂⟩. 1 is unbiased, below 1 means shrinkage.",
    ),
    Column(key="fvu_with_sinks", label="FVU with sinks", form="ratio", definition="FVU with the sink rows left in."),
    Column(
        key="ce_clean",
        label="CE clean",
        form="nats",
        definition="Cross-entropy of the language model as it is, nats per token.",
    ),
    Column(
        key="ce_sae", label="CE SAE", form="nats", definition="The same with the site replaced by its reconstruction."
    ),
    Column(key="ce_zero", label="CE zero", form="nats", definition="The same with the site set to 0."),
    Column(
        key="kl_div_score",
        label="KL score",
        form="ratio",
        definition="(KL_zero − KL_SAE) / KL_zero, KL being the divergence of the changed model's predictions from the "
        "clean ones.",
    ),
)


def table(files: RunFiles, columns: tuple[Column, ...]) -> dict[str, Any]:
    """Those columns of which any site has a number, the sites' cells, and the means.

    Returns:
        ``columns``; ``rows``: dicts of ``site`` and ``cells``; ``means``: cells, empty for a single site.
        A cell has ``text``, ``note``, ``sort`` (a number or "") and ``bar_percent`` in [0, 100] or None.
    """
    measured = {site: files.measured(site) for site in files.sites}
    found = {c.key: [number(of_site.get(c.key)) for of_site in measured.values()] for c in columns}
    used = [column for column in columns if numbers(found[column.key])]
    rows = [{"site": site, "cells": [_cell(files, site, c, found[c.key]) for c in used]} for site in measured if used]
    means = [show(mean(found[c.key]), "mean_count" if c.form == "count" else c.form) for c in used]
    return {"columns": used, "rows": rows, "means": means if len(rows) > 1 else []}


def _cell(files: RunFiles, site: str, column: Column, all_values: list[float | None]) -> dict[str, Any]:
    value = number(files.measured(site).get(column.key))
    full = max(map(abs, numbers(all_values)), default=0.0) if column.bar == "largest" else number(column.bar)
    share = None if value is None or not full else 100 * min(1.0, max(0.0, value / full))
    window = files.dead_window_rows(site) if column.key == "dead_share" else None
    return {
        "text": show(value, column.form),
        "note": "" if value is None else f"{value:.6g}" + (f", not fired in {window:,} rows" if window else ""),
        "sort": "" if value is None else f"{value:.9g}",
        "bar_percent": None if share is None else round(share, 1),
    }


def dead_window(files: RunFiles) -> str:
    """The window behind "dead" in words, "in 131 k rows" or "" where it is unknown; a span where sites differ."""
    windows = sorted({w for site in files.sites if (w := files.dead_window_rows(site))})
    if not windows:
        return ""
    ends = [short_count(windows[0]), short_count(windows[-1])]
    return f"in {'–'.join(dict.fromkeys(ends))} rows"
