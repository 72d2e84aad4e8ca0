"""The embedded model: small, loaded like any other, and it knows Python."""

import json
import math
from pathlib import Path

import pytest
import torch

import strata
from strata import LanguageModel
from strata.activations.harvest import token_stream

FOLDER = Path(strata.__file__).parent / "embedded" / "demo"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel("demo")


def held_out_nats(lm: LanguageModel, *, n_sequences: int = 32) -> float:
    """Mean loss on sequences at equal distances from all held-out files."""
    stream = token_stream(lm, "stdlib", split="held_out", context_tokens=256, text_batch_size=64)
    ids = torch.cat([batch.input_ids for batch in stream])[:-1]
    chosen = ids[torch.linspace(0, len(ids) - 1, n_sequences).long()]
    logits = lm.logits(chosen)[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, chosen[:, 1:].flatten()).item()


def test_weights_are_small_and_half_precision():
    from safetensors.torch import load_file

    assert (FOLDER / "model.safetensors").stat().st_size <= 12 * 2**20
    assert {tensor.dtype for tensor in load_file(str(FOLDER / "model.safetensors")).values()} == {torch.float16}


def test_it_knows_python_far_better_than_a_bigram_model(lm: LanguageModel):
    figures = json.loads((FOLDER / "figures.json").read_text())
    nats = held_out_nats(lm)
    assert nats < figures["bigram_nats"] - 0.8
    assert nats == pytest.approx(figures["held_out_nats"], abs=0.5), "the files of another Python differ, but not much"


def test_figures_stand_in_its_readme():
    figures, text = json.loads((FOLDER / "figures.json").read_text()), (FOLDER / "README.md").read_text()
    for key in ("unigram_nats", "bigram_nats", "held_out_nats"):
        bits = figures[key] / math.log(2) / figures["bytes_per_token"]
        assert f"| {figures[key]:.3f} | {bits:.3f} |" in text
    assert figures["continuation"] in text


def test_greedy_continuation_of_a_loop_is_python(lm: LanguageModel):
    assert lm.tokenizer is not None
    prompt = "\n    for i in"
    ids = [0, *lm.tokenizer.encode(prompt, add_special_tokens=False)]
    for _ in range(12):
        ids.append(int(lm.logits([ids])[0, -1].argmax()))
    loop = lm.tokenizer.decode(ids[1:]).strip().splitlines()[0]
    compile(f"{loop}\n    pass", "continuation", "exec")
    assert loop.startswith("for i in ")


def test_architecture(lm: LanguageModel):
    assert lm.model_class == "GPTNeoXForCausalLM"
    assert lm.sites == [f"layers.{i}" for i in range(8)]
    assert not lm.model.config.tie_word_embeddings
