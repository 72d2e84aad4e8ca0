"""What interactions between features cost as the number of features grows.

    python benchmarks/interactions.py --json benchmarks/results/interactions.json
    python benchmarks/interactions.py --tokens 8192 --widths 1024 2048 --targets 4 8      # a trial

Random SAEs on the embedded model, of several widths F and one k. CPU seconds of one thread (so that what else runs on
the machine matters little), the least of the rounds:
(a) co-activation of all features at fixed T and k; its increments are counted, T·k², whatever F;
(b) attribution edges into V target features, with the forward and backward passes that they took;
(c) all pairs by exact ablation: one forward pass for each position and feature that fires there. A sample is run, the
    rest is extrapolated and says so.
Exponents are slopes of log cost over log F (or log V), least squares.
"""

import argparse
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from measuring import parser_with_json, write
from torch import nn

from strata import LanguageModel
from strata.bench.machine import describe
from strata.costs.interpretation import all_pairs, coactivation_operations, edge_flops, partner_pairs
from strata.interactions.edges import attribution_edges
from strata.interpret.coactivation import partners
from strata.interpret.index_writing import Entries
from strata.lm.sites import first_tensor, with_first
from strata.lm.tokens import TokenBatch
from strata.sae.gates import TopK
from strata.sae.model import SAE

SITES = ("layers.3", "layers.5")
K, CONTEXT, SHARD_TOKENS = 32, 128, 65_536


def random_sae(d_in: int, d_sae: int, x: torch.Tensor, seed: int) -> SAE:
    """Random directions around the mean of some activations: latents differ in how often they fire, none is trained."""
    generator = torch.Generator().manual_seed(seed)
    W_dec = nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    return SAE(W_enc=W_dec.t().clone(), b_enc=torch.zeros(d_sae), W_dec=W_dec, b_dec=x.mean(0), gate=TopK(K))


def least_seconds(run: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """The fastest of some rounds, and what the last one gave."""
    found, given = [], None
    for _ in range(rounds):
        start = time.process_time()
        given = run()
        found.append(time.process_time() - start)
    return min(found), given


def exponent(cost: Mapping[float, float]) -> float:
    """The slope of log cost over log size."""
    x, y = ([math.log(value) for value in values] for values in (cost.keys(), cost.values()))
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def coactivation(rows: torch.Tensor, widths: list[int], rounds: int) -> list[dict[str, float]]:
    found = []
    for d_sae in widths:
        sae = random_sae(rows.shape[1], d_sae, rows, seed=0)
        starts = range(0, len(rows), SHARD_TOKENS)
        parts = [torch.arange(s, min(s + SHARD_TOKENS, len(rows))) for s in starts]
        shards = [Entries.of(sae.encode_sparse(rows[part]), part).by_latent(d_sae) for part in parts]
        seconds, counted = least_seconds(lambda shards=shards: partners(lambda: shards), rounds)
        expected = coactivation_operations(len(rows), active=K)
        assert counted.n_increments == expected, "a count of increments that is not T·k²"
        found.append({"d_sae": d_sae, "seconds": seconds, "n_increments": counted.n_increments})
        print(f"co-activation  F {d_sae:>6}  {seconds:7.2f} s  {counted.n_increments:.3g} increments", flush=True)
    return found


def edges(lm: LanguageModel, text: TokenBatch, d_sae: int, targets: list[int], rounds: int) -> list[dict[str, float]]:
    x = lm.activations(text.input_ids, list(SITES))
    saes = {s: random_sae(lm.d_in(s), d_sae, x[s].flatten(0, 1), seed=i) for i, s in enumerate(SITES)}
    fired = saes[SITES[1]].encode_sparse(x[SITES[1]].flatten(0, 1))
    heavy = torch.bincount(fired.indices.flatten(), minlength=d_sae).argsort(descending=True).tolist()
    n_parameters = sum(weight.numel() for weight in lm.model.parameters())
    found = []
    for n in targets:
        run = lambda n=n: attribution_edges(lm, saes, {SITES[1]: heavy[:n]}, [text])  # noqa: E731
        seconds, given = least_seconds(run, rounds)
        spent = given.spent
        stated = edge_flops(text.input_ids.numel(), parameters=n_parameters, kept_nodes=n)
        found.append({"d_sae": d_sae, "n_targets": n, "seconds": seconds, **vars(spent), "stated_flops": stated})
        print(
            f"edges  F {d_sae:>6}  V {n:>4}  {seconds:7.3f} s  {spent.n_forwards} forward, {spent.n_backwards} backward"
        )
    return found


def ablations(lm: LanguageModel, text: TokenBatch, widths: list[int], n_sample: int) -> dict[str, Any]:
    """One forward pass of one sequence, as far as the later site, for each (position, feature) that fires."""
    ids = text.input_ids[:1]
    x = lm.activations(ids, list(SITES))
    sae = random_sae(lm.d_in(SITES[0]), min(widths), x[SITES[0]].flatten(0, 1), seed=0)
    code = sae.encode_sparse(x[SITES[0]])
    module = lm.model.get_submodule(lm.site(SITES[0]).path)
    n_run = 0

    def ablate(position: int, place: int) -> None:
        part = code.values[0, position, place] * sae.W_dec[code.indices[0, position, place]]

        def hook(_: Any, __: Any, output: Any) -> Any:
            out = first_tensor(output).clone()
            out[0, position] -= part
            return with_first(output, out)

        handle = module.register_forward_hook(hook)
        lm.activations(ids, SITES[1])
        handle.remove()

    start = time.process_time()
    for number in range(n_sample):
        ablate(number % CONTEXT, number // CONTEXT)
        n_run += 1
    each = (time.process_time() - start) / n_run
    n_all = text.input_ids.numel() * K
    print(f"ablation  {n_run} forward passes run, {each * 1e3:.2f} ms each; all {n_all:,} would take "
          f"{n_all * each:,.0f} s (extrapolated)")  # fmt: skip
    return {
        "n_forwards_run": n_run,
        "seconds_each": each,
        "n_forwards_all": n_all,
        "seconds_all_extrapolated": n_all * each,
    }


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--edge-tokens", type=int, default=1024)
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16_384])
    parser.add_argument("--targets", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--ablations", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    return parser


def main() -> None:
    args = arguments().parse_args()
    torch.set_num_threads(1)
    lm = LanguageModel("demo", device="cpu")
    ids = torch.randint(10, lm.vocabulary_size, (args.tokens // CONTEXT, CONTEXT),
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
    rows = torch.cat([lm.activations(part, SITES[0])[SITES[0]].flatten(0, 1) for part in ids.split(32)])
    some = ids[: args.edge_tokens // CONTEXT]
    text = TokenBatch(some, torch.ones_like(some, dtype=torch.bool), torch.ones_like(some, dtype=torch.bool))
    together = coactivation(rows, args.widths, args.rounds)
    by_targets = edges(lm, text, args.widths[0], args.targets, args.rounds)
    by_width = [edges(lm, text, d_sae, args.targets[:1], args.rounds)[0] for d_sae in args.widths]
    exact = ablations(lm, text, args.widths, args.ablations)
    exponents = {
        "coactivation increments over F": exponent({p["d_sae"]: p["n_increments"] for p in together}),
        "coactivation seconds over F": exponent({p["d_sae"]: p["seconds"] for p in together}),
        "edges backwards over V": exponent({p["n_targets"]: p["n_backwards"] for p in by_targets}),
        "edges seconds over V": exponent({p["n_targets"]: p["seconds"] for p in by_targets}),
        "edges seconds over F at fixed V": exponent({p["d_sae"]: p["seconds"] for p in by_width}),
        "pairs, F log2 F, over F": exponent({d: partner_pairs(d) for d in args.widths}),
        "pairs, all, over F": exponent({d: all_pairs(d) for d in args.widths}),
    }
    for name, value in exponents.items():
        print(f"exponent  {name:<34} {value:6.3f}")
    record = {
        "machine": describe(),
        "seconds": "CPU seconds of one thread",
        "n_tokens": len(rows),
        "k": K,
        "n_edge_tokens": text.input_ids.numel(),
        "coactivation": together,
        "edges_by_targets": by_targets,
        "edges_by_width": by_width,
        "ablations": exact,
        "exponents": exponents,
    }
    write(args.json, record)


if __name__ == "__main__":
    main()
