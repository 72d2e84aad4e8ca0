"""What the page of one feature shows, compactly: examples, histogram, logits, partners, nearest directions.

Not here: what the loss does when the feature is taken away, which takes passes of the language model for each feature,
and the histogram of its effects on all logits, of which the index keeps the ends.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from strata.interpret.site_index import Firings, SiteIndex
from strata.interpret.windows import Windows
from strata.report.dashboard.encoding import bytes_for, integers, rounded
from strata.report.dashboard.nearest import Nearest

N_QUANTILES, N_OF_QUANTILE, N_RANDOM, N_SILENT = 5, 2, 6, 4
FULL_LEVEL = 65_535  # an activation is stored as a share of the feature's largest, in two bytes
_SEED = 0


@dataclass(frozen=True)
class Shown:
    """How much text a feature's page shows.

    Attributes:
        n_examples: windows around its strongest firings.
        before: tokens before the one a window is cut around.
        after: tokens behind it.
    """

    n_examples: int = 12
    before: int = 24
    after: int = 8

    @property
    def place_bytes(self) -> int:
        """Bytes that the number of a token among all of a page takes."""
        n_windows = self.n_examples + N_QUANTILES * N_OF_QUANTILE + N_RANDOM + N_SILENT
        return bytes_for(n_windows * (self.before + 1 + self.after))


@dataclass(frozen=True)
class ExampleGroup:
    """Windows that were chosen in one way.

    Attributes:
        kind: "top", "quantile", "random" or "silent".
        windows: the windows.
        low: the weakest firing that could have been chosen; 0 of silent ones, as are the next two.
        high: the strongest.
        share: of the feature's firings that could have been chosen, 0 to 1.
    """

    kind: str
    windows: Windows
    low: float
    high: float
    share: float


def example_groups(site: SiteIndex, latent: int, shown: Shown) -> list[ExampleGroup]:
    """The strongest firings, some of each fifth of the activations, some at random, and text without a firing.

    At random means each firing alike, so that a document with many of them is likelier to be seen. Text that the
    strongest fifth or the draw shares with the strongest firings is shown in both. A latent that never fires has none.
    """
    firings = site.firings(latent)
    if not len(firings):
        return []
    common: dict[str, Any] = {"before": shown.before, "after": shown.after, "firings": firings}
    values = np.sort(firings.values)[::-1]
    weakest, strongest = float(values[-1]), float(values[0])
    groups = [ExampleGroup("top", site.top(latent, n=shown.n_examples, **common), weakest, strongest, 1.0)]
    parts = np.array_split(values, N_QUANTILES)
    quantiles = site.quantiles(latent, n_quantiles=N_QUANTILES, n_each=N_OF_QUANTILE, seed=_SEED, **common)
    groups += [
        ExampleGroup("quantile", windows, float(part[-1]), float(part[0]), len(part) / len(values))
        for windows, part in zip(quantiles, parts, strict=True)
        if len(windows)
    ]
    at_random = site.windows(latent, _drawn(firings, latent), **common)
    groups.append(ExampleGroup("random", at_random, weakest, strongest, 1.0))
    return [*groups, ExampleGroup("silent", site.silent(latent, N_SILENT, seed=_SEED, **common), 0.0, 0.0, 0.0)]


def _drawn(firings: Firings, latent: int) -> Int[np.ndarray, " drawn"]:
    random = np.random.default_rng([_SEED, latent, 2])
    return random.choice(firings.tokens, min(N_RANDOM, len(firings)), replace=False)


def feature_content(
    site: SiteIndex,
    latent: int,
    *,
    groups: list[ExampleGroup],
    nearest: Nearest | None,
    shown: Shown,
    id_bytes: int,
) -> dict[str, Any]:
    """One feature as the page reads it; what is not known is left out.

    Args:
        site: its SAE's index.
        latent: its number.
        groups: of `example_groups`.
        nearest: of its SAE.
        shown: with which these were made.
        id_bytes: bytes of a token's id.
    """
    content: dict[str, Any] = {}
    statistics = site.statistics()
    if groups:
        largest = float(statistics.max_activation[latent])
        content["windows"] = _windows_content(groups, site, largest=largest, shown=shown, id_bytes=id_bytes)
        mean, square = float(statistics.mean[latent]), float(statistics.mean_square[latent])
        spread = max(square - mean**2, 0.0) ** 0.5
        moments = np.array([mean, spread, statistics.skew[latent], statistics.kurtosis[latent]], np.float64)
        content["moments"] = rounded(moments)
        counts = statistics.histogram[latent].tolist()
        content["histogram"] = {"low": 0, "high": rounded(np.array([largest]))[0], "counts": counts}
    if (effects := site.logit_effects()) is not None:
        content["logits"] = {
            "up": effects.top_ids[latent].tolist(),
            "up_values": rounded(effects.top_values[latent]),
            "down": effects.bottom_ids[latent].tolist(),
            "down_values": rounded(effects.bottom_values[latent]),
        }
    if nearest is not None:
        cosines = rounded(nearest.cosines[latent])
        content["nearest"] = list(zip(nearest.latents[latent].tolist(), cosines, strict=True))
    partners = site.partners().of(latent)
    content["partners"] = [
        (other, jaccard, correlation)
        for other, jaccard, correlation in zip(
            partners.latents.tolist(), rounded(partners.jaccard), rounded(partners.phi, 2), strict=True
        )
    ]
    return content


def _windows_content(
    groups: list[ExampleGroup], site: SiteIndex, *, largest: float, shown: Shown, id_bytes: int
) -> dict[str, Any]:
    """All windows of a feature, one after the other, without the places where there is no token."""
    windows = Windows.joined([group.windows for group in groups])
    there = windows.is_token
    values = windows.activations[there]
    places = values.nonzero()[0]
    levels = np.clip(np.rint(values[places].astype(np.float64) / largest * FULL_LEVEL), 1, FULL_LEVEL)
    columns = np.arange(int(there.shape[1]))
    limits = rounded(np.array([[g.low, g.high, g.share] for g in groups], np.float64).reshape(-1))
    return {
        "groups": [
            {"kind": group.kind, "n": len(group.windows), "low": low, "high": high, "share": share}
            for group, low, high, share in zip(groups, limits[::3], limits[1::3], limits[2::3], strict=True)
        ],
        "max": rounded(np.array([largest]), 9)[0],
        "lengths": there.sum(1).tolist(),
        "peaks": (there & (columns < windows.peaks[:, None])).sum(1).tolist(),
        "documents": windows.documents.tolist(),
        "cut": _cut(windows, there, sequence_tokens=site.index.token_ids.shape[1]),
        "ids": integers(windows.token_ids[there], n_bytes=id_bytes),
        "places": integers(places, n_bytes=shown.place_bytes),
        "levels": integers(levels.astype(np.int64), n_bytes=2),
    }


def _cut(windows: Windows, there: Bool[np.ndarray, "windows tokens"], *, sequence_tokens: int) -> list[int]:
    """Of each window: 1 if the sequence began before it, plus 2 if it goes on behind it."""
    ends = windows.starts + there.shape[1]
    before = there[:, 0] & (windows.starts % sequence_tokens != 0)
    behind = there[:, -1] & (ends % sequence_tokens != 0)
    return (before + 2 * behind).tolist()
