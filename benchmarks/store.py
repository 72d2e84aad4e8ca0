"""How fast a store is read, and what int8 costs.

    python benchmarks/store.py --json benchmarks/results/store.json
    python benchmarks/store.py --gigabytes 0.1 --rounds 2 --steps 100      # a trial

Reading: a store of synthetic rows of each type is read for an epoch in its shuffled order, and the same files from end
to end by plain sequential reads, in turn, the system's cache of the files dropped before each. An epoch reads the same
bytes as the plain reads, so that the ratio of the rates is that of the times. The first epoch of a process looks at the
checksums, a later one does not; both are measured, and a third one with the files in the cache. The reader should reach
80 % of the disk's rate.

Quality: rows of the embedded model are written as fp32 and as int8. One SAE is trained on each, on the same rows in the
same order, and both are measured on the same exact held-out rows; the first also on those rows as int8 has them.
"""

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from measuring import medians, parser_with_json, seconds, setting, write

from strata import LanguageModel, SAEConfig, Trainer
from strata.activations.quantization import bytes_per_row, tensor_name
from strata.activations.shards import write_shard
from strata.activations.store import Store, open_store
from strata.activations.store_layout import (
    Manifest,
    Part,
    PartRecord,
    choose_encodings,
    write_manifest,
    write_part,
)
from strata.activations.store_plan import StorePlan
from strata.activations.store_writing import write_store
from strata.bench.machine import describe
from strata.bench.rows import synthetic_rows
from strata.memory import settle_memory
from strata.sae.metrics import fvu
from strata.sae.model import SAE

SITE = "layers.3"
SHARD_ROWS = 32_768


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.5, help="size of each store that is read")
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500, help="of 4096 rows: training of the two SAEs")
    parser.add_argument("--dtypes", nargs="+", default=["fp16", "int8"])
    parser.add_argument("--folder", type=Path, default=Path("build"), help="on the disk that is to be measured")
    return parser


def main() -> None:
    args = arguments().parse_args()
    settle_memory()
    args.folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, object] = {"machine": describe(), "setting": setting(args)}
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="bench-store-") as name:
        reading = {}
        for dtype in args.dtypes:
            reading[dtype] = measure_reading(Path(name) / dtype, dtype, args)
            shutil.rmtree(Path(name) / dtype)
        result["reading"] = reading
        result["quality"] = measure_quality(Path(name), n_steps=args.steps)
    write(args.json, result)


def measure_reading(folder: Path, dtype: str, args: argparse.Namespace) -> dict[str, object]:
    """Rates of the disk and of the reader on one store, medians of rounds taken in turn."""
    n_rows = int(args.gigabytes * 1e9 / bytes_per_row(dtype, args.d_in))
    make_store(folder, dtype, n_rows=n_rows, d_in=args.d_in)
    files = sorted(folder.glob("*shard*"))
    n_bytes = sum(path.stat().st_size for path in files)
    opened: list[Store] = []

    def sequential() -> None:
        for path in files:
            read_plainly(path)

    def first_epoch() -> None:
        opened[:] = [open_store(folder)]
        read_epoch(opened[0], args.batch_size, seed=0)

    def later_epoch() -> None:
        read_epoch(opened[0], args.batch_size, seed=1)

    taken: dict[str, list[float]] = {"sequential": [], "first epoch": [], "later epoch": [], "later epoch, cached": []}
    for _ in range(args.rounds):
        for name, run in (("sequential", sequential), ("first epoch", first_epoch), ("later epoch", later_epoch)):
            for store in opened:
                store.close()  # the system keeps what is mapped
            drop_from_cache(files)
            taken[name].append(seconds(run))
        taken["later epoch, cached"].append(seconds(later_epoch))
    middle = medians(taken)
    rates = {name: n_bytes / median for name, median in middle.items()}
    # Neighbours in time share the disk's mood: the median of the ratios, not the ratio of the medians
    shares = {
        name: statistics.median(plain / own for plain, own in zip(taken["sequential"], taken[name], strict=True))
        for name in taken
    }
    for name, rate in rates.items():
        rows = f"{n_rows / middle[name]:12,.0f} rows/s"
        print(f"{dtype} {name:>20}: {rate / 1e9:5.2f} GB/s {rows}  {100 * shares[name]:5.0f} % of the disk")
    return {
        "n_rows": n_rows,
        "d_in": args.d_in,
        "n_bytes": n_bytes,
        "bytes_per_second": rates,
        "rows_per_second": {name: n_rows / median for name, median in middle.items()},
        "share_of_sequential": shares,
        "rounds": taken,
    }


def make_store(folder: Path, dtype: str, *, n_rows: int, d_in: int) -> None:
    """A store of random rows, without a language model."""
    folder.mkdir(parents=True)
    block_rows = 1 << ((4 << 20) // bytes_per_row(dtype, d_in)).bit_length() - 1
    manifest = Manifest(
        model={"name": "random rows"}, text={}, sites={SITE: d_in}, dtype=dtype, n_tokens=n_rows, held_out_tokens=0,
        n_parts=1, shard_rows=SHARD_ROWS, block_rows=min(block_rows, SHARD_ROWS),
    )  # fmt: skip
    write_manifest(folder, manifest)
    part, shards = Part(0, 1), []
    some = synthetic_rows(SHARD_ROWS, d_in)
    encoding = choose_encodings(folder, manifest, {SITE: some[:8192]})[SITE]
    parts = encoding.encode(some, site=SITE)
    for start in range(0, n_rows, SHARD_ROWS):
        tensors = {tensor_name(SITE, name): tensor[: n_rows - start] for name, tensor in parts.items()}
        shards.append(write_shard(folder, part.shard_name(len(shards)), tensors, block_rows=manifest.block_rows))
    write_part(folder, part, PartRecord(shards=tuple(shards), complete=True))


def read_plainly(path: Path) -> None:
    buffer = np.empty(4 << 20, dtype=np.uint8)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer.data):
            pass


def read_epoch(store: Store, batch_size: int, *, seed: int) -> None:
    n_batches = 0
    for batch in store.shuffled(batch_size=batch_size, n_epochs=1, seed=seed).batches():
        n_batches += len(batch[SITE]) == batch_size
    assert n_batches == store.n_rows() // batch_size


def drop_from_cache(files: list[Path]) -> None:
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def measure_quality(folder: Path, *, n_steps: int) -> dict[str, float]:
    """FVU of an SAE trained on exact rows and of one trained on int8 rows, and of the first on int8 rows."""
    config = SAEConfig(expansion_factor=16, k=32)
    stores = {}
    lm = LanguageModel("demo")
    for dtype in ("fp32", "int8"):
        plan = StorePlan(
            dtype=dtype, n_tokens=n_steps * config.batch_size, held_out_tokens=32_768, split="train", context_tokens=256
        )
        write_store(lm, "stdlib", sites=[SITE], folder=folder / f"quality-{dtype}", plan=plan)
        stores[dtype] = open_store(folder / f"quality-{dtype}")
    held_out = {dtype: store.held_out(site=SITE) for dtype, store in stores.items()}
    exact, rounded = held_out["fp32"], held_out["int8"]
    saes = {dtype: Trainer(config, progress=False).train(reread(store)) for dtype, store in stores.items()}
    found = {
        "fvu, trained and measured on fp32": measure(saes["fp32"], exact),
        "fvu, trained on int8, measured on fp32": measure(saes["int8"], exact),
        "fvu, trained on fp32, measured on int8": measure(saes["fp32"], rounded),
        "fvu of the rounding itself": fvu(exact, rounded).item(),
    }
    for name, value in found.items():
        print(f"{name:>40}: {value:.5f}")
    found["effect of int8 on training"] = found["fvu, trained on int8, measured on fp32"] - measure(saes["fp32"], exact)
    return {**found, "n_rows": stores["fp32"].n_rows(), "n_held_out_rows": len(exact)}


def reread(store: Store) -> torch.Tensor:
    """All rows of a store: read from there, their order would differ with the block size, which the type decides."""
    return store[SITE].float()


@torch.no_grad()
def measure(sae: SAE, x: torch.Tensor) -> float:
    parts = [sae.decode(sae.encode_sparse(chunk)) for chunk in x.to(sae.device).split(8192)]
    return fvu(x, torch.cat(parts).to(x.device)).item()


if __name__ == "__main__":
    main()
