"""The kernels in C++ for a CPU (native.cpp), compiled on first use and kept: some seconds once per machine.

They replace what PyTorch cannot express in one pass: a selection that looks at scores while they are in the cache (with
AVX-512 VNNI in int8, the winners then computed again in fp32), a gather that decodes and takes the gradients at once,
and an optimiser that consumes the gradient latent by latent. Where there is no compiler the kernels in PyTorch do the
same work, 2.5 to 5 times as slowly (docs/LOG.md). `backend.Kernels` says what each function does.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from jaxtyping import Float, Int
from torch import Tensor

from strata.cache import cache_folder
from strata.kernels import pytorch
from strata.kernels.operands import (
    BETAS,
    EPS,
    AdamRows,
    Bias,
    ByLatent,
    LatentStarts,
    PerEntry,
    Places,
    Rows,
    RowStarts,
    Weight,
    WholeRows,
)

_SOURCE = Path(__file__).with_name("native.cpp")
_FLAGS = (
    *("-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-fno-trapping-math"),
    *("-fopenmp", "-shared", "-fPIC", "-std=c++17"),
)
_COMPILERS = ("c++", "g++", "clang++")
_I64, _INT, _FLOAT, _POINTER = ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_void_p
_ARGUMENTS = {
    "strata_has_int8": [],
    "strata_topk_int8": [_POINTER] * 3 + [_I64] * 4 + [_POINTER] * 2 + [_INT],
    "strata_product_int8": [_POINTER] * 3 + [_I64] * 3 + [_INT],
    "strata_above_int8": [_POINTER] * 4 + [_INT] + [_I64] * 3 + [_INT, _POINTER],
    "strata_above_take": [_POINTER] * 4,
    "strata_topk_scores": [_POINTER] + [_I64] * 3 + [_POINTER] * 2 + [_INT],
    "strata_decode": [_POINTER] * 4 + [_I64] * 3 + [_POINTER, _INT],
    "strata_residual": [_POINTER] * 6 + [_I64] * 3 + [_POINTER] * 2 + [_INT],
    "strata_dot": [_POINTER] * 4 + [_I64] * 2 + [_POINTER, _INT],
    "strata_by_latent": [_POINTER, _I64, _I64] + [_POINTER] * 2,
    "strata_row_sums": [_POINTER] * 4 + [_I64] * 2 + [_POINTER, _INT],
    "strata_adam_rows": [_POINTER] * 10 + [_I64] * 2 + [_FLOAT, _INT, _INT, _FLOAT, _FLOAT, _FLOAT, _INT],
}
_RESULTS = {"strata_has_int8": _INT, "strata_product_int8": _FLOAT, "strata_above_int8": _POINTER}
# Scores of a chunk of rows that PyTorch multiplied and the C++ code looks at: half of a usual second-level cache.
_CHUNK_BYTES = 2**21


def available() -> bool:
    """Whether the kernels are compiled, or could be just now."""
    return _loaded()[0] is not None


def why_not() -> str:
    """What the compiler said where they are not available; empty where they are."""
    return _loaded()[1]


def has_int8() -> bool:
    """Whether the processor has the instructions for scores in int8 (AVX-512 VNNI)."""
    return available() and bool(_library().strata_has_int8())


def topk(
    z: Rows, W_enc: Weight, bias: Bias, k: int, *, score_dtype: torch.dtype
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """See `backend.Kernels.topk`.

    In int8, rows and latents each have their own scale; what comes within four standard deviations of the rounding
    errors of a row's k-th score is computed again in fp32, and the k largest of that win.
    """
    z, W_enc, bias = z.contiguous(), W_enc.contiguous(), bias.contiguous()
    if not _plain(z, W_enc, bias):
        return pytorch.topk(z, W_enc, bias, k, score_dtype=torch.float32)
    n, d_in, d_sae = len(z), *reversed(W_enc.shape)
    values, latents = z.new_empty(n, k), torch.empty(n, k, dtype=torch.int64)
    if score_dtype == torch.int8:
        _call("strata_topk_int8", z, W_enc, bias, n, d_in, d_sae, k, values, latents, _threads())
        return values, latents
    for start, part in pytorch.scores(z, W_enc, bias, dtype=torch.float32, chunk_bytes=_CHUNK_BYTES):
        here = slice(start, start + len(part))
        _call("strata_topk_scores", part, len(part), d_sae, k, values[here], latents[here], _threads())
    return values, latents


def product(z: Rows, W_enc: Weight, bias: Bias, *, score_dtype: torch.dtype) -> None:
    """See `backend.Kernels.product`."""
    if score_dtype != torch.int8:
        return pytorch.product(z, W_enc, bias, score_dtype=score_dtype)
    _call("strata_product_int8", z, W_enc, bias, len(z), *reversed(W_enc.shape), _threads())
    return None


def above(
    z: Rows, W_enc: Weight, bias: Bias, floor: Float[Tensor, "..."], *, score_dtype: torch.dtype
) -> tuple[PerEntry, Places, Places]:
    """See `backend.Kernels.above`; in int8 as `topk`."""
    if score_dtype != torch.int8 or not _plain(z, W_enc, bias, floor):
        return pytorch.above(z, W_enc, bias, floor, score_dtype=torch.float32)
    z, W_enc, bias, floor = z.contiguous(), W_enc.contiguous(), bias.contiguous(), floor.contiguous()
    n, d_in, d_sae = len(z), *reversed(W_enc.shape)
    n_found = ctypes.c_int64(0)
    sizes = (int(floor.ndim > 0), n, d_in, d_sae, _threads())
    handle = _call("strata_above_int8", z, W_enc, bias, floor, *sizes, ctypes.byref(n_found))
    values, rows, latents = z.new_empty(n_found.value), _places(n_found.value), _places(n_found.value)
    _call("strata_above_take", handle, values, rows, latents)
    return values, rows, latents


def decode(values: PerEntry, latents: Places, starts: RowStarts, weight: Weight) -> Float[Tensor, "rows d_in"]:
    """See `backend.Kernels.decode`."""
    if not _plain(values, weight):
        return pytorch.decode(values, latents, starts, weight)
    values, latents, weight = values.contiguous(), latents.contiguous(), weight.contiguous()
    out = weight.new_empty(len(starts), weight.shape[1])
    _call("strata_decode", values, latents, starts, weight, len(starts), len(values), weight.shape[1], out, _threads())
    return out


def residual(
    values: PerEntry,
    rows: Places,
    latents: Places,
    starts: RowStarts,
    weight: Weight,
    target: Rows,
    keep: Float[Tensor, " rows"],
) -> tuple[Rows, PerEntry]:
    """See `backend.Kernels.residual`."""
    values, latents, target, keep = values.contiguous(), latents.contiguous(), target.contiguous(), keep.contiguous()
    left, dots = torch.empty_like(target), torch.empty_like(values)
    sizes = (len(starts), len(values), weight.shape[1])
    _call("strata_residual", values, latents, starts, weight, target, keep, *sizes, left, dots, _threads())
    return left, dots


def dot(a: Float[Tensor, "bags d"], bags: Places, weight: Float[Tensor, "d_sae d"], latents: Places) -> PerEntry:
    """See `backend.Kernels.dot`."""
    if not _plain(a, weight):
        return pytorch.dot(a, bags, weight, latents)
    a, bags, weight, latents = a.contiguous(), bags.contiguous(), weight.contiguous(), latents.contiguous()
    out = a.new_empty(len(latents))
    _call("strata_dot", a, bags, weight, latents, len(latents), weight.shape[1], out, _threads())
    return out


def by_latent(latents: Places, d_sae: int) -> tuple[Places, LatentStarts]:
    """See `backend.Kernels.by_latent`: a counting sort."""
    latents = latents.contiguous()
    order, starts = _places(len(latents)), _places(d_sae + 1)
    _call("strata_by_latent", latents, len(latents), d_sae, order, starts)
    return order, starts


def row_sums(listed: ByLatent) -> Float[Tensor, "d_sae d"]:
    """See `backend.Kernels.row_sums`."""
    if not _plain(listed.amounts, listed.inputs):
        return pytorch.row_sums(listed)
    inputs = listed.inputs.contiguous()
    out = inputs.new_empty(len(listed.starts) - 1, inputs.shape[1])
    lists = (listed.rows.contiguous(), listed.amounts.contiguous(), listed.starts, inputs)
    _call("strata_row_sums", *lists, *out.shape, out, _threads())
    return out


def adam_rows_(
    held: AdamRows, listed: ByLatent, beside: WholeRows, *, rate: Float[Tensor, ""], step: Int[Tensor, ""]
) -> None:
    """See `backend.Kernels.adam_rows_`."""
    lists = (listed.rows.contiguous(), listed.amounts.contiguous(), listed.starts, listed.inputs.contiguous())
    gradient = (*lists, beside.rows.contiguous(), beside.number_of)
    numbers = (*held.weight.shape, rate.item(), int(step), int(held.unit_rows), *BETAS, EPS, _threads())
    _call("strata_adam_rows", held.weight, held.first, held.second, held.last_step, *gradient, *numbers)


def _plain(*tensors: Tensor) -> bool:
    """Whether these are what the C++ code reads: fp32, and no gradients wanted of them."""
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return not wanted and all(tensor.dtype == torch.float32 for tensor in tensors)


def _places(n: int) -> Tensor:
    return torch.empty(n, dtype=torch.int64)


def _threads() -> int:
    return torch.get_num_threads()


def _call(name: str, *arguments: object) -> Any:
    """Call a function of the library; tensors are given as pointers to their numbers."""
    for one in arguments:
        assert not isinstance(one, Tensor) or (one.is_contiguous() and one.device.type == "cpu"), name
    return getattr(_library(), name)(*(one.data_ptr() if isinstance(one, Tensor) else one for one in arguments))


def _library() -> ctypes.CDLL:
    library = _loaded()[0]
    assert library is not None, "the kernels are not available"
    return library


@functools.cache
def _loaded() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        return None, f"None of {', '.join(_COMPILERS)} is on the PATH."
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return None, f"{compiler} failed: {said.strip().splitlines()[0] if said.strip() else error}."
    for name, kinds in _ARGUMENTS.items():
        if hasattr(library, name):
            function = getattr(library, name)
            function.argtypes, function.restype = kinds, _RESULTS.get(name)
    return library, ""


def _compiled(compiler: str) -> Path:
    """The library's file, made if it is not there yet; its name tells source, flags and processor."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    made_of = (_SOURCE.read_text(), *_FLAGS, version, _processor(), torch.__version__)
    folder = Path(os.environ.get("STRATA_KERNEL_CACHE") or cache_folder())
    path = folder / f"kernels-{crc32(repr(made_of).encode()):08x}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            made = Path(place) / path.name
            command = [compiler, *_FLAGS, "-w", str(_SOURCE), *_openmp(), "-o", str(made)]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
            made.replace(path)
    return path


def _openmp() -> list[str]:
    """The OpenMP library that PyTorch brings, where it brings one: two of them would fight for the cores."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return [str(found[0])] if found else []


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return ""
    lines = info.read_text().splitlines()
    return "".join(next((line for line in lines if line.startswith(name)), "") for name in ("model name", "flags"))
