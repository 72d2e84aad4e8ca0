"""How the process holds memory on the CPU."""

import ctypes
import os
import sys

# glibc's mallopt parameters (malloc.h)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_TOP_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory instead of giving it back to the kernel and asking for it anew in every step.

    By default large arrays are mapped when made and unmapped when dropped, and their pages are zeroed one by one at
    first touch. The embedded model's forward took 0.78 of the time with this, the SAE step the same (docs/LOG.md). For
    programs that own their process, such as the command and the benchmarks; a library should not call it.

    Returns:
        Whether it took effect: Linux with glibc only.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TOP_PAD, _TOP_PAD_BYTES), (_TRIM_THRESHOLD, 2**31 - 1))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


def settle_memory() -> None:
    """`keep_freed_memory` and large pages for large arrays: for programs that own their process.

    Rows of weights are read in no order; with pages of 4 kB the processor looks up where each lies. Pages of 2 MB,
    which PyTorch asks for when this variable is set before its first array, make the SAE step faster (docs/LOG.md).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    keep_freed_memory()
