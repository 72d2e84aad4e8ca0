"""Packing: nothing lost, nothing twice, nothing special among the rows; and a thread that ends."""

import copy
import os
import random
import subprocess
import sys
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from strata.errors import UserError
from strata.lm.text import open_texts
from strata.lm.tokens import TokenStream
from tiny_models import tiny_tokenizer

WORDS = ["def", "class", "None", "while", "value", "", "Über", "Straße", "日本", "print(x)", "==", "\n", "\t", "0.5"]


def byte_level(*special: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return tokenizer


def gpt_style() -> PreTrainedTokenizerFast:
    end = "<|endoftext|>"  # id 0, and all of BOS, EOS and pad: what GPT-NeoX has
    return PreTrainedTokenizerFast(tokenizer_object=byte_level(end), bos_token=end, eos_token=end, pad_token=end)


def eos_style() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_level("<pad>", "<eos>"), eos_token="<eos>", pad_token="<pad>")


def llama_style() -> PreTrainedTokenizerFast:
    backend = byte_level("<s>", "</s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def bert_style() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    backend.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def bare_style() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_level())


class SlowTokenizer(PreTrainedTokenizer):
    """Characters up to U+00FF are tokens; ids 0 and 1 are specials."""

    def __init__(self, **kwargs):
        self._ids = {"<s>": 0, "</s>": 1} | {chr(code): code + 2 for code in range(256)}
        super().__init__(bos_token="<s>", eos_token="</s>", **kwargs)

    @property
    def vocab_size(self):
        return len(self._ids)

    def get_vocab(self):
        return dict(self._ids)

    def _tokenize(self, text, **kwargs):
        return list(text)

    def _convert_token_to_id(self, token):
        return self._ids.get(token, 2)

    def _convert_id_to_token(self, index):
        return next(token for token, number in self._ids.items() if number == index)


STYLES = {
    "gpt": gpt_style,
    "eos": eos_style,
    "llama": llama_style,
    "bert": bert_style,
    "bare": bare_style,
    "slow": SlowTokenizer,
}


@pytest.fixture(scope="module", params=STYLES)
def tokenizer(request):
    return STYLES[request.param]()


def stream(documents, tokenizer, *, context_tokens=8, text_batch_size=3, **options):
    texts = open_texts(documents, split="all")
    return TokenStream(texts, tokenizer, context_tokens=context_tokens, text_batch_size=text_batch_size, **options)


def random_documents(seed: int) -> list[str]:
    rng = random.Random(seed)
    documents = [" ".join(rng.choices(WORDS, k=rng.choice([0, 0, 1, 2, 5, 40]))) for _ in range(rng.randint(1, 30))]
    return [*documents, "value"]


def row_tokens(batches) -> list[int]:
    return [int(i) for batch in batches for i in batch.input_ids[batch.is_row]]


@pytest.mark.parametrize("context_tokens", [4, 7, 64])
def test_the_rows_are_exactly_the_documents_tokens_in_order(tokenizer, context_tokens):
    special = set(tokenizer.all_special_ids)
    for seed in range(8):
        documents = random_documents(seed)
        wanted = [i for text in documents for i in tokenizer(text, add_special_tokens=False).input_ids]
        batches = list(stream(documents, tokenizer, context_tokens=context_tokens, text_batch_size=1 + seed % 4))
        assert row_tokens(batches) == [i for i in wanted if i not in special]


def test_only_the_last_sequence_is_padded_and_only_the_last_batch_is_smaller(tokenizer):
    batches = list(stream(random_documents(3) * 4, tokenizer))
    assert len(batches) > 2
    assert {tuple(batch.input_ids.shape) for batch in batches[:-1]} == {(3, 8)}
    attended = torch.cat([batch.attention_mask for batch in batches])
    assert attended[:-1].all()
    n_real = int(attended[-1].sum())
    assert n_real > 0
    assert attended[-1, :n_real].all()
    assert not any((batch.is_row & ~batch.attention_mask).any() for batch in batches)


def test_a_separator_precedes_every_document_where_the_tokenizer_adds_nothing():
    tokenizer = gpt_style()
    one, two = (tokenizer(text, add_special_tokens=False).input_ids for text in ("def value", "None"))
    (batch,) = stream(["def value", "", "None"], tokenizer, context_tokens=len(one) + len(two) + 2)
    assert tokenizer.bos_token_id == 0  # an id like any other
    assert batch.input_ids.tolist() == [[0, *one, 0, *two]]
    assert batch.attention_mask.all()  # the pad id is the separator's, and still no pad
    assert batch.is_row.tolist() == [[False, *[True] * len(one), False, *[True] * len(two)]]
    assert next(iter(stream(["None"], eos_style()))).input_ids[0, 0] == 1


def test_every_sequence_starts_with_bos_once_where_the_tokenizer_puts_it_before_texts():
    tokenizer = llama_style()
    batches = list(stream(["def " * 20, "None", "value " * 9], tokenizer))
    sequences = [row[mask].tolist() for b in batches for row, mask in zip(b.input_ids, b.attention_mask, strict=True)]
    assert len(sequences) > 3
    assert {row[0] for row in sequences} == {0}
    assert (0, 0) not in {pair for row in sequences for pair in pairwise(row)}


def test_a_document_that_brings_its_own_bos_gets_no_second_one():
    tokenizer = llama_style()
    (batch,) = stream(["None", "<s>value"], tokenizer, context_tokens=32)
    assert batch.input_ids[batch.attention_mask].tolist().count(0) == 2


def test_encoder_sequences_are_framed():
    tokenizer = bert_style()
    batches = list(stream(["def value " * 9, "none", "print"], tokenizer, context_tokens=6))
    for ids, attended in ((b.input_ids, b.attention_mask) for b in batches):
        for row, mask in zip(ids, attended, strict=True):
            real = row[mask].tolist()
            assert (real[0], real[-1]) == (2, 3)
            assert 2 not in real[1:]


def test_special_tokens_in_the_text_are_rows_only_if_asked_for():
    tokenizer = gpt_style()
    (plain,) = stream(["def<|endoftext|>None"], tokenizer, context_tokens=16)
    (with_special,) = stream(["def<|endoftext|>None"], tokenizer, context_tokens=16, include_special=True)
    assert not plain.is_row[plain.input_ids == 0].any()
    assert torch.equal(with_special.is_row, with_special.attention_mask)
    assert int(with_special.is_row.sum()) == int(plain.is_row.sum()) + 2
    assert not with_special.is_row.all()  # pads, which have the same id here, never are


def test_added_special_tokens_are_no_rows():
    tokenizer = gpt_style()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|header|>"]})
    (batch,) = stream(["def<|header|>None"], tokenizer, context_tokens=16)
    header = tokenizer.convert_tokens_to_ids("<|header|>")
    assert header in batch.input_ids
    assert not batch.is_row[batch.input_ids == header].any()


def test_truncation_or_padding_set_on_the_users_tokenizer_cuts_nothing():
    tokenizer = gpt_style()
    clean = row_tokens(stream(["def value " * 50], tokenizer))
    fingerprint = stream(["a"], tokenizer).describe()["tokenizer"]["fingerprint"]
    tokenizer(["def value " * 50], truncation=True, max_length=5, padding="max_length")
    assert tokenizer.backend_tokenizer.truncation is not None
    assert row_tokens(stream(["def value " * 50], tokenizer)) == clean
    assert stream(["a"], tokenizer).describe()["tokenizer"]["fingerprint"] == fingerprint


def test_prefetching_changes_nothing_and_streams_can_be_read_again(tokenizer):
    documents = random_documents(5)
    ahead, direct = stream(documents, tokenizer), stream(documents, tokenizer, prefetch=False)
    for first, second, third in zip(ahead, ahead, direct, strict=True):
        for name in ("input_ids", "attention_mask", "is_row"):
            assert torch.equal(getattr(first, name), getattr(second, name))
            assert torch.equal(getattr(first, name), getattr(third, name))


_of_other_tests: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def threads_of_other_tests():
    """A test of another file may have left a stream half read, which lives until the collector comes by."""
    _of_other_tests.clear()
    _of_other_tests.update(token_threads())


def token_threads() -> list[threading.Thread]:
    named = (thread for thread in threading.enumerate() if thread.name.startswith("strata-tokens"))
    return [thread for thread in named if thread not in _of_other_tests]


def wait_for_threads_to_end() -> None:
    deadline = time.monotonic() + 5
    while token_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not token_threads()


def test_errors_of_the_thread_are_raised_to_the_reader():
    def broken():
        yield "def value " * 40
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(stream(broken(), gpt_style()))
    wait_for_threads_to_end()


@pytest.mark.parametrize("leave", ["break", "close", "collect"])
def test_leaving_early_ends_the_thread_and_closes_the_source(leave):
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield "def value " * 40
        finally:
            closed.set()

    batches = iter(stream(endless(), gpt_style()))
    next(batches)
    assert token_threads()
    if leave == "break":
        for _ in batches:
            break
    if leave == "close":
        batches.close()
    del batches
    assert closed.wait(5)
    wait_for_threads_to_end()


PROGRAM = """
import itertools, tokenizers, types
from strata.lm.text import open_texts
from strata.lm.tokens import TokenStream
from tiny_models import tiny_tokenizer

backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
ids = dict.fromkeys(["bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "pad_token_id"])
tokenizer = types.SimpleNamespace(backend_tokenizer=backend, all_special_ids=[], model_max_length=99, **ids)
texts = open_texts(itertools.repeat("a b " * 400), split="all")
batches = iter(TokenStream(texts, tokenizer, context_tokens=8, text_batch_size=3))
next(batches)
print("left")
"""


def test_a_program_may_end_in_the_middle_of_an_iteration():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=90, env=environment)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "left", "")


def test_reading_does_not_run_ahead_without_bound():
    n_read = 0

    def documents():
        nonlocal n_read
        while True:
            n_read += 1
            yield "def value " * 20_000

    batches = iter(stream(documents(), gpt_style(), context_tokens=16, text_batch_size=1))
    next(batches)
    time.sleep(0.1)
    assert n_read <= 4
    batches.close()
    wait_for_threads_to_end()


def test_token_ids_pass_as_they_are():
    ids = torch.randint(1, 50, (7, 5))
    batches = list(stream(ids, None, context_tokens=99))
    assert [len(batch.input_ids) for batch in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([batch.input_ids for batch in batches]), ids)
    assert all(batch.attention_mask.all() and batch.is_row.all() for batch in batches)
    described = stream(ids, None, context_tokens=99).describe()
    assert (described["tokenizer"], described["context_tokens"]) == (None, 5)


def test_pads_at_the_ends_of_given_token_ids_are_not_attended_to():
    ids = torch.tensor([[0, 0, 5, 6, 0], [7, 0, 8, 1, 0], [5, 6, 7, 8, 9]])
    (batch,) = stream(ids, eos_style())  # pad 0, EOS 1
    assert batch.attention_mask.tolist() == [[False, False, True, True, False], [True] * 4 + [False], [True] * 5]
    assert batch.is_row.tolist() == [[False, False, True, True, False], [True, False, True, False, False], [True] * 5]
    (shared,) = stream(ids, gpt_style())  # 0 is BOS, EOS and pad: the one next to the text is no pad
    assert shared.attention_mask[:2].tolist() == [[False, True, True, True, True], [True] * 5]
    assert not shared.is_row[shared.input_ids == 0].any()


@pytest.mark.parametrize("style", STYLES)
def test_the_tokenizers_fingerprint_follows_its_vocabulary(style):
    first = STYLES[style]()
    again, larger = copy.deepcopy(first), copy.deepcopy(first)
    larger.add_tokens(["Übermorgen"])
    described = stream(["a"], first).describe()
    assert described == stream(["a"], again).describe()
    assert described["tokenizer"]["vocab_size"] == len(first)
    other = stream(["a"], larger).describe()["tokenizer"]["fingerprint"]
    assert other != described["tokenizer"]["fingerprint"]


def test_settings_out_of_range_are_named():
    with pytest.raises(UserError, match=r"`context_tokens` must be in 2 or more .* Got 1"):
        stream(["a"], gpt_style(), context_tokens=1)
    with pytest.raises(UserError, match=r"`context_tokens` must be in 3 or more .* Got 2"):
        stream(["a"], bert_style(), context_tokens=2)
    limited = gpt_style()
    limited.model_max_length = 512
    with pytest.raises(UserError, match=r"must be in \[2, 512\] .* Got 513.*model_max_length"):
        stream(["a"], limited, context_tokens=513)
    with pytest.raises(UserError, match=r"`text_batch_size` must be 1 or more. Got 0"):
        stream(["a"], gpt_style(), text_batch_size=0)
    with pytest.raises(UserError, match="need a tokenizer"):
        stream(["a"], None)


def test_long_texts_cause_no_warning(caplog, capfd):
    limited = gpt_style()
    limited.model_max_length = 8
    slow = SlowTokenizer(model_max_length=8)
    for tokenizer in (limited, slow):
        assert np.sum([int(batch.is_row.sum()) for batch in stream(["def value " * 50], tokenizer)]) > 8
    assert caplog.text == ""
    assert capfd.readouterr().err == ""


def test_an_abandoned_stream_waits_for_no_lock_of_other_threads() -> None:
    """It may be collected while this very thread is inside another executor's `submit`, and then it would wait for
    itself.
    """
    from concurrent.futures import thread

    batches = iter(TokenStream(open_texts(["abc " * 50] * 20), tiny_tokenizer(), context_tokens=8, text_batch_size=1))
    next(batches)
    leaving = threading.Thread(target=batches.close, daemon=True)  # pyright: ignore[reportAttributeAccessIssue]
    with thread._global_shutdown_lock:  # pyright: ignore[reportAttributeAccessIssue]
        leaving.start()
        leaving.join(timeout=5)
        assert not leaving.is_alive()
