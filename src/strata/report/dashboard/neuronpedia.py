"""Features as JSON in the shape that SAEDashboard writes and Neuronpedia's converter reads.

One folder per SAE, in it ``batch-0.json``, ``batch-1.json`` … of 128 latents each, silent ones left out: ``model_id``,
``layer``, ``sae_set``, ``sae_id_suffix`` and ``features``. Source: github.com/jbloomAus/SAEDashboard,
sae_dashboard/neuronpedia, and convert-saedashboard-to-neuronpedia-export.py of github.com/hijohnnylin/neuronpedia,
which reads these names.

Differs:
    Empty lists stand where Strata does not compute what a field holds, since the converter asks for every name:
    ``neuron_alignment_*`` and ``correlated_neurons_*`` (a residual stream has no neurons), ``logits_hist_data_*`` (only
    the ends of the logit effects are kept) and ``decoder_weights_dist`` (of attention heads). Left out are ``dfa_*``,
    ``loss_values``, ``logit_contributions`` and ``vector``, all optional there. ``correlated_features_l1`` holds the
    Jaccard index, there a cosine under that name. ``frac_nonzero`` divides by the rows that were encoded, there by all
    tokens. Intervals hold equally many firings, there they are equally wide. Lone surrogates and NUL, which a database
    refuses, are U+FFFD.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from strata.interpret.site_index import SiteIndex
from strata.report.dashboard.encoding import rounded
from strata.report.dashboard.features import ExampleGroup

BATCH_LATENTS = 128
_KINDS = ("top", "quantile")
_TOP_BIN = -1  # what SAEDashboard writes where a window was chosen for being strong, not from an interval
_NOT_COMPUTED = (
    *("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"),
    *("correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1"),
    *("logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist"),
)


@dataclass(frozen=True)
class NeuronpediaSource:
    """What a batch says of its SAE.

    Attributes:
        model_id: the model's name.
        sae_set: the run's name.
        site: where the SAE reads; the first number in it is the layer, 0 where there is none.
        suffix: tells SAEs of one layer apart, e.g. ``"layers.0-2"`` of a group; may be empty.
        dataset: the text's name.
    """

    model_id: str
    sae_set: str
    site: str
    suffix: str
    dataset: str

    def batch(self, features: list[dict[str, Any]]) -> str:
        """A batch file, as JSON in ASCII."""
        layer = re.search(r"\d+", self.site)
        content = {
            "model_id": plain(self.model_id),
            "layer": int(layer[0]) if layer else 0,
            "sae_set": plain(self.sae_set),
            "sae_id_suffix": plain(self.suffix),
            "features": features,
        }
        return json.dumps(content, allow_nan=False)


class BatchWriter:
    """The batch files of one SAE, written as its features come.

    Args:
        folder: of the files; made if missing.
        source: what they say of the SAE.
        site: the SAE's index.
    """

    def __init__(self, folder: Path, source: NeuronpediaSource, site: SiteIndex) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._source, self._site = folder, source, site
        self._vocabulary = [plain(text) for text in site.index.vocabulary]
        self._features: list[dict[str, Any]] = []

    def add(self, latent: int, groups: Sequence[ExampleGroup]) -> None:
        """The next latent, one after the other from 0; a silent one, without groups, is left out.

        Raises:
            OSError: a file cannot be written.
        """
        if groups:
            feature = neuronpedia_feature(
                *(self._site, latent), groups=groups, vocabulary=self._vocabulary, dataset=self._source.dataset
            )
            self._features.append(feature)
        if (latent + 1) % BATCH_LATENTS == 0 or latent + 1 == self._site.d_sae:
            path = self._folder / f"batch-{latent // BATCH_LATENTS}.json"
            path.write_text(self._source.batch(self._features), encoding="utf-8")
            self._features = []


def plain(text: str) -> str:
    """The text with U+FFFD for lone surrogates and NUL."""
    whole = text.encode("utf-16-le", errors="surrogatepass").decode("utf-16-le", errors="replace")
    return whole.replace("\0", "\N{REPLACEMENT CHARACTER}")


def neuronpedia_feature(
    site: SiteIndex,
    latent: int,
    *,
    groups: Sequence[ExampleGroup],
    vocabulary: list[str],
    dataset: str,
) -> dict[str, Any]:
    """One feature of a batch.

    Args:
        site: its SAE's index.
        latent: its number.
        groups: of `example_groups`; those drawn at random and those without a firing are left out, since the shape has
            no place for them.
        vocabulary: the text of each token id, as `plain` gives it.
        dataset: the text's name.
    """
    statistics, partners, effects = site.statistics(), site.partners().of(latent), site.logit_effects()
    counts = statistics.histogram[latent]
    edges = np.linspace(0.0, float(statistics.max_activation[latent]), len(counts) + 1)
    n_sequences, sequence_tokens = site.index.token_ids.shape
    feature: dict[str, Any] = {"feature_index": int(latent)}
    feature |= {name: [] for name in _NOT_COMPUTED}
    feature |= {
        "correlated_features_indices": partners.latents.tolist(),
        "correlated_features_pearson": [v or 0.0 for v in rounded(partners.pearson)],  # NaN of a constant one
        "correlated_features_l1": rounded(partners.jaccard),
        "neg_str": [vocabulary[i] for i in effects.bottom_ids[latent]] if effects else [],
        "neg_values": rounded(effects.bottom_values[latent]) if effects else [],
        "pos_str": [vocabulary[i] for i in effects.top_ids[latent]] if effects else [],
        "pos_values": rounded(effects.top_values[latent]) if effects else [],
        "frac_nonzero": float(statistics.density[latent]),
        "freq_hist_data_bar_values": rounded((edges[:-1] + edges[1:]) / 2),
        "freq_hist_data_bar_heights": counts.tolist(),
        "n_prompts_total": n_sequences,
        "n_tokens_in_prompt": sequence_tokens,
        "dataset": plain(dataset),
    }
    feature["activations"] = [a for g in groups if g.kind in _KINDS for a in _activations(g, vocabulary)]
    return feature


def _activations(group: ExampleGroup, vocabulary: list[str]) -> list[dict[str, Any]]:
    low, high, share = (_TOP_BIN, group.high, _TOP_BIN) if group.kind == "top" else (group.low, group.high, group.share)
    found: list[dict[str, Any]] = []
    for i in range(len(group.windows)):
        there = group.windows.is_token[i]
        found.append(
            {
                "bin_min": low,
                "bin_max": high,
                "bin_contains": share,
                "tokens": [vocabulary[number] for number in group.windows.token_ids[i][there].tolist()],
                "values": rounded(group.windows.activations[i][there]),
                "qualifying_token_index": int(there[: group.windows.peaks[i]].sum()),
            }
        )
    return found
