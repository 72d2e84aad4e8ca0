"""What `strata collect` is asked to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from strata.config.settings import Auto, check_kinds, folder_named_after, names_unknown_settings, require


@names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """A collection from text to activations on disk: what `strata collect` does. The same command, given again, goes on
    where it stopped.
    """

    model: str = "demo"
    """The language model: "demo" (embedded), a Hugging Face id, or a local folder."""
    data: str = "stdlib"
    """The text: "stdlib" (the Python standard library's source), a file or folder (txt, jsonl, parquet), or a Hugging
    Face dataset id."""
    sites: tuple[str, ...] = ("middle",)
    """Where to read activations, e.g. layers.6 layers.6.mlp; "middle" is the middle layer, "all" every layer. All in
    one pass."""
    n_tokens: int | Literal["all"] = "all"
    """Rows of each site, of all parts together; "all" is the whole text. A shorter text ends the store."""
    held_out_tokens: int = 32_768
    """Rows of held-out documents beside them, on which SAEs can be evaluated without the language model; 0 is none."""
    dtype: Literal["fp32", "fp16", "bf16", "int8"] = "fp16"
    """Type of the rows on disk; int8 (a scale per row, outlier channels apart) takes half of the bytes of fp16."""
    context_tokens: int = 256
    """Length of the packed sequences, in tokens."""
    text_batch_size: int = 32
    """Packed sequences per language-model forward."""
    buffer_tokens: int | Auto = "auto"
    """Rows per site in the shuffle buffer; "auto" is 65,536, or 4 shards where that is more."""
    shard_rows: int | Auto = "auto"
    """Rows of a shard; "auto" is up to 256 MB, at least 4,096 and at most 32,768 rows."""
    part: str = "1/1"
    """Which of several processes this is: "1/4" to "4/4" write one store together, each every 4th document."""
    out: Path | Auto = "auto"
    """The store's folder; "auto" is stores/<model>-<data>."""
    seed: int = 0
    """Seed of the order."""
    device: str = "auto"
    """"auto" (CUDA where there is one), "cpu", "cuda", "cuda:1"."""
    lm_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the language model's forward; "auto" is bf16 where the hardware multiplies it fast."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    def __post_init__(self) -> None:
        check_kinds(self)
        for name, least in (("context_tokens", 2), ("text_batch_size", 1), ("held_out_tokens", 0), ("seed", 0)):
            value = getattr(self, name)
            require(value >= least, name, f"be at least {least}", value, "Give a larger number.")
        for name in ("n_tokens", "buffer_tokens", "shard_rows"):
            value = getattr(self, name)
            require(isinstance(value, str) or value >= 1, name, "be at least 1", value, "Give a larger number.")
        require(bool(self.sites), "sites", "name at least one site", "none", 'Give e.g. layers.3, or "all".')

    def folder(self) -> Path:
        """The store's folder: `out`, or stores/<model>-<data> made from their last path components."""
        if self.out != "auto":
            return Path(self.out)
        return folder_named_after(self.model, self.data, inside="stores")
