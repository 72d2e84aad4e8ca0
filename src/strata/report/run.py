"""The whole way of a run: train, evaluate on held-out text, write the report."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from strata.activations.harvest import token_stream
from strata.config import TrainConfig
from strata.evaluate.examples import feature_examples
from strata.evaluate.held_out import evaluate_saes
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenBatch
from strata.log import say
from strata.report.page import write_report
from strata.run import train_run

_HELD_OUT_CHOICE = 32  # tokens read for each that is evaluated


def train_and_report(config: TrainConfig, *, progress: bool = True) -> Path:
    """Train as described; unless `config.report` is off also evaluate, pick example features and write the page.

    Returns:
        report/index.html, or the run folder when no report was wanted.
    """
    folder = config.folder()
    lm, trained = train_run(config, progress=progress)
    if not config.report:
        return folder
    start = time.perf_counter()
    say("evaluating on held-out text", shown=progress)
    batches = held_out_batches(lm, config)
    if batches:
        evaluation = evaluate_saes(lm, trained.saes, batches, dead=trained.dead, lm_dtype=config.lm_dtype)
        _write_json(folder / "evaluation.json", evaluation)
        _write_json(
            folder / "features.json",
            feature_examples(lm, trained.saes, batches, seed=config.sae.seed, lm_dtype=config.lm_dtype),
        )
    else:
        say("the text has no held-out document: no evaluation", shown=progress)
    page = write_report(folder)
    say(f"evaluated in {time.perf_counter() - start:.0f} s", shown=progress)
    return page


def held_out_batches(lm: LanguageModel, config: TrainConfig) -> list[TokenBatch]:
    """Packed sequences of held-out documents, about `held_out_tokens` tokens; none if the text has no such document.

    They are taken at equal distances from up to 32 times as many tokens, so that they come from many documents.
    """
    size = config.sae.text_batch_size
    tokens = token_stream(lm, config.data, context_tokens=config.context_tokens, text_batch_size=size, split="held_out")
    read, n_tokens = [], 0
    for batch in tokens:
        read.append(batch)
        n_tokens += batch.input_ids.numel()
        if n_tokens >= _HELD_OUT_CHOICE * config.held_out_tokens:
            break
    if not read:
        return []
    n_seqs = sum(len(batch.input_ids) for batch in read)
    wanted = min(n_seqs, max(1, config.held_out_tokens // config.context_tokens))
    chosen = torch.linspace(0, n_seqs - 1, wanted).long()
    parts = [torch.cat([getattr(b, part) for b in read])[chosen] for part in ("input_ids", "attention_mask", "is_row")]
    return [TokenBatch(*batch) for batch in zip(*(part.split(size) for part in parts), strict=True)]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
