"""Bytes in memory that a training needs, counted from what its code holds at once.

A training has phases, and memory that one has freed the next one takes: the peak is that of the largest phase. On a GPU
the same is counted; it lies in the memory of the device then, but for the process, the tokens and rows that were
collected. Only the peak on a CPU is measured (tests/test_cost_memory.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from strata.config.train import SAEConfig
from strata.costs.flops import active_experts
from strata.costs.step import SAEShape
from strata.costs.tensors import recent_bytes, weight_bytes
from strata.sae.rules.registry import RULES

PROCESS_BYTES = 430e6
"""Of an interpreter with torch, transformers, strata, one model's code and a tokenizer (measured: x86, Linux)."""

_SAMPLE_ROWS = 65_536  # from which a normalisation is estimated (strata.prepare)
_SAMPLE_COPIES = 3  # of them at once: those that are no sinks, centred, squared (strata.sae.normalization)
_CHUNK_BYTES = 24 * 2**20  # of scores at a time (strata.kernels.pytorch)
_GUESS_BYTES = 256 * (4 + 16)  # per latent: scores of 256 rows, and what torch sorts them with (strata.kernels.select)
_ENTRY_BYTES = 44  # of an entry of a code: value, row and latent, each twice while lists are joined
_ENTRIES_PASSES = 2  # lists per entry that a step holds beside that: sorted by latent, gradients
_ROW_COPIES = 8  # of a batch that a step holds: raw, normalised, decoded, residual, its gradient, and their temporaries
_SLOT_BYTES = 32  # of a row's place in the shuffle buffer or in an epoch's permutation
_RESIDENT = 1.5  # what a forward takes from the system over what is alive in it (measured: the embedded model)
_LOGITS_BYTES = 2**28  # of one pass of the evaluation (strata.evaluate.language_loss)
_SOFTMAX_BYTES = 3 * 2**24  # of 16 MiB of them: picked, their log-softmax, the divergence's terms
_SINK_ROWS = 4096  # first rows of every site, from which sinks are told (strata.interpret.examples)
_SHARD_TOKENS = 65_536  # whose firings wait until they are written (strata.interpret.index_layout)
_FIRING_BYTES = 12 * 1.25 + 5  # that waits: latent, token, value; what lies free between them (measured); its file
_SORTED_BYTES = 32  # more, of an SAE's that are written: joined, their order, what that is found with, themselves in it


@dataclass(frozen=True, kw_only=True)
class ModelInMemory:
    """What a language model takes; nothing where it is not there.

    Attributes:
        weight_bytes: of its weights.
        forward_bytes: of a pass of it; see `forward_bytes`.
    """

    weight_bytes: float = 0.0
    forward_bytes: float = 0.0


_NO_MODEL = ModelInMemory()


@dataclass(frozen=True, kw_only=True)
class RowsInMemory:
    """What waits to be trained on.

    Attributes:
        row_bytes: of one token's activations at all that is read.
        buffer_rows: of the shuffle buffer; 0 without one.
        kept_rows: rows that were collected in memory, in fp32.
        token_bytes: of a text that is kept as tokens.
    """

    row_bytes: float
    buffer_rows: int = 0
    kept_rows: int = 0
    token_bytes: float = 0.0


def training_memory(
    saes: Sequence[SAEShape], *, batch_size: int, rows: RowsInMemory, model: ModelInMemory = _NO_MODEL
) -> dict[str, float]:
    """Memory at the peak of a training, in bytes, by what it is for; the sum is the whole.

    Phases: rows that are collected are joined; normalisations and first weights are made, one SAE after the other;
    steps; and the end, when every SAE is copied into the form in which it is used while its optimiser is still there.
    What is counted is what lives in the largest of them.

    Args:
        saes: those that are trained side by side.
        batch_size: rows per step.
        rows: that are held.
        model: the language model beside them.
    """
    waiting = rows.buffer_rows * (rows.row_bytes + _SLOT_BYTES) + rows.kept_rows * (rows.row_bytes + _SLOT_BYTES)
    joining = 4.0 * rows.kept_rows * max((sae.d_in for sae in saes), default=0)
    phases: list[dict[str, float]] = [{"weights and optimiser": 0.0, "joining of rows": joining}]
    if saes:
        n_sampled = min(_SAMPLE_ROWS, rows.buffer_rows + rows.kept_rows or _SAMPLE_ROWS)
        weights, made = sum(map(weight_bytes, saes)), [_making(sae, n_sampled) for sae in saes]
        trained = 3 * weights + sum(map(recent_bytes, saes))  # Adam's two moments
        stepping = max(_step_bytes(sae, batch_size) for sae in saes) + batch_size * rows.row_bytes
        ending = weights + max(_finishing(sae) for sae in saes)
        phases += [
            {"weights and optimiser": weights, "first weights": max(made)},
            {"weights and optimiser": trained, "step": stepping},
            {"weights and optimiser": trained, "finished copies": ending},
        ]
    return {
        **_beside(model),
        "tokens": float(rows.token_bytes),
        "rows": waiting,
        **max(phases, key=lambda parts: sum(parts.values())),
    }


def evaluation_pieces(
    n_tokens: int, *, batch_tokens: int, context_tokens: int, vocabulary_size: int
) -> tuple[int, int]:
    """Tokens of one pass of the evaluation, whose logits take 256 MB at most (or are those of one sequence), and how
    many passes the text takes.

    Args:
        n_tokens: of the text.
        batch_tokens: of a batch of it.
        context_tokens: of a sequence.
        vocabulary_size: of the language model; 0 if it has no logits.
    """
    n_sequences = max(1, min(n_tokens, batch_tokens) // context_tokens)
    most = n_sequences if vocabulary_size == 0 else _LOGITS_BYTES // (4 * vocabulary_size * context_tokens)
    piece = max(1, min(n_sequences, most)) * context_tokens
    return piece, -(-n_tokens // piece)


def evaluation_memory(
    saes: Sequence[SAEShape],
    *,
    model: ModelInMemory,
    piece_tokens: int,
    n_pieces: int,
    vocabulary_size: int,
    number_bytes: float = 4.0,
) -> dict[str, float]:
    """Memory at the peak of evaluating SAEs (`strata.evaluate.suites`), in bytes, by what it is for; the sum is the
    whole.

    With the logits of a pass live the log-probabilities of the model as it is and, while these are made, those of the
    pass before; with the codes of rows, which are made before there are logits, only the former.

    Args:
        saes: all that are evaluated.
        model: the language model, with a pass of it on a piece of text.
        piece_tokens: of a piece; see `evaluation_pieces`.
        n_pieces: of the text.
        vocabulary_size: of the language model; 0 if it has no logits.
        number_bytes: of one of its logits.
    """
    one = _RESIDENT * 4.0 * piece_tokens * vocabulary_size
    logits = one * (min(2, n_pieces) + number_bytes / 4) + (_SOFTMAX_BYTES if vocabulary_size else 0)
    encoding = max((_encoding(sae, piece_tokens) for sae in saes), default=0.0)
    return {
        **_beside(model),
        "finished SAEs": sum(map(weight_bytes, saes)),
        **({"logits": logits} if logits > one + encoding else {"logits": one, "encoding": encoding}),
    }


def examples_memory(
    saes: Sequence[SAEShape], *, model: ModelInMemory, n_tokens: int, batch_tokens: int
) -> dict[str, float]:
    """Memory at the peak of finding features' examples (`strata.interpret.examples`), in bytes, by what it is for; the
    sum is the whole.

    The firings of all SAEs wait until a shard of the text is full; then they are sorted and written, one SAE's after
    the other's. Before the first, the rows from which sinks are told are in memory, of all sites.

    Args:
        saes: all of the run, which are looked at in one pass (those of a sweep one after the other: it is at most so
            much).
        model: the language model, with a pass of it on a batch.
        n_tokens: of the text.
        batch_tokens: of a batch.
    """
    n_waiting = min(n_tokens, _SHARD_TOKENS)
    n_active = sum(sae.n_sites * sae.k for sae in saes)
    telling = 4.0 * min(n_tokens, _SINK_ROWS) * sum(sae.n_sites * sae.d_in for sae in saes)
    encoding = max((_encoding(sae, batch_tokens) for sae in saes), default=0.0)
    sorting = _SORTED_BYTES * n_waiting * max((sae.k for sae in saes), default=0)
    firings = _FIRING_BYTES * n_active * (n_waiting + batch_tokens)
    return {
        **_beside(model),
        "finished SAEs": sum(map(weight_bytes, saes)),
        "examples": max(telling, firings + max(encoding, sorting)),
    }


def _beside(model: ModelInMemory) -> dict[str, float]:
    """What is in memory beside all SAEs and rows."""
    return {
        "process": PROCESS_BYTES,
        "language model": float(model.weight_bytes),
        "forward": float(model.forward_bytes),
    }


def _encoding(sae: SAEShape, n_rows: int) -> float:
    """What encoding and decoding rows takes: the encoder turned, a piece of scores, rows before and after, entries."""
    scores = min(_CHUNK_BYTES, 4.0 * n_rows * sae.d_sae) * 1.25
    rows = 4.0 * _ROW_COPIES * n_rows * (sae.d_in + (sae.d_out or sae.d_in)) / 2
    return 4.0 * sae.d_in * sae.d_sae + scores + rows + _ENTRY_BYTES * n_rows * sae.k


@runtime_checkable
class Readable(Protocol):
    """What of a language model decides what a pass of it takes; `strata.lm.model.LanguageModel` is one."""

    model: Any
    sites: list[str]

    def site(self, name: str) -> Any:
        """A site, with its module's `path`."""
        ...


def forward_bytes(lm: Readable, *, tokens: int, row_bytes: float = 0.0, number_bytes: float = 4.0) -> float:
    """Memory of one pass of a language model without gradient, beside its weights.

    Of the widest block: four vectors of the residual stream's width, and all that its feed-forward part holds at once
    (in and out of the activation function, and of a gate); of experts the active ones. Half as much again is what the
    memory's management takes. Not counted: an eager attention's [tokens context], and that activation functions written
    in Python (GPT-2, BLOOM) hold more of the inner vectors.

    Args:
        lm: the language model, or its outline.
        tokens: of the pass, context times sequences.
        row_bytes: of a token's activations at all sites that are read; they lie beside it.
        number_bytes: of a number: 4 in fp32; under autocast most are of 2.
    """
    blocks = [lm.model.get_submodule(lm.site(name).path) for name in lm.sites]
    config = lm.model.config.get_text_config()
    width = int(config.hidden_size)
    inner = max((_inner_numbers(block, config) for block in blocks), default=4.0 * width)
    return tokens * (_RESIDENT * number_bytes * (4 * width + inner) + row_bytes)


def _making(sae: SAEShape, n_sampled: int) -> float:
    """What making an SAE takes beside its weights: the sample and its copies, or the guess of a first threshold."""
    sample = 4.0 * n_sampled * sae.d_in
    samples = sample + (4.0 * n_sampled * sae.d_out if sae.d_out else 0.0)
    first = _GUESS_BYTES * sae.d_sae + _CHUNK_BYTES
    return samples + max(_SAMPLE_COPIES * sample / sae.n_sites, first)


def _step_bytes(sae: SAEShape, batch_size: int) -> float:
    """What a step takes: the encoder in the precision that selects, and the scores of some rows; the batch, and the
    entries of its code. There is no gradient of the weights' size.

    Counted for bf16 and scores in pieces of 24 MB (CUDA); the C++ kernels take half of the one and a twentieth of the
    other, and the kernels in PyTorch, where there is no compiler, hold five arrays of a matrix's size in its update.
    """
    d_out = sae.d_out or sae.d_in
    scores = 2.0 * sae.d_in * sae.d_sae + min(_CHUNK_BYTES, 4.0 * batch_size * sae.d_sae)
    n_entries = batch_size * sae.k * (1 if sae.architecture == "topk" else 2)
    code = _ENTRIES_PASSES * _ENTRY_BYTES * n_entries
    return scores + 4.0 * _ROW_COPIES * batch_size * (sae.d_in + d_out) / 2 + code


def _finishing(sae: SAEShape) -> float:
    """What the search for the thresholds of a finished SAE takes, on its last rows."""
    rule = RULES[sae.architecture](SAEConfig(k=sae.k), d_sae=sae.d_sae)
    if not rule.n_recent_rows:
        return 0.0
    rows = 3 * 4.0 * rule.n_recent_rows * sae.d_in
    entries = _ENTRY_BYTES * rule.n_searched_per_row * rule.n_recent_rows
    return rows + max(_GUESS_BYTES * sae.d_sae, _CHUNK_BYTES + entries)


def _inner_numbers(block: nn.Module, config: Any) -> float:
    """Numbers per token that a block's feed-forward part holds at once: its widest vectors, one for each matrix that
    has them on a side.
    """
    dense: list[int] = []
    experts: list[int] = []
    for name, weight in block.named_parameters():
        if weight.ndim >= 2 and not name.endswith("bias"):
            (experts if "experts" in name.split(".") else dense).append(max(weight.shape[-2:]))
    found = [max(2, widest.count(max(widest))) * float(max(widest)) for widest in (dense,) if widest]
    if experts:
        found.append(2.0 * max(experts) * active_experts(config))
    return max(found, default=0.0)
