"""What is to be collected into a store, and how: decided before the language model runs."""

from dataclasses import dataclass
from typing import Any, cast

from strata.activations.harvest import forward_dtype
from strata.activations.quantization import bytes_per_row, check_dtype
from strata.activations.store_layout import Manifest, Part
from strata.errors import UserError
from strata.lm.model import LanguageModel

_SHARD_BYTES = 2**28
_SHARD_ROWS = (4_096, 32_768)
_BLOCK_BYTES = (2**20, 2**22)  # of a site: large enough to be read at the disk's full speed
_BLOCK_BYTES_OF_ALL_SITES = 2**25
_LONGEST_DIFFERENCE = 120  # characters; hashes tell nobody anything


@dataclass(frozen=True, kw_only=True)
class StorePlan:
    """How a store is written.

    Attributes:
        dtype: "fp32", "fp16", "bf16" or "int8".
        n_tokens: rows of each site, of all parts together; None is the whole text. A shorter text ends the store.
        held_out_tokens: rows of held-out documents beside them, for measuring; then the others are of the training
            documents only.
        split: documents to take: "all", or "train" alone.
        part: which of several processes this is, "2/4". Each takes every 4th document.
        shard_rows: rows of a shard; None is up to 256 MB, at least 4,096 and at most 32,768 rows.
        buffer_tokens: rows per site in the shuffle buffer; None is 65,536 or more.
        context_tokens: length of the packed sequences; None is the model's own, at most 1024.
        text_batch_size: sequences per language-model forward.
        text_column: where records keep their text.
        lm_dtype: precision of the forward: "auto", "fp32", "bf16".
        seed: of the order.
    """

    dtype: str = "fp16"
    n_tokens: int | None = None
    held_out_tokens: int = 0
    split: str = "all"
    part: str = "1/1"
    shard_rows: int | None = None
    buffer_tokens: int | None = None
    context_tokens: int | None = None
    text_batch_size: int = 32
    text_column: str = "text"
    lm_dtype: str = "auto"
    seed: int = 0

    def share(self) -> int | None:
        """Rows of each site that this part is to write; None is all that there are."""
        if self.n_tokens is None:
            return None
        part = Part.parse(self.part)
        quotient, rest = divmod(self.n_tokens, part.n_parts)
        return quotient + (part.index < rest)

    def check(self) -> None:
        """That the plan can be carried out.

        Raises:
            UserError: it cannot.
        """
        check_dtype(self.dtype)
        for name, least in (("n_tokens", Part.parse(self.part).n_parts), ("shard_rows", 1), ("held_out_tokens", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                rule = f"at least {least}" + (", one for each part" if least > 1 else "")
                raise UserError(f"`{name}` must be {rule}. Got {value}.")
        if self.held_out_tokens and self.split != "train":
            raise UserError(
                f'`split` must be "train" beside held_out_tokens={self.held_out_tokens}. Got {self.split!r}: the'
                " held-out documents would be among the others."
            )


def make_manifest(plan: StorePlan, lm: LanguageModel, *, sites: list[str], text: dict[str, Any]) -> Manifest:
    """What the store will say of itself.

    Args:
        plan: how it is written.
        lm: the language model.
        sites: where it is read.
        text: `TokenStream.describe` of the text.

    Raises:
        UserError: no site, or an unknown one.
    """
    if not sites:
        raise UserError("`sites` must name at least one site. Got none. Give e.g. layers.3.")
    widths = {site: lm.d_in(site) for site in sites}
    row_bytes = [bytes_per_row(plan.dtype, d_in) for d_in in widths.values()]
    shard_rows = plan.shard_rows or _power_of_two(_SHARD_BYTES // sum(row_bytes), _SHARD_ROWS)
    fewest, most = _BLOCK_BYTES
    block_bytes = max(fewest, min(most, _BLOCK_BYTES_OF_ALL_SITES // len(sites)))
    dtype = forward_dtype(lm, plan.lm_dtype) or lm.dtype
    return Manifest(
        model=lm.fingerprint(),
        text=text,
        sites=widths,
        dtype=plan.dtype,
        n_tokens="all" if plan.n_tokens is None else plan.n_tokens,
        held_out_tokens=plan.held_out_tokens,
        n_parts=Part.parse(plan.part).n_parts,
        shard_rows=shard_rows,
        block_rows=_power_of_two(block_bytes // max(row_bytes), (1, shard_rows)),
        settings={
            "text_batch_size": plan.text_batch_size,
            "buffer_tokens": plan.buffer_tokens,
            "lm_dtype": str(dtype).removeprefix("torch."),
            "seed": plan.seed,
        },
    )


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """What two descriptions do not agree on, in words; the model's name may differ, for it may have moved."""
    found: list[str] = []
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key), now.get(key)
        name = f"{prefix}{key}"
        if old == new or name == "model.name":
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(cast(dict[str, Any], old), cast(dict[str, Any], new), f"{name}.")
        else:
            shown = f"{name} was {old!r} and is now {new!r}"
            found.append(shown if len(shown) <= _LONGEST_DIFFERENCE else f"{name} differs")
    return found


def _power_of_two(wanted: int, between: tuple[int, int]) -> int:
    """The largest power of two that is not above what is wanted, within bounds."""
    least, most = between
    return max(least, min(most, 1 << max(wanted.bit_length() - 1, 0)))
