"""What no exact TopK step can do without, measured in the same run: the score product, memory, the language model."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from strata.bench.turns import Timer, timed
from strata.kernels.backend import kernels, score_dtype
from strata.lm.model import LanguageModel
from strata.plan.calibration import measure_copy, measure_forwards

_PIECES = (256, 1024)  # rows of scores held at a time, beside all of them: smaller ones stay in the cache
_CONTEXT_TOKENS, _TEXT_BATCH = 256, 32


def product_timers(
    x: Float[Tensor, "rows d_in"], *, d_sae: int, n: int, device: torch.device
) -> dict[str, dict[str, Timer]]:
    """The product [rows d_in] x [d_in d_sae] alone, by dtype: by torch.mm in float32 and bfloat16 (which processors
    without instructions for it emulate), by how many rows of scores are held at a time; and in int8 by Strata's
    kernels, where these select in it.
    """
    found: dict[str, dict[str, Timer]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        pieces = [piece for piece in (*_PIECES, len(x)) if piece <= len(x)]
        found[name] = {
            f"{piece} rows a piece": timed(_product(x.to(dtype), d_sae=d_sae, n_piece=piece), n=n, device=device)
            for piece in dict.fromkeys(pieces)
        }
    if score_dtype(device) == torch.int8:
        weight, bias = torch.randn(d_sae, x.shape[1], device=device), torch.zeros(d_sae, device=device)
        product = kernels(device).product
        found["int8"] = {
            "Strata's kernels": timed(lambda turn: product(x, weight, bias, score_dtype=torch.int8), n=n, device=device)
        }
    return found


def _product(x: Float[Tensor, "rows d_in"], *, d_sae: int, n_piece: int) -> Callable[[int], None]:
    weight = torch.randn(x.shape[1], d_sae, device=x.device).to(x.dtype)
    scores = torch.empty(n_piece, d_sae, dtype=x.dtype, device=x.device)

    def run(turn: int) -> None:
        for piece in torch.split(x, n_piece):
            torch.mm(piece, weight, out=scores[: len(piece)])

    return run


def selection_timer(x: Float[Tensor, "rows d_in"], *, d_sae: int, k: int, n: int, device: torch.device) -> Timer:
    """Strata's own product and choice of the k winners of every row, by the kernels and in the precision that a
    training takes on the device: what is left of its step without backward and optimiser.
    """
    weight, bias = torch.randn(d_sae, x.shape[1], device=device), torch.zeros(d_sae, device=device)
    found, dtype = kernels(device), score_dtype(device)
    return timed(lambda turn: found.topk(x, weight, bias, k, score_dtype=dtype), n=n, device=device)


def copy_bytes_per_second(device: torch.device) -> float:
    """Bytes read and written by a copy of 256 MiB, per second."""
    return measure_copy(device)


def forward_tokens_per_second(device: torch.device) -> dict[str, float]:
    """Of the embedded language model's forward alone to its last site, in fp32 and in what a training takes here."""
    lm = LanguageModel("demo", device=device)
    found: dict[str, float] = {}
    for lm_dtype in ("fp32", "auto"):
        measured, _ = measure_forwards(
            lm, context_tokens=_CONTEXT_TOKENS, text_batch_size=_TEXT_BATCH, lm_dtype=lm_dtype
        )
        (depths,) = measured.values()
        found[lm_dtype] = 1 / depths[lm.n_layers]
    return found
