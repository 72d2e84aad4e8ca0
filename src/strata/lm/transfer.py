"""Small tensors on their way to a device, without the host waiting for it."""

import torch
from jaxtyping import Shaped
from torch import Tensor


def moved(tensor: Shaped[Tensor, "..."], device: torch.device) -> Shaped[Tensor, "..."]:
    """The tensor on a device.

    From the CPU to CUDA it goes through pinned memory: a copy from ordinary memory waits until all has run that was
    launched on the stream before, and the host could prepare nothing meanwhile.
    """
    if device.type == "cuda" and tensor.device.type == "cpu" and tensor.numel():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
