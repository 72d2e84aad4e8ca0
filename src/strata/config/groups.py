"""What `strata groups` is asked to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from strata.config.settings import Auto, check_kinds, folder_named_after, names_unknown_settings, require

_THRESHOLD = 0.2  # Group-SAE, section 3


@names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class GroupsConfig:
    """Layers measured against each other and cut into groups of similar neighbours, each of which can share one SAE."""

    model: str = "auto"
    """The language model: "demo" (embedded), a Hugging Face id, or a local folder; "auto" is "demo". A store given as
    `activations` has its own."""
    data: str = "auto"
    """The text: "stdlib" (the Python standard library's source), a file or folder (txt, jsonl, parquet), or a Hugging
    Face dataset id; "auto" is "stdlib". A store given as `activations` has its own."""
    activations: Literal["stream"] | Path = "stream"
    """Where activations come from: "stream" runs the language model, a folder is a store that `strata collect` wrote,
    of whose sites the layers are taken."""
    n_tokens: int = 100_000
    """Rows to look at; the first tenth gives the means, the others the distances."""
    context_tokens: int = 256
    """Length of the packed sequences, in tokens."""
    method: Literal["minmax", "complete", "published"] = "minmax"
    """How layers are cut into groups: "minmax" has the smallest worst diameter, "complete" is complete linkage of
    neighbours, "published" what Group-SAE's code does."""
    k: int | Auto = "auto"
    """The number of groups, without the last layer's own where that is left out; "auto" goes by `budget` or
    `threshold`."""
    threshold: float | Auto = "auto"
    """Without `k` and `budget` the smallest number of groups is taken whose AMAD (mean diameter) is below this; "auto"
    is 0.2."""
    budget: float | Literal["none"] = "none"
    """The most that training the SAEs may cost, as a share of the cost of one SAE per layer (0.5: half as many SAEs as
    layers): the most groups within it are taken. The cost with the language model's pass, which stays, is told
    beside it."""
    last_layer: bool = False
    """Whether the last layer may be in a group; else it has its own SAE."""
    expansion_factor: int = 16
    """Latents per dimension of the SAEs whose cost is predicted: --sae.expansion-factor of `strata train`."""
    sae_k: int = 32
    """Active latents per row (L0) of the SAEs whose cost is predicted: --sae.k of `strata train`."""
    cka: bool = True
    """Measure linear CKA too."""
    out: Path | Auto = "auto"
    """The folder to write; "auto" is groups/<model>-<data>."""
    overwrite: bool = False
    """Replace what stands in that folder already."""
    device: str = "auto"
    """"auto" (CUDA where there is one), "cpu", "cuda", "cuda:1"."""
    lm_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the language model's forward; "auto" is bf16 where the hardware multiplies it fast."""
    text_batch_size: int = 32
    """Packed sequences per language-model forward."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    def __post_init__(self) -> None:
        check_kinds(self)
        least = {"n_tokens": 20, "context_tokens": 2, "text_batch_size": 1, "expansion_factor": 1, "sae_k": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            require(value >= smallest, name, f"be at least {smallest}", value, "Give a larger number.")
        if self.k != "auto":
            require(self.k >= 1, "k", "be at least 1", self.k, 'Or give "auto".')
        if self.threshold != "auto":
            rule = "be above 0 and at most 1, as distances are"
            require(0 < self.threshold <= 1, "threshold", rule, self.threshold, "The usual one is 0.2.")
        if self.budget != "none":
            rule = "be a share of the cost of one SAE per layer, above 0 and at most 1"
            require(0 < self.budget <= 1, "budget", rule, self.budget, "0.5 is half of it.")
        unset = {"k": "auto", "budget": "none", "threshold": "auto"}
        given = [name for name, nothing in unset.items() if getattr(self, name) != nothing]
        if len(given) > 1:
            values = " and ".join(f"{name}={getattr(self, name)}" for name in given)
            require(False, given[0], f"not be given with {given[1]}", values, "Choose one.")
        if self.from_store():
            given = [name for name in ("model", "data") if getattr(self, name) != "auto"]
            rule = "be left out when activations are of a store, which has its own"
            for name in given:
                require(False, name, rule, repr(getattr(self, name)), "Leave it out.")

    def from_store(self) -> bool:
        """Whether the rows lie on disk."""
        return self.activations != "stream"

    def amad_threshold(self) -> float:
        """`threshold`, or the usual one."""
        return _THRESHOLD if self.threshold == "auto" else self.threshold

    def folder(self) -> Path:
        """`out`, or groups/<model>-<data> made from their last path components; groups/<store> of a store."""
        if self.out != "auto":
            return Path(self.out)
        if self.from_store():
            return Path("groups") / Path(self.activations).name
        return folder_named_after(self.model, self.data, inside="groups")
