"""The embedded model's whole suite, end to end: tokens in, saved SAEs of every layer out. Strata beside the peers.

    PYTHONPATH=src .venv-peers/bin/python benchmarks/suite.py --json benchmarks/results/suite.json

8 layers of width 192, 3,072 latents, k 32, 4,096 rows a step, every contender in turn on the same tokens in the same
order (the standard library's source, sequences of 256). Contenders: Strata (`strata train`), sparsify's Trainer over
all layers, SAELens' MultiSAETrainingRunner, and the language model's forward alone. Tokens per second are those that
were trained on over all of the time from the start until the SAEs are on disk.

What counts, and for whom: Strata's time holds what `strata train` does, loading the model, tokenising and shuffling
included; its report and held-out measurements are switched off. The peers get the model loaded and the text tokenised,
which is not counted. sparsify trains in reading order and has no shuffle buffer; SAELens shuffles with its own default.
All are at their default precision; "saelens-autocast" has SAELens' bf16 autocast of SAE and language model switched on.
A peer's rate does not depend on how long it runs, so it gets few steps (10); Strata fills its shuffle buffer first, so
it gets more (--strata-tokens), of which the peers see the beginning.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import parser_with_json, setting, write
from measuring import seconds as seconds_of
from torch import Tensor

from strata import LanguageModel, SAEConfig
from strata.activations.harvest import forward_dtype, token_stream
from strata.bench.machine import describe
from strata.bench.peers import silence
from strata.bench.registry import installed
from strata.config.train import TrainConfig
from strata.log import say
from strata.memory import settle_memory
from strata.run import train_run

_CONTEXT, _ROWS, _EXPANSION, _K = 256, 4096, 16, 32
_NAMES = ("strata", "sparsify", "saelens", "saelens-autocast", "forward", "forward-fp32")


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--contenders", nargs="+", default=list(_NAMES), choices=_NAMES)
    parser.add_argument("--tokens", type=int, default=10 * _ROWS, help="of every contender but Strata")
    parser.add_argument("--strata-tokens", type=int, default=78 * _ROWS, help="of Strata; default: the recipe demo's")
    parser.add_argument("--sites", type=int, default=8, help="how many layers, for a trial")
    parser.add_argument("--rounds", type=int, default=1)
    return parser


def main() -> None:
    args = arguments().parse_args()
    settle_memory()  # as the command does; it serves all contenders
    machine = describe()
    lm = LanguageModel("demo")
    ids = first_tokens(lm, args.tokens)
    runs = contenders(lm, ids, args)
    tiny = argparse.Namespace(**vars(args) | {"tokens": _ROWS, "strata_tokens": _ROWS, "sites": 1})
    for name, run in contenders(lm, ids, tiny).items():  # imports what it imports
        say(f"one step of {name}, not timed ...")
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder) / name)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(args.rounds):
        for name, run in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                seconds[name].append(seconds_of(partial(run, Path(folder) / name)))
            say(f"round {number + 1} of {args.rounds}: {name} took {seconds[name][-1]:.1f} s")
    found = summary(seconds, args)
    shape = {"context_tokens": _CONTEXT, "rows": _ROWS, "expansion_factor": _EXPANSION, "k": _K}
    write(args.json, {"machine": machine, "setting": setting(args) | shape, "results": found})


def first_tokens(lm: LanguageModel, n_tokens: int) -> Tensor:
    """[sequences 256]: what `strata train` reads first, and a forward batch more, so that nobody starts anew."""
    batches, n_rows = [], 0
    for batch in token_stream(lm, "stdlib", split="train", context_tokens=_CONTEXT):
        batches.append(batch.input_ids)
        n_rows += batch.input_ids.numel()
        if n_rows >= n_tokens + 2 * batch.input_ids.numel():
            break
    return torch.cat(batches).long()


def contenders(lm: LanguageModel, ids: Tensor, args: argparse.Namespace) -> dict[str, Callable[[Path], None]]:
    """What runs, by name; each is given the folder that it saves into."""
    n_steps, sites = args.tokens // _ROWS, lm.sites[: args.sites]
    every: dict[str, Callable[[Path], None]] = {
        "strata": partial(strata, sites=sites, n_tokens=args.strata_tokens),
        "sparsify": partial(sparsify, lm, ids[: n_steps * _ROWS // _CONTEXT], sites=sites),
        "saelens": partial(saelens, lm, ids, n_tokens=n_steps * _ROWS, sites=sites, autocast=False),
        "saelens-autocast": partial(saelens, lm, ids, n_tokens=n_steps * _ROWS, sites=sites, autocast=True),
        "forward": partial(forward, lm, ids[: args.tokens // _CONTEXT], sites=sites, lm_dtype="auto"),
        "forward-fp32": partial(forward, lm, ids[: args.tokens // _CONTEXT], sites=sites, lm_dtype="fp32"),
    }
    for name in args.contenders:
        if name.startswith(("sparsify", "saelens")) and not installed(name):
            say(f"{name} is not installed and left out")
            del every[name]
    return {name: run for name, run in every.items() if name in args.contenders}


def strata(folder: Path, *, sites: list[str], n_tokens: int) -> None:
    sae = SAEConfig(expansion_factor=_EXPANSION, k=_K, batch_size=_ROWS)
    config = TrainConfig(
        model="demo", data="stdlib", sites=tuple(sites), n_tokens=n_tokens, context_tokens=_CONTEXT, sae=sae,
        out=folder, held_out_rows=0, report=False,
    )  # fmt: skip
    train_run(config, progress=False)
    assert len(list(folder.rglob("sae_weights.safetensors"))) == len(sites)


def sparsify(lm: LanguageModel, ids: Tensor, folder: Path, *, sites: list[str]) -> None:
    import os

    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
    precision = torch.get_float32_matmul_precision()
    with silence():
        from datasets import Dataset
        from sparsify import SparseCoderConfig, TrainConfig, Trainer

        rows = Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch")
        config = TrainConfig(
            sae=SparseCoderConfig(expansion_factor=_EXPANSION, k=_K), batch_size=_ROWS // _CONTEXT,
            layers=list(range(len(sites))), log_to_wandb=False, save_dir=str(folder), run_name="suite",
        )  # fmt: skip
        Trainer(config, rows, lm.model).fit()
    torch.set_float32_matmul_precision(precision)
    assert len(list(folder.rglob("sae.safetensors"))) == len(sites)


def saelens(lm: LanguageModel, ids: Tensor, folder: Path, *, n_tokens: int, sites: list[str], autocast: bool) -> None:
    with silence():
        from datasets import Dataset
        from sae_lens import TopKTrainingSAEConfig
        from sae_lens.config import LoggingConfig
        from sae_lens.load_model import HookedProxyLM
        from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig

        hooks = {site.replace(".", "-"): lm.site(site).path for site in sites}
        shapes = {name: lm.d_in(site) for name, site in zip(hooks, sites, strict=True)}
        saes = {name: TopKTrainingSAEConfig(d_in=d, d_sae=_EXPANSION * d, k=_K) for name, d in shapes.items()}
        config = MultiSAETrainingRunnerConfig(
            saes=saes, hook_names=hooks, model_name="demo", model_class_name="AutoModelForCausalLM",
            context_size=_CONTEXT, training_tokens=n_tokens, train_batch_size_tokens=_ROWS, streaming=False,
            prepend_bos=False, device="cpu", autocast=autocast, autocast_lm=autocast, checkpoint_path=None,
            output_path=str(folder), logger=LoggingConfig(log_to_wandb=False),
        )  # fmt: skip
        model: Any = HookedProxyLM(lm.model, lm.tokenizer, hook_names=list(hooks.values()))  # pyright: ignore[reportArgumentType]
        rows = Dataset.from_dict({"input_ids": ids.tolist()})
        try:
            MultiSAETrainingRunner(config, override_dataset=rows, override_model=model).run()
        finally:
            for module in lm.model.modules():  # its hooks stay otherwise, on everybody's model
                module._forward_hooks.clear()
    assert len(list(folder.rglob("sae_weights.safetensors"))) == len(sites)


def forward(lm: LanguageModel, ids: Tensor, folder: Path, *, sites: list[str], lm_dtype: str) -> None:
    for batch in ids.split(32):
        lm.activations(batch, sites, autocast_dtype=forward_dtype(lm, lm_dtype))


def summary(seconds: dict[str, list[float]], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    found = {}
    for name, times in seconds.items():
        n_tokens = args.strata_tokens if name == "strata" else args.tokens
        n_tokens -= 0 if name.startswith("forward") else n_tokens % _ROWS
        median = statistics.median(times)
        found[name] = {"tokens": n_tokens, "seconds": times, "tokens_per_second": n_tokens / median}
    return found


if __name__ == "__main__":
    main()
