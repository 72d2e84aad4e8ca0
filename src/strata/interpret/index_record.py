"""index.json: what an index is of, whether it is complete, and whether it can be read or gone on with."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from strata.atomic import as_json
from strata.errors import UserError
from strata.interpret.index_layout import FORMAT_VERSION, RECORD, checked_key
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenStream
from strata.sae.model import SAE

_HASHED_ROWS = 64
_NEEDED = {
    *("saes", "n_sequences", "sequence_tokens", "n_shards", "separator", "n_prefix_tokens", "n_suffix_tokens"),
    *("logit_effects", "text"),
}


@dataclass(frozen=True)
class Reading:
    """Which text is read, and how: as the arguments of `build_index`."""

    texts: Any
    n_tokens: int
    context_tokens: int | None
    text_batch_size: int
    lm_dtype: str


def begun(
    lm: LanguageModel, saes: Mapping[str, SAE], tokens: TokenStream, reading: Reading, stated: dict[str, Any] | None
) -> dict[str, Any]:
    """index.json of an index that begins.

    Args:
        lm: the language model.
        saes: that are read.
        tokens: the text's tokens.
        reading: which text.
        stated: what the index is of; None is told from the others.
    """
    separator, text, model = tokens.separator, as_json(tokens.describe()), lm.fingerprint()
    of_all = {"model": model, "text": text, "n_tokens": reading.n_tokens, "lm_dtype": reading.lm_dtype}
    return {
        "format_version": FORMAT_VERSION,
        "complete": False,
        "stated": stated or as_json({**of_all, "saes": sae_hashes(saes)}),
        "model": model,
        "text": text,
        "n_tokens_wanted": reading.n_tokens,
        "sequence_tokens": tokens.context_tokens,
        "separator": "none" if separator is None else separator,
        "n_prefix_tokens": tokens.n_prefix_tokens,
        "n_suffix_tokens": tokens.n_suffix_tokens,
        "saes": {
            key: {"site": sae.metadata.get("site") or key, "d_sae": sae.d_sae, "d_in": sae.d_in}
            for key, sae in saes.items()
        },
    }


def sae_hashes(saes: Mapping[str, SAE]) -> dict[str, str]:
    """Of some of each SAE's weights and of its gate, enough to tell two trainings apart."""
    found: dict[str, str] = {}
    for key, sae in saes.items():
        gate = f"{sae.gate.architecture} {getattr(sae.gate, 'k', '')}"
        parts = (sae.b_enc, sae.b_dec, sae.W_dec[:_HASHED_ROWS], sae.W_enc[:, :_HASHED_ROWS], *sae.gate.parameters())
        read = (part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for part in parts)
        found[key] = hashlib.sha256(gate.encode() + b"".join(read)).hexdigest()
    return found


def record_of(folder: Path) -> dict[str, Any] | None:
    """An index.json that can be gone on with or replaced; None where there is none, or a damaged or foreign one."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        known = record["format_version"] == FORMAT_VERSION and {"stated", "saes", "sequence_tokens"} <= record.keys()
        return record if known else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def whole_record(path: Path) -> dict[str, Any]:
    """An index.json with all that is needed to read the index.

    Raises:
        UserError: it is damaged, or of another format.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = record.keys() >= _NEEDED if record["complete"] else True
    except (ValueError, KeyError, TypeError, AttributeError):
        record, known = dict[str, Any](), False
    if not known:
        raise UserError(f"An index must have a whole {RECORD}. {path} is damaged. Make it anew with --reindex.")
    for key in record["saes"]:
        checked_key(key)
    if record.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"An index must be of format {FORMAT_VERSION}. {path} is of {record.get('format_version')}. Make it anew"
            " with --reindex."
        )
    return record
