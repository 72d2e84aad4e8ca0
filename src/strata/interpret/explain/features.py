"""Features of one SAE explained and scored together, with an interpreter that answers for all of them at once."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from strata.amounts import counted
from strata.config.explain import ExplainConfig
from strata.interpret.explain.interpreter import Explanation, Failed, Interpreter
from strata.interpret.explain.material import Amounts, FeatureMaterial, gather
from strata.interpret.explain.pieces import Pieces
from strata.interpret.explain.record import ExplainedFeature, ExplanationsFile
from strata.interpret.explain.scoring import score
from strata.interpret.explain.trial import Trial
from strata.interpret.site_index import SiteIndex
from strata.log import say

FEATURES_AT_ONCE = 128


@dataclass(frozen=True)
class Work:
    """What explaining features of an SAE takes.

    Attributes:
        site: the SAE in an index.
        pieces: the text of that index.
        interpreter: who explains, simulates and judges.
        config: what is asked.
        shuffles: whether each explanation is put to another feature's windows too.
        vocabulary: the text of each token id.
    """

    site: SiteIndex
    pieces: Pieces
    interpreter: Interpreter
    config: ExplainConfig
    shuffles: bool
    vocabulary: Sequence[str]


def explain_features(work: Work, latents: Sequence[int], file: ExplanationsFile, *, progress: bool) -> bool:
    """Explain those features of an SAE that are not finished in the file, up to 128 together.

    Args:
        work: what that takes.
        latents: the features.
        file: where they are kept as they come.
        progress: say on stderr how far it is.

    Returns:
        Whether the limit on cost ended it.
    """
    finished = file.finished
    left = [latent for latent in latents if latent not in finished]
    n_before = len(latents) - len(left)
    if n_before:
        say(f"{work.site.key}: {counted(n_before, 'feature')} explained before", shown=progress)
    said = time.monotonic()
    for start in range(0, len(left), FEATURES_AT_ONCE):
        found = _explain(work, left[start : start + FEATURES_AT_ONCE])
        file.add(found)
        if any(not feature.is_done for feature in found):
            return True
        if time.monotonic() - said > 5:
            said = time.monotonic()
            say(f"{work.site.key}: {n_before + start + len(found):,} of {len(latents):,} features", shown=progress)
    return False


def _explain(work: Work, latents: Sequence[int]) -> list[ExplainedFeature]:
    """Explain and score features together."""
    amounts = Amounts(n_explained=work.config.n_explained, n_top=work.config.n_top,
                      n_random=work.config.n_random, n_silent=work.config.n_silent)  # fmt: skip
    seed = work.config.seed
    gathered = {n: gather(work.site, n, pieces=work.pieces, amounts=amounts, seed=seed) for n in latents}
    materials = {latent: found for latent, found in gathered.items() if not isinstance(found, str)}
    answers = work.interpreter.explain([material.explaining for material in materials.values()])
    explained = dict(zip(materials, answers, strict=True))
    scored = [n for n, answer in explained.items() if isinstance(answer, Explanation) and not materials[n].not_scored]
    trials = {latent: Trial.of(materials[latent], seed=seed) for latent in scored}
    own = _scores(work, explained, trials, scored, scored)
    shuffled: dict[int, dict[str, Any]] = {}
    if work.shuffles and len(scored) > 1:
        order = np.random.default_rng((seed, *latents[:1])).permutation(scored).tolist()
        shuffled = _scores(work, explained, trials, [*order[1:], order[0]], order)
    answered = {**{n: Failed(why) for n, why in gathered.items() if isinstance(why, str)}, **explained}
    return [
        _feature(n, answered[n], work, material=materials.get(n), own=own.get(n, {}), shuffled=shuffled.get(n, {}))
        for n in latents
    ]


def _scores(
    work: Work,
    explained: Mapping[int, Explanation | Failed],
    trials: Mapping[int, Trial],
    whose: Sequence[int],
    where: Sequence[int],
) -> dict[int, dict[str, Any]]:
    """Scores of the explanations of some features on the windows of others, by the latter."""
    explanations = [one for latent in whose if isinstance(one := explained[latent], Explanation)]
    put_to = [trials[latent] for latent in where]
    found = score(work.interpreter, explanations, put_to, scorers=work.config.scorers)
    return dict(zip(where, found, strict=True))


def _feature(
    latent: int,
    answer: Explanation | Failed,
    work: Work,
    *,
    material: FeatureMaterial | None,
    own: dict[str, Any],
    shuffled: dict[str, Any],
) -> ExplainedFeature:
    explanation = answer if isinstance(answer, Explanation) else None
    patterns = explanation.patterns if explanation else ()
    return ExplainedFeature(
        latent=latent,
        text=explanation.text if explanation else "",
        interpreter=work.interpreter.name,
        patterns=tuple(
            {
                "tokens": [work.vocabulary[token] for token in pattern.token_ids],
                "token_ids": list(pattern.token_ids),
                "level": pattern.level,
            }
            for pattern in patterns
        ),
        n_fired=int(work.site.n_fired[latent]),
        scores=own,
        shuffled=shuffled,
        failed=answer.reason if isinstance(answer, Failed) else "",
        not_scored=material.not_scored if material and explanation else "",
    )
