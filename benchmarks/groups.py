"""What one SAE per group of layers saves, and what it costs in quality, for every grouping of the embedded model.

    python benchmarks/groups.py --out build/groups --json benchmarks/results/groups.json --plot docs/layer-groups.svg

An SAE is trained for every run of neighbouring layers (the last layer has its own), all on as many rows, from one pass
of the language model per seed. So every partition into groups is there, and whatever a method picks is judged against
all others of as many groups. Interrupted, it goes on where it was; about two hours on two cores.

Stages: `train`, `evaluate` (per group and layer: reconstruction, and the model's loss with the SAE in it; per
partition: the loss with all SAEs in the model, and tasks), `time` (seconds of suites in turn; nothing else should run),
`report`.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from group_partitions import name_of
from group_plot import draw
from measuring import medians, parser_with_json, write

from strata import LanguageModel, SAEConfig, train_suite
from strata.activations.collected import Activations
from strata.activations.distances import measured_similarity
from strata.activations.harvest import collect, forward_dtype, token_stream
from strata.assignments import assign
from strata.bench.machine import describe
from strata.config.layer_groups import group_name
from strata.costs.flops import sae_step_flops
from strata.evaluate.held_out_text import held_out_batches
from strata.evaluate.language_loss import LossSums, Predictions, cross_entropy, flat_logits, log_probs_at, pieces
from strata.evaluate.suites import evaluate_suites
from strata.evaluate.tasks.registry import make_task
from strata.evaluate.tasks.scores import task_scores
from strata.lm.flops import forward_flops_of
from strata.lm.text import open_texts
from strata.memory import settle_memory
from strata.prepare import prepare
from strata.recording import Recording
from strata.sae.group import GroupSAE
from strata.train import train as run_training

TASKS = ("closing_bracket", "self_argument", "repeated_name", "indentation")
_EXPANSION, _K, _BATCH, _CONTEXT = 16, 32, 4096, 256
_TIMED = {"layer-wise": [[i] for i in range(8)], "4 groups": [[0, 1], [2, 3], [4, 5], [6, 7]],
          "2 groups": [[0, 1, 2, 3], [4, 5, 6, 7]], "1 group": [list(range(8))]}  # fmt: skip


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for SAEs and their evaluations")
    parser.add_argument("--stages", nargs="+", default=["train", "evaluate", "time", "report"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--n-tokens", type=int, default=500_000, help="rows of each SAE")
    parser.add_argument("--held-out-tokens", type=int, default=16_384)
    parser.add_argument("--n-pairs", type=int, default=128, help="of each task")
    parser.add_argument("--rounds", type=int, default=3, help="of the timing")
    parser.add_argument("--plot", type=Path, help="a file for quality against SAEs (needs matplotlib)")
    return parser


def main() -> None:
    args = arguments().parse_args()
    settle_memory()
    lm = LanguageModel("demo")
    stages = {"train": train, "evaluate": evaluate, "time": measure_seconds}
    for stage, run in stages.items():
        if stage in args.stages:
            run(lm, args)
    if "report" in args.stages:
        record = gather(lm, args)
        write(args.json, record)
        if args.plot:
            draw(record, args.plot)


def runs_of_layers(lm: LanguageModel) -> list[list[int]]:
    """Every run of neighbouring layers but the last one, and the last one by itself."""
    last = lm.n_layers - 1
    return [list(range(a, b + 1)) for a in range(last) for b in range(a, last)] + [[last]]


def partitions(lm: LanguageModel) -> Iterator[list[list[int]]]:
    """Every way to cut the layers but the last into neighbours; the last one stands by itself."""
    last = lm.n_layers - 1
    for cuts in itertools.product((False, True), repeat=last - 1):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut]
        bounds = itertools.pairwise([0, *ends, last])
        yield [list(range(a, b)) for a, b in bounds] + [[last]]


def train(lm: LanguageModel, args: argparse.Namespace) -> None:
    """All SAEs of all seeds."""
    for seed in args.seeds:
        folder = args.out / f"seed-{seed}"
        if (folder / "done.json").exists():
            continue
        started = (folder / "checkpoints").is_dir() and any((folder / "checkpoints").iterdir())
        saes = train_suite(
            lm,
            open_texts("stdlib", split="train", tokenizer=lm.tokenizer),
            groups=runs_of_layers(lm),
            config=SAEConfig(expansion_factor=_EXPANSION, k=_K, batch_size=_BATCH, seed=seed),
            n_tokens=args.n_tokens,
            context_tokens=_CONTEXT,
            recording=Recording(folder=folder, resume=started, keep_checkpoints=1, checkpoint_every="20%"),
        )
        for name, sae in saes.items():
            sae.save(folder / "sae" / name)
        (folder / "done.json").write_text(json.dumps({"seed": seed, "n_tokens": args.n_tokens}))


def evaluate(lm: LanguageModel, args: argparse.Namespace) -> None:
    """All SAEs and partitions of all seeds that are trained; what is found is kept as it comes."""
    batches = held_out_batches(lm, "stdlib", n_tokens=args.held_out_tokens, context_tokens=_CONTEXT, text_batch_size=16)
    pairs = {task: make_task(task, lm.tokenizer, n_pairs=args.n_pairs, seed=0) for task in TASKS}
    for seed in args.seeds:
        folder = args.out / f"seed-{seed}"
        path = folder / "evaluation.json"
        record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"dead": dead_shares(folder)}
        groups = {name_of([layers]): GroupSAE.load(folder / "sae" / group_name([f"layers.{i}" for i in layers]))
                  for layers in runs_of_layers(lm)}  # fmt: skip
        if "sites" not in record:
            suites = {
                f"{name}/{site}": {site: group.at(site)} for name, group in groups.items() for site in group.sites
            }
            found = evaluate_suites(lm, suites, batches)
            record["sites"] = {name: one["sites"][name.rsplit("/", 1)[1]] for name, one in found.items()}
            path.write_text(json.dumps(record))
        together = {}
        for cut in partitions(lm):
            chosen = [groups[name_of([layers])] for layers in cut]
            together[name_of(cut)] = {site: group.at(site) for group in chosen for site in group.sites}
        if "partitions" not in record:
            losses = spliced_losses(lm, together, batches)
            record["partitions"] = {name: {"all_sites": one} for name, one in losses.items()}
            path.write_text(json.dumps(record))
        for name, saes in together.items():
            if "tasks" not in record["partitions"][name]:
                record["partitions"][name]["tasks"] = {task: task_scores(lm, one, saes) for task, one in pairs.items()}
                path.write_text(json.dumps(record))
        print(f"seed {seed}: evaluated {len(record['sites'])} SAEs and {len(together)} partitions", flush=True)


def dead_shares(folder: Path) -> dict[str, float]:
    """Of every SAE when its training ended."""
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {name.removeprefix("layers."): numbers["dead_share"] for name, numbers in last["sites"].items()}


@torch.inference_mode()
def spliced_losses(lm: LanguageModel, suites: dict[str, dict], batches: list) -> dict[str, dict[str, float]]:
    """The language model's loss with all SAEs of a suite in it, for each suite."""
    clean_ce, n_predictions, sums = 0.0, 0, {name: LossSums() for name in suites}
    dtype = forward_dtype(lm, "auto")
    for batch in (piece for whole in batches for piece in pieces(whole, vocabulary_size=lm.vocabulary_size)):
        predictions = Predictions.of(batch)
        clean = log_probs_at(flat_logits(lm, batch, autocast_dtype=dtype), predictions.positions)
        clean_ce += cross_entropy(clean, predictions.targets)
        n_predictions += len(predictions.targets)
        for name, saes in suites.items():
            with lm.attach(saes, mask=batch.is_row):
                sums[name].add(flat_logits(lm, batch, autocast_dtype=dtype), clean, predictions)
    return {
        name: {"ce_sae": one.ce / n_predictions, "kl": one.kl / n_predictions,
               "delta_ce_percent": 100 * (one.ce - clean_ce) / clean_ce}
        for name, one in sums.items()
    }  # fmt: skip


def measure_seconds(lm: LanguageModel, args: argparse.Namespace) -> None:
    """Seconds in the SAE steps of whole short trainings, the last layer included, in turn."""
    tokens = token_stream(lm, "stdlib", context_tokens=_CONTEXT, text_batch_size=16, split="train")
    rows = Activations(collect(lm, tokens, sites=lm.sites, n_tokens=16 * _BATCH))
    config = SAEConfig(expansion_factor=_EXPANSION, k=_K, batch_size=_BATCH, num_epochs=4)
    found: dict[str, list[float]] = {name: [] for name in _TIMED}
    for _ in range(args.rounds):
        for name, groups in _TIMED.items():
            sites = [tuple(f"layers.{i}" for i in group) for group in groups]
            trained = run_training(prepare(rows, assign(lm.sites, config, groups=sites)), Recording(progress=False))
            found[name].append(trained.seconds["sae"])
            print(f"{name}: {found[name][-1]:.1f} s for {trained.n_steps} steps", flush=True)
    seconds = medians(found)
    for name, value in seconds.items():
        print(f"{name}: {value:.1f} s, {value / seconds['layer-wise']:.3f} of layer-wise", flush=True)
    (args.out / "seconds.json").write_text(json.dumps({"machine": describe(), "median": seconds, "all": found}))


def gather(lm: LanguageModel, args: argparse.Namespace) -> dict[str, Any]:
    """All that the report is made from."""
    similarity = measured_similarity(lm, "stdlib", n_tokens=100_000, split="train", context_tokens=_CONTEXT, cka=False)
    d_in = lm.d_in(lm.sites[0])
    seconds = args.out / "seconds.json"
    return {
        "machine": describe(),
        "setting": {"expansion_factor": _EXPANSION, "k": _K, "batch_size": _BATCH, "n_tokens": args.n_tokens,
                    "held_out_tokens": args.held_out_tokens, "n_pairs": args.n_pairs, "seeds": args.seeds},
        "sites": lm.sites,
        "distances": similarity.angular.tolist(),
        "flops": {"sae_row": sae_step_flops(d_in, _EXPANSION * d_in, _K),
                  "forward_token": forward_flops_of(lm, lm.sites, context_tokens=_CONTEXT)},
        "seconds": json.loads(seconds.read_text()) if seconds.exists() else None,
        "partitions": {name_of(cut): cut for cut in partitions(lm)},
        "seeds": {str(seed): json.loads((args.out / f"seed-{seed}" / "evaluation.json").read_text())
                  for seed in args.seeds},
        "clean_tasks": {task: task_scores(lm, make_task(task, lm.tokenizer, n_pairs=args.n_pairs, seed=0))
                        for task in TASKS},
    }  # fmt: skip


if __name__ == "__main__":
    main()
