"""A handful of features per SAE with the text on which they fire most: the numbers of ``features.json``."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.activations.harvest import collect, forward_dtype, harvest
from strata.errors import UserError
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenBatch
from strata.sae.model import SAE
from strata.sae.normalization import Normalization
from strata.shapes import SparseCode

# The median row of a site, from which attention sinks are told, comes from so many of the first rows.
_SINK_ROWS = 4096
# Densities of the latents that are shown as the strongest: neither nearly never nor nearly everywhere.
_DENSITY_RANGE = (1e-4, 1e-2)

Entries = Int[Tensor, " entries"]
Values = Float[Tensor, " entries"]


@torch.inference_mode()
def feature_examples(
    lm: LanguageModel,
    saes: Mapping[str, SAE],
    batches: Sequence[TokenBatch],
    *,
    n_features: int = 8,
    n_examples: int = 5,
    context_tokens: tuple[int, int] = (12, 6),
    seed: int = 0,
    lm_dtype: str = "auto",
) -> dict[str, list[dict[str, Any]]]:
    """Choose latents of each SAE and show where they are most active.

    Rows are the tokens that are neither special nor pad nor attention sink (told by `Normalization` from the first
    4096 rows): no other token is a peak, counts as a firing, or has an activation in a window.

    Chosen are latents that fired on at least ``n_examples`` rows. Half of them (rounded up) are of kind "strongest":
    those with density in [1e-4, 1e-2] whose ``n_examples`` strongest peaks have the largest mean activation (decoder
    rows have unit norm, so activations of one SAE's latents compare; a missing peak counts as 0); if there are too few,
    the strongest of the other densities. The rest, kind "random", are drawn uniformly from the other latents.

    Examples are peaks, strongest first, no two of whose windows share a token. To that end sequences are cut into
    blocks as long as a window, and a latent's peaks are the strongest tokens of blocks. One such peak's window can
    touch those of at most two other peaks, so the 3·n_examples strongest of each latent suffice: they are all that is
    kept from batch to batch, with their windows, in one pass. That is about 12·n_examples·(window + 5) bytes per latent
    (1.4 kB with the defaults), less than the SAE's own weights from d_in 180 on; beside it, one batch's sparse code.

    Args:
        lm: the language model; it runs no further than the last site.
        saes: site → SAE.
        batches: held-out text, in memory.
        n_features: latents to show per site, at least 1; fewer where fewer fired often enough.
        n_examples: examples per latent, at least 1; fewer where peaks lie too close together.
        context_tokens: tokens shown before and after the peak; windows end where the sequence or its text ends.
        seed: of the random choice.
        lm_dtype: precision of the language model's forward: "auto", "fp32" or "bf16".

    Returns:
        Site → per latent ``latent``, ``density`` (share of rows on which it fires), ``max_activation``, ``kind``, and
        ``examples``: ``tokens`` as text (bytes that are no text by themselves give U+FFFD), ``activations`` of this
        latent at each of them (0 where it is silent), ``peak`` the place of the strongest in both lists.

    Raises:
        UserError: a text without rows, or n_features, n_examples or context_tokens out of range.
    """
    if n_features < 1 or n_examples < 1 or min(context_tokens) < 0:
        raise UserError(
            "`n_features` and `n_examples` must be at least 1 and `context_tokens` at least (0, 0). "
            f"Got {n_features}, {n_examples} and {context_tokens}."
        )
    if not saes:
        raise UserError("`saes` must hold at least one SAE. Got none. Give {site: sae}.")
    text = _Text(lm, batches, window=context_tokens)
    peaks = _find_peaks(lm, saes, text, n_kept=3 * n_examples, lm_dtype=lm_dtype)
    return {
        site: [
            {**choice, "examples": text.examples(*found.of(choice["latent"]), n_examples=n_examples)}
            for choice in found.choose(n_features, n_examples=n_examples, seed=seed)
        ]
        for site, found in peaks.items()
    }


def _find_peaks(
    lm: LanguageModel, saes: Mapping[str, SAE], text: "_Text", *, n_kept: int, lm_dtype: str
) -> dict[str, "Peaks"]:
    first_rows = collect(lm, text.batches, sites=list(saes), lm_dtype=lm_dtype, n_tokens=_SINK_ROWS)
    sinks = {site: Normalization.estimate(rows.to(saes[site].device), site=site) for site, rows in first_rows.items()}
    peaks = {site: Peaks(sae.d_sae, n_kept=n_kept, window=text.window, device=sae.device) for site, sae in saes.items()}
    for batch, offset in zip(text.batches, text.offsets, strict=True):
        is_row = batch.is_row.reshape(-1).nonzero().squeeze(1)
        rows = harvest(lm, batch, list(saes), autocast_dtype=forward_dtype(lm, lm_dtype))
        for site, sae in saes.items():
            x = rows.pop(site).to(sae.device)
            kept = (~sinks[site].is_sink(x)).nonzero().squeeze(1)
            if len(kept):
                tokens = is_row.to(sae.device)[kept]
                peaks[site].add(
                    sae.encode_sparse(x[kept]), tokens, sequence_tokens=batch.input_ids.shape[1], offset=offset
                )
    return peaks


class Peaks:
    """The strongest separated occurrences of every latent of one SAE, gathered batch by batch without a dense code.

    Tokens are numbered through all batches, sequence by sequence.

    Attributes:
        n_rows: rows seen.
        n_fired: rows on which each latent fired, [d_sae].
        latents: the latent of each kept peak, ascending, at most ``n_kept`` of each.
        values: the peak's activation, descending within a latent; of equal ones the earlier token first.
        tokens: the peak's token.
        windows: the latent's activations around the peak, [peaks before + 1 + after]; meaningless where that is outside
            of the peak's sequence.
    """

    def __init__(self, d_sae: int, *, n_kept: int, window: tuple[int, int], device: torch.device) -> None:
        self.n_rows = 0
        self.n_fired = torch.zeros(d_sae, dtype=torch.long, device=device)
        self.latents = torch.empty(0, dtype=torch.long, device=device)
        self.values = torch.empty(0, device=device)
        self.tokens = torch.empty(0, dtype=torch.long, device=device)
        before, after = window
        self.windows = torch.empty(0, before + 1 + after, device=device)
        self._offsets = torch.arange(-before, after + 1, device=device)
        self._n_kept = n_kept

    def add(self, code: SparseCode, tokens: Int[Tensor, " rows"], *, sequence_tokens: int, offset: int) -> None:
        """Take in one batch.

        Args:
            code: of its rows, [rows k].
            tokens: the rows' places in the flattened [batch seq], ascending.
            sequence_tokens: seq.
            offset: number of tokens in the batches before.
        """
        fired = _Firings.of(code, tokens, sequence_tokens)
        self.n_rows += len(tokens)
        self.n_fired += fired.latents.bincount(minlength=len(self.n_fired))
        new = fired.block_peaks(len(self._offsets))
        latents = torch.cat([self.latents, fired.latents[new]])
        values = torch.cat([self.values, fired.values[new]])
        found = torch.cat([self.tokens, fired.tokens[new] + offset])
        # Stable sorts: by latent, then falling value, then reading order.
        order = values.argsort(descending=True, stable=True)
        order = order[latents[order].argsort(stable=True)]
        kept = order[_rank_in_run(latents[order]) < self._n_kept]
        windows = torch.empty(len(kept), len(self._offsets), device=values.device)
        old = kept < len(self.latents)
        windows[old] = self.windows[kept[old]]
        windows[~old] = fired.around(new[kept[~old] - len(self.latents)], self._offsets)
        self.latents, self.values, self.tokens, self.windows = latents[kept], values[kept], found[kept], windows

    def of(self, latent: int) -> tuple[Entries, Float[Tensor, "entries window"]]:
        """Tokens and windows of a latent's peaks, strongest first, on the CPU."""
        mine = self.latents == latent
        return self.tokens[mine].cpu(), self.windows[mine].cpu()

    def choose(self, n_features: int, *, n_examples: int, seed: int) -> list[dict[str, Any]]:
        """Which latents to show, by the rule that `feature_examples` states."""
        best = _rank_in_run(self.latents) < n_examples
        strength = torch.zeros(len(self.n_fired), device=self.values.device)
        strength = strength.index_add(0, self.latents[best], self.values[best] / n_examples).cpu()
        n_fired = self.n_fired.cpu()
        density = n_fired.double() / max(self.n_rows, 1)
        eligible = (n_fired >= n_examples).nonzero().squeeze(1)
        in_range = (density >= _DENSITY_RANGE[0]) & (density <= _DENSITY_RANGE[1])
        ranked = eligible[strength[eligible].argsort(descending=True, stable=True)]
        ranked = ranked[(~in_range[ranked]).long().argsort(stable=True)]
        strongest, rest = ranked[: (n_features + 1) // 2], ranked[(n_features + 1) // 2 :].sort().values
        drawn = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[: n_features // 2]
        kinds = [(i, "strongest") for i in strongest.tolist()] + [(i, "random") for i in rest[drawn].tolist()]
        return [
            {
                "latent": latent,
                "density": density[latent].item(),
                "max_activation": self.values[self.latents == latent].max().item(),
                "kind": kind,
            }
            for latent, kind in kinds
        ]


@dataclass(frozen=True)
class _Firings:
    """Every firing of one batch, by latent and then by token.

    Attributes:
        latents: which latent.
        tokens: at which place of the flattened [batch seq].
        values: how strongly, above 0.
        keys: latent·(tokens per batch) + token, ascending.
        batch_tokens: batch · seq, or as much of it as holds rows.
        sequence_tokens: seq.
    """

    latents: Entries
    tokens: Entries
    values: Values
    keys: Entries
    batch_tokens: int
    sequence_tokens: int

    @classmethod
    def of(cls, code: SparseCode, tokens: Int[Tensor, " rows"], sequence_tokens: int) -> "_Firings":
        """From a code and its rows' ascending places."""
        batch_tokens = (int(tokens[-1]) // sequence_tokens + 1) * sequence_tokens
        active = code.values > 0
        places = tokens[:, None].expand_as(code.indices)[active]
        keys, order = (code.indices[active] * batch_tokens + places).sort()
        values = code.values[active][order].float()
        return cls(keys // batch_tokens, keys % batch_tokens, values, keys, batch_tokens, sequence_tokens)

    def block_peaks(self, block_tokens: int) -> Entries:
        """The strongest firing (of equal ones the first) of every latent in every block of its sequences."""
        blocks_per_sequence = -(-self.sequence_tokens // block_tokens)
        n_blocks = self.batch_tokens // self.sequence_tokens * blocks_per_sequence
        in_sequence = self.tokens % self.sequence_tokens // block_tokens
        block = self.tokens // self.sequence_tokens * blocks_per_sequence + in_sequence
        # Keys ascend, so the firings of one latent in one block stand together.
        runs, run = torch.unique_consecutive(self.latents * n_blocks + block, return_inverse=True)
        highest = self.values.new_zeros(len(runs)).scatter_reduce(0, run, self.values, "amax")
        top = (self.values == highest[run]).nonzero().squeeze(1)
        return run.new_full((len(runs),), len(run)).scatter_reduce(0, run[top], top, "amin")

    def around(self, firings: Entries, offsets: Int[Tensor, " window"]) -> Float[Tensor, "entries window"]:
        """The same latent's activations at the places around firings, 0 where it is silent."""
        places = self.tokens[firings, None] + offsets
        wanted = self.latents[firings, None] * self.batch_tokens + places
        at = torch.searchsorted(self.keys, wanted).clamp(max=max(len(self.keys) - 1, 0))
        return torch.where(self.keys[at] == wanted, self.values[at], 0.0)


class _Text:
    """The evaluated text, to be read around peaks.

    Attributes:
        batches: the sequences.
        offsets: for each batch the number of tokens before it.
        window: tokens before and after a peak.
    """

    def __init__(self, lm: LanguageModel, batches: Sequence[TokenBatch], *, window: tuple[int, int]) -> None:
        self.batches = batches
        self.offsets = list(accumulate((batch.input_ids.numel() for batch in batches), initial=0))[:-1]
        self.window = window
        self._tokenizer = lm.tokenizer

    def examples(
        self, tokens: Entries, windows: Float[Tensor, "entries window"], *, n_examples: int
    ) -> list[dict[str, Any]]:
        """The first peaks whose windows share no token, as ``features.json`` has them."""
        taken: list[tuple[int, int, int]] = []
        examples = []
        for token, activations in zip(tokens.tolist(), windows, strict=True):
            batch, sequence, position = where = self._locate(token)
            near = (other for other in taken if other[:2] == (batch, sequence))
            if all(abs(position - other[2]) > sum(self.window) for other in near):
                taken.append(where)
                examples.append(self._example(where, activations))
            if len(examples) == n_examples:
                break
        return examples

    def _locate(self, token: int) -> tuple[int, int, int]:
        batch = bisect_right(self.offsets, token) - 1
        return batch, *divmod(token - self.offsets[batch], self.batches[batch].input_ids.shape[1])

    def _example(self, where: tuple[int, int, int], activations: Float[Tensor, " window"]) -> dict[str, Any]:
        batch, sequence, position = where
        ids, attended = self.batches[batch].input_ids[sequence], self.batches[batch].attention_mask[sequence]
        first = position - self.window[0]
        last = min(position + self.window[1], len(ids) - 1)
        shown = [place for place in range(max(first, 0), last + 1) if bool(attended[place])]
        return {
            "tokens": [self._as_text(int(ids[place])) for place in shown],
            "activations": [activations[place - first].item() for place in shown],
            "peak": shown.index(position),
        }

    def _as_text(self, token_id: int) -> str:
        # A model without tokenizer still has examples; its tokens are numbers.
        if self._tokenizer is None:
            return str(token_id)
        return str(self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False))


def _rank_in_run(ascending: Entries) -> Entries:
    """For each entry of a sorted list how many equal ones stand before it."""
    return torch.arange(len(ascending), device=ascending.device) - torch.searchsorted(ascending, ascending)
