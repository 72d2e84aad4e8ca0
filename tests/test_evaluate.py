"""Evaluation: SAEs whose scores are known, slow counterparts of the fast paths, and text that must not be shown."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from strata.activations.harvest import collect
from strata.errors import UserError
from strata.evaluate import language_loss, suites
from strata.evaluate.quality import reconstruction_quality
from strata.interpret.examples import Shown, feature_examples
from strata.lm.model import LanguageModel
from strata.lm.tokens import TokenBatch
from strata.sae.gates import TopK
from strata.sae.model import SAE
from tiny_models import VOCABULARY, WIDTH, tiny_model, tiny_tokenizer

SEQ = 30
END, PAD, LOUD = 0, 1, 200
EMBEDDING = "gpt_neox.embed_in"  # here a row says which token it is
RECONSTRUCTION_KEYS = [
    *("explained_variance", "fvu", "mse", "cosine", "l0", "l2_ratio", "relative_reconstruction_bias"),
    *("silent_share", "n_sink_rows", "fvu_with_sinks"),
]
LOSS_KEYS = ["ce_clean", "ce_sae", "ce_zero", "ce_loss_score", "kl_div_score", "delta_ce_percent"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These models are too small to be shared out: on a busy machine two threads mostly wait for each other."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(tiny_model("gpt_neox"), tokenizer=tiny_tokenizer())


def batches_of(ids: Tensor, *sizes: int) -> list[TokenBatch]:
    attended = ids != PAD
    parts = zip(ids.split(list(sizes)), attended.split(list(sizes)), strict=True)
    return [TokenBatch(part, mask, mask & (part != END)) for part, mask in parts]


@pytest.fixture
def ids() -> Tensor:
    """Twelve sequences; the end of text stands in the middle of each, and the last one ends in pads."""
    ids = torch.randint(2, 120, (12, SEQ), generator=torch.Generator().manual_seed(3))
    ids[:, 13] = END
    ids[-1, 20:] = PAD
    return ids


@pytest.fixture
def text(ids: Tensor) -> list[TokenBatch]:
    return batches_of(ids, 5, 7)


def random_sae(d_sae: int = 64, k: int = 8, *, seed: int = 0, d_in: int = WIDTH) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    zeros = torch.zeros(d_sae), torch.zeros(d_in)
    return SAE(W_enc=W_dec.t().clone(), b_enc=zeros[0], W_dec=W_dec, b_dec=zeros[1], gate=TopK(k))


def identity_sae() -> SAE:
    """Positive and negative parts of every coordinate: exact to the last bit."""
    eye = torch.eye(WIDTH)
    both = torch.cat([eye, -eye])
    zeros = torch.zeros(2 * WIDTH), torch.zeros(WIDTH)
    return SAE(W_enc=both.t().clone(), b_enc=zeros[0], W_dec=both, b_dec=zeros[1], gate=TopK(2 * WIDTH))


def constant_sae(x_hat: Float[Tensor, " d_in"]) -> SAE:
    """No latent ever fires."""
    W = torch.zeros(4, len(x_hat))
    return SAE(W_enc=W.t().clone(), b_enc=-torch.ones(4), W_dec=W, b_dec=x_hat, gate=TopK(2))


def token_sae(lm: LanguageModel, token_ids: Sequence[int]) -> SAE:
    """At the embedding: latent i fires on token_ids[i] and nowhere else."""
    directions = lm.model.get_input_embeddings().weight[list(token_ids)].clone()
    norms = directions.norm(dim=1)
    units = directions / norms[:, None]
    return SAE(
        W_enc=units.t().clone(), b_enc=-0.9 * norms, W_dec=units, b_dec=torch.zeros(WIDTH), gate=TopK(len(token_ids))
    )


def evaluate_saes(
    lm: LanguageModel, saes: dict[str, SAE], batches: list[TokenBatch], *, lm_dtype: str = "auto"
) -> dict[str, Any]:
    return suites.evaluate_suites(lm, {"saes": saes}, batches, lm_dtype=lm_dtype)["saes"]


def only_site(result: dict[str, Any]) -> dict[str, Any]:
    (numbers,) = result["sites"].values()
    return numbers


def test_structure_is_that_of_the_run_folder(lm: LanguageModel, text: list[TokenBatch]) -> None:
    saes = {"layers.2": random_sae(), "layers.0": random_sae(seed=1)}
    result = evaluate_saes(lm, saes, text)
    assert set(result) == {"n_rows", "n_tokens", "context_tokens", "sites", "all_sites"}
    assert set(result["all_sites"]) == set(LOSS_KEYS)
    assert (result["n_rows"], result["n_tokens"], result["context_tokens"]) == (12 * 29 - 10, 12 * 30 - 10, 30)
    assert list(result["sites"]) == ["layers.2", "layers.0"]
    for numbers in result["sites"].values():
        assert set(numbers) == {*RECONSTRUCTION_KEYS, *LOSS_KEYS}
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("lm_dtype", ["auto", "fp32", "bf16"])
def test_identity_scores_exactly_one(lm: LanguageModel, text: list[TokenBatch], lm_dtype: str) -> None:
    numbers = only_site(evaluate_saes(lm, {"layers.1": identity_sae()}, text, lm_dtype=lm_dtype))
    assert (numbers["ce_loss_score"], numbers["kl_div_score"], numbers["delta_ce_percent"]) == (1, 1, 0)
    assert (numbers["explained_variance"], numbers["mse"], numbers["l0"]) == (1, 0, WIDTH)
    assert numbers["ce_zero"] != numbers["ce_clean"]
    assert [numbers[key] for key in ("cosine", "l2_ratio", "relative_reconstruction_bias")] == pytest.approx([1, 1, 1])


def test_zero_scores_exactly_zero(lm: LanguageModel, text: list[TokenBatch]) -> None:
    result = evaluate_saes(lm, {"layers.1": constant_sae(torch.zeros(WIDTH))}, text)
    numbers = only_site(result)
    assert (numbers["ce_loss_score"], numbers["kl_div_score"]) == (0, 0)
    assert numbers["ce_sae"] == numbers["ce_zero"]
    assert (numbers["l0"], numbers["silent_share"], numbers["l2_ratio"]) == (0, 1, 0)
    assert numbers["relative_reconstruction_bias"] is None  # 0/0
    json.dumps(result, allow_nan=False)


def test_mean_predictor_explains_nothing(lm: LanguageModel, text: list[TokenBatch]) -> None:
    rows = collect(lm, text, sites=["layers.1"], lm_dtype="fp32")["layers.1"]
    numbers = only_site(evaluate_saes(lm, {"layers.1": constant_sae(rows.mean(0))}, text, lm_dtype="fp32"))
    assert numbers["n_sink_rows"] == 0
    assert (numbers["explained_variance"], numbers["fvu"]) == pytest.approx((0, 1), abs=1e-6)


def test_losses_against_plain_hooks(lm: LanguageModel, ids: Tensor, text: list[TokenBatch]) -> None:
    sae = random_sae()
    is_row = ids > PAD
    scored = is_row[:, 1:] & (ids[:, :-1] != PAD)
    block = lm.model.gpt_neox.layers[1]

    def run(change: Any) -> Float[Tensor, "predictions vocab"]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            x = output[0] if isinstance(output, tuple) else output
            new = torch.where(is_row[..., None], change(x), x)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = block.register_forward_hook(hook)
        with torch.no_grad():
            logits = lm.model(input_ids=ids, attention_mask=(ids != PAD).long()).logits
        handle.remove()
        return log_softmax(logits[:, :-1][scored], dim=-1)

    clean, spliced, zeroed = run(lambda x: x), run(sae), run(torch.zeros_like)
    found = only_site(evaluate_saes(lm, {"layers.1": sae}, text, lm_dtype="fp32"))
    targets = ids[:, 1:][scored]
    ce = [cross_entropy(log_probs, targets).item() for log_probs in (clean, spliced, zeroed)]
    assert [found["ce_clean"], found["ce_sae"], found["ce_zero"]] == pytest.approx(ce, rel=1e-5)
    assert found["delta_ce_percent"] == pytest.approx(100 * (ce[1] - ce[0]) / ce[0], rel=1e-3)
    kl_sae, kl_zero = [(clean.exp() * (clean - log_probs)).sum(1).mean().item() for log_probs in (spliced, zeroed)]
    assert 0 < kl_sae < kl_zero
    assert found["kl_div_score"] == pytest.approx(1 - kl_sae / kl_zero, rel=1e-4)


def test_sums_of_a_changed_run_are_those_of_the_formulas(ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_loss, "_SOFTMAX_BYTES", 4 * VOCABULARY * 7)
    (batch,) = batches_of(ids, 12)
    asked = language_loss.Predictions.of(batch)
    generator = torch.Generator().manual_seed(0)
    clean, changed = torch.randn(2, 12 * SEQ, VOCABULARY, generator=generator)
    sums = language_loss.LossSums()
    sums.add(changed, language_loss.log_probs_at(clean, asked.positions), asked)
    p, q = (log_softmax(logits.double()[asked.positions], dim=-1) for logits in (clean, changed))
    assert sums.kl == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-5)
    assert sums.ce == pytest.approx(cross_entropy(q, asked.targets, reduction="sum").item(), rel=1e-6)


def test_pads_before_the_text_predict_nothing() -> None:
    ids = torch.tensor([[PAD, PAD, END, 5, 6], [7, 8, END, 9, PAD]])
    (batch,) = batches_of(ids, 2)
    asked = language_loss.Predictions.of(batch)
    assert asked.positions.tolist() == [2, 3, 5, 7]
    assert asked.targets.tolist() == [5, 6, 8, 9]
    leading = TokenBatch(ids, batch.attention_mask, torch.ones_like(batch.is_row))
    assert 1 not in language_loss.Predictions.of(leading).positions.tolist()


def test_batching_and_memory_limits_change_nothing(
    lm: LanguageModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    saes = {"layers.0": random_sae(), "layers.2": random_sae(seed=1)}
    whole = evaluate_saes(lm, saes, batches_of(ids, 12), lm_dtype="fp32")
    monkeypatch.setattr(language_loss, "_LOGITS_BYTES", 4 * VOCABULARY * SEQ * 2)  # two sequences at a time
    monkeypatch.setattr(language_loss, "_SOFTMAX_BYTES", 4 * VOCABULARY * 7)
    monkeypatch.setattr(suites, "_FIRST_ROWS", 330)  # more than all batches but the last hold
    pieces = evaluate_saes(lm, saes, batches_of(ids, 1, 3, 8), lm_dtype="fp32")
    counts = ("n_rows", "n_tokens", "context_tokens")
    assert [pieces[key] for key in counts] == [whole[key] for key in counts]
    assert pieces["all_sites"] == pytest.approx(whole["all_sites"], rel=1e-4)
    assert list(pieces["sites"]) == list(whole["sites"])
    for site in saes:
        assert pieces["sites"][site] == pytest.approx(whole["sites"][site], rel=1e-4)


def test_sites_are_changed_one_at_a_time(lm: LanguageModel, text: list[TokenBatch]) -> None:
    together = evaluate_saes(lm, {"layers.0": random_sae(), "layers.2": random_sae(seed=1)}, text)
    alone = evaluate_saes(lm, {"layers.2": random_sae(seed=1)}, text)
    assert together["sites"]["layers.2"] == alone["sites"]["layers.2"]


def test_sinks_are_counted_and_left_out() -> None:
    x = torch.randn(200, WIDTH)
    sae = identity_sae()
    sae.W_dec[0] = 0  # errs on the first coordinate alone
    clean = reconstruction_quality(sae, x)
    sinks = torch.zeros(3, WIDTH)
    sinks[:, 0] = 1000
    dirty = reconstruction_quality(sae, torch.cat([x[:50], sinks, x[50:]]))
    assert (clean["n_sink_rows"], dirty["n_sink_rows"]) == (0, 3)
    assert clean["fvu_with_sinks"] == clean["fvu"]
    assert dirty["fvu_with_sinks"] > 0.5 > 2 * dirty["fvu"]
    for key in set(RECONSTRUCTION_KEYS) - {"n_sink_rows", "fvu_with_sinks"}:
        assert dirty[key] == pytest.approx(clean[key], rel=1e-5), key


def test_silent_latents_are_counted_and_harmless() -> None:
    x = torch.randn(300, WIDTH)
    sae = random_sae(d_sae=64, k=8)
    sae.b_enc[:16] = -1e6
    numbers = reconstruction_quality(sae, x)
    fired = (sae.encode(x) > 0).any(0)
    assert not fired[:16].any()
    assert numbers["silent_share"] == pytest.approx(1 - fired.float().mean().item())
    assert numbers["l0"] == pytest.approx((sae.encode(x) > 0).sum(1).float().mean().item())
    json.dumps(numbers, allow_nan=False)


def test_a_model_that_fills_masks_has_no_next_token_loss(text: list[TokenBatch]) -> None:
    encoder = LanguageModel(tiny_model("bert"), tokenizer=tiny_tokenizer())
    numbers = only_site(evaluate_saes(encoder, {"layers.1": random_sae()}, text))
    assert {numbers[key] for key in LOSS_KEYS} == {None}
    assert numbers["fvu"] > 0
    headless = LanguageModel(tiny_model("gpt_neox").gpt_neox, tokenizer=tiny_tokenizer())
    assert not language_loss.predicts_next_token(headless)


def test_no_token_to_predict_is_no_loss(lm: LanguageModel) -> None:
    numbers = only_site(evaluate_saes(lm, {"layers.1": random_sae()}, batches_of(torch.arange(5, 45)[:, None], 40)))
    assert {numbers[key] for key in LOSS_KEYS} == {None}


def test_nothing_is_left_behind(lm: LanguageModel, text: list[TokenBatch]) -> None:
    before = lm.logits(text[0].input_ids)
    sae = random_sae()
    evaluate_saes(lm, {"layers.1": sae}, text)
    feature_examples(lm, {"layers.1": sae}, text)
    assert torch.equal(lm.logits(text[0].input_ids), before)
    assert not any(module._forward_hooks for module in lm.model.modules())


def test_without_saes_or_rows_the_error_says_so(lm: LanguageModel, text: list[TokenBatch]) -> None:
    with pytest.raises(UserError, match="at least one SAE"):
        evaluate_saes(lm, {}, text)
    with pytest.raises(UserError, match="at least one SAE"):
        feature_examples(lm, {}, text)
    with pytest.raises(UserError, match="neither pad nor special"):
        evaluate_saes(lm, {"layers.1": random_sae()}, batches_of(torch.zeros(2, 5, dtype=torch.long), 2))
    with pytest.raises(UserError, match="n_examples"):
        feature_examples(lm, {"layers.1": random_sae()}, text, shown=Shown(n_examples=0))


# Features.


def test_planted_features_show_their_token(lm: LanguageModel, ids: Tensor, text: list[TokenBatch]) -> None:
    planted = [END, PAD, *range(10, 40), 250]
    (features,) = feature_examples(lm, {EMBEDDING: token_sae(lm, planted)}, text, shown=Shown(n_examples=2)).values()
    assert [feature["kind"] for feature in features] == ["strongest"] * 4 + ["random"] * 4
    assert len({feature["latent"] for feature in features}) == 8
    for feature in features:
        token = planted[feature["latent"]]
        assert token not in (END, PAD, 250)  # specials are no rows, and 250 does not occur
        n_times = int((ids == token).sum())
        assert feature["density"] == pytest.approx(n_times / (12 * 29 - 10))
        assert feature["examples"]
        shown = lm.tokenizer.decode([token])
        for example in feature["examples"]:
            assert len(example["tokens"]) == len(example["activations"])
            assert example["tokens"][example["peak"]] == shown
            assert example["activations"][example["peak"]] == pytest.approx(feature["max_activation"])
            assert [a > 0 for a in example["activations"]] == [t == shown for t in example["tokens"]]


def test_windows_end_with_their_sequence(lm: LanguageModel) -> None:
    ids = torch.full((4, 20), 50)
    ids += torch.arange(20) % 7
    ids[0, 0] = ids[1, 19] = ids[2, 10] = ids[3, 3] = 120
    ids[3, 5:] = PAD
    sae = token_sae(lm, [120])
    features = feature_examples(
        lm, {EMBEDDING: sae}, batches_of(ids, 2, 2), shown=Shown(n_features=1, before=4, after=3)
    )
    assert features[EMBEDDING] == []  # four firings, five examples wanted
    features = feature_examples(
        lm, {EMBEDDING: sae}, batches_of(ids, 2, 2), shown=Shown(n_features=1, n_examples=4, before=4, after=3)
    )
    windows = [ids[0, :4], ids[1, 15:], ids[2, 6:14], ids[3, :5]]
    expected = [
        ([lm.tokenizer.decode([i]) for i in window.tolist()], peak)
        for window, peak in zip(windows, (0, 4, 4, 3), strict=True)
    ]
    found = [(example["tokens"], example["peak"]) for example in features[EMBEDDING][0]["examples"]]
    assert sorted(found) == sorted(expected)


def slow_examples(
    activations: Float[Tensor, "batch seq"], lengths: list[int], *, n_examples: int, window: tuple[int, int]
) -> list[tuple[int, int, list[float]]]:
    """The documented rule on one latent's activations: sequence, position and window of each example."""
    before, after = window
    rows = activations.tolist()
    firings = [(-value, number, place) for number, row in enumerate(rows) for place, value in enumerate(row) if value]
    chosen: list[tuple[int, int, list[float]]] = []
    for value, number, place in sorted(firings):
        around = rows[number][max(place - before, 0) : place + after + 1]
        apart = all(number != other or abs(place - where) > before + after for other, where, _ in chosen)
        if apart and max(around) == -value:
            last = min(place + after + 1, lengths[number])
            chosen.append((number, place, rows[number][max(place - before, 0) : last]))
    return chosen[:n_examples]


@pytest.mark.parametrize(
    ("sizes", "window"), [((12,), (12, 6)), ((1, 2, 4, 5), (3, 2)), ((1, 2, 4, 5), (12, 6)), ((3, 9), (0, 0))]
)
def test_examples_against_a_dense_code(
    lm: LanguageModel, ids: Tensor, sizes: tuple[int, ...], window: tuple[int, int]
) -> None:
    sae = random_sae(d_sae=96, k=6)
    shown = Shown(n_features=12, n_examples=3, before=window[0], after=window[1])
    text = [*batches_of(ids, *sizes), *batches_of(torch.full((1, SEQ), END), 1)]  # the last one without a row
    features = feature_examples(lm, {"layers.1": sae}, text, shown=shown, lm_dtype="fp32")["layers.1"]
    assert len(features) == 12
    x = lm.activations(ids, ["layers.1"], attention_mask=ids != PAD)["layers.1"]
    dense = sae.encode(x).half().float() * (ids > PAD)[..., None]  # as an index keeps them
    lengths = (ids != PAD).sum(1).tolist()
    for feature in features:
        slow = slow_examples(dense[..., feature["latent"]], lengths, n_examples=3, window=window)
        found = [(example["peak"], example["tokens"]) for example in feature["examples"]]
        first = [max(place - window[0], 0) for _, place, _ in slow]
        shown = [ids[peak[0], start : start + len(peak[2])].tolist() for start, peak in zip(first, slow, strict=True)]
        texts = [[lm.tokenizer.decode([i]) for i in window_ids] for window_ids in shown]
        places = [place - start for start, (_, place, _) in zip(first, slow, strict=True)]
        assert found == list(zip(places, texts, strict=True))
        for example, (_, _, activations) in zip(feature["examples"], slow, strict=True):
            assert example["activations"] == pytest.approx(activations, abs=1e-5)
        top = feature["examples"][0]
        assert feature["max_activation"] == top["activations"][top["peak"]]


def test_strongest_are_the_strongest_of_the_density_range(lm: LanguageModel) -> None:
    ids = torch.randint(60, 120, (40, SEQ), generator=torch.Generator().manual_seed(5))
    for n, token in enumerate((10, 11, 12, 13)):  # ten times each, in windows of their own: density 1/120
        ids[10 * n : 10 * n + 10, 4] = token
    ids[:, 20] = 14  # density 1/30: too frequent for "strongest", whatever its activation
    embeddings = lm.model.get_input_embeddings().weight
    sae = token_sae(lm, [10, 11, 12, 13, 14])

    def features_of(*sizes: int, seed: int) -> list[dict[str, Any]]:
        text, shown = batches_of(ids, *sizes), Shown(n_features=4)
        return feature_examples(lm, {EMBEDDING: sae}, text, shown=shown, seed=seed)[EMBEDDING]

    features = features_of(40, seed=1)
    by_norm = sorted(range(4), key=lambda i: -embeddings[10 + i].norm().item())  # activation: 0.1 of the norm
    assert [feature["latent"] for feature in features[:2]] == by_norm[:2]
    assert {feature["latent"] for feature in features[2:]} <= {*by_norm[2:], 4}
    again = features_of(25, 15, seed=1)
    assert [feature["latent"] for feature in again] == [feature["latent"] for feature in features]
    drawn = [{feature["latent"] for feature in features_of(40, seed=seed)[2:]} for seed in range(6)]
    assert len({frozenset(latents) for latents in drawn}) > 1


def test_sinks_are_no_examples(ids: Tensor) -> None:
    lm = LanguageModel(tiny_model("gpt_neox"), tokenizer=tiny_tokenizer())
    lm.model.get_input_embeddings().weight.data[LOUD] *= 100
    ids[:6, 0] = LOUD
    ids[:, 1] = 130
    sae = token_sae(lm, [LOUD, 130])
    text = batches_of(ids, 5, 7)
    numbers = only_site(evaluate_saes(lm, {EMBEDDING: sae}, text))
    assert (numbers["n_sink_rows"], numbers["silent_share"]) == (6, 0.5)
    (feature,) = feature_examples(lm, {EMBEDDING: sae}, text)[EMBEDDING]
    assert feature["latent"] == 1
    assert feature["density"] == pytest.approx(12 / (12 * 29 - 10 - 6))


def test_tokens_without_tokenizer_are_numbers(ids: Tensor) -> None:
    lm = LanguageModel(tiny_model("gpt_neox"))
    (feature, *_) = feature_examples(
        lm, {EMBEDDING: token_sae(lm, [*range(10, 40)])}, batches_of(ids, 12), shown=Shown(n_examples=1)
    )[EMBEDDING]
    example = feature["examples"][0]
    assert example["tokens"][example["peak"]] == str(10 + feature["latent"])
