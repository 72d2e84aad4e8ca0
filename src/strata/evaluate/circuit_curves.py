"""How faithful a suite's feature circuits of a task are, over their size."""

from typing import Any

from strata.evaluate.attribution import attribute
from strata.evaluate.circuits import circuit_scores
from strata.evaluate.suites import SAEsBySuite
from strata.evaluate.tasks.base import TaskPairs
from strata.lm.model import LanguageModel
from strata.log import say

_SIZES = (1, 4, 16, 64, 256, 1024, 4096)


def circuit_curves(
    lm: LanguageModel, pairs: TaskPairs, suites: SAEsBySuite, *, method: str = "attribution", progress: bool = True
) -> list[dict[str, Any]]:
    """For each suite, with and without the SAEs' errors, what `circuit_scores` says of circuits of several sizes.

    The circuit is sought in the first half of the pairs (`attribute`) and judged on the other. Sizes are features per
    site: powers of four, smaller than the widest SAE.

    Args:
        lm: the language model.
        pairs: of a task, at least two.
        suites: name → site → SAE.
        method: of `attribute`.
        progress: say on stderr what happens.

    Returns:
        Dicts with ``task``, ``suite``, ``method`` and the keys of `circuit_scores`.
    """
    discovery, judging = pairs.split(len(pairs) // 2)
    found: list[dict[str, Any]] = []
    for name, saes in suites.items():
        say(f"task {pairs.name}: circuits in {name}", shown=progress)
        sizes = [size for size in _SIZES if size < max(sae.d_sae for sae in saes.values())]
        attribution = attribute(lm, saes, discovery, method=method)
        for with_error in (True, False):
            scores = circuit_scores(lm, saes, judging, attribution, sizes=sizes, with_error=with_error)
            found.append({"task": pairs.name, "suite": name, "method": method, **scores})
    return found
