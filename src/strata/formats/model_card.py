"""The README.md of exported SAEs: what a model's page on the Hugging Face Hub shows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strata.amounts import counted
from strata.formats.registry import FORMATS

# Of evaluation.json: key, heading.
_METRICS = (
    ("l0", "L0"),
    ("explained_variance", "explained variance"),
    ("ce_loss_score", "CE loss score"),
    ("delta_ce_percent", "ΔCE %"),
    ("silent_share", "silent latents"),
)


@dataclass(frozen=True)
class Exported:
    """One SAE of an export.

    Attributes:
        name: its folder within the export; "" for the export's own.
        format: as it was written.
        architecture: as it was trained, e.g. "batchtopk".
        d_in: width of its activations.
        d_sae: latents.
        metadata: of the SAE.
        metrics: of the run's evaluation.json; empty if there is none.
    """

    name: str
    format: str
    architecture: str
    d_in: int
    d_sae: int
    metadata: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict[str, Any])


def model_card(saes: Sequence[Exported], *, repository: str) -> str:
    """The page, in Markdown with a YAML head.

    Args:
        saes: at least one.
        repository: "org/name" on the Hub, or the folder's name for an export that was not pushed.
    """
    parts = [_head(saes), _introduction(saes), _table(saes), _loading(saes, repository)]
    return "\n\n".join(parts) + "\n"


def _head(saes: Sequence[Exported]) -> str:
    tags = sorted({"sparse-autoencoder", "mechanistic-interpretability", "strata", *(sae.format for sae in saes)})
    lines = ["---", f"library_name: {FORMATS[saes[0].format].HUB_LIBRARY}", "tags:", *(f"- {tag}" for tag in tags)]
    models = sorted({model for sae in saes if (model := _hub_model(sae))})
    if models:
        lines += ["base_model:", *(f"- {json.dumps(model)}" for model in models)]
    return "\n".join([*lines, "---"])


def _hub_model(sae: Exported) -> str | None:
    """The language model's id on the Hub, unless it is embedded or local."""
    name = sae.metadata.get("hf_model_name")
    if not isinstance(name, str) or name in ("", "demo") or name.startswith((".", "~")) or Path(name).exists():
        return None
    return None if Path(name).is_absolute() or name.count("/") > 1 else name


def _introduction(saes: Sequence[Exported]) -> str:
    models = sorted({str(sae.metadata["model_name"]) for sae in saes if sae.metadata.get("model_name")})
    data = sorted({str(sae.metadata["dataset_path"]) for sae in saes if sae.metadata.get("dataset_path")})
    kinds = sorted({sae.architecture for sae in saes})
    text = f"# Sparse autoencoders{' for ' + ', '.join(models) if models else ''}\n\n"
    text += f"{counted(len(saes), 'sparse autoencoder')} ({', '.join(kinds)})"
    text += f", trained on {', '.join(data)}" if data else ""
    return text + ", written by Strata. They take raw activations: all normalisation is folded into the weights."


def _table(saes: Sequence[Exported]) -> str:
    shown = [(key, heading) for key, heading in _METRICS if any(key in sae.metrics for sae in saes)]
    headings = ["folder", "site", "architecture", "d_in", "d_sae", *(heading for _, heading in shown)]
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    for sae in saes:
        site = sae.metadata.get("site") or sae.metadata.get("hook_name") or "–"
        numbers = [_number(sae.metrics.get(key)) for key, _ in shown]
        cells = [f"`{sae.name or '.'}`", str(site), sae.architecture, str(sae.d_in), str(sae.d_sae), *numbers]
        lines.append("| " + " | ".join(cells) + " |")
    if shown:
        lines += ["", "On held-out text; explained variance is 1 − Σ‖x − x̂‖² / Σ‖x − mean‖² over all rows."]
    return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "–"


def _loading(saes: Sequence[Exported], repository: str) -> str:
    name, form = saes[0].name or ".", FORMATS[saes[0].format]
    python = form.LOADING.format(folder=name)
    if form.IS_NATIVE:
        language, ours = "python", f'import strata\n\nsae = strata.SAE.load("{name}")'
    else:
        language, ours = "sh", f"strata import {name} --out sae"
    where = (
        f"With a copy of `{repository}` (`hf download {repository} --local-dir .`)"
        if "/" in repository
        else "From this folder"
    )
    return f"## Loading\n\n{where}:\n\n```python\n{python}\n```\n\nIn Strata:\n\n```{language}\n{ours}\n```"
