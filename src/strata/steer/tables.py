"""The benchmark's results as lines of text."""

from typing import Any

from strata.amounts import counted

_COLUMNS = f"{'method':<11} {'score':>6} {'95 %':>13} {'concept':>8} {'fluency':>8} {'distinct':>8}"
_COSTS = f"{'training':>10} {'a concept':>10} {'a token':>10} {'of forward':>10}"


def table(results: dict[str, Any]) -> list[str]:
    """Scores on the test prompts, means over concepts, beside the FLOPs; then scores by concept.

    Args:
        results: of `strata.steer.benchmark.benchmark`.
    """
    n, perplexity = results["n_prompts"], results["unsteered_perplexity"]
    concepts, prompts = counted(len(results["concepts"]), "concept"), counted(n["test"], "test prompt")
    amounts = f"{concepts}, {prompts} each, strengths chosen on {n['choose']}"
    lines = [f"{amounts} others. Unsteered perplexity {perplexity:.3g}.", "", f"{_COLUMNS} {_COSTS}"]
    for name, one in results["methods"].items():
        flops, share = one["flops"], one["flops"]["token"] / results["forward_flops_per_token"]
        lines.append(
            f"{name:<11} {one['score']:>6.3f} {one['score_low']:>6.3f}-{one['score_high']:<6.3f} {one['concept']:>8.3f}"
            f" {one['fluency']:>8.3f} {one['distinct']:>8.3f} {flops['training']:>10.2e} {flops['concept']:>10.2e}"
            f" {flops['token']:>10.2e} {100 * share:>9.2f}%"
        )
    return [*lines, "", *_by_concept(results)]


def _by_concept(results: dict[str, Any]) -> list[str]:
    """One line per concept: score at the strength that was chosen."""
    names = list(results["methods"])
    lines = [f"{'concept':<12} " + " ".join(f"{name:>18}" for name in names)]
    for concept, rows in results["concepts"].items():
        cells = [f"{rows[name]['test']['score']:.3f} at {rows[name]['chosen']:g}" for name in names]
        lines.append(f"{concept:<12} " + " ".join(f"{cell:>18}" for cell in cells))
    return lines
