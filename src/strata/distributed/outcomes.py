"""The outcome of a piece of a batch as bytes, for the other ranks: what fired, not what the size of the weights is.

An entry costs 16 bytes (row, latent, value, derivative), a row d_out numbers (its residual). What the receiver has
already (the inputs) or can make (what is a multiple of values or residual, with the same bits) does not travel.
"""

import json
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from strata.kernels.entries import DenseEntries, Entries, SparseEntries
from strata.kernels.gradient import Gradient, Part, RowGradient
from strata.sae.rules.base import Batch, Outcome

_HEADER_BYTES = 8
_SENT_AS = {torch.int64: torch.int32}
_TYPES = {"float32": torch.float32, "int32": torch.int32}


def packed(outcome: Outcome, batch: Batch) -> UInt8[Tensor, " n"]:
    """The outcome as bytes.

    Args:
        outcome: of one piece.
        batch: the piece, which the receiver has too.
    """
    writer = _Writer(outcome, batch)
    content = {
        "entries": writer.entries(outcome.entries),
        "values": writer.tensor(outcome.values),
        "residual": writer.tensor(outcome.residual),
        "loss": writer.tensor(outcome.loss),
        "penalty": writer.tensor(outcome.penalty),
        "d_rows": writer.tensor(outcome.d_rows),
        "slope": writer.tensor(outcome.slope),
        "d_scores": writer.tensor(outcome.d_scores),
        "gradients": {name: writer.gradient(one) for name, one in outcome.gradients.items()},
    }
    return writer.bytes(content)


def unpacked(letter: UInt8[Tensor, " n"], batch: Batch) -> Outcome:
    """What `packed` was given, bit for bit."""
    reader = _Reader(letter, batch)
    content = reader.content
    reader.named["residual"] = reader.tensor(content["residual"])
    reader.named["values"] = reader.tensor(content["values"])
    return Outcome(
        entries=reader.entries(content["entries"]),
        values=reader.named["values"],
        residual=reader.named["residual"],
        loss=reader.tensor(content["loss"]),
        penalty=reader.tensor(content["penalty"]),
        d_rows=reader.tensor(content["residual" if content["d_rows"] == content["residual"] else "d_rows"]),
        slope=reader.tensor(content["slope"]),
        d_scores=reader.tensor(content["d_scores"]),
        gradients={name: reader.gradient(one) for name, one in content["gradients"].items()},
    )


class _Writer:
    """Tensors by number, each once; `None` in place of the number says by name what the receiver has."""

    def __init__(self, outcome: Outcome, batch: Batch) -> None:
        self._made = {"slope·values": outcome.values * (-2 * batch.share)}
        self._places: dict[int, Any] = {id(batch.inputs): "inputs"}
        self._lists: dict[int, dict[str, Any]] = {}
        self._tensors: list[Tensor] = []

    def tensor(self, tensor: Tensor) -> int | str:
        """A number, or a name."""
        if id(tensor) not in self._places:
            self._places[id(tensor)] = self._name_of(tensor)
        return self._places[id(tensor)]

    def _name_of(self, tensor: Tensor) -> int | str:
        for name, made in self._made.items():
            if made.shape == tensor.shape and torch.equal(made, tensor):
                return name
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def entries(self, entries: Entries) -> dict[str, Any]:
        """A list of entries, or that there is none."""
        if isinstance(entries, DenseEntries):
            return {"n_rows": entries.n_rows, "d_sae": entries.d_sae, "n_listed": entries.n_listed}
        if id(entries) not in self._lists:
            places = {"rows": self.tensor(entries.rows), "latents": self.tensor(entries.latents)}
            self._lists[id(entries)] = {**places, "n_rows": entries.n_rows, "d_sae": entries.d_sae}
        return self._lists[id(entries)]

    def gradient(self, gradient: Gradient) -> dict[str, Any]:
        """A gradient as it is held."""
        if not isinstance(gradient, RowGradient):
            return {"matrix": self.tensor(gradient)}
        assert gradient.latents is None, "revival's rows are added where pieces are together"
        return {
            "parts": [
                {
                    "entries": self.entries(part.entries),
                    "amounts": self.tensor(part.amounts),
                    "inputs": self.tensor(part.inputs),
                }
                for part in gradient.parts
            ]
        }

    def bytes(self, content: dict[str, Any]) -> UInt8[Tensor, " n"]:
        """Length of the header, header, tensors one after the other."""
        sent = [tensor.to(_SENT_AS.get(tensor.dtype, tensor.dtype)) for tensor in self._tensors]
        content["tensors"] = [[str(one.dtype).removeprefix("torch."), list(one.shape)] for one in sent]
        header = json.dumps(content).encode()
        header += b" " * (-len(header) % 8)
        device = self._tensors[0].device if self._tensors else torch.device("cpu")
        first = torch.tensor([len(header)], dtype=torch.int64).view(torch.uint8)
        text = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        parts = [one.contiguous().view(-1).view(torch.uint8) for one in sent]
        return torch.cat([torch.cat([first, text]).to(device), *parts])


class _Reader:
    def __init__(self, letter: Tensor, batch: Batch) -> None:
        n_header = int(letter[:_HEADER_BYTES].cpu().view(torch.int64))
        end = _HEADER_BYTES + n_header
        self.content: dict[str, Any] = json.loads(letter[_HEADER_BYTES:end].cpu().numpy().tobytes())
        self.named: dict[str, Tensor] = {"inputs": batch.inputs}
        self._slope = -2 * batch.share
        self._tensors: list[Tensor] = []
        self._lists: dict[tuple[Any, ...], SparseEntries] = {}
        for kind, shape in self.content["tensors"]:
            dtype = _TYPES[kind]
            n_bytes = torch.Size(shape).numel() * dtype.itemsize
            self._tensors.append(letter[end : end + n_bytes].view(dtype).view(shape))
            end += n_bytes

    def tensor(self, place: int | str) -> Tensor:
        if isinstance(place, int):
            return self._tensors[place]
        if place not in self.named:
            self.named[place] = self.named[place.removeprefix("slope·")] * self._slope
        return self.named[place]

    def entries(self, given: dict[str, Any]) -> Entries:
        if "rows" not in given:
            return DenseEntries(**given)
        key = tuple(given.values())
        if key not in self._lists:
            rows, latents = (self.tensor(given[name]).long() for name in ("rows", "latents"))
            self._lists[key] = SparseEntries(rows, latents, given["n_rows"], given["d_sae"])
        return self._lists[key]

    def gradient(self, given: dict[str, Any]) -> Gradient:
        if "matrix" in given:
            return self.tensor(given["matrix"])
        parts: list[Part] = []
        for one in given["parts"]:
            entries = self.entries(one["entries"])
            assert isinstance(entries, SparseEntries), "a part is of a list"
            parts.append(Part(entries, self.tensor(one["amounts"]), self.tensor(one["inputs"])))
        return RowGradient(parts)
