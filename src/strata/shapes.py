"""The vocabulary of axes, the length of a vector, and the sparse code that every part of the house passes on.

Axes: ``rows`` activations in a batch · ``batch`` sequences · ``seq`` positions · ``d_in`` width of the language model
at a site · ``d_sae`` latents · ``k`` entries of a sparse code per row.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class SparseCode:
    """What encoding gives: per row at most k latents and their values; unused places hold value 0 (and any index).

    Attributes:
        values: non-negative activations of the latents, in the units of the model's activations.
        indices: the latents' numbers in [0, d_sae), int64.
        d_sae: the number of latents.
    """

    values: Float[Tensor, "*rows k"]
    indices: Int[Tensor, "*rows k"]
    d_sae: int

    def dense(self) -> Float[Tensor, "*rows d_sae"]:
        """The same code as an array with one column per latent; an index that stands twice in a row counts twice."""
        latents = torch.zeros(*self.values.shape[:-1], self.d_sae, dtype=self.values.dtype, device=self.values.device)
        return latents.scatter_add_(-1, self.indices, self.values)


def lengths(x: Float[Tensor, "*rows d"]) -> Float[Tensor, " *rows"]:
    """The Euclidean norm of each vector along the last axis, in the precision of x."""
    return cast(Tensor, torch.linalg.vector_norm(x, dim=-1))  # PyTorch states no types for it
