"""Train the embedded language model on the Python standard library: tokenizer, model, held-out figures, README.

    python scripts/train_demo_model.py             # about an hour on 2 cores in fp32: the package's model was made so
    python scripts/train_demo_model.py --export    # write the checkpoint so far as the package's model

The run is resumable: it keeps `build/demo-model/checkpoint.pt` and goes on from there. GPT-NeoX (Pythia's
architecture), 8 layers of width 192, untied embeddings, a byte-level BPE vocabulary of 4096, context 256: 5.1 million
parameters.
"""

import argparse
import json
import math
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from strata.lm.corpus import standard_library_texts

# Without the space at its end: byte-level BPE joins a space with the word behind it, so a lone one is never seen.
PROMPT = "\n    for i in"
SEPARATOR, PAD = "<|endoftext|>", "<|pad|>"
CONTEXT_TOKENS = 256
VOCABULARY = 4096
ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = ROOT / "src" / "strata" / "embedded" / "demo"
BUILD = ROOT / "build" / "demo-model"
CHECKPOINT = BUILD / "checkpoint.pt"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[SEPARATOR, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        unk_token=SEPARATOR,
        pad_token=PAD,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def model_config() -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        num_hidden_layers=8,
        num_attention_heads=6,
        intermediate_size=768,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )


def pack(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """All texts as one row of token ids, each text after a separator: uint16 [n_tokens]."""
    encoded = tokenizer.backend_tokenizer.encode_batch(texts)
    return np.concatenate([np.array([0, *e.ids], dtype=np.uint16) for e in encoded])


def learning_rate(step: int, n_steps: int, peak: float) -> float:
    """Linear warm-up over 2 % of the run, then a cosine down to 2 % of the peak."""
    warmup = max(1, n_steps // 50)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, n_steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def optimizer_of(model: torch.nn.Module) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)


def batch_at(tokens: np.ndarray, step: int, batch: int) -> torch.Tensor:
    """The step's sequences: every epoch visits all windows once, at a random offset, in a random order."""
    per_epoch = (len(tokens) - CONTEXT_TOKENS) // CONTEXT_TOKENS // batch
    epoch, index = divmod(step, per_epoch)
    rng = np.random.default_rng(epoch)
    offset = int(rng.integers(CONTEXT_TOKENS))
    starts = rng.permutation(per_epoch * batch)[index * batch : (index + 1) * batch] * CONTEXT_TOKENS + offset
    return torch.from_numpy(np.stack([tokens[s : s + CONTEXT_TOKENS] for s in starts]).astype(np.int64))


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu" if not torch.cuda.is_available() else "cuda", torch.bfloat16, precision == "bf16")


def loss_of(model: GPTNeoXForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    logits = model(ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY).float(), ids[:, 1:].reshape(-1))


@torch.inference_mode()
def held_out_loss(model: GPTNeoXForCausalLM, tokens: np.ndarray, *, n_sequences: int | None = None) -> float:
    """Mean nats per token over consecutive windows (each but its first token is predicted)."""
    windows = len(tokens) // CONTEXT_TOKENS
    ids = torch.from_numpy(tokens[: windows * CONTEXT_TOKENS].astype(np.int64)).view(windows, CONTEXT_TOKENS)
    if n_sequences is not None:
        ids = ids[torch.linspace(0, windows - 1, min(n_sequences, windows)).long()]
    device = next(model.parameters()).device
    losses = [loss_of(model, chunk.to(device)).item() * len(chunk) for chunk in ids.split(16)]
    return sum(losses) / len(ids)


def n_gram_losses(train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """Nats per token of a unigram (add-one) and an interpolated bigram model, weights chosen on the training text."""
    unigram = np.bincount(train, minlength=VOCABULARY).astype(np.float64) + 1
    p1 = unigram / unigram.sum()
    train_pairs = Counter(zip(train[:-1].tolist(), train[1:].tolist(), strict=True))
    before = np.bincount(train[:-1], minlength=VOCABULARY)
    a, b = test[:-1].astype(np.int64), test[1:].astype(np.int64)
    pair_counts = np.array([train_pairs.get(pair, 0) for pair in zip(a.tolist(), b.tolist(), strict=True)])
    # Absolute discounting: the mass taken from seen pairs goes to the unigram; exact normalisation, no tuning on test.
    discount = 0.75
    distinct = np.bincount([first for first, _ in train_pairs], minlength=VOCABULARY)
    seen = np.maximum(before[a], 1)
    backoff = np.where(before[a] > 0, discount * distinct[a] / seen, 1.0)
    p2 = np.maximum(pair_counts - discount, 0) / seen + backoff * p1[b]
    return float(-np.log(p1[b]).mean()), float(-np.log(p2).mean())


def export(model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, figures: dict[str, object]) -> None:
    from safetensors.torch import save_file

    EMBEDDED.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.detach().cpu().to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(half, str(EMBEDDED / "model.safetensors"), metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": ["GPTNeoXForCausalLM"], "dtype": "float16"}
    (EMBEDDED / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    tokenizer.save_pretrained(EMBEDDED)
    (EMBEDDED / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    write_readme(figures)


def write_readme(f: dict[str, object]) -> None:
    table = "\n".join(
        f"| {name} | {f[key]:.3f} | {f[key] / math.log(2) / f['bytes_per_token']:.3f} |"
        for name, key in (("unigram", "unigram_nats"), ("bigram", "bigram_nats"), ("this model", "held_out_nats"))
    )
    (EMBEDDED / "README.md").write_text(
        f"""# The embedded language model

GPT-NeoX (Pythia's architecture), 8 layers of width 192, untied embeddings, vocabulary {VOCABULARY} (byte-level BPE),
context {CONTEXT_TOKENS}: {f["parameters"]:,} parameters, half precision. Trained from scratch by
`scripts/train_demo_model.py` on the source files of the Python {f["python"]} standard library (test suites left out;
no text of it is committed): {f["tokens_seen"]:,} tokens in {f["steps"]:,} steps, {f["seconds"] / 60:.0f} minutes
on {f["hardware"]}. Exported {f["date"]}.

Held out: 5 % of the files, by a hash of their names ({f["held_out_tokens"]:,} tokens, {f["bytes_per_token"]:.3f} bytes
per token).

| model | nats per token | bits per byte |
|---|---|---|
{table}

The bigram model interpolates with the unigram by absolute discounting (0.75); all three see the same training and
held-out files. Within a function's body `for i in` continues greedily (no sampling) as:

```
{f["continuation"]}
```

The figures are printed and this page is written by `python scripts/train_demo_model.py --export` with the checkpoint
at hand.
"""
    )


@torch.inference_mode()
def continuation(model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, n_tokens: int = 40) -> str:
    ids = torch.tensor([[0, *tokenizer.backend_tokenizer.encode(prompt).ids]])
    for _ in range(n_tokens):
        ids = torch.cat([ids, model(ids.to(model.device)).logits[:, -1:].argmax(-1).cpu()], dim=1)
    return tokenizer.decode(ids[0, 1:].tolist())


def load_or_make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    if not (BUILD / "tokenizer.json").exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        train_tokenizer(texts).save_pretrained(BUILD)
    return PreTrainedTokenizerFast.from_pretrained(BUILD)


class Training:
    """The model as far as it is trained; a checkpoint that is there is gone on with.

    Args:
        device: that trains.
    """

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        self.model = GPTNeoXForCausalLM(model_config()).to(device)
        self.optimizer = optimizer_of(self.model)
        self.step, self.seconds = 0, 0.0
        if CHECKPOINT.exists():
            state = torch.load(CHECKPOINT, map_location=device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**parts, "step": self.step, "seconds": self.seconds}, CHECKPOINT.with_suffix(".tmp"))
        CHECKPOINT.with_suffix(".tmp").replace(CHECKPOINT)


def train(run: Training, tokens: np.ndarray, test: np.ndarray, args: argparse.Namespace) -> None:
    """All steps that are left."""
    device = next(run.model.parameters()).device
    while run.step < args.steps:
        start = time.perf_counter()
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(run.step, args.steps, args.lr)
        with autocast(args.precision):
            loss = loss_of(run.model, batch_at(tokens, run.step, args.batch).to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.step, run.seconds = run.step + 1, run.seconds + time.perf_counter() - start
        if run.step % 25 == 0:
            rate = args.batch * CONTEXT_TOKENS * run.step / run.seconds
            told = f"loss {loss.item():.4f} tokens/s {rate:.0f} seconds {run.seconds:.0f}"
            print(f"step {run.step} {told}", flush=True)
        if run.step % 200 == 0 or run.step == args.steps:
            held_out = held_out_loss(run.model, test, n_sequences=128)
            print(f"step {run.step} held-out {held_out:.4f} (on 128 windows)", flush=True)
            run.save()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3600, help="optimiser steps of the whole run")
    parser.add_argument("--batch", type=int, default=8, help="sequences of 256 tokens per step")
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--export", action="store_true", help="only write the checkpoint so far into the package")
    return parser


def main() -> None:
    args = arguments().parse_args()
    train_texts = list(standard_library_texts(held_out=False))
    test_texts = list(standard_library_texts(held_out=True))
    tokenizer = load_or_make_tokenizer(train_texts)
    tokens, test = pack(tokenizer, train_texts), pack(tokenizer, test_texts)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = Training(device)
    print(f"{len(tokens):,} training and {len(test):,} held-out tokens; at step {run.step} of {args.steps}", flush=True)
    if not args.export:
        train(run, tokens, test, args)
    unigram, bigram = n_gram_losses(tokens, test)
    n_bytes = sum(len(text.encode()) for text in test_texts)
    hardware = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU cores"
    figures = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": sys.version.split()[0],
        "hardware": f"{hardware} ({args.precision})",
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "steps": run.step,
        "tokens_seen": run.step * args.batch * CONTEXT_TOKENS,
        "seconds": round(run.seconds),
        "held_out_tokens": len(test),
        "bytes_per_token": n_bytes / len(test),
        "unigram_nats": unigram,
        "bigram_nats": bigram,
        "held_out_nats": held_out_loss(run.model.to(torch.float16).float(), test),
        "continuation": continuation(run.model, tokenizer, PROMPT),
    }
    print(json.dumps(figures, indent=1))
    export(run.model, tokenizer, figures)


if __name__ == "__main__":
    main()
