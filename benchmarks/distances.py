"""What measuring the distances of all layers costs on top of the language model's forward.

    python benchmarks/distances.py --json benchmarks/results/distances.json
    python benchmarks/distances.py --tokens 512 --rounds 2      # a trial

A GPT-NeoX of random weights, 12 layers of width 768. In turn, in one process: the forward that harvests all layers; the
angular distances of its rows; linear CKA of 256 of them; and a straightforward version of the distances, all pairs one
by one. The distances should cost at most 10 % of the fp32 forward and 20 % of the bf16 one. The pass for the means, a
tenth of the tokens, is apart.
"""

import argparse

import torch
from measuring import in_turn, medians, parser_with_json, ratios, setting, write
from torch import Tensor

from strata import LanguageModel
from strata.bench.machine import describe
from strata.memory import settle_memory
from strata.similarity import AngularDistances, LinearCKA

LAYERS, WIDTH, HEADS, VOCABULARY = 12, 768, 12, 8192


def model(device: str) -> LanguageModel:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH, max_position_embeddings=2048,
    )  # fmt: skip
    return LanguageModel(GPTNeoXForCausalLM(config), device=device)


@torch.no_grad()
def pair_by_pair(rows: list[Tensor], means: Tensor) -> Tensor:
    """The same distances as anyone would write them."""
    centred = [layer.float() - mean for layer, mean in zip(rows, means, strict=True)]
    d = torch.zeros(len(rows), len(rows))
    for p in range(len(rows)):
        for q in range(p):
            cosine = torch.nn.functional.cosine_similarity(centred[p], centred[q], dim=-1)
            d[p, q] = d[q, p] = cosine.clamp(-1, 1).acos().mean().item() / torch.pi
    return d


def measure(lm: LanguageModel, args: argparse.Namespace, dtype: torch.dtype) -> dict[str, object]:
    ids = torch.randint(0, VOCABULARY, (args.tokens // args.context, args.context))
    autocast = None if dtype == torch.float32 else dtype

    def forward() -> list[Tensor]:
        found = lm.activations(ids, lm.sites, autocast_dtype=autocast)
        return [found[site].flatten(0, 1) for site in lm.sites]

    rows = forward()
    means = torch.stack([layer.mean(0) for layer in rows])
    angular, cka = AngularDistances(means), LinearCKA(means)
    angular.add(rows)
    wrong = (angular.matrix() - pair_by_pair(rows, means)).abs().max().item()
    some = [layer[:: max(1, len(layer) // 256)][:256] for layer in rows]
    contenders = {
        "forward": forward,
        "distances": lambda: angular.add(rows),
        "cka": lambda: cka.add(some),
        "pair by pair": lambda: pair_by_pair(rows, means),
    }
    taken = in_turn(contenders, n_rounds=args.rounds)
    shares = ratios(taken, to="forward")
    for name, median in medians(taken).items():
        print(f"{dtype!s:>15} {name:>13}: {1000 * median:8.1f} ms, {100 * shares[name]:6.2f} %")
    return {"shares": shares, "largest_difference": wrong, "rounds": taken}


def arguments() -> argparse.ArgumentParser:
    parser = parser_with_json(__doc__)
    parser.add_argument("--tokens", type=int, default=2048, help="per forward")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    return parser


def main() -> None:
    args = arguments().parse_args()
    settle_memory()
    machine = describe()
    lm = model(args.device)
    print(f"{args.tokens} tokens of {LAYERS} layers of width {WIDTH}, medians of {args.rounds}; % of the forward")
    measured = {dtype: measure(lm, args, getattr(torch, dtype)) for dtype in args.dtypes}
    write(args.json, {"machine": machine, "setting": setting(args), **measured})


if __name__ == "__main__":
    main()
