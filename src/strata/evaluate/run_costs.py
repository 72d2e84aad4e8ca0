"""What a suite cost to train: steps, passes, counted operations, measured seconds."""

from typing import Any

from strata.costs.flops import forward_flops, sae_step_flops
from strata.errors import UserError
from strata.evaluate.runs import Suite
from strata.lm.model import LanguageModel


def cost_of(suite: Suite, lm: LanguageModel, *, beside: list[Suite]) -> dict[str, Any]:
    """The cost of a suite of a run.

    Args:
        suite: whose.
        lm: its language model.
        beside: all suites of its run, itself among them.

    Returns:
        ``n_saes`` that were trained; ``sae_steps``, of all of them together; ``rows_per_sae``; ``lm_tokens``, positions
        that the language model ran over; ``sae_flops`` and ``lm_flops``, counted (`strata.costs.flops`; as if every row
        had been streamed, up to the deepest site; None where the configuration does not tell); ``sae_seconds``,
        measured; ``rows_seconds``, measured, in which the rows were made or read; ``divided``, whether the run trained
        several suites side by side: their ``sae_seconds`` are then shares of the run's by counted operations, while
        each alone would have needed all the rows. None where the record of the run lacks it.
    """
    record, seconds = suite.run.record, suite.run.record.get("seconds", {})
    n_rows, n_steps = record.get("n_rows"), record.get("n_steps")
    all_flops = sum(_flops_per_row(one) for one in beside)
    share = _flops_per_row(suite) / all_flops
    measured = seconds.get("sae")
    per_token = _forward_flops(suite, lm)
    return {
        "n_saes": len(suite.groups),
        "sae_steps": None if n_steps is None else n_steps * len(suite.groups),
        "rows_per_sae": n_rows,
        "lm_tokens": n_rows,
        "sae_flops": None if n_rows is None else n_rows * _flops_per_row(suite),
        "lm_flops": None if n_rows is None or per_token is None else n_rows * per_token,
        "sae_seconds": None if measured is None else measured * share,
        "rows_seconds": seconds.get("rows", seconds.get("language_model")),
        "divided": len(beside) > 1,
    }


def _flops_per_row(suite: Suite) -> float:
    """Of all its SAEs, for a row each."""
    return sum(sae_step_flops(d_in, d_sae, suite.k) for d_in, d_sae in suite.widths)


def _forward_flops(suite: Suite, lm: LanguageModel) -> float | None:
    """Of the language model's blocks up to the deepest site, per token; None where they cannot be counted."""
    paths = [lm.site(site).path for site in lm.sites]
    try:
        deepest = max(_block_of(lm.site(site).path, paths) for site in suite.saes)
        blocks = [lm.model.get_submodule(path) for path in paths[: deepest + 1]]
        return forward_flops(blocks, lm.model.config, context_tokens=suite.run.config["context_tokens"])
    except UserError:
        return None


def _block_of(path: str, blocks: list[str]) -> int:
    """The number of the block in which a module is; the last one for a module outside of all."""
    inside = (number for number, block in enumerate(blocks) if f"{path}.".startswith(f"{block}."))
    return next(inside, len(blocks) - 1)
