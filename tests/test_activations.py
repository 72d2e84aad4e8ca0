"""From tokens to shuffled batches: nothing lost, nothing twice, the same again after a resume."""

import numpy as np
import pytest
import torch

from strata.activations.buffer import ShuffleBuffer
from strata.activations.collected import Activations
from strata.activations.harvest import collect_activations, token_stream
from strata.activations.stream import Stream
from strata.lm.model import LanguageModel

from tiny_models import tiny_model  # isort: skip


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(tiny_model("gpt_neox"))


def token_ids(n_seqs: int = 40, seq: int = 16) -> torch.Tensor:
    return torch.randint(0, 30, (n_seqs, seq), generator=torch.Generator().manual_seed(3))


def open_stream(lm: LanguageModel, *, n_tokens=None, buffer_tokens=128, text_batch_size=3) -> Stream:
    tokens = token_stream(lm, token_ids(), text_batch_size=text_batch_size)
    return Stream(lm, tokens, sites=["layers.0", "layers.1"], n_tokens=n_tokens, buffer_tokens=buffer_tokens)


def all_rows(batches) -> dict[str, torch.Tensor]:
    listed = list(batches)
    return {site: torch.cat([batch[site] for batch in listed]) for site in listed[0]}


def sorted_rows(x: torch.Tensor) -> torch.Tensor:
    return x[np.lexsort(x.double().numpy().round(4).T[::-1])]


def test_buffer_gives_every_row_once_and_mixes_them():
    buffer, seen, number = ShuffleBuffer(100, seed=0), [], 0
    while True:
        while buffer.n_free >= 20 and number < 50:
            buffer.put(number, 20)
            number += 1
        origin = buffer.source_batch.copy(), buffer.source_row.copy()
        slots = buffer.take(10)
        if slots is None:
            break
        seen += list(zip(origin[0][slots], origin[1][slots], strict=True))
    assert len(seen) == len(set(seen)) == 1000
    batches_in_a_step = [len({b for b, _ in seen[i : i + 10]}) for i in range(0, 1000, 10)]
    assert np.mean(batches_in_a_step) > 3


def test_stream_gives_the_rows_that_are_collected(lm):
    collected = collect_activations(lm, token_ids(), ["layers.0", "layers.1"])
    streamed = all_rows(open_stream(lm).shuffled(batch_size=32, n_epochs=1, seed=0).batches())
    assert len(streamed["layers.0"]) == 640
    for site in ("layers.0", "layers.1"):
        torch.testing.assert_close(sorted_rows(streamed[site]), sorted_rows(collected[site]), rtol=1e-3, atol=1e-3)


def test_sites_stay_aligned(lm):
    rows = all_rows(open_stream(lm).shuffled(batch_size=32, n_epochs=1, seed=0).batches())
    collected = collect_activations(lm, token_ids(), ["layers.0", "layers.1"])
    nearest = torch.cdist(rows["layers.0"].double(), collected["layers.0"].double()).argmin(1)
    torch.testing.assert_close(rows["layers.1"], collected["layers.1"][nearest], rtol=1e-3, atol=1e-3)


def test_stream_is_deterministic_and_depends_on_the_seed(lm):
    first, again, other = (
        all_rows(open_stream(lm).shuffled(batch_size=32, n_epochs=1, seed=seed).batches())["layers.1"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("start", [1, 7, 19])
@pytest.mark.parametrize("sampled", [True, False])
def test_stream_goes_on_where_it_was(lm, start, sampled):
    whole = list(open_stream(lm).shuffled(batch_size=32, n_epochs=1, seed=0).batches())
    resumed = open_stream(lm).shuffled(batch_size=32, n_epochs=1, seed=0)
    if sampled:
        resumed.sample(64, site="layers.0")
    rest = list(resumed.batches(start_step=start))
    assert len(rest) == len(whole) - start
    for found, wanted in zip(rest, whole[start:], strict=True):
        assert torch.equal(found["layers.1"], wanted["layers.1"])


def test_resuming_runs_the_model_on_what_is_in_the_buffer_only(lm):
    stream = open_stream(lm)
    calls = []
    original = stream.harvest
    stream.harvest = lambda *given, **named: (calls.append(1), original(*given, **named))[1]
    next(iter(stream.shuffled(batch_size=32, n_epochs=1, seed=0).batches(start_step=17)))
    assert len(calls) < 10, "14 forward batches hold the whole text"


def test_epochs_and_a_number_of_tokens(lm):
    assert (
        sum(len(b["layers.0"]) for b in open_stream(lm).shuffled(batch_size=32, n_epochs=3, seed=0).batches()) == 1920
    )
    short = all_rows(open_stream(lm, n_tokens=200).shuffled(batch_size=50, n_epochs=2, seed=0).batches())["layers.0"]
    assert len(short) == 400
    assert len(torch.unique(short.mul(1e4).round(), dim=0)) <= 200, "an epoch is the first 200 rows, read twice"
    long = open_stream(lm, n_tokens=1500).shuffled(batch_size=50, n_epochs=1, seed=0)
    assert sum(len(b["layers.0"]) for b in long.batches()) == 1500, "a shorter text is read again"


def test_buffer_too_small_is_refused(lm):
    with pytest.raises(ValueError, match="buffer_tokens"):
        open_stream(lm, buffer_tokens=64).shuffled(batch_size=32, n_epochs=1, seed=0)


def test_collected_rows_come_in_new_orders_and_resume():
    rows = torch.arange(100.0).view(100, 1)
    acts = Activations({"a": rows, "b": rows * 2})
    batches = [b["a"].flatten() for b in acts.shuffled(batch_size=30, n_epochs=3, seed=0).batches()]
    assert len(batches) == 10
    flat = torch.cat(batches)
    assert all(flat[e * 100 : e * 100 + 100].unique().numel() == 100 for e in range(3))
    assert not torch.equal(flat[:100], flat[100:200])
    rest = [b["a"].flatten() for b in acts.shuffled(batch_size=30, n_epochs=3, seed=0).batches(start_step=4)]
    assert torch.equal(torch.cat(rest), torch.cat(batches[4:]))
    assert all(torch.equal(b["a"] * 2, b["b"]) for b in acts.shuffled(batch_size=30, n_epochs=1, seed=5).batches())


def test_collected_types_and_limits(lm):
    ids = token_ids()
    half = collect_activations(lm, ids, ["layers.1"], dtype="bf16", n_tokens=100)
    assert half["layers.1"].dtype == torch.bfloat16
    assert half.n_rows() == 100
    assert collect_activations(lm, ids).sites == [lm.middle_site]
    with pytest.raises(ValueError, match=r"layers\.7"):
        half["layers.7"]
    with pytest.raises(ValueError, match="fp8"):
        collect_activations(lm, ids, dtype="fp8")


def test_wrong_kinds_of_activations_are_refused():
    for wrong in (torch.zeros(3, 4, 5), torch.zeros(3, 4, dtype=torch.int64), [1, 2]):
        with pytest.raises(ValueError, match="rows d_in"):
            Activations.of(wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="same number of rows"):
        Activations({"a": torch.zeros(3, 2), "b": torch.zeros(4, 2)})
