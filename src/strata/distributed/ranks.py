"""The processes that train together, and what they say to each other: `torch.distributed`, in the order of ranks.

Whatever is added up over ranks is added in their order, so that a training gives the same bits every time.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from strata.errors import UserError
from strata.kernels.backend import kernels

_TIMEOUT = timedelta(minutes=10)  # a rank that is silent for so long is lost
_AGREEING = timedelta(seconds=5)


class LostRankError(UserError):
    """Another process of the training died or fell silent."""


class Ranks:
    """The processes of a training.

    Every method is called by all ranks, in the same order. CPU tensors travel by gloo, CUDA tensors by NCCL.

    Args:
        rank: number of this process, from 0.
        size: how many there are; 1 needs no process group.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def gathered(self, tensor: Shaped[Tensor, "rows ..."]) -> list[Tensor]:
        """The tensors of all ranks in their order, on every rank; they may differ in their number of rows."""
        if self.size == 1:
            return [tensor]
        own = _bytes_of(tensor)
        sizes = [int(n) for n in self._all_bytes(_bytes_of(torch.tensor([len(own)]))).view(torch.int64)]
        padded = own.new_empty(max(sizes))
        padded[: len(own)] = own
        found = self._all_bytes(padded).view(self.size, max(sizes))
        parts = [part[:n].clone().view(tensor.dtype) for part, n in zip(found, sizes, strict=True)]
        return [part.view(-1, *tensor.shape[1:]) for part in parts]

    def equal_gathered(self, tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "ranks ..."]:
        """The tensors of all ranks, which have the same shape, on every rank."""
        if self.size == 1:
            return tensor.unsqueeze(0)
        return self._all_bytes(_bytes_of(tensor)).view(tensor.dtype).view(self.size, *tensor.shape)

    def ordered_sum(self, tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Σ over ranks, added in their order: each rank adds its share of the numbers, then all get all of them.

        Travels: twice the tensor, as an all-reduce does, whose order is not promised.
        """
        if self.size == 1:
            return tensor
        flat = tensor.reshape(-1)
        share = -(-len(flat) // self.size)
        padded = flat.new_zeros(share * self.size)
        padded[: len(flat)] = flat
        received = torch.empty_like(padded)
        with _talking():
            dist.all_to_all_single(received, padded)
        parts = received.view(self.size, share)
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        return self.equal_gathered(total).view(-1)[: len(flat)].view(tensor.shape)

    def exchanged(self, letters: list[UInt8[Tensor, " _"]], *, sizes: list[int]) -> list[Tensor]:
        """Bytes to every rank, and what the ranks sent to this one, in their order.

        Args:
            letters: by rank what it shall get.
            sizes: by rank how many bytes it sends to this one.
        """
        if self.size == 1:
            return letters
        outgoing = torch.cat(letters)
        incoming = outgoing.new_empty(sum(sizes))
        with _talking():
            dist.all_to_all_single(incoming, outgoing, sizes, [len(letter) for letter in letters])
        return list(torch.split(incoming, sizes))

    def gathered_objects(self, value: Any) -> list[Any]:
        """The values of all ranks in their order, on every rank: small plain ones."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _talking():
            dist.all_gather_object(found, value)
        return found

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers. Does not wait for the device."""
        if self.size == 1:
            return number
        found = torch.tensor([number])
        with _talking():
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def from_first_(self, tensor: Tensor) -> None:
        """Have rank 0's numbers everywhere, in place."""
        self.from_rank_(tensor, rank=0)

    def from_rank_(self, tensor: Tensor, *, rank: int) -> None:
        """Have a rank's numbers everywhere, in place."""
        if self.size > 1:
            with _talking():
                dist.broadcast(tensor, src=rank)

    def wait_for_all(self) -> None:
        """Go on when every rank is here."""
        self.largest(0)

    def _all_bytes(self, own: UInt8[Tensor, " n"]) -> UInt8[Tensor, " all"]:
        found = own.new_empty(self.size * len(own))
        with _talking():
            dist.all_gather(list(found.view(self.size, len(own))), own)
        return found


ALONE = Ranks()


@contextmanager
def joined_ranks(
    *, init_method: str | None = None, rank: int | None = None, size: int | None = None
) -> Generator[Ranks, None, None]:
    """The ranks that torchrun started, as long as it is entered; `ALONE` without torchrun.

    An error or interruption that all ranks meet is raised by rank 0 only; the others leave quietly with its exit code.

    Args:
        init_method: where ranks meet (`torch.distributed.init_process_group`); None is torchrun's.
        rank: of this process; None is torchrun's.
        size: how many there are; None is torchrun's.
    """
    rank = int(os.environ.get("RANK", "0")) if rank is None else rank
    size = int(os.environ.get("WORLD_SIZE", "1")) if size is None else size
    if size == 1:
        yield ALONE
        return
    _take_device()
    # It has the default group as default argument: imported later (checkpoints do) it would keep the group alive until
    # the interpreter ends, and gloo's threads, which then want the interpreter's lock, abort the process.
    import_module("torch.distributed.nn.functional")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _talking():
        dist.init_process_group(backend, init_method=init_method, rank=rank, world_size=size, timeout=_TIMEOUT)
    ranks = Ranks(rank, size)
    try:
        if rank == 0:
            _first_use()  # kernels may be compiled, by one process
        ranks.wait_for_all()
        yield ranks
    except KeyboardInterrupt as stopped:
        if rank == 0:
            raise
        raise SystemExit(getattr(stopped, "exit_code", 130)) from None
    except UserError as error:
        if not isinstance(error, LostRankError) and rank > 0 and _all_stopped():
            raise SystemExit(2) from None
        if rank == 0 and not isinstance(error, LostRankError):
            _all_stopped()
        raise
    finally:
        dist.destroy_process_group()


def _take_device() -> None:
    """One CUDA device for each process of a node."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _first_use() -> None:
    kernels(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _all_stopped() -> bool:
    """Whether all ranks arrive here within seconds: they met the same error."""
    try:
        dist.monitored_barrier(timeout=_AGREEING)
    except (RuntimeError, ValueError):  # the second beside NCCL, which has no such barrier
        return False
    return True


@contextmanager
def _talking() -> Generator[None, None, None]:
    """What `torch.distributed` says when another process is gone, as a sentence.

    Raises:
        LostRankError: it is gone.
    """
    try:
        yield
    except RuntimeError as error:
        raise LostRankError(
            "Another process of this training was lost (it died, or was silent for"
            f" {_TIMEOUT.total_seconds() / 60:.0f} minutes). What it said comes first; --resume goes on from the last"
            " checkpoint, on as many processes as you like."
        ) from error


def _bytes_of(tensor: Tensor) -> UInt8[Tensor, " n"]:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
