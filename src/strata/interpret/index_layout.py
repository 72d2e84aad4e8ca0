"""The files of an index: which there are, what they hold, and how each is read and written.

``index.json``               what was read, with which SAEs, and whether it is complete
``vocabulary.json``          the text of each token id
``tokens-00000.safetensors`` ``token_ids`` [n_seqs seq], ``is_token`` and ``is_row`` as bits
``<key>/codes-00000.safetensors``  the codes of one SAE on the same tokens, latent by latent: ``offsets`` [d_sae + 1],
                             ``places`` [entries] (token numbers within the shard) and ``values`` [entries] in fp16,
                             times a power of two that is kept beside them; ``n_rows``
``<key>/logit_effects.safetensors``, ``statistics.safetensors``, ``partners.safetensors``  what was computed from them

A shard holds as many whole sequences as make 65,536 tokens, so that a place takes two bytes and an entry four: 10
million tokens at 32 active latents take 1.3 GB. Values are rounded to fp16 (a relative error of 5e-4 at most).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt

from strata.atomic import write_whole
from strata.errors import UserError

FORMAT_VERSION = 1
SHARD_TOKENS = 65_536
RECORD = "index.json"
VOCABULARY = "vocabulary.json"
LOGIT_EFFECTS = "logit_effects.safetensors"
STATISTICS = "statistics.safetensors"
_HIGHEST_EXPONENT = 15  # the largest value of a shard is brought below 2^15, half of what fp16 holds


def checked_key(key: str) -> str:
    """A key that is a folder within the index, and no way out of it.

    Raises:
        UserError: it is not.
    """
    parts = key.split("/")
    if "\\" in key or any(part in ("", ".", "..") for part in parts):
        raise UserError(f"Keys of an index must be names of folders within it. Got {key!r}. Give e.g. 'layers.3'.")
    return key


def shard_sequences(sequence_tokens: int) -> int:
    """How many sequences a shard holds."""
    return max(1, SHARD_TOKENS // sequence_tokens)


def tokens_path(folder: Path, number: int) -> Path:
    """The file of a shard's tokens."""
    return folder / f"tokens-{number:05d}.safetensors"


def codes_path(folder: Path, key: str, number: int) -> Path:
    """The file of a shard's codes of one SAE."""
    return folder / key / f"codes-{number:05d}.safetensors"


@dataclass(frozen=True)
class TokenShard:
    """The tokens of a shard.

    Attributes:
        token_ids: [n_seqs seq].
        is_token: False on pads.
        is_row: True where activations are encoded: neither pad nor special token.
    """

    token_ids: UInt[np.ndarray, "n_seqs seq"]
    is_token: Bool[np.ndarray, "n_seqs seq"]
    is_row: Bool[np.ndarray, "n_seqs seq"]

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        bits = {name: np.packbits(getattr(self, name), axis=None) for name in ("is_token", "is_row")}
        _write(path, {"token_ids": self.token_ids, **bits})

    @classmethod
    def read(cls, path: Path) -> "TokenShard":
        """Read what `write` wrote.

        Raises:
            UserError: the file is missing or damaged.
        """
        found = _read(path)
        ids = found["token_ids"]
        bits = (np.unpackbits(found[n], count=ids.size).astype(bool).reshape(ids.shape) for n in ("is_token", "is_row"))
        return cls(ids, *bits)


@dataclass(frozen=True)
class CodeShard:
    """All firings of one SAE in a shard, by latent and then by token.

    Attributes:
        offsets: entries of latent i are ``offsets[i]:offsets[i + 1]``.
        tokens: at which tokens, numbered through the whole index, ascending within a latent.
        values: how strongly, above 0, as stored in fp16.
        n_rows: how many tokens were encoded.
    """

    offsets: Int[np.ndarray, " latents_and_end"]
    tokens: Int[np.ndarray, " entries"]
    values: Float[np.ndarray, " entries"]
    n_rows: int

    @property
    def latents(self) -> Int[np.ndarray, " entries"]:
        """The latent of each entry."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def stored_places(places: Int[np.ndarray, " entries"], *, shard_tokens: int) -> UInt[np.ndarray, " entries"]:
    """Places within a shard in the fewest bytes."""
    return places.astype(np.uint16 if shard_tokens <= SHARD_TOKENS else np.uint32)


def write_codes(
    path: Path,
    *,
    offsets: Int[np.ndarray, " latents_and_end"],
    places: UInt[np.ndarray, " entries"],
    values: Float[np.ndarray, " entries"],
    n_rows: int,
) -> None:
    """Write a shard's codes, whole or not at all. What fp16 would round to 0 gets the smallest number above it."""
    largest = float(values.max(initial=0.0))
    factor = 2.0 ** (_HIGHEST_EXPONENT - int(np.ceil(np.log2(largest)))) if largest > 0 else 1.0
    halves = np.maximum((values * factor).astype(np.float16), np.float16(6e-8))
    _write(
        path,
        {
            "offsets": offsets.astype(np.uint32),
            "places": places,
            "values": halves,
            "factor": np.array([factor]),
            "n_rows": np.array([n_rows]),
        },
    )


class CodeFile:
    """A shard's codes on disk, of which only what is asked for is read.

    Args:
        path: the file.
        first_token: the number of the shard's first token.

    Raises:
        UserError: the file is missing or damaged.
    """

    def __init__(self, path: Path, *, first_token: int) -> None:
        self._file = _opened(path)
        self._first_token = first_token
        self._parts = {name: self._file.get_slice(name) for name in ("offsets", "places", "values")}
        self._factor = float(self._file.get_tensor("factor")[0])
        self.n_rows = int(self._file.get_tensor("n_rows")[0])

    def offsets(self) -> Int[np.ndarray, " latents_and_end"]:
        """Where each latent's entries begin, and the end."""
        return self._parts["offsets"][:].astype(np.int64)

    def of(self, latent: int) -> tuple[Int[np.ndarray, " entries"], Float[np.ndarray, " entries"]]:
        """The token numbers and values of one latent's firings."""
        start, end = self._parts["offsets"][latent : latent + 2].tolist()
        return self._between(start, end)

    def whole(self) -> CodeShard:
        """All of it."""
        offsets = self.offsets()
        return CodeShard(offsets, *self._between(0, int(offsets[-1])), self.n_rows)

    def _between(self, start: int, end: int) -> tuple[Int[np.ndarray, " entries"], Float[np.ndarray, " entries"]]:
        if start == end:  # an empty slice of an empty tensor is refused
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        tokens = self._parts["places"][start:end].astype(np.int64) + self._first_token
        return tokens, self._parts["values"][start:end].astype(np.float32) / np.float32(self._factor)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays that were computed from the codes, whole or not at all."""
    _write(path, arrays)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what `save_arrays` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    return _read(path)


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def _read(path: Path) -> dict[str, np.ndarray]:
    file = _opened(path)
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"An index must be whole. {path} is missing or damaged. Make it anew with --reindex."
        ) from error
