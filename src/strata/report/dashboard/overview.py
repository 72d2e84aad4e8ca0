"""What the dashboard says of the run as a whole: model, text, its SAEs and their quality."""

import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from strata.interpret.index import FeatureIndex
from strata.interpret.site_index import SiteIndex
from strata.report.dashboard.explained import Explanations
from strata.report.numbers import moment, number
from strata.report.run_files import RunFiles, section
from strata.report.summary import heading

DENSE = 0.1  # a feature that fires on a larger share of rows is called dense
# The folder of an SAE that several layers share, as `strata.config.layer_groups.group_name` names it.
_GROUP = re.compile(r"layers\.\d+(-\d+|(\+\d+)+)")


def group_of(key: str) -> str:
    """The folder of the layer group that an SAE belongs to, ``"layers.0-2"``; empty for one of a single site."""
    folder, _, _ = key.rpartition("/")
    return folder if _GROUP.fullmatch(folder.rpartition("/")[2]) else ""


def run_content(
    index: FeatureIndex, files: RunFiles, saes: list[dict[str, Any]], *, report: bool, written: dict[str, Any]
) -> dict[str, Any]:
    """What the page knows of the run.

    Args:
        index: the run's.
        files: its records.
        saes: `sae_content` of each, in the index's order.
        report: whether the training's report stands beside the dashboard, in ../report.
        written: how the data files are written: ``chunk``, ``id_bytes``, ``place_bytes``.
    """
    about = heading(files)
    return {
        "title": about["model"],
        "data": _text_name(index) or about["data"],
        "date": moment(datetime.now(UTC).isoformat()),
        "version": version("strata-sae"),
        "folder": shell_word(str(files.folder)),
        "n_tokens": int(index.is_token.sum()),
        "dense": DENSE,
        "report": "../report/index.html" if report else None,
        "facts": _facts(index, files),
        "saes": saes,
        **written,
    }


def sae_content(site: SiteIndex, files: RunFiles, explanations: Explanations) -> dict[str, Any]:
    """What the overview says of one SAE; None where something was not measured."""
    measured = files.measured(site.key) or files.measured(site.site)
    values = {name: number(measured.get(name)) for name in ("fvu", "explained_variance", "l0", "dead_share")}
    return {
        "key": site.key,
        "site": site.site,
        "group": group_of(site.key),
        "d_sae": site.d_sae,
        "n_rows": int(site.n_rows),
        "n_silent": int((site.n_fired == 0).sum()),
        "n_dense": int((site.n_fired > DENSE * site.n_rows).sum()),
        "explained": len(explanations) > 0,
        "n_explained": len(explanations),
        "score_name": explanations.score_name,
        "mean_score": explanations.mean_score,
        "n_half_scored": explanations.n_half_scored,
        "n_unanswered": explanations.n_unanswered,
        **values,
    }


def shell_word(text: str) -> str:
    """The text as a shell takes it for one word."""
    return text if re.fullmatch(r"[\w./+=:@%-]+", text, re.ASCII) else "'" + text.replace("'", "'\\''") + "'"


def _text_name(index: FeatureIndex) -> str:
    """The text that was read, which need not be the run's."""
    source = section(index.record, "text", "texts").get("source")
    return str(source) if source else str(index.record.get("stated", {}).get("data") or "")


def _facts(index: FeatureIndex, files: RunFiles) -> list[tuple[str, str]]:
    n_sequences, sequence_tokens = index.token_ids.shape
    about = heading(files)
    n_documents = int(index.documents.max(initial=-1)) + 1
    found = [
        ("Read", f"{n_sequences:,} sequences of {sequence_tokens:,} tokens"),
        ("Documents", f"{n_documents:,}"),
        ("Trained", f"{about['date']} on {about['data']}"),
        ("Run", str(Path(files.folder))),
    ]
    weights = files.at("model", "weights_sha256")
    return [*found, ("Model's weights", f"sha256 {str(weights)[:16]}…")] if weights else found
