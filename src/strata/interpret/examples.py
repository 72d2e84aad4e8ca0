"""A handful of features per SAE with the text on which they fire most: the numbers of ``features.json``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from strata.activations.harvest import collect
from strata.errors import UserError
from strata.interpret.index import FeatureIndex
from strata.interpret.index_building import Encoder, cut
from strata.interpret.index_layout import shard_sequences
from strata.interpret.index_writing import IndexWriter
from strata.interpret.site_index import SiteIndex
from strata.interpret.windows import Windows
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenBatch
from strata.sae.model import SAE

# The median row of a site, from which attention sinks are told, comes from so many of the first rows.
_SINK_ROWS = 4096
# Densities of the latents that are shown as the strongest: neither nearly never nor nearly everywhere.
_DENSITY_RANGE = (1e-4, 1e-2)


@dataclass(frozen=True)
class Shown:
    """How much is shown.

    Attributes:
        n_features: latents per SAE, at least 1; fewer where fewer fired often enough.
        n_examples: examples per latent, at least 1; fewer where peaks lie too close together.
        before: tokens shown before the peak; windows end where the sequence or its text ends.
        after: tokens shown behind it.
    """

    n_features: int = 8
    n_examples: int = 5
    before: int = 12
    after: int = 6

    def __post_init__(self) -> None:
        if min(self.n_features, self.n_examples) < 1 or min(self.before, self.after) < 0:
            raise UserError(
                f"`n_features` and `n_examples` must be at least 1, `before` and `after` at least 0. Got {self}. Leave"
                " them out for the defaults."
            )


def feature_examples(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    batches: Sequence[TokenBatch],
    *,
    shown: Shown = Shown(),
    seed: int = 0,
    lm_dtype: str = "auto",
    folder: Path | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Choose latents of each SAE and show where they are most active.

    Rows are the tokens that are neither special nor pad nor attention sink (told by `Normalization` from the first
    4096 rows): no other token is a peak, counts as a firing, or has an activation in a window.

    Chosen are latents that fired on at least ``n_examples`` rows. Half of them (rounded up) are of kind "strongest":
    those with density in [1e-4, 1e-2] whose largest activation is largest (decoder rows have unit norm, so activations
    of one SAE's latents compare); if there are too few, the strongest of the other densities. The rest, kind "random",
    are drawn uniformly from the other latents.

    Examples are the strongest peaks by the rule of `SiteIndex.top`, from an index of the text that is thrown away
    again. It takes four bytes on disk for each firing; its activations are rounded to fp16.

    Args:
        lm: the language model; it runs no further than the last site.
        saes: site → SAE.
        batches: held-out text, in memory, of sequences of one length.
        shown: how much.
        seed: of the random choice.
        lm_dtype: precision of the language model's forward: "auto", "fp32" or "bf16".
        folder: where there is room for the index; None is the system's place for temporary files.

    Returns:
        Site → per latent ``latent``, ``density`` (share of rows on which it fires), ``max_activation``, ``kind``, and
        ``examples``: ``tokens`` as text (bytes that are no text by themselves give U+FFFD), ``activations`` of this
        latent at each of them (0 where it is silent), ``peak`` the place of the strongest in both lists.

    Raises:
        UserError: no SAE, or a text without rows.
    """
    if not saes:
        raise UserError("`saes` must hold at least one SAE. Got none. Give {site: sae}.")
    with TemporaryDirectory(dir=folder, prefix=".unfinished-") as place:
        index = _index(lm, saes, batches, Path(place), lm_dtype=lm_dtype)
        return {site: _features(lm, index[site], shown, seed=seed) for site in saes}


@torch.inference_mode()
def _index(
    lm: LanguageModel, saes: Mapping[str, SAE], batches: Sequence[TokenBatch], folder: Path, *, lm_dtype: str
) -> FeatureIndex:
    """Where every latent fires, without what an index of a run keeps beside that."""
    encoder = Encoder(lm, saes, lm_dtype=lm_dtype)
    encoder.tell_sinks(collect(lm, batches, sites=list(saes), lm_dtype=lm_dtype, n_tokens=_SINK_ROWS))
    n_sequences, seq = sum(len(batch.input_ids) for batch in batches), batches[0].input_ids.shape[1]
    d_saes = {site: sae.d_sae for site, sae in saes.items()}
    writer = IndexWriter(folder, d_saes, sequence_tokens=seq, vocabulary_size=lm.vocabulary_size)
    for batch in cut(batches, n_sequences, at=shard_sequences(seq)):
        writer.add(batch, encoder.codes(batch, encoder.rows(batch)))
    writer.finish_shard()
    record: dict[str, Any] = {
        "saes": {site: {"site": site, "d_sae": d_sae} for site, d_sae in d_saes.items()},
        "n_sequences": n_sequences,
        "sequence_tokens": seq,
        "n_shards": -(-n_sequences // shard_sequences(seq)),
        "separator": "none",
        "n_prefix_tokens": 0,
        "n_suffix_tokens": 0,
        "text": {"texts": {"kind": "token_ids"}},
        "logit_effects": [],
    }
    return FeatureIndex(folder, record)


def _features(lm: LanguageModel, site: SiteIndex, shown: Shown, *, seed: int) -> list[dict[str, Any]]:
    largest = np.zeros(site.d_sae, np.float32)
    for shard in site.shards():
        np.maximum.at(largest, shard.latents, shard.values)
    return [
        {
            "latent": latent,
            "density": site.density(latent),
            "max_activation": float(largest[latent]),
            "kind": kind,
            "examples": _examples(lm, site.top(latent, n=shown.n_examples, before=shown.before, after=shown.after)),
        }
        for latent, kind in _chosen(site, largest, shown, seed=seed)
    ]


def _chosen(site: SiteIndex, largest: Float[np.ndarray, " d_sae"], shown: Shown, *, seed: int) -> list[tuple[int, str]]:
    """Which latents to show, by the rule that `feature_examples` states."""
    density = site.n_fired / max(site.n_rows, 1)
    eligible = (site.n_fired >= shown.n_examples).nonzero()[0]
    in_range = (density >= _DENSITY_RANGE[0]) & (density <= _DENSITY_RANGE[1])
    ranked: Int[np.ndarray, " eligible"] = eligible[np.lexsort((-largest[eligible], ~in_range[eligible]))]
    n_strongest = (shown.n_features + 1) // 2
    strongest, others = ranked[:n_strongest], np.sort(ranked[n_strongest:])
    drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[: shown.n_features // 2]
    return [
        *((int(latent), "strongest") for latent in strongest),
        *((int(latent), "random") for latent in others[drawn.numpy()]),
    ]


def _examples(lm: LanguageModel, windows: Windows) -> list[dict[str, Any]]:
    """As ``features.json`` has them."""
    examples: list[dict[str, Any]] = []
    for number, there in enumerate(windows.is_token):
        ids: list[int] = windows.token_ids[number][there].tolist()
        activations: list[float] = windows.activations[number][there].tolist()
        peak = int(there[: windows.peaks[number]].sum())
        examples.append({"tokens": [_text(lm, i) for i in ids], "activations": activations, "peak": peak})
    return examples


def _text(lm: LanguageModel, token_id: int) -> str:
    # A model without tokenizer still has examples; its tokens are numbers.
    if lm.tokenizer is None:
        return str(token_id)
    return str(lm.tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
