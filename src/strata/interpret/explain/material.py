"""What explaining and scoring a feature need: windows to explain from, and others, of other documents, to score on."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from strata.interpret.explain.interpreter import Material
from strata.interpret.explain.pieces import Pieces
from strata.interpret.site_index import SiteIndex
from strata.interpret.windows import Windows


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much is shown of a feature.

    Attributes:
        n_explained: windows to explain from: half of them the strongest, half spread over all strengths.
        n_top: windows to score on where it is strongest.
        n_random: windows to score on where it fires, spread over all strengths, none of the former.
        n_silent: windows to score on in which it never fires.
        n_least: of the windows to score on where it fires; a feature with fewer is not scored.
    """

    n_explained: int = 8
    n_top: int = 10
    n_random: int = 20
    n_silent: int = 20
    n_least: int = 5


@dataclass(frozen=True)
class FeatureMaterial:
    """A feature's windows.

    Attributes:
        explaining: for the explainer.
        top: of documents for scoring: where it is strongest, strongest first.
        random: where it fires, spread over all strengths; none of `top`.
        silent: where it never fires.
        measured: for `top`, `random` and `silent`, one after the other: at which tokens it was encoded.
        not_scored: why it can be explained but not scored; empty for one that can be scored.
    """

    explaining: Material
    top: Windows
    random: Windows
    silent: Windows
    measured: Bool[np.ndarray, "windows tokens"]
    not_scored: str = ""

    @property
    def windows(self) -> Windows:
        """`top`, `random` and `silent`, one after the other."""
        return Windows.joined([self.top, self.random, self.silent])


def feature_random(latent: int, *, seed: int, purpose: int) -> np.random.Generator:
    """A feature's own random numbers, the same whichever features are asked for beside it.

    Args:
        latent: its number.
        seed: of all features.
        purpose: a number for each use, so that two uses share no numbers.
    """
    return np.random.default_rng((seed, purpose, latent))


def gather(site: SiteIndex, latent: int, *, pieces: Pieces, amounts: Amounts, seed: int) -> FeatureMaterial | str:
    """The material of a feature.

    Args:
        site: its SAE in an index.
        latent: its number.
        pieces: the text of that index.
        amounts: how many windows of each kind.
        seed: of what is drawn; every feature draws for itself.

    Returns:
        The material, or why there is none: it never fires in the documents to explain from.
    """
    fired = site.firings(latent)
    tokens, values = np.asarray(fired.tokens), np.asarray(fired.values, np.float32)
    owners = pieces.of_token[tokens]
    is_test, is_shown = pieces.is_test[owners], pieces.is_shown[owners]

    strongest, spread = _choose(
        owners[~is_test & is_shown], values[~is_test & is_shown],
        n_top=amounts.n_explained - amounts.n_explained // 2, n_random=amounts.n_explained // 2,
        random=feature_random(latent, seed=seed, purpose=3),  # of its own: what is scored on does not depend on it
    )  # fmt: skip
    if not len(strongest):
        return "it fires in none of the windows to explain from"
    explaining = pieces.windows(np.concatenate([strongest, spread]), tokens=tokens, values=values)
    material = Material(
        key=site.key,
        latent=latent,
        windows=explaining[np.argsort(-explaining.strengths, kind="stable")],
        max_activation=float(values[~is_test].max()),
    )

    random = feature_random(latent, seed=seed, purpose=0)
    scored = owners[is_test & is_shown]
    top, others = _choose(
        scored, values[is_test & is_shown], n_top=amounts.n_top, n_random=amounts.n_random, random=random
    )
    silent = _silent(pieces, owners, n=amounts.n_silent, random=random)
    n_firing = len(top) + len(others)
    windows = pieces.windows(np.concatenate([top, others, silent]), tokens=tokens, values=values)
    too_few = f"it fires in {n_firing} of the windows to score on, fewer than {amounts.n_least}"
    return FeatureMaterial(
        explaining=material,
        top=windows[: len(top)],
        random=windows[len(top) : n_firing],
        silent=windows[n_firing:],
        measured=pieces.measured(windows),
        not_scored=too_few if n_firing < amounts.n_least else "",
    )


def _choose(
    owners: Int[np.ndarray, " fired"],
    values: Float[np.ndarray, " fired"],
    *,
    n_top: int,
    n_random: int,
    random: np.random.Generator,
) -> tuple[Int[np.ndarray, " top"], Int[np.ndarray, " others"]]:
    """Of the pieces with firings the strongest, and of the others one of each of `n_random` shares."""
    if not len(owners):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    begins = np.flatnonzero(np.diff(owners, prepend=-1))
    fired, strengths = owners[begins], np.maximum.reduceat(values, begins)
    order = fired[np.argsort(-strengths, kind="stable")].astype(np.int64)
    top, rest = order[:n_top], order[n_top:]
    if len(rest) <= n_random:
        return top, rest
    edges = np.linspace(0, len(rest), n_random + 1).astype(np.int64)
    return top, rest[edges[:-1] + (random.random(n_random) * np.diff(edges)).astype(np.int64)]


def _silent(
    pieces: Pieces, fired: Int[np.ndarray, " fired"], *, n: int, random: np.random.Generator
) -> Int[np.ndarray, " pieces"]:
    """Pieces to score on in which the feature never fires, drawn at random."""
    is_free = pieces.is_test & pieces.is_shown
    is_free[fired] = False
    free = np.flatnonzero(is_free)
    return random.choice(free, min(n, len(free)), replace=False)
