"""How much memory and disk a way of training needs, and what does not fit."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from strata.config.collect import CollectConfig
from strata.costs.memory import (
    ModelInMemory,
    RowsInMemory,
    evaluation_memory,
    evaluation_pieces,
    examples_memory,
    training_memory,
)
from strata.costs.step import Rates, SAEShape
from strata.costs.tensors import checkpoint_bytes, folder_bytes, index_bytes
from strata.plan.model import Model
from strata.plan.quote import Excess
from strata.plan.rows import RowShape, Source
from strata.plan.saes import PlannedSAE
from strata.plan.subject import Subject

STORE_HELD_OUT = CollectConfig().held_out_tokens
"""Rows of held-out documents that `strata collect` adds to a store, by default."""
_BUFFER_ROWS = 65_536  # strata.activations.stream
_WINDOWS, _WINDOW_BLOCKS = 3, 16  # of a store, in memory at once (strata.activations.store_reading)
_BLOCK_BYTES, _BLOCK_BYTES_OF_ALL_SITES = 2**22, 2**25  # strata.activations.store_plan
_COUNTED_TOKEN_BYTES = 6  # id and two masks of a text that is kept as tokens
_TARGET_COPIES = 5  # of a transcoder's target: itself, predicted, both without sinks, their difference
_ON_HOST = ("process", "tokens")

Parts = dict[str, float]
"""Bytes by what they are for."""


def memory_of(subject: Subject, shape: RowShape, source: Source, saes: Sequence[PlannedSAE], *, exists: bool) -> Parts:
    """Memory at the peak, by part: of a store's collecting, the training or its evaluation, whichever takes most.

    Args:
        subject: the training.
        shape: of a row.
        source: where rows come from.
        saes: that one device trains.
        exists: the store is there already.
    """
    phases = [_training(subject, shape, source, saes)]
    if source not in ("stream", "collected") and not exists:
        phases.append(_with_model(subject, shape, [], buffer_rows=min(_buffer_rows(subject), subject.n_rows)))
    config = subject.config
    if config.report and subject.model.lm is not None:
        batch_tokens = config.sae.text_batch_size * config.context_tokens
        phases.append(
            evaluating_memory(subject.model, saes, n_tokens=config.held_out_tokens, batch_tokens=batch_tokens,
                              examples=True)
        )  # fmt: skip
    return max(phases, key=lambda parts: sum(parts.values()))


def evaluating_memory(
    model: Model, saes: Sequence[PlannedSAE], *, n_tokens: int, batch_tokens: int, examples: bool
) -> Parts:
    """Memory at the peak of an evaluation, by part.

    Args:
        model: the language model.
        saes: all that are evaluated.
        n_tokens: of held-out text.
        batch_tokens: of its batches.
        examples: those of features are looked for, too.
    """
    shapes = [sae.shape for sae in saes]
    batch_tokens = min(batch_tokens, n_tokens)
    n_numbers = sum({site: sae.shape.d_in for sae in saes for site in sae.sites}.values())
    piece, n_pieces = evaluation_pieces(
        n_tokens, batch_tokens=batch_tokens, context_tokens=model.context_tokens, vocabulary_size=model.n_scores
    )
    # What blocks gave is kept for the passes that begin behind them, that of the piece before with it.
    kept = n_numbers * min(2, n_pieces)
    phases = [
        evaluation_memory(
            shapes,
            model=ModelInMemory(
                weight_bytes=model.weight_bytes, forward_bytes=model.forward_bytes(n_tokens=piece, n_numbers=kept)
            ),
            piece_tokens=piece,
            n_pieces=n_pieces,
            vocabulary_size=0 if all(shape.d_out for shape in shapes) else model.n_scores,
            number_bytes=float(model.itemsize),
        )
    ]
    passing = ModelInMemory(
        weight_bytes=model.weight_bytes, forward_bytes=model.forward_bytes(n_tokens=batch_tokens, n_numbers=n_numbers)
    )
    if examples:
        phases.append(examples_memory(shapes, model=passing, n_tokens=n_tokens, batch_tokens=batch_tokens))
    rows = max((n_tokens * 4.0 * (2 * one.d_in + _TARGET_COPIES * one.d_out) for one in shapes if one.d_out), default=0)
    if rows:  # transcoders are compared on all held-out rows at once
        compared = evaluation_memory(shapes, model=passing, piece_tokens=batch_tokens, n_pieces=1, vocabulary_size=0)
        phases.append({**compared, "rows": rows})
    return max(phases, key=lambda parts: sum(parts.values()))


def _training(subject: Subject, shape: RowShape, source: Source, saes: Sequence[PlannedSAE]) -> Parts:
    """At the peak of a training on rows that come from somewhere."""
    shapes = [sae.shape for sae in saes]
    if source == "stream":
        n_rows = subject.n_rows * subject.config.sae.num_epochs
        return _with_model(subject, shape, shapes, buffer_rows=min(_buffer_rows(subject), n_rows),
                           n_counted=subject.n_rows if subject.config.n_tokens == "all" else 0)  # fmt: skip
    if source == "collected":
        return _with_model(subject, shape, shapes, kept_rows=subject.n_rows)
    return training_memory(
        shapes,
        batch_size=subject.config.sae.batch_size,
        rows=RowsInMemory(
            row_bytes=4.0 * shape.n_numbers, buffer_rows=min(subject.n_rows, _window_rows(shape, source))
        ),
    )


def placed(memory: Parts, source: Source, rates: Rates) -> tuple[Parts, Parts]:
    """What of it lies in RAM and what on the device: without one all in RAM; rows that were collected stay in RAM."""
    if not rates.device_bytes:
        return memory, {}
    host = (*_ON_HOST, *(() if source == "stream" else ("rows", "joining of rows")))
    ram = {part: n_bytes for part, n_bytes in memory.items() if part in host}
    return ram, {part: n_bytes for part, n_bytes in memory.items() if part not in host}


def disk_of(subject: Subject, shape: RowShape, source: Source, saes: Sequence[PlannedSAE], *, exists: bool) -> Parts:
    """Disk at the peak, by part: SAEs, the store that is to be made, and beside them checkpoints with the one that is
    being written, or the index of the report's examples, which comes when they are gone.
    """
    shapes, config = [sae.shape for sae in saes], subject.config
    stays = {"SAEs": folder_bytes(shapes)}
    if source not in ("stream", "collected") and not exists:
        stays["store"] = float((subject.n_rows + STORE_HELD_OUT) * shape.stored_bytes(source))
    phases = [{"checkpoints": (config.keep_checkpoints + 1) * checkpoint_bytes(shapes)}]
    if config.report and subject.model.lm is not None:
        phases.append({"index": index_bytes(shapes, n_tokens=config.held_out_tokens)})
    return stays | max(phases, key=lambda parts: sum(parts.values()))


def too_large(ram: Parts, device: Parts, disk: Parts, rates: Rates, *, free_bytes: float | None) -> tuple[Excess, ...]:
    """What does not fit.

    Args:
        ram: by part.
        device: by part.
        disk: by part.
        rates: of the machine, with its memory.
        free_bytes: room on the disk; None where it is not known.
    """
    limits = (
        ("RAM", ram, rates.memory_bytes),
        ("device memory", device, rates.device_bytes or float("inf")),
        ("disk", disk, float("inf") if free_bytes is None else free_bytes),
    )
    return tuple(
        Excess(what=what, part=max(parts, key=lambda part: parts[part]), needed_bytes=sum(parts.values()),
               there_bytes=limit)
        for what, parts, limit in limits
        if sum(parts.values()) > limit
    )  # fmt: skip


def free_bytes(folder: Path) -> float | None:
    """Room on the disk where a folder is or would be; None where that cannot be told."""
    existing = next((path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()), None)
    try:
        return None if existing is None else float(shutil.disk_usage(existing).free)
    except OSError:
        return None


def _with_model(
    subject: Subject,
    shape: RowShape,
    shapes: Sequence[SAEShape],
    *,
    buffer_rows: int = 0,
    kept_rows: int = 0,
    n_counted: int = 0,
) -> Parts:
    """With the language model beside the SAEs."""
    model, config = subject.model, subject.config
    n_tokens = config.sae.text_batch_size * config.context_tokens
    n_read = shape.n_numbers if shapes and not kept_rows else shape.n_kept
    passing = model.forward_bytes(n_tokens=n_tokens, n_numbers=n_read)
    return training_memory(
        shapes,
        batch_size=config.sae.batch_size,
        rows=RowsInMemory(
            row_bytes=float(n_read * (4 if kept_rows else model.itemsize)),
            buffer_rows=buffer_rows,
            kept_rows=kept_rows,
            token_bytes=float(_COUNTED_TOKEN_BYTES * n_counted),
        ),
        model=ModelInMemory(weight_bytes=model.weight_bytes, forward_bytes=passing),
    )


def _buffer_rows(subject: Subject) -> int:
    config = subject.config
    if config.buffer_tokens != "auto":
        return config.buffer_tokens
    return max(_BUFFER_ROWS, 4 * max(config.sae.batch_size, config.sae.text_batch_size * config.context_tokens))


def _window_rows(shape: RowShape, source: Source) -> int:
    n_sites = len(shape.widths)
    n_bytes = max(2**20, min(_BLOCK_BYTES, _BLOCK_BYTES_OF_ALL_SITES // n_sites))
    return _WINDOWS * _WINDOW_BLOCKS * max(1, n_bytes * n_sites // shape.stored_bytes(source))
