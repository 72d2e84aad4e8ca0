"""Which floating-point type a device multiplies fastest without harm: found out, never assumed."""

import torch

from strata.errors import UserError

DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}
HALF = (torch.float16, torch.bfloat16)


def fast_dtype(device: torch.device | str) -> torch.dtype:
    """bf16 where the hardware multiplies bf16 matrices fast, else fp32.

    CUDA: compute capability 8.0 (Ampere) or newer. CPU: AVX-512 BF16 or AMX tiles. Everything else: fp32, because bf16
    there is emulated and slower than fp32.

    Args:
        device: the device that will run the forward pass, e.g. ``"cpu"`` or ``torch.device("cuda:1")``.

    Returns:
        ``torch.bfloat16`` or ``torch.float32``; never fp16, whose range the residual streams of some models leave.
    """
    device = torch.device(device)
    if device.type == "cuda":
        fast = torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        # torch.cpu.get_capabilities, which is public, is younger than the oldest torch that is taken
        fast = torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage] - see above
        fast = fast or torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage] - see above
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def named_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The torch dtype of a setting such as ``"bf16"``.

    Raises:
        UserError: neither a floating-point torch dtype nor one of the names in `DTYPES`.
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise UserError(
            f"`dtype` must be 'auto', 'fp32', 'bf16', 'fp16' or the torch dtype of one of them. Got {dtype!r}."
        )
    return found
