"""Pieces of text as the language model read it, with what one feature does at each token."""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Windows:
    """Windows of equal length around tokens, of one feature.

    Attributes:
        token_ids: the tokens' ids; 0 where there is no token (before the sequence began or after it ended).
        activations: the feature's, in the units of the model's activations; 0 where it is silent or not measured
            (special tokens, attention sinks).
        is_token: False where there is no token.
        peaks: the column around which each window was cut; where the feature fires in it, its strongest token.
        documents: the number of the document at the peak.
        starts: the number, among all tokens of the index, of each window's first column.
    """

    token_ids: Int[np.ndarray, "windows tokens"]
    activations: Float[np.ndarray, "windows tokens"]
    is_token: Bool[np.ndarray, "windows tokens"]
    peaks: Int[np.ndarray, " windows"]
    documents: Int[np.ndarray, " windows"]
    starts: Int[np.ndarray, " windows"]

    def __len__(self) -> int:
        """How many windows."""
        return len(self.token_ids)

    def __getitem__(self, chosen: slice | np.ndarray | list[int]) -> "Windows":
        """Some of the windows: a slice, places or a mask."""
        return Windows(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    @property
    def strengths(self) -> Float[np.ndarray, " windows"]:
        """The largest activation in each window."""
        return self.activations.max(1, initial=0.0)

    @staticmethod
    def joined(parts: "list[Windows]") -> "Windows":
        """Windows of one length, one after the other."""
        return Windows(
            **{field.name: np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(Windows)}
        )
