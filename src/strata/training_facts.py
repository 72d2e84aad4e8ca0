"""What is trained, in numbers: what a run's run.json says, and what the doctor compares with."""

from collections.abc import Mapping
from typing import Any

from strata.activations.source import RowSource
from strata.activations.stream import Stream
from strata.assignments import Assignment
from strata.distributed.rows import SharedStream
from strata.distributed.spread import Spread
from strata.sae.learner import Learner


def training_facts(
    source: RowSource,
    learners: Mapping[str, Learner],
    assignments: Mapping[str, Assignment],
    *,
    n_steps: int,
    spread: Spread,
) -> dict[str, Any]:
    """What is trained, in numbers: for run.json, and for the doctor who looks on.

    Returns:
        n_steps, n_rows, n_epochs, batch_size; mode, that of the source; saes, by key what is trained; of a stream
        buffer_rows, forward_rows, the tokens of one pass of the language model, and context_tokens (else None), all
        three of one process; n_processes, and parallel, what these share (None of one alone).
    """
    ranks, config = spread.ranks, next(iter(assignments.values())).config
    stream = source.own if isinstance(source, SharedStream) else source if isinstance(source, Stream) else None
    parts = ranks.gathered_objects({key: _shape(learner) for key, learner in learners.items()})
    known = {key: one for part in parts for key, one in part.items()}
    shapes = {key: known[key] for key in assignments}
    return {
        "n_steps": n_steps,
        "n_rows": n_steps * config.batch_size,
        "n_epochs": config.num_epochs,
        "batch_size": config.batch_size,
        "mode": source.describe().get("mode"),
        "saes": shapes,
        "buffer_rows": None if stream is None else stream.buffer_rows(config.batch_size // ranks.size),
        "forward_rows": None if stream is None else stream.tokens.text_batch_size * stream.tokens.context_tokens,
        "context_tokens": None if stream is None else stream.tokens.context_tokens,
        "n_processes": ranks.size,
        "parallel": spread.kind if ranks.size > 1 else None,
    }


def _shape(learner: Learner) -> dict[str, Any]:
    config = learner.config
    return {
        "d_in": learner.params["W_enc"].shape[1],
        "d_sae": learner.d_sae,
        "k": config.k,
        "architecture": config.architecture,
        "window_steps": learner.window_steps,
        "revival": config.revival_method(),
        "warmup_steps": learner.schedule.warmup_steps,
        "decay_steps": learner.schedule.decay_steps,
        "n_sites": 1 if learner.group is None else len(learner.group.sites),
        "target_site": learner.target_site,
        "centring": config.centring,
        "sparsity_coefficient": config.sparsity_coefficient,
    }
