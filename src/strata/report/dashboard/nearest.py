"""The features whose decoder directions are nearest to each feature's own."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.errors import UserError
from strata.interpret.site_index import SiteIndex
from strata.log import say

N_NEAREST = 8
_CHUNK_ENTRIES = 2**24  # of the cosines that are held at a time


@dataclass(frozen=True)
class Nearest:
    """The nearest other features of each feature, by the cosine of their decoder rows.

    Attributes:
        latents: their numbers, the nearest first.
        cosines: of each, -1 to 1.
    """

    latents: Int[np.ndarray, "d_sae n"]
    cosines: Float[np.ndarray, "d_sae n"]

    @classmethod
    def of(cls, W_dec: Float[Tensor, "d_sae d_out"], *, n: int = N_NEAREST) -> "Nearest":
        """From a decoder, some latents at a time: 2·d_sae²·d_out FLOPs, and 64 MB beside two copies of the decoder.

        Args:
            W_dec: the decoder, of any norms.
            n: features to keep; all others where there are fewer.
        """
        rows = torch.nn.functional.normalize(W_dec.detach().float().cpu(), dim=1)
        n = min(n, len(rows) - 1)
        found: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(rows), step := max(1, _CHUNK_ENTRIES // len(rows))):
            cosines = rows[start : start + step] @ rows.t()
            cosines.diagonal(start).fill_(-torch.inf)  # a feature is not its own neighbour
            best = cosines.topk(n)
            found.append((best.indices, best.values))
        latents, values = (torch.cat(part).numpy() for part in zip(*found, strict=True))
        return cls(latents, values)

    @classmethod
    def at(cls, site: SiteIndex) -> "Nearest | None":
        """Of an SAE of an index; None, and a word of it, where the SAE itself cannot be read."""
        try:
            return cls.of(site.sae().W_dec)
        except UserError as error:
            say(f"{site.key}: the pages do without the nearest directions. {error}")
            return None
