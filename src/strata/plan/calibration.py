"""Some seconds of measurement that turn counted work into seconds."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from strata.activations.harvest import forward_dtype
from strata.config.train import SAEConfig
from strata.costs.step import Rates, SAEShape, StepSeconds, StepWork, step_work
from strata.errors import UserError
from strata.kernels.backend import kernels, score_dtype
from strata.lm.flops import forward_flops_of
from strata.lm.loading import load_tokenizer
from strata.lm.model import LanguageModel
from strata.lm.text import open_texts
from strata.lm.tokens import TokenStream
from strata.log import say
from strata.machine.hardware import device_bytes, memory_bytes
from strata.plan.rates import Calibration, forward_key, keep_calibration, machine_name, read_calibration
from strata.sae.learner import Learner

# (d_in, d_sae, k, rows) of the steps that are timed: they differ in what dominates them
_SHAPES = {
    "cpu": (
        *((192, 3072, 32, 4096), (192, 768, 32, 4096), (192, 3072, 8, 4096), (192, 3072, 64, 1024)),
        *((192, 3072, 32, 256), (384, 6144, 32, 1024), (512, 8192, 64, 256), (768, 3072, 32, 512)),
        *((384, 1536, 16, 2048), (64, 4096, 16, 2048), (256, 256, 8, 64)),
    ),
    "cuda": (
        *((768, 24576, 32, 8192), (768, 6144, 32, 8192), (768, 24576, 8, 8192), (768, 24576, 128, 2048)),
        *((768, 24576, 32, 512), (2304, 36864, 64, 4096), (4096, 65536, 64, 1024), (4096, 16384, 32, 4096)),
        *((1024, 8192, 16, 8192), (128, 16384, 16, 8192), (256, 1024, 8, 64)),
    ),
}
_WARM_STEPS, _TIMED_STEPS = 2, 7
_COPY_BYTES, _DISK_BYTES = 2**28, 2**28
_FORWARD_SECONDS = 1.0  # at least, of each timed forward
_TOKENISED = 100_000
_BUSY_MISFIT = 0.25  # 12 % on a quiet machine, 30 % beside other work (docs/LOG.md)
_PREPARED = (65_536, 192, 3072)  # rows, d_in, d_sae
_START = (
    "from strata.lm.model import LanguageModel; from strata.lm.text import open_texts; import strata.report.run;"
    " lm = LanguageModel('demo'); open_texts('stdlib', split='train', tokenizer=lm.tokenizer)"
)
_PRODUCT = (4096, 384, 6144)  # rows, d_in, d_sae


def calibrate(
    lm: LanguageModel | None,
    *,
    context_tokens: int = 256,
    text_batch_size: int = 32,
    lm_dtype: str = "auto",
    device: str = "auto",
    progress: bool = True,
) -> Rates:
    """Measure this machine, and the truncated forward of a model, for some seconds; keeps and gives what was found.

    Nothing else should be running.

    Args:
        lm: the language model whose forward is measured too; None is the embedded one, at its longest context at most.
        context_tokens: length of the sequences of that forward.
        text_batch_size: how many of them it takes at once.
        lm_dtype: its precision, "auto", "fp32" or "bf16".
        device: of the embedded model; another one is where it is.
        progress: say on stderr what is measured.

    Raises:
        UserError: the model takes no text of that length; nothing is measured then.
    """
    lm, context_tokens = _measured_model(lm, context_tokens, device=device)
    where = lm.device
    say("measuring this machine for some seconds; nothing else should be running ...", shown=progress)
    before = read_calibration(where)
    product, dense = (1 / measure_product(where, dtype) for dtype in (score_dtype(where), torch.float32))
    step, checks = fit_steps(time_steps(where), product_flops=product, revival_flops=dense)
    forwards, flops_per_second = measure_forwards(
        lm, context_tokens=context_tokens, text_batch_size=text_batch_size, lm_dtype=lm_dtype
    )
    rates = _measured_rates(lm, step=step, flops_per_second=flops_per_second)
    found = Calibration(rates=rates, forwards={**(before.forwards if before else {}), **forwards}, checks=checks)
    _say_if_busy(checks, progress=progress)
    say(f"kept in {keep_calibration(found, where)}", shown=progress)
    return rates


def _measured_model(lm: LanguageModel | None, context_tokens: int, *, device: str) -> tuple[LanguageModel, int]:
    """The model whose forward is measured, and on texts of how many tokens."""
    if lm is None:
        lm = LanguageModel("demo", device=device)
        context_tokens = min(context_tokens, lm.max_positions or context_tokens)
    if lm.max_positions is not None and context_tokens > lm.max_positions:
        raise UserError(
            f"`context_tokens` must be at most {lm.max_positions}, the model's longest text. Got {context_tokens}."
            " Lower it."
        )
    return lm, context_tokens


def _say_if_busy(checks: Sequence[dict[str, Any]], *, progress: bool) -> None:
    worst = max(abs(one["fitted_seconds"] / one["seconds"] - 1) for one in checks)
    if worst > _BUSY_MISFIT:
        say(
            f"timed steps differ from their fit by up to {worst:.0%}, which looks like a busy machine: calibrate again"
            " when nothing else runs",
            shown=progress,
        )


def _measured_rates(lm: LanguageModel, *, step: StepSeconds, flops_per_second: float) -> Rates:
    """What is known of steps and forwards, and the rest, which is measured now."""
    where = lm.device
    read, write = measure_disk()
    now = datetime.now(UTC).strftime("%Y-%m-%d")
    return Rates(
        name=machine_name(where),
        kind="measured",
        source=f"measured on {now}",
        step=step,
        forward_flops_per_second=flops_per_second,
        copy_bytes_per_second=measure_copy(where),
        disk_read_bytes_per_second=read,
        disk_write_bytes_per_second=write,
        tokenised_per_second=measure_tokenising(lm),
        memory_bytes=memory_bytes(),
        device_bytes=device_bytes(where),
        start_seconds=measure_start(),
        prepared_per_second=measure_preparing(where),
    )


@dataclass(frozen=True)
class Timed:
    """A step that was timed: its shape, rows, work and median seconds."""

    shape: SAEShape
    n_rows: int
    work: StepWork
    seconds: float


def time_steps(device: torch.device) -> list[Timed]:
    """Median seconds of real training steps of different shapes, on random rows."""
    found: list[Timed] = []
    for d_in, d_sae, k, batch_size in _SHAPES[device.type]:
        shape = SAEShape(d_in=d_in, d_sae=d_sae, k=k)
        config = SAEConfig(expansion_factor=d_sae // d_in, k=k, batch_size=batch_size)
        generator = torch.Generator(device).manual_seed(0)
        rows = torch.randn(max(batch_size, 2048), d_in, device=device, generator=generator)
        learner = Learner(config, n_steps=10**6, sample=rows, score_dtype=score_dtype(device))
        step = partial(learner.step, rows[:batch_size])
        times = [_seconds(step, device) for _ in range(_WARM_STEPS + _TIMED_STEPS)]
        work = step_work(shape, batch_size=batch_size, revives=False)
        found.append(Timed(shape, batch_size, work, statistics.median(times[_WARM_STEPS:])))
    return found


def fit_steps(
    timed: Sequence[Timed], *, product_flops: float, revival_flops: float
) -> tuple[StepSeconds, tuple[dict[str, Any], ...]]:
    """What each unit of work takes, by non-negative least squares on relative errors, and how well that fits.

    Args:
        timed: steps.
        product_flops: seconds per FLOP of the dense product, measured by itself (in the steps it goes with the number
            of scores, so that a fit could not tell the two apart).
        revival_flops: seconds per FLOP of the revival term, of which there is none in short runs: that of a dense
            product in fp32.
    """
    import numpy as np
    from scipy.optimize import nnls

    known = {"product_flops": product_flops, "revival_flops": revival_flops}
    fields = [name for name in asdict(timed[0].work) if name not in known]
    counts = np.array([[asdict(one.work)[name] for name in fields] for one in timed])
    seconds = np.array([one.seconds for one in timed])
    rest = 1 - product_flops * np.array([one.work.product_flops for one in timed]) / seconds
    relative = counts / seconds[:, None]
    size = relative.max(0)
    units = nnls(relative / size, rest.clip(min=0))[0] / size
    step = StepSeconds(**known, **dict(zip(fields, units.tolist(), strict=True)))
    checks = tuple(
        {**asdict(one.shape), "rows": one.n_rows, "seconds": one.seconds, "fitted_seconds": step.of(one.work)}
        for one in timed
    )
    return step, checks


def measure_product(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of the step's dense product, in the precision that it selects in or another."""
    n_rows, d_in, d_sae = _PRODUCT
    generator = torch.Generator(device).manual_seed(0)
    rows, weight = (torch.randn(n, d_in, device=device, generator=generator) for n in (n_rows, d_sae))
    product = partial(kernels(device).product, rows, weight, torch.zeros(d_sae, device=device), score_dtype=dtype)
    times = [_seconds(product, device) for _ in range(_WARM_STEPS + _TIMED_STEPS)]
    return 2 * n_rows * d_in * d_sae / statistics.median(times[_WARM_STEPS:])


def measure_forwards(
    lm: LanguageModel, *, context_tokens: int, text_batch_size: int, lm_dtype: str
) -> tuple[dict[str, dict[int, float]], float]:
    """Seconds per token of truncated forwards by `forward_key` and number of blocks, and FLOPs per second of the
    deepest.
    """
    dtype = forward_dtype(lm, lm_dtype)
    key = forward_key(lm, context_tokens=context_tokens, lm_dtype=lm_dtype)
    generator = torch.Generator().manual_seed(0)
    shape = (text_batch_size, context_tokens)
    ids = torch.randint(lm.vocabulary_size, shape, generator=generator).to(lm.device)
    depths = sorted({max(1, lm.n_layers // 2), lm.n_layers})
    found: dict[int, float] = {}
    for depth in depths:
        site = lm.sites[depth - 1]
        forward = partial(lm.activations, ids, [site], autocast_dtype=dtype)
        forward()
        times: list[float] = []
        while len(times) < 3 or (sum(times) < _FORWARD_SECONDS and len(times) < 20):
            times.append(_seconds(forward, lm.device))
        found[depth] = statistics.median(times) / ids.numel()
    flops = forward_flops_of(lm, [lm.sites[-1]], context_tokens=context_tokens)
    return {key: found}, flops / found[lm.n_layers]


def measure_start() -> float:
    """Seconds of a fresh process until it has imported what a training needs, the embedded model and its text."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", _START], check=True, capture_output=True)
    return time.perf_counter() - start


def measure_preparing(device: torch.device) -> float:
    """Numbers per second of the sample from which an SAE starts."""
    n_rows, d_in, d_sae = _PREPARED
    rows = torch.randn(n_rows, d_in, device=device)
    config = SAEConfig(expansion_factor=d_sae // d_in)
    times = [_seconds(lambda: Learner(config, n_steps=10, sample=rows), device) for _ in range(2)]
    return rows.numel() / times[-1]


def measure_copy(device: torch.device) -> float:
    """Bytes per second, read and written, of copying 256 MiB."""
    source = torch.ones(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    times = [_seconds(lambda: target.copy_(source), device) for _ in range(5)]
    return 2 * _COPY_BYTES / statistics.median(times[1:])


def measure_disk() -> tuple[float, float]:
    """Bytes per second read from and written to the disk of the current folder (else of the temporary one), in files of
    256 MiB, as far as the system lets go of its cache.
    """
    data = os.urandom(2**20) * (_DISK_BYTES // 2**20)
    where = Path.cwd() if os.access(Path.cwd(), os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where, prefix=".strata-disk-") as folder:
        path = Path(folder) / "block"
        start = time.perf_counter()
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        wrote = time.perf_counter() - start
        with path.open("rb", buffering=0) as file:
            with suppress(AttributeError, OSError):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.perf_counter()
            while file.read(2**22):
                pass
            read = time.perf_counter() - start
    return _DISK_BYTES / read, _DISK_BYTES / wrote


def measure_tokenising(lm: LanguageModel) -> float:
    """Tokens per second of the model's tokenizer (else the embedded model's), packing included, on Python's source."""
    tokenizer = lm.tokenizer or load_tokenizer("demo", trust_remote_code=False, options={})
    texts = open_texts("stdlib", split="train", tokenizer=tokenizer)
    n_tokens, start = 0, time.perf_counter()
    for batch in TokenStream(texts, tokenizer, context_tokens=256, text_batch_size=32):
        n_tokens += batch.input_ids.numel()
        if n_tokens > _TOKENISED:
            break
    return n_tokens / (time.perf_counter() - start)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
