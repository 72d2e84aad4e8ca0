"""Which tokens a feature makes likelier or unlikelier, by its direction alone."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.interpret.index_layout import load_arrays, save_arrays

_CHUNK_ENTRIES = 2**26  # of the products of latents and tokens that are held at a time


@dataclass(frozen=True)
class LogitEffects:
    """The tokens on whose logits each feature has the largest direct effects: decoder row times unembedding.

    Source: nostalgebraist 2020, "Interpreting GPT: the logit lens"; see `strata.lm.unembedding` for what is folded in
    and what is left out.

    Attributes:
        top_ids: token ids, the largest effect first.
        top_values: their effects.
        bottom_ids: token ids, the lowest effect first.
        bottom_values: their effects.
    """

    top_ids: Int[np.ndarray, "d_sae n"]
    top_values: Float[np.ndarray, "d_sae n"]
    bottom_ids: Int[np.ndarray, "d_sae n"]
    bottom_values: Float[np.ndarray, "d_sae n"]

    @classmethod
    def of(
        cls, W_dec: Float[Tensor, "d_sae d_in"], matrix: Float[Tensor, "vocab d_in"], *, n: int = 10
    ) -> "LogitEffects":
        """From decoder and unembedding, some latents at a time.

        Args:
            W_dec: the decoder.
            matrix: `strata.lm.unembedding.unembedding`.
            n: tokens to keep at each end.
        """
        n = min(n, len(matrix))
        found: list[tuple[Tensor, ...]] = []
        for rows in torch.split(W_dec.detach().float(), max(1, _CHUNK_ENTRIES // len(matrix))):
            effects = rows.to(matrix.device) @ matrix.t()
            top, bottom = effects.topk(n), effects.topk(n, largest=False)
            found.append((top.indices.int(), top.values, bottom.indices.int(), bottom.values))
        return cls(*(torch.cat(part).cpu().numpy() for part in zip(*found, strict=True)))

    def save(self, path: Path) -> None:
        """Write it."""
        save_arrays(path, {field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "LogitEffects":
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing or damaged.
        """
        return cls(**load_arrays(path))
