"""Folders of runs with curves as recorded ones have them, and with one thing spoilt: patients for the doctor."""

import json
import math
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from strata.doctor.recorded import recorded

STEERED = ("jumprelu", "relu", "gated")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a healthy run looks like."""

    keys: tuple[str, ...] = ("layers.3",)
    d_in: int = 192
    d_sae: int = 3072
    k: int = 32
    architecture: str = "topk"
    batch_size: int = 4096
    n_steps: int = 300
    window_steps: int = 75
    revival: str = "lift"
    source: str = "stream"
    n_epochs: int = 1
    context_tokens: int = 256
    text_batch_size: int = 32
    rows_seconds: float = 0.2
    sae_seconds: float = 0.6
    log_every_steps: int = 10
    last_step: int | None = None
    n_sites: int = 1

    @property
    def forward_rows(self) -> int:
        """Tokens of one pass of the language model."""
        return self.text_batch_size * self.context_tokens

    @property
    def buffer_rows(self) -> int:
        """Of the shuffle buffer, by default."""
        return max(65_536, 4 * self.forward_rows, 4 * self.batch_size)

    def rows_read(self, step: int) -> int:
        """After so many steps: a stream fills its buffer first, then refills it, and empties it at the end."""
        if self.source != "stream":
            return step * self.batch_size
        read = self.buffer_rows + max(step - 1, 0) * self.batch_size
        return min(read // self.forward_rows * self.forward_rows, self.n_steps * self.batch_size)


DEMO = Shape(keys=tuple(f"layers.{i}" for i in range(8)), n_steps=78, window_steps=19)
# A third of its steps read nothing, and as many rows are read before the first.
SHORT = Shape(
    keys=("layers.0", "layers.4"), n_steps=48, window_steps=12, log_every_steps=2, rows_seconds=0.6, sae_seconds=0.4
)
HEALTHY = {
    "demo": DEMO,
    "longer": Shape(),
    "ten million rows": Shape(n_steps=2441, window_steps=122, log_every_steps=50),
    "fast-testing": Shape(
        k=64, batch_size=256, n_steps=390, window_steps=500, source="store", rows_seconds=0.0001, sae_seconds=0.014
    ),
    "jumprelu": Shape(architecture="jumprelu"),
    "gated": Shape(architecture="gated"),
    "grouped": Shape(keys=("layers.0-2", "layers.3-6", "layers.7"), n_sites=3),
    "store": Shape(source="store", rows_seconds=0.02),
    "memory": Shape(source="collected", rows_seconds=0.02),
    "short stream": SHORT,
    "short stream, begun": replace(SHORT, last_step=10),
    "short stream, going on": replace(SHORT, last_step=30),
    "short stream, emptying its buffer": replace(SHORT, last_step=44),
    "all in the buffer": replace(SHORT, n_steps=16, window_steps=4, log_every_steps=2),
    "all in the buffer, begun": replace(SHORT, n_steps=16, window_steps=4, log_every_steps=2, last_step=6),
    "sweep": Shape(keys=("layers.3/k=16", "layers.3/k=32")),
    "three lines": Shape(n_steps=2441, window_steps=122, last_step=30),
    "one line": Shape(n_steps=2441, window_steps=122, last_step=10),
    "begun a moment ago": Shape(n_steps=2441, window_steps=122, last_step=0),
}
# What people post: 8B parameters, batches of 64 rows, 98 % silent at step 200, 1.8 steps per second.
POSTED = Shape(
    keys=("layers.16",), d_in=4096, d_sae=65_536, k=128, batch_size=64, n_steps=468_750, window_steps=1000,
    revival="ghost", n_epochs=3, context_tokens=1024, rows_seconds=0.05, sae_seconds=0.505, last_step=200,
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """run.json and the lines of metrics.jsonl."""

    record: dict[str, Any]
    lines: list[dict[str, Any]]

    def site(self, line: int) -> dict[str, Any]:
        """The numbers of the first site."""
        return next(iter(self.lines[line]["sites"].values()))


def healthy(shape: Shape) -> Run:
    """A run as it should be."""
    dice = random.Random(3)
    last = shape.n_steps if shape.last_step is None else shape.last_step
    steps = [*range(shape.log_every_steps, last, shape.log_every_steps), *([last] if last else [])]
    lines: list[dict[str, Any]] = []
    for step in steps:
        lines.append(_line(shape, step, dice, before=lines[-1] if lines else None))
    for number, line in enumerate(lines):
        due = number == len(lines) - 1 or number % max(1, len(lines) // 10) == 0
        found = {key: _held_out(site, shape) for key, site in line["sites"].items()}
        line["held_out"] = found if due else None
    return Run(_record(shape, ended=last == shape.n_steps), lines)


def _record(shape: Shape, *, ended: bool) -> dict[str, Any]:
    one = {name: getattr(shape, name) for name in ("d_in", "d_sae", "k", "architecture", "window_steps", "n_sites")}
    one |= {"revival": shape.revival, "warmup_steps": round(0.05 * shape.n_steps)}
    one |= {"decay_steps": round(0.3 * shape.n_steps), "centring": True}
    sae = {"architecture": shape.architecture, "k": shape.k, "batch_size": shape.batch_size, "expansion_factor": 16}
    sae |= {"text_batch_size": shape.text_batch_size, "num_epochs": shape.n_epochs, "sparsity_coefficient": "auto"}
    streams = shape.source == "stream"
    return {
        "mode": shape.source,
        "status": "trained" if ended else "training",
        "config": {
            "model": "demo", "data": "stdlib", "sites": ["all"], "context_tokens": shape.context_tokens, "sae": sae,
            "activations": "activations/mine" if shape.source == "store" else shape.source,
            "log_every_steps": shape.log_every_steps,
        },
        "hardware": {"device": "cpu", "cpu": "some processor"},
        "n_steps": shape.n_steps,
        "n_rows": shape.n_steps * shape.batch_size,
        "batch_size": shape.batch_size,
        "saes": {key: dict(one) for key in shape.keys},
        "buffer_rows": shape.buffer_rows if streams else None,
        "forward_rows": shape.forward_rows if streams else None,
        "context_tokens": shape.context_tokens,
        "predicted": {
            "kind": "measured", "rates": "this machine", "rows_seconds": 0.9 * shape.rows_seconds,
            "sae_seconds": 0.9 * shape.sae_seconds, "seconds": None,
        },
    }  # fmt: skip


def _line(shape: Shape, step: int, dice: random.Random, *, before: dict[str, Any] | None) -> dict[str, Any]:
    filling = shape.rows_read(0) / shape.batch_size * shape.rows_seconds
    start = before or {"step": 0, "rows_seconds": filling, "sae_seconds": 0.0}
    noise, each = dice.uniform(0.9, 1.1), shape.rows_seconds + shape.sae_seconds
    n_read = shape.rows_read(step) - shape.rows_read(start["step"])
    rows = start["rows_seconds"] + n_read / shape.batch_size * shape.rows_seconds * noise
    sae = start["sae_seconds"] + (step - start["step"]) * shape.sae_seconds * noise
    warm, falling = step / (0.05 * shape.n_steps), (shape.n_steps - step + 1) / (0.3 * shape.n_steps)
    peak = min(1e-2, 1.53e-3 * (2**14 / shape.d_sae) ** 0.5 * (shape.batch_size / 4096) ** 0.5)
    return {
        "step": step,
        "rows": step * shape.batch_size,
        "tokens": step * shape.batch_size,
        "seconds": round(rows + sae, 4),
        "rows_seconds": round(rows, 4),
        "sae_seconds": round(sae, 4),
        "rows_per_second": shape.batch_size / each,
        "learning_rate": peak * min(1.0, warm, falling),
        "sites": {key: _site(shape, step, depth, dice) for depth, key in enumerate(shape.keys)},
        "held_out": None,
    }


def _site(shape: Shape, step: int, depth: int, dice: random.Random) -> dict[str, float]:
    fvu, dead = _recorded_curve(step * shape.batch_size)
    fvu *= (1 + 0.1 * depth) * dice.uniform(0.98, 1.02)
    floor = max(0.0, 1 - shape.batch_size * shape.k / shape.d_sae)
    l0 = float(shape.k)
    if shape.architecture in STEERED:
        l0 *= (1 + 1.5 * math.exp(-20 * step / shape.n_steps)) * dice.uniform(0.98, 1.02)
    return {
        "loss": fvu * 1.2,
        "fvu": fvu,
        "l0": l0,
        "dead_share": dead if step > shape.window_steps else 0.0,
        "silent_1m_share": 0.3 * math.exp(-step * shape.batch_size / 2e5),
        "silent_step_share": floor + (1 - floor) * 0.25,
        "silent_rows_p90": 2e4,
        "outlier_share": 0.002 * dice.uniform(0.5, 1.5),
        "relative_length": 1.1 * dice.uniform(0.97, 1.03),
    }


def _held_out(site: Mapping[str, float], shape: Shape) -> dict[str, float]:
    return {"fvu": 1.3 * site["fvu"], "l0": 0.97 * shape.k, "silent_share": 0.08}


def _recorded_curve(rows: int) -> tuple[float, float]:
    """FVU and dead share of the recorded run at so many rows; beyond its end FVU falls as it did."""
    curve = next(run["curve"] for run in recorded()["runs"] if run["name"] == "demo/centred/lift")
    first, last = curve[0], curve[-1]
    if rows >= last[0]:
        return last[1] * (last[0] / rows) ** 0.2, last[2]
    if rows <= first[0]:
        return min(0.9, first[1] * (first[0] / rows) ** 0.4), 0.0
    (r0, f0, d0), (r1, f1, d1) = next((a, b) for a, b in pairwise(curve) if a[0] <= rows <= b[0])
    share = (math.log(rows) - math.log(r0)) / (math.log(r1) - math.log(r0))
    return math.exp(math.log(f0) + share * (math.log(f1) - math.log(f0))), d0 + share * (d1 - d0)


def write(run: Run, folder: Path, *, silent_seconds: float = 0.0, torn: bool = False) -> Path:
    """The run as a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run.record), encoding="utf-8")
    path = folder / "metrics.jsonl"
    text = "".join(json.dumps(line) + "\n" for line in run.lines) + ('{"step": 12' if torn else "")
    path.write_text(text, encoding="utf-8")
    then = time.time() - silent_seconds
    os.utime(path, (then, then))
    return folder


def resumed(shape: Shape) -> Run:
    """Begun with a line every 10 steps, gone on with one every 50."""
    run = healthy(shape)
    half = len(run.lines) // 2
    return Run(run.record, [*run.lines[:half], *run.lines[half + 4 : -1 : 5], run.lines[-1]])


def old(shape: Shape) -> Run:
    """As runs were recorded before the doctor came."""
    run = healthy(shape)
    new = ("batch_size", "saes", "buffer_rows", "forward_rows", "context_tokens", "predicted")
    record = {key: value for key, value in run.record.items() if key not in new}
    window = {"dead_share": 0.01, "dead_window_rows": shape.window_steps * shape.batch_size}
    record |= {"dead": dict.fromkeys(shape.keys, window), "seconds": {"total": 86.0, "sae": 60.0, "rows": 26.0}}
    kept = ("loss", "fvu", "l0", "dead_share")
    lines = [
        {name: line[name] for name in ("step", "rows", "tokens", "seconds", "rows_per_second", "learning_rate")}
        | {"sites": {key: {name: site[name] for name in kept} for key, site in line["sites"].items()}}
        for line in run.lines
    ]
    return Run(record, lines)


def every_site(run: Run, change: Callable[[dict[str, Any], float, int], None]) -> Run:
    """The run with every site's numbers changed: (numbers, progress, number of the line)."""
    for number, line in enumerate(run.lines):
        for site in line["sites"].values():
            change(site, line["step"] / run.record["n_steps"], number)
        for site in (line["held_out"] or {}).values():
            change(site, line["step"] / run.record["n_steps"], number)
    return run


def slowed(run: Run, factor: Callable[[float], float], *, part: str = "sae") -> Run:
    """The run with a part's seconds per step multiplied, by the progress of the run."""
    now: dict[str, float] = {}
    before: dict[str, float] = {}
    for line in run.lines:
        told = {name: line[name] for name in ("rows_seconds", "sae_seconds")}
        for name, value in told.items():
            spent = value - before.get(name, 0.0)
            by = factor(line["step"] / run.record["n_steps"]) if name == f"{part}_seconds" else 1.0
            now[name] = now.get(name, 0.0) + spent * by
        before = told
        line |= now | {"seconds": sum(now.values())}
    return run


def with_record(run: Run, **changes: Any) -> Run:
    """The run with another run.json."""
    return replace(run, record=run.record | changes)
