"""What a suite cost to train: steps, passes, counted operations, measured seconds."""

from typing import Any

from strata.costs.flops import sae_step_flops
from strata.evaluate.run_suites import Suite
from strata.lm.flops import known_forward_flops
from strata.lm.model import LanguageModel


def cost_of(suite: Suite, lm: LanguageModel, *, beside: list[Suite]) -> dict[str, Any]:
    """The cost of a suite of a run.

    Counted operations are those of `strata.costs.flops`, as if every row had been streamed.

    Args:
        suite: whose.
        lm: its language model.
        beside: all suites of its run, itself among them.

    Returns:
        ``n_saes`` that were trained; ``sae_steps``, of all of them together; ``rows_per_sae``; ``sae_flops``, counted;
        ``sae_seconds``, measured; ``divided``, whether the run trained several suites side by side: their
        ``sae_seconds`` are then shares of the run's by counted operations, while each alone would have needed all the
        rows.

        Of the language model: ``lm_rows``, rows that it ran for, which are tokens without special ones: those of
        training and the ``grouping_rows`` on which layers were measured to find groups (0 where they were not);
        ``lm_flops``, counted up to the deepest site (None where the configuration does not tell), with
        ``grouping_flops`` among them; ``rows_seconds``, measured, in which the rows were made or read, with
        ``grouping_seconds`` among them.

        ``hardware`` on which the seconds were measured, in words. None where the record of the run lacks something.
    """
    record, seconds = suite.run.record, suite.run.record.get("seconds", {})
    n_rows, n_steps = record.get("n_rows"), record.get("n_steps")
    grouping = record.get("groups_measured") or {"n_tokens": 0, "seconds": 0.0}
    share = _flops_per_row(suite) / sum(_flops_per_row(one) for one in beside)
    per_row = known_forward_flops(lm, list(suite.saes), context_tokens=suite.run.config["context_tokens"])
    lm_rows = _sum(n_rows, grouping["n_tokens"])
    return {
        "n_saes": len(suite.groups),
        "sae_steps": _product(n_steps, len(suite.groups)),
        "rows_per_sae": n_rows,
        "sae_flops": _product(n_rows, _flops_per_row(suite)),
        "sae_seconds": _product(seconds.get("sae"), share),
        "divided": len(beside) > 1,
        "lm_rows": lm_rows,
        "grouping_rows": grouping["n_tokens"],
        "lm_flops": _product(lm_rows, per_row),
        "grouping_flops": _product(grouping["n_tokens"], per_row),
        "rows_seconds": _sum(seconds.get("rows", seconds.get("language_model")), grouping["seconds"]),
        "grouping_seconds": grouping["seconds"],
        "hardware": suite.run.hardware,
    }


def _flops_per_row(suite: Suite) -> float:
    """Of all its SAEs, for a row each."""
    return sum(sae_step_flops(d_in, d_sae, suite.k) for d_in, d_sae in suite.widths)


def _sum(a: int | float | None, b: int | float | None) -> int | float | None:
    return None if a is None or b is None else a + b


def _product(a: int | float | None, b: int | float | None) -> int | float | None:
    return None if a is None or b is None else a * b
