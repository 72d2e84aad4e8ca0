"""Steering: exact formulas, bit-equal nothings, caches, padding, and what is refused."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from strata.config.steer import SteerConfig
from strata.costs.steering import addition_flops, clamp_flops, prefix_flops, sae_training_flops
from strata.errors import UserError
from strata.interpret.explain.record import ExplainedFeature, ExplanationsFile
from strata.interpret.index_building import build_index
from strata.lm.model import LanguageModel
from strata.lm.sites import first_tensor, with_first
from strata.sae.gates import Gate, Gated, JumpReLU, ReLU, TopK
from strata.sae.group import GroupSAE
from strata.sae.model import SAE, Transcoder
from strata.shapes import SparseCode
from strata.steer.benchmark import Trial, benchmark, interval
from strata.steer.command import _columns, steer
from strata.steer.concepts import CONCEPTS, lexemes, lines_outside_strings, named_concepts
from strata.steer.feature_method import BuiltFeature
from strata.steer.generation import Generation, RowSampler, generate
from strata.steer.intervention import Feature, Intervention, Strength
from strata.steer.material import Contrast, contrast, pieces, prompts
from strata.steer.method import Lengths
from strata.steer.methods import METHODS, named_methods
from strata.steer.opened import opened_run
from strata.steer.prompting import Prompting
from strata.steer.scores import Scores, distinct_pairs, negative_log_likelihood, scores
from strata.steer.steering import steered
from strata.steer.subject import Subject, means
from strata.steer.tables import table
from strata.steer.vector_method import contrastive_addition, difference_of_means
from tiny_models import ARCHITECTURES, ENCODERS, VOCABULARY, WIDTH, shared_language_model, tiny_model, tiny_tokenizer

SITE = "layers.1"
D_SAE = 48
GATES: dict[str, Gate] = {
    "topk": TopK(12),
    "jumprelu": JumpReLU(torch.full((D_SAE,), 0.5)),
    "relu": ReLU(),
    "gated": Gated(r_mag=torch.full((D_SAE,), 0.1), b_mag=torch.zeros(D_SAE), b_gate=torch.zeros(D_SAE)),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these wait for a second thread longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def writer() -> LanguageModel:
    """A tiny causal model with a tokenizer of bytes."""
    return LanguageModel(tiny_model("gpt_neox"), tokenizer=tiny_tokenizer())


def random_sae(gate: str = "topk", *, seed: int = 0) -> SAE:
    """Random weights, decoder rows of norm one."""
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(D_SAE, WIDTH, generator=random)
    w = w / w.norm(dim=1, keepdim=True)
    b_enc, b_dec = (0.1 * torch.randn(n, generator=random) for n in (D_SAE, WIDTH))
    return SAE(W_enc=w.t().contiguous(), b_enc=b_enc, W_dec=w, b_dec=b_dec, gate=GATES[gate])


def some_ids(batch: int = 3, seq: int = 9) -> Tensor:
    return torch.randint(2, VOCABULARY, (batch, seq), generator=torch.Generator().manual_seed(5))


def free_vector() -> Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(9))


def changed(sae: SAE, latent: int, mode: str, value: float = 0.0, **more: Any) -> Intervention:
    settings: dict[str, Any] = {
        "site": SITE,
        "direction": Feature(sae, latent),
        "mode": mode,
        "strength": Strength(value=value),
    }
    return Intervention(**(settings | more))


def lively(sae: SAE, x: Tensor) -> int:
    """A latent that fires at some of these rows and is silent at others."""
    share = (sae.encode(x).flatten(0, -2) > 0).float().mean(0)
    return int((share - 0.5).abs().argmin())


def silent(sae: SAE, x: Tensor) -> int:
    return int((sae.encode(x).flatten(0, -2) > 0).float().sum(0).argmin())


def n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def read(lm: LanguageModel, ids: Tensor, interventions: Sequence[Intervention], **settings: object) -> Tensor:
    """The steered site's activations."""
    with steered(lm, interventions, **settings):  # type: ignore[arg-type]
        return lm.activations(ids, SITE)[SITE]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_clamp_is_the_reconstruction_with_the_latent_set_plus_the_error(gate: str, value: float) -> None:
    lm, sae, ids = shared_language_model("gpt2"), random_sae(gate), some_ids()
    h = lm.activations(ids, SITE)[SITE]
    latent = lively(sae, h)
    f = sae.encode(h)
    assert 0 < int((f[..., latent] > 0).sum()) < f[..., 0].numel()
    with_it_set = f.clone()
    with_it_set[..., latent] = value
    dense = sae.decode(with_it_set) + (h - sae.decode(f))
    identity = h + (value - f[..., latent : latent + 1]) * sae.W_dec[latent]
    out = read(lm, ids, [changed(sae, latent, "clamp", value)])
    torch.testing.assert_close(out, dense, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out, identity, rtol=1e-6, atol=1e-6)
    if value == 0.0:
        torch.testing.assert_close(read(lm, ids, [changed(sae, latent, "ablate")]), out, rtol=0, atol=0)
        assert bool((out == h)[f[..., latent] == 0].all()), "silent: the same to the last bit"


def test_min_clamp_add_and_project_out_are_their_formulas() -> None:
    lm, sae, ids = shared_language_model("gpt2"), random_sae(), some_ids()
    h = lm.activations(ids, SITE)[SITE]
    latent = lively(sae, h)
    f, v = sae.encode(h)[..., latent, None], free_vector()
    c = float(f.max()) / 2
    expected = h + (f.clamp_min(c) - f) * sae.W_dec[latent]
    torch.testing.assert_close(read(lm, ids, [changed(sae, latent, "min_clamp", c)]), expected)

    def add(direction: Feature | Tensor, strength: Strength) -> Tensor:
        return read(lm, ids, [Intervention(site=SITE, direction=direction, strength=strength)])

    torch.testing.assert_close(add(v, Strength(value=-2)), h - 2 * v)
    norm = Strength(value=0.5, unit="norm", size=7.0)
    torch.testing.assert_close(add(v, norm), h + 3.5 * v / v.norm())
    most = Strength(value=2, unit="max_activation", size=1.5)
    torch.testing.assert_close(add(Feature(sae, latent), most), h + 3.0 * sae.W_dec[latent])
    out = read(lm, ids, [Intervention(site=SITE, direction=v, mode="project_out")])
    unit = v / v.norm()
    torch.testing.assert_close(out, h - (h @ unit)[..., None] * unit)
    assert float((out @ unit).abs().max()) < 1e-5


def test_several_at_once_and_the_code_is_computed_once() -> None:
    lm, sae, ids = shared_language_model("gpt2"), random_sae(), some_ids()
    h = lm.activations(ids, SITE)[SITE]
    f = sae.encode(h)
    calls = []
    own = sae.encode_sparse

    def counted(x: Tensor) -> SparseCode:
        calls.append(x)
        return own(x)

    sae.encode_sparse = counted  # type: ignore[method-assign]
    first, second, v = lively(sae, h), 7, free_vector()
    calls.clear()
    both = [changed(sae, first, "clamp", 2.0), changed(sae, second, "ablate"), Intervention(site=SITE, direction=v)]
    out = read(lm, ids, both)
    assert len(calls) == 1
    set_both = f.clone()
    set_both[..., first], set_both[..., second] = 2.0, 0.0
    torch.testing.assert_close(out, sae.decode(set_both) + (h - sae.decode(f)) + v, rtol=1e-5, atol=1e-5)


def test_interventions_at_two_sites() -> None:
    lm, ids, v = shared_language_model("llama"), some_ids(), free_vector()
    clean = lm.activations(ids, ["layers.0", "layers.1"])
    two = [Intervention(site=f"layers.{n}", direction=v) for n in (0, 1)]
    with steered(lm, two):
        both = lm.activations(ids, ["layers.0", "layers.1"])
    with steered(lm, two[:1]):
        first = lm.activations(ids, ["layers.0", "layers.1"])
    torch.testing.assert_close(both["layers.0"], clean["layers.0"] + v)
    torch.testing.assert_close(both["layers.1"], first["layers.1"] + v)
    assert float((first["layers.1"] - clean["layers.1"]).abs().max()) > 1e-2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_bit_identical_in_every_architecture_and_something_is_not(architecture: str) -> None:
    lm, sae, ids = shared_language_model(architecture), random_sae(), some_ids()
    before, clean, h = n_hooks(lm.model), lm.logits(ids), lm.activations(ids, SITE)[SITE]
    quiet = silent(sae, h)
    sae.b_enc.data[quiet] = -1e4
    nothings = (
        Intervention(site=SITE, direction=free_vector(), strength=Strength(value=0)),
        changed(sae, quiet, "ablate"),
        changed(sae, quiet, "min_clamp", 0.0),
    )
    for nothing in nothings:
        with steered(lm, [nothing]):
            logits = lm.logits(ids)
        assert torch.equal(logits.view(torch.int32), clean.view(torch.int32))
    with steered(lm, [Intervention(site=SITE, direction=free_vector(), strength=Strength(value=3))]):
        assert float((lm.logits(ids) - clean).abs().max()) > 1e-3
    assert torch.equal(lm.logits(ids), clean)
    assert n_hooks(lm.model) == before


def test_minus_zero_stays_minus_zero_where_nothing_is_done() -> None:
    """-0.0 + 0.0·v would be +0.0: the same number, not the same bits."""
    lm, sae = shared_language_model("gpt2"), random_sae()
    sae.b_enc.data[3] = -1e4
    module = lm.model.get_submodule(lm.site(SITE).path)

    def minus_zero(module: nn.Module, args: tuple, out: Any) -> Any:
        return (torch.full_like(out[0], -0.0), *out[1:]) if isinstance(out, tuple) else torch.full_like(out, -0.0)

    hook = module.register_forward_hook(minus_zero)
    try:
        out = read(lm, some_ids(), [changed(sae, 3, "ablate")])
    finally:
        hook.remove()
    assert bool((out == 0).all())
    assert bool(out.signbit().all())


def test_hooks_go_when_the_body_fails() -> None:
    lm, before = shared_language_model("gpt2"), n_hooks(shared_language_model("gpt2").model)

    def fail() -> None:
        with steered(lm, [Intervention(site=SITE, direction=free_vector())]):
            assert n_hooks(lm.model) == before + 2
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    assert n_hooks(lm.model) == before


def test_group_layers_use_their_own_biases() -> None:
    lm, ids = shared_language_model("gpt2"), some_ids()
    first, second = random_sae(), random_sae()
    second.b_dec.data.add_(1.0)
    group = GroupSAE({"layers.0": first, SITE: second})
    h = lm.activations(ids, SITE)[SITE]
    latent = lively(second, h)
    out = read(lm, ids, [Intervention(site=SITE, direction=Feature(group, latent), mode="ablate")])
    torch.testing.assert_close(out, read(lm, ids, [changed(second, latent, "ablate")]), rtol=0, atol=0)
    assert not torch.equal(out, read(lm, ids, [changed(first, latent, "ablate")]))


def test_special_tokens_and_pads_stay(writer: LanguageModel) -> None:
    ids = some_ids()
    ids[0, 0], ids[1, 4] = 0, 0  # the end of text
    mask = torch.ones_like(ids)
    ids[2, :3], mask[2, :3] = 1, 0
    h = writer.activations(ids, SITE, attention_mask=mask)[SITE]
    v = free_vector()
    pushed = [Intervention(site=SITE, direction=v)]
    with steered(writer, pushed):
        moved = (writer.activations(ids, SITE, attention_mask=mask)[SITE] - h).abs().amax(-1) > 0
    assert torch.equal(~moved, (ids == 0) | (mask == 0))
    with steered(writer, pushed, keep_special=False):
        moved = (writer.activations(ids, SITE, attention_mask=mask)[SITE] - h).abs().amax(-1) > 0
    assert torch.equal(moved, mask == 1)


def test_positions() -> None:
    lm, ids, v = shared_language_model("gpt2"), some_ids(), free_vector()
    h = lm.activations(ids, SITE)[SITE]
    columns = torch.arange(9).expand(3, 9)
    cases: tuple[tuple[Any, Tensor], ...] = (
        ("all", columns >= 0),
        ("prompt", columns < 4),
        ("generated", columns >= 4),
    )
    for positions, expected in cases:
        out = read(lm, ids, [Intervention(site=SITE, direction=v, positions=positions)], prompt_tokens=4)
        assert torch.equal((out - h).abs().amax(-1) > 0, expected), positions
    with (
        pytest.raises(UserError, match="`prompt_tokens` must be given for positions 'prompt'"),
        steered(lm, [Intervention(site=SITE, direction=v, positions="prompt")]),
    ):
        pass


def kinds_of_steering(sae: SAE) -> dict[str, list[Intervention]]:
    return {
        "add": [changed(sae, 3, "add", 4.0)],
        "clamp": [changed(sae, 3, "clamp", 5.0), changed(sae, 8, "ablate")],
        "prompt": [Intervention(site=SITE, direction=4 * free_vector(), positions="prompt")],
        "generated": [Intervention(site=SITE, direction=4 * free_vector(), positions="generated")],
        "project_out": [Intervention(site=SITE, direction=free_vector(), mode="project_out")],
    }


PROMPTS = ["def f(x):", "import os, sys\n\nclass A", "y"]


@pytest.mark.parametrize("kind", kinds_of_steering(random_sae()))
@pytest.mark.parametrize("gate", ["topk", "jumprelu"])
def test_cache_and_batching_do_not_change_what_is_written(writer: LanguageModel, kind: str, gate: str) -> None:
    how = {"interventions": kinds_of_steering(random_sae(gate))[kind], "max_new_tokens": 10}
    together = generate(writer, PROMPTS, **how)  # type: ignore[arg-type]
    without_cache = generate(writer, PROMPTS, use_cache=False, **how)  # type: ignore[arg-type]
    alone = [generate(writer, [prompt], **how)[0] for prompt in PROMPTS]  # type: ignore[arg-type]
    assert together == without_cache == alone
    clean = generate(writer, PROMPTS, max_new_tokens=10)
    assert [one.token_ids for one in together] != [one.token_ids for one in clean]


def test_the_checkpoint_s_own_settings_take_no_part() -> None:
    """`generate` of transformers fills what is left open from them: penalties, suppressed tokens, least lengths."""
    lm = LanguageModel(tiny_model("gpt_neox"), tokenizer=tiny_tokenizer())
    clean = generate(lm, PROMPTS, max_new_tokens=10)
    greedy = sorted({token for one in clean for token in one.token_ids})
    own: Any = lm.model.generation_config
    own.update(suppress_tokens=greedy, no_repeat_ngram_size=1, min_new_tokens=8, repetition_penalty=3.0, num_beams=2)
    assert generate(lm, PROMPTS, max_new_tokens=10) == clean
    assert lm.model.generation_config is own and own.suppress_tokens == greedy
    how = {"max_new_tokens": 10, "do_sample": False}
    theirs = lm.model.generate(torch.tensor([clean[2].prompt_ids]), **how)  # type: ignore[operator]
    assert not set(theirs[0, 1:].tolist()) & set(greedy), "they are settings that matter"


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a not in ENCODERS])
def test_steered_text_is_that_of_passes_without_generate(architecture: str) -> None:
    """Greedy, step by step through `lm.logits`, in every causal architecture."""
    lm, ids = shared_language_model(architecture), some_ids(2, 6)
    push = [Intervention(site=SITE, direction=3 * free_vector())]
    wrote = generate(lm, ids.tolist(), interventions=push, max_new_tokens=5)
    text = ids
    with steered(lm, push):
        for _ in range(5):
            text = torch.cat([text, lm.logits(text)[:, -1].argmax(-1, keepdim=True)], dim=1)
    expected = [row[: row.index(0)] if 0 in row else row for row in text[:, 6:].tolist()]
    assert [one.token_ids for one in wrote] == expected


def test_prompt_steering_differs_from_generated_and_both_from_all(writer: LanguageModel) -> None:
    wrote = {}
    for positions in ("all", "prompt", "generated"):
        push = Intervention(site=SITE, direction=4 * free_vector(), positions=positions)
        wrote[positions] = generate(writer, PROMPTS, interventions=[push], max_new_tokens=10)
    clean = generate(writer, PROMPTS, max_new_tokens=10)
    first_tokens = {name: [one.token_ids[:1] for one in found] for name, found in wrote.items()}
    assert first_tokens["generated"] == [one.token_ids[:1] for one in clean]  # nothing was generated before it
    assert first_tokens["prompt"] == first_tokens["all"]
    assert wrote["generated"] != clean
    assert wrote["prompt"] != wrote["all"]


def test_sampling_is_seeded_and_independent_of_the_batch(writer: LanguageModel) -> None:
    def sample(prompts: list[str], **settings: object) -> list[Generation]:
        return generate(writer, prompts, temperature=1.0, max_new_tokens=12, **settings)  # type: ignore[arg-type]

    state = torch.get_rng_state()
    once = sample(PROMPTS)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"
    assert once == sample(PROMPTS) == sample(PROMPTS, use_cache=False)
    assert once != sample(PROMPTS, seed=1)
    assert once[0] == sample(PROMPTS[:1])[0]
    twice = sample(["def f", "def f"])
    assert twice[0] != twice[1]


def test_sampler_draws_from_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    sampler = RowSampler(4000, temperature=0.7, seed=3)
    draws = sampler(torch.zeros(4000, 1, dtype=torch.long), logits.expand(4000, 4)).argmax(-1)
    found = torch.bincount(draws, minlength=4) / 4000
    torch.testing.assert_close(found, (logits / 0.7).softmax(0), rtol=0, atol=0.03)


def test_steering_reaches_the_text(writer: LanguageModel) -> None:
    """Pushed far along a token's unembedding, in the last layer, the model writes that token."""
    token = 77
    v = writer.model.get_output_embeddings().weight[token]
    push = Intervention(site="layers.2", direction=v, strength=Strength(value=100.0, unit="norm", size=10.0))
    wrote = generate(writer, PROMPTS, interventions=[push], max_new_tokens=4)
    assert all(one.token_ids == [token] * 4 for one in wrote)
    assert wrote[0].text == writer.tokenizer.decode([token] * 4)  # type: ignore[union-attr]


def test_half_precision_models_keep_their_dtype() -> None:
    lm = LanguageModel(tiny_model("llama").bfloat16())
    ids, sae = some_ids(), random_sae()
    h = lm.activations(ids, SITE)[SITE]
    out = read(lm, ids, [changed(sae, 3, "clamp", 2.0)])
    assert out.dtype == torch.bfloat16
    f = sae.encode(h.float())[..., 3, None]
    torch.testing.assert_close(out, (h + (2.0 - f) * sae.W_dec[3]).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda sae: Feature(sae, D_SAE), r"`latent` must be in \[0, 48\).*Got 48"),
        (lambda sae: changed(sae, 1, "clamp", -1.0), r"`strength` must be 0 or more for mode clamp.*Got -1.0"),
        (lambda sae: changed(sae, 1, "clmp"), "`mode` must be one that there is.*Did you mean 'clamp'"),
        (lambda sae: changed(sae, 1, "add", positions="al"), "`positions` must be one that there is"),
        (lambda sae: Intervention(site=SITE, direction=free_vector(), mode="ablate"), "must come with a feature"),
        (lambda sae: Intervention(site=SITE, direction=torch.zeros(WIDTH)), "`direction` must not be zero"),
        (lambda sae: Intervention(site=SITE, direction=free_vector()[None]), r"a finite vector \[d_in\]"),
        (lambda sae: Strength(value=math.nan), "`strength` must be finite"),
        (lambda sae: Strength(value=1.0, unit="max_activation", size=0.0), "a feature that never fired has no maximum"),
        (lambda sae: Strength(value=1.0, size=2.0), "`size` must be 1 for the unit absolute"),
        (
            lambda sae: Intervention(
                site=SITE, direction=free_vector(), strength=Strength(value=1.0, unit="max_activation", size=1.0)
            ),
            "`unit` max_activation must come with a feature",
        ),
    ],
)
def test_what_is_refused(make: object, message: str) -> None:
    from beartype.roar import BeartypeException
    from jaxtyping import TypeCheckError

    with pytest.raises((UserError, TypeCheckError, BeartypeException)) as refused:
        make(random_sae())  # type: ignore[operator]
    if isinstance(refused.value, UserError):  # literals that types refuse already while tests run
        refused.match(message)


def test_what_the_model_refuses(writer: LanguageModel) -> None:
    sae = random_sae()
    weights = {"W_enc": sae.W_enc.data, "b_enc": sae.b_enc.data, "W_dec": sae.W_dec.data, "b_dec": sae.b_dec.data}
    with pytest.raises(UserError, match="Got a transcoder's"):
        Feature(Transcoder(**weights, gate=TopK(4)), 1)

    def refused(message: str, *interventions: Intervention) -> None:
        before = n_hooks(writer.model)
        with pytest.raises(UserError, match=message), steered(writer, interventions):
            pass
        assert n_hooks(writer.model) == before

    refused("Did you mean 'layers.1'", Intervention(site="layer.1", direction=free_vector()))
    refused("Got 5 at 'layers.1', which is 32 wide", Intervention(site=SITE, direction=torch.ones(5)))
    path = writer.site(SITE).path
    same = [Intervention(site=name, direction=free_vector()) for name in (SITE, path)]
    refused("are the same place", *same)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": [""]}, "Number 0 is empty"),
        ({"prompts": ["x" * 60]}, r"at most 64 tokens for this model. Got 60 \+ 10"),
        ({"prompts": [[5000]]}, r"must be in \[0, 300\)"),
        ({"prompts": ["x"], "max_new_tokens": 0}, "`max_new_tokens` must be at least 1"),
        ({"prompts": ["x"], "temperature": -1.0}, "`temperature` must be 0 or more and finite"),
    ],
)
def test_generate_says_what_is_wrong(writer: LanguageModel, settings: dict[str, Any], message: str) -> None:
    how: dict[str, Any] = {"max_new_tokens": 10} | settings
    with pytest.raises(UserError, match=message):
        generate(writer, **how)


def test_encoders_cannot_write() -> None:
    with pytest.raises(UserError, match="must be a causal language model"):
        generate(shared_language_model("bert"), [[2, 3]])


# What a text has, and what methods learn from


@pytest.mark.parametrize(
    ("concept", "has", "has_not"),
    [
        ("exceptions", "    raise ValueError(1)\n", "# raise it\nx = 'except'\nraised = 1\n"),
        ("imports", "from a import b", "important = 'import'"),
        ("docstrings", '    """Says.\n', "x = ''\ny = \"text\"\n"),
        ("formatting", "x = f'{y}'", "x = 'f' + y\nz = 3 % 2"),
        ("formatting", "print('%s' % x)", "print('%s', x)"),
        ("formatting", "'{}'.format(x)", "'{}'.split(x)"),
        ("comments", "x = 1  # one", "x = '# one'"),
        ("loops", "while x:", "meanwhile = 'for'"),
    ],
)
def test_concepts_are_seen_where_they_are(concept: str, has: str, has_not: str) -> None:
    assert CONCEPTS[concept].in_text(has)
    assert not CONCEPTS[concept].in_text(has_not)


def test_lexemes_of_unfinished_code() -> None:
    found = [(word.kind, word.text) for word in lexemes('x = rb"a\\"b" + 0x1f # c\n  """open')]
    kinds = [kind for kind, _ in found]
    assert kinds == ["name", "mark", "string", "mark", "number", "comment", "newline", "docstring"]
    assert found[-1][1] == '"""open'
    assert lines_outside_strings('a = """b\nc\nd"""\ne\n') == [True, False, False, True, True]


def documents() -> list[str]:
    blocks = [
        f"def f{n}(a):\n    b = a + {n}\n    c = b\n    if c:\n        {'raise E' if n % 2 else 'd = c'}\n    return b"
        "\n"
        for n in range(40)
    ]
    return ["".join(blocks[n : n + 4]) for n in range(0, 40, 4)]


def test_material_is_sorted_by_the_judge_and_pairs_differ_in_their_last_words() -> None:
    pool = pieces(documents())
    assert len(pool) == 40
    assert all(piece.count("\n") == 6 for piece in pool)
    concept = CONCEPTS["exceptions"]
    material = contrast(concept, pool, n_texts=12, n_pairs=8)
    assert all(map(concept.in_text, material.positive))
    assert not any(map(concept.in_text, material.negative))
    assert (len(material.positive), len(material.negative), len(material.pairs)) == (12, 12, 8)
    for positive, negative in material.pairs:
        same = positive.rfind("\n")
        assert positive[:same] == negative[:same]
        assert concept.in_text(positive[same:]) or "else" in negative
        assert not concept.in_text(negative[same:])
    with pytest.raises(UserError, match=r"enough of 'imports': 12 pieces with it.*Got 0 and 40"):
        contrast(CONCEPTS["imports"], pool, n_texts=12, n_pairs=8)
    heads = prompts(documents(), n=10, fits=lambda text: len(text) < 70)
    assert len(set(heads)) == 10
    assert all(head.endswith(":\n") and len(head) < 70 for head in heads)
    with pytest.raises(UserError, match="`n_prompts` must be at most"):
        prompts(documents(), n=10_000, fits=lambda text: True)


@pytest.fixture(scope="module")
def subject(writer: LanguageModel) -> Subject:
    return Subject(lm=writer, site=SITE, sae=random_sae(), sae_training_flops=1e6)


MATERIAL = Contrast(
    "exceptions",
    positive=("raise A\n", "try:\n  b", "raise BCDE"),
    negative=("x = 1\n", "return abcdef", "if y:"),
    pairs=(("a\nraise", "a\nx"), ("bc\ntry", "bc\nreturn")),
)


SIDES = (MATERIAL.positive, MATERIAL.negative)


def activations_of(subject: Subject, text: str) -> Tensor:
    tokenizer: Any = subject.lm.tokenizer
    return subject.lm.activations([tokenizer(text)["input_ids"]], SITE)[SITE][0]


def test_vectors_are_means_text_by_text(subject: Subject) -> None:
    rows = [torch.cat([activations_of(subject, text) for text in part]) for part in SIDES]
    vector, with_it, _ = difference_of_means(subject, MATERIAL)
    torch.testing.assert_close(vector, rows[0].mean(0) - rows[1].mean(0), rtol=1e-4, atol=1e-5)
    assert with_it.n_tokens == len(rows[0])
    assert with_it.norm == pytest.approx(float(rows[0].norm(dim=-1).mean()), rel=1e-5)
    pairs = [[activations_of(subject, text)[-1] for text in pair] for pair in MATERIAL.pairs]
    vector, _, _ = contrastive_addition(subject, MATERIAL)
    torch.testing.assert_close(vector, torch.stack([a - b for a, b in pairs]).mean(0), rtol=1e-4, atol=1e-5)


@contextmanager
def stretched(lm: LanguageModel, site: str, position: int) -> Iterator[None]:
    """The site's vectors at one position of every sequence a thousand times as long."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        x = first_tensor(output).clone()
        x[:, position] *= 1000
        return with_first(output, x)

    handle = lm.model.get_submodule(lm.site(site).path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_attention_sinks_are_in_no_mean(subject: Subject) -> None:
    texts = [f"def function_{n}(x):" for n in range(8)]
    rows = torch.cat([activations_of(subject, text)[1:] for text in texts])
    dense = subject.sae.encode(rows)
    with stretched(subject.lm, SITE, 0):
        found, few = (means(subject, some, with_latents=True) for some in (texts, texts[:2]))
        vector, with_it, _ = difference_of_means(subject, Contrast("x", tuple(texts), tuple(texts), (("a", "b"),)))
    assert (found.n_tokens, found.n_rows) == (len(rows) + 8, len(rows))
    torch.testing.assert_close(found.activation, rows.mean(0), rtol=1e-4, atol=1e-5)
    assert found.norm == with_it.norm == pytest.approx(float(rows.norm(dim=-1).mean()), rel=1e-5)
    torch.testing.assert_close(found.latents, dense.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.most, dense.amax(0), rtol=1e-4, atol=1e-5)
    assert float(vector.norm()) == 0
    assert few.n_rows == few.n_tokens < 64, "of so few rows nobody can tell"
    assert few.norm > 10 * found.norm


def test_the_feature_is_the_one_that_differs_most(subject: Subject) -> None:
    parts = [torch.cat([activations_of(subject, text) for text in part]) for part in SIDES]
    dense = [subject.sae.encode(rows) for rows in parts]
    expected = int((dense[0].mean(0) - dense[1].mean(0)).argmax())
    built = METHODS["sae-add"].build(subject, MATERIAL)
    assert isinstance(built, BuiltFeature)
    assert built.latent == expected
    assert built.max_activation == pytest.approx(float(torch.cat(dense)[:, expected].max()), rel=1e-5)
    found = means(subject, MATERIAL.positive, with_latents=True)
    torch.testing.assert_close(found.latents, dense[0].mean(0), rtol=1e-4, atol=1e-5)
    (one,) = METHODS["sae-clamp"].build(subject, MATERIAL).at(2.0).interventions
    assert (one.mode, one.strength.amount) == ("clamp", pytest.approx(2 * built.max_activation))


def test_costs_are_the_formulas(subject: Subject) -> None:
    lengths = Lengths(prompt=6.0, written=3.0)
    n_tokens = means(subject, (*MATERIAL.positive, *MATERIAL.negative)).n_tokens
    found = {name: METHODS[name].build(subject, MATERIAL).cost(1.0, lengths) for name in METHODS}
    assert (found["nothing"].training, found["nothing"].concept, found["nothing"].token) == (0.0, 0.0, 0.0)
    assert found["sae-add"].training == found["sae-clamp"].training == 1e6
    assert found["sae-add"].token == 3 * addition_flops(WIDTH) == 3 * 32
    assert found["sae-clamp"].token == 3 * clamp_flops(WIDTH, D_SAE) == 3 * (2 * 32 * 48 + 64)
    assert found["sae-add"].concept == n_tokens * (subject.site_flops + 2 * 32 * 48)
    assert found["diff-means"].concept == n_tokens * subject.site_flops
    assert found["diff-means"].training == found["prompting"].concept == 0.0
    prefix = len(MATERIAL.positive[0])  # a token is a byte
    by_hand = prefix * (subject.model_flops + 4 * 9 * 32 * 3) / 3
    assert found["prompting"].token == pytest.approx(by_hand)
    assert prefix_flops(2.0, n_tokens=5.0, forward_flops=7.0, d_attention=3, n_layers=2) == 2 * (7 + 4 * 5 * 3 * 2)
    assert sae_training_flops(10.0, forward_flops=5.0, d_in=4, d_sae=8, k=2) == 10 * (5 + 2 * 4 * 8 + 10 * 2 * 4)


def test_prompting_puts_short_examples_first(subject: Subject) -> None:
    long = Contrast("exceptions", ("x" * 65, "raise A\n", "raise B\n"), ("x",), (("a", "b"),))
    assert Prompting().build(subject, long).at(2).prefix == "raise A\nraise B\n"
    assert Prompting().build(subject, long).at(1).prefix == "raise A\n"
    assert Prompting().build(subject, long).at(2).interventions == ()


def test_fluency_is_measured_by_the_model_that_is_not_steered(writer: LanguageModel) -> None:
    before, written = [[50, 51], [60], [70, 71, 72]], [[52, 53, 54], [], [73]]
    found = negative_log_likelihood(writer, written, prompts=before)
    log_p = writer.logits([[50, 51, 52, 53, 54]])[0].log_softmax(-1)
    by_hand = -(log_p[1, 52] + log_p[2, 53] + log_p[3, 54]) / 3
    last = -writer.logits([[70, 71, 72, 73]])[0].log_softmax(-1)[2, 73]
    torch.testing.assert_close(found, torch.stack([by_hand, torch.tensor(0.0), last]), rtol=1e-4, atol=1e-4)


def test_scores() -> None:
    found = Scores(
        concept=torch.tensor([1.0, 1.0, 0.0, 0.0]),
        nats=torch.tensor([1.0, 3.0, 1.0, 0.0]),
        n_tokens=torch.tensor([4.0, 2.0, 4.0, 0.0]),
        distinct=torch.ones(4),
    )
    half = math.exp(-1.0)
    torch.testing.assert_close(found.fluency(2.0), torch.tensor([1.0, half, 1.0, 0.0]))
    torch.testing.assert_close(found.combined(2.0), torch.tensor([1.0, 2 * half / (1 + half), 0.0, 0.0]))
    assert found.mean_nats == pytest.approx((4 * 1 + 2 * 3 + 4 * 1) / 10)
    assert distinct_pairs([1, 2, 1, 2, 1]) == 0.5
    assert distinct_pairs([1]) == 1.0


def test_interval_holds_the_mean_and_narrows() -> None:
    random = torch.Generator().manual_seed(0)
    few, many = (torch.rand(2, n, generator=random) for n in (10, 1000))
    for values in (few, many):
        low, high = interval(values)
        assert low < float(values.mean()) < high
    assert interval(many)[1] - interval(many)[0] < (interval(few)[1] - interval(few)[0]) / 3


def test_benchmark_chooses_on_one_half_and_reports_the_other(subject: Subject) -> None:
    ids = tuple("abcdefgh")
    trial = Trial(prompts=ids, max_new_tokens=8, temperature=1.0, seed=0)
    concept = CONCEPTS["comments"]
    methods = named_methods(("nothing", "sae-clamp", "diff-means", "prompting"))
    results = benchmark(subject, [(concept, MATERIAL)], methods, trial)
    assert results["n_prompts"] == {"choose": 4, "test": 4}
    rows = results["concepts"]["comments"]
    for method in methods:
        row = rows[method.name]
        assert list(row["strengths"]) == [str(strength) for strength in method.strengths]
        best = max(one["choose"]["score"] for one in row["strengths"].values())
        assert row["strengths"][str(row["chosen"])]["choose"]["score"] == best
        assert row["test"] == row["strengths"][str(row["chosen"])]["test"]
        assert results["methods"][method.name]["score"] == pytest.approx(row["test"]["score"])
    # "nothing" on the test half, by hand from its own texts
    plain = generate(subject.lm, ids, max_new_tokens=8, temperature=1.0)
    judged = scores(subject.lm, plain, concept, prompts=[one.prompt_ids for one in plain])
    by_hand = judged.combined(judged.mean_nats)[4:].mean()
    assert rows["nothing"]["test"]["score"] == pytest.approx(float(by_hand))
    assert results["unsteered_perplexity"] == pytest.approx(math.exp(judged.mean_nats))
    lines = table(results)
    assert sum(line.startswith(tuple(METHODS)) for line in lines) == 4
    json.dumps(results)
    with pytest.raises(UserError, match="`n_prompts` must be at least 4"):
        Trial(prompts=("a",), max_new_tokens=8, temperature=1.0, seed=0)


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="Did you mean 'imports'"):
        named_concepts(("import",))
    with pytest.raises(UserError, match="Did you mean 'diff-means'"):
        named_methods(("diffmeans",))
    assert [one.name for one in named_concepts(("all",))] == list(CONCEPTS)


# The command


def write_run(folder: Path, *, data: str) -> Path:
    """A run's folder with SAEs of random weights at two sites of the embedded model; latent 0 is dead."""
    random = torch.Generator().manual_seed(0)
    for site in ("layers.1", "layers.4"):
        w = torch.randn(256, 192, generator=random)
        w = w / w.norm(dim=1, keepdim=True)
        b_enc = torch.zeros(256)
        b_enc[0] = -1e6
        sae = SAE(W_enc=w.t().contiguous(), b_enc=b_enc, W_dec=w, b_dec=torch.zeros(192), gate=TopK(8))
        sae.metadata["site"] = site
        sae.save(folder / "sae" / site)
    settings = {"k": 8, "text_batch_size": 16, "seed": 0}
    config = {"model": "demo", "data": data, "context_tokens": 128, "sae": settings}
    record = {"config": config, "n_rows": 1000, "dead": {"layers.1": {}, "layers.4": {}}}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One on a few hundred short texts."""
    folder = tmp_path_factory.mktemp("runs")
    texts = [f"def f{n}(x, y{n % 7}):\n    return x + {n * n}\n" for n in range(600)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return write_run(folder / "mine", data=str(folder / "texts.jsonl"))


def test_command_shows_both_texts(run: Path) -> None:
    lines = steer(
        SteerConfig(
            run=run, site="layers.4", latent=7, unit="norm", strength=(0.0, 8.0), prompt="def add(", max_new_tokens=12
        )
    )
    assert lines[0].startswith("layers.4, latent 7, add: 192 FLOPs per token")
    headings = [n for n, line in enumerate(lines) if line.startswith("by itself")]
    assert len(headings) == 2
    assert "add 8 x the mean norm" in lines[headings[1]]
    halves = [(line[:58].rstrip(), line[61:].rstrip()) for line in lines]
    first, second = halves[headings[0] + 2 : headings[1] - 1], halves[headings[1] + 2 :]
    assert first
    assert all(left == right for left, right in first), "strength 0 is the same text"
    assert [left for left, _ in second if left] == [left for left, _ in first if left]
    assert [left for left, _ in second] != [right for _, right in second]
    assert lines[headings[0] + 2].startswith("def add(")


def test_command_by_maximum_and_ablation(run: Path) -> None:
    given: dict[str, Any] = {"run": run, "site": "layers.1", "latent": 3, "max_new_tokens": 4}
    (heading,) = [line for line in steer(SteerConfig(**given, strength=(2.0,), mode="clamp")) if line.startswith("by")]
    numbers = heading.split("clamp 2 x the maximum ")[1].split(" = ")
    assert float(numbers[1]) == pytest.approx(2 * float(numbers[0]), rel=0.01)
    assert sum(line.startswith("by itself") for line in steer(SteerConfig(**given, mode="ablate"))) == 1

    def refused(**other: Any) -> None:
        steer(SteerConfig(**{**given, **other}))

    with pytest.raises(UserError, match=r"Latent 0 of layers.1 never does in .* rows of held-out text"):
        refused(latent=0)
    with pytest.raises(UserError, match=r"`latent` must be in \[0, 256\).*Got 256"):
        refused(latent=256)
    with pytest.raises(UserError, match=r"Got 'layers.2'.*Known are: 'layers.1', 'layers.4'"):
        refused(site="layers.2")


def test_units_are_measured_without_attention_sinks(run: Path) -> None:
    given = {"site": "layers.4", "latent": 3}
    mine = opened_run(SteerConfig(run=run, **given))  # type: ignore[arg-type]
    norm, most = mine.mean_norm(), mine.max_activation(3)
    with stretched(mine.subject.lm, "layers.4", 5):
        assert mine.mean_norm() == pytest.approx(norm, rel=0.05)
        assert mine.max_activation(3) <= most


def test_only_what_is_needed_is_read(run: Path, tmp_path: Path) -> None:
    """The text may be gone, and SAEs of other sites be damaged."""
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    (copied / "sae" / "layers.1" / "sae_weights.safetensors").write_bytes(b"damaged")
    record = json.loads((copied / "run.json").read_text())
    record["config"]["data"] = str(tmp_path / "gone.jsonl")
    (copied / "run.json").write_text(json.dumps(record))
    given: dict[str, Any] = {"run": copied, "site": "layers.4", "latent": 7, "max_new_tokens": 2}
    lines = steer(SteerConfig(**given, unit="absolute", strength=(5.0,)))
    assert any("add 5" in line for line in lines)
    with pytest.raises(UserError, match=r"gone\.jsonl"):
        steer(SteerConfig(**given, unit="norm"))
    (tmp_path / "gone.jsonl").write_text(json.dumps({"text": "def f(x):\n    return x\n"}) + "\n")
    with pytest.raises(UserError, match=r"no held-out documents .* Give --unit absolute, or index the run"):
        steer(SteerConfig(**given, unit="norm"))
    with pytest.raises(UserError, match=r"safetensors"):
        steer(SteerConfig(**{**given, "site": "layers.1"}, unit="absolute"))


def test_a_site_has_to_be_named_where_there_are_several(run: Path) -> None:
    with pytest.raises(UserError, match=r"`site` must be named .* Got auto and layers.1, layers.4\. Give e.g. --site"):
        steer(SteerConfig(run=run, latent=1))
    assert opened_run(SteerConfig(run=run, benchmark=True)).key == "layers.1"


def test_an_sae_has_to_be_named_where_a_site_has_several(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", data="stdlib")
    for label in ("k=4", "k=16"):
        shutil.copytree(run / "sae" / "layers.4", run / "sae" / "layers.2" / label)
        about = run / "sae" / "layers.2" / label / "cfg.json"
        about.write_text(about.read_text().replace('"layers.4"', '"layers.2"'))
    given: dict[str, Any] = {"run": run, "site": "layers.2", "latent": 3, "unit": "absolute"}
    with pytest.raises(UserError, match=r"`sae` must name one of the 2 SAEs .* at layers.2. Got none of them\."):
        opened_run(SteerConfig(**given))
    with pytest.raises(UserError, match=r"Got 'layers.2/k=5'\. Did you mean 'layers.2/k=4'"):
        opened_run(SteerConfig(**given, sae="layers.2/k=5"))
    few, many = (opened_run(SteerConfig(**given, sae=f"layers.2/k={k}")).subject for k in (4, 16))
    assert many.sae_training_flops > few.sae_training_flops


def test_the_index_says_what_the_feature_means(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    lm, key = LanguageModel("demo"), "layers.4"
    texts = [f"def f_{i}(x):\n    return [x + {i}]\n" * 8 for i in range(12)]
    index = build_index(lm, {key: SAE.load(copied / "sae" / key)}, texts, folder=copied / "index", n_tokens=1500,
                        context_tokens=64, progress=False)  # fmt: skip
    latent = int(index[key].n_fired.argmax())
    said = ExplainedFeature(latent=latent, text="open\u202e calls\x1b[2J", interpreter="me", scores={}, shuffled={})
    ExplanationsFile(index[key].folder, interpreter="me", settings={}).add([said])
    given: dict[str, Any] = {"run": copied, "site": key, "max_new_tokens": 2, "strength": (1.0,)}
    lines = steer(SteerConfig(**given, latent=latent))
    assert lines[1] == "Explained as: open\ufffd calls␛[2J"
    most = float(index[key].max_activation[latent])
    assert any(f"the maximum {most:.3g} = " in line for line in lines)
    assert not any("Explained" in line for line in steer(SteerConfig(**given, latent=0, unit="absolute")))


def test_columns_show_what_a_terminal_would_not() -> None:
    odd = Generation([], [], "\tif\u202e x\x1b[31m:\r\n\u200b")
    lines = _columns("", odd, Generation([], [], ""), "other")[2:]
    assert lines == [f"{left:<58} |" for left in ("    if\ufffd x␛[31m:␍", "\ufffd")]


def test_results_are_not_lost_nor_computed_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strata.steer.command.opened_run", lambda config: pytest.fail("opened the run"))

    def refused(message: str, **settings: Any) -> None:
        with pytest.raises(UserError, match=message):
            steer(SteerConfig(run=tmp_path, benchmark=True, **settings))

    (tmp_path / "steering.json").write_text("of hours")
    refused(r"`out` must be a new file. .*steering.json exists. Give another, or --overwrite")
    refused(r"`out` must be a file that can be written. .*nowhere", out=tmp_path / "nowhere" / "found.json")
    refused(r"`out` must be a file. .* is a folder", out=tmp_path)
    assert (tmp_path / "steering.json").read_text() == "of hours"
    settings: list[dict[str, Any]] = [{"overwrite": True}, {"out": tmp_path / "new.json"}]
    for allowed in settings:
        with pytest.raises(pytest.fail.Exception, match="opened the run"):
            steer(SteerConfig(run=tmp_path, benchmark=True, **allowed))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`latent` must be given"),
        ({"latent": 1, "quick": True}, "`quick` must come with --benchmark. Got True. Leave it out, or add"),
        ({"latent": 1, "concepts": ("loops",)}, "`concepts` must come with --benchmark"),
        ({"latent": 1, "methods": ("caa",)}, "`methods` must come with --benchmark"),
        ({"latent": 1, "n_prompts": 8}, "`n_prompts` must come with --benchmark"),
        ({"latent": 1, "out": Path("a.json")}, "`out` must come with --benchmark"),
        ({"latent": 1, "overwrite": True}, "`overwrite` must come with --benchmark"),
        ({"benchmark": True, "latent": 1}, "`latent` must be left out with --benchmark. Got 1"),
        ({"benchmark": True, "mode": "clamp"}, "`mode` must be left out with --benchmark"),
        ({"benchmark": True, "strength": (3.0,)}, "`strength` must be left out with --benchmark"),
        ({"benchmark": True, "unit": "norm"}, "`unit` must be left out with --benchmark"),
        ({"benchmark": True, "positions": "prompt"}, "`positions` must be left out with --benchmark"),
        ({"benchmark": True, "prompt": "x"}, "`prompt` must be left out with --benchmark"),
        ({"latent": 1, "mode": "ablate", "strength": (3.0,)}, "`strength` must be left out with mode ablate"),
        ({"latent": 1, "mode": "ablate", "unit": "norm"}, "`unit` must be left out with mode ablate"),
        ({"latent": 1, "prompt": ""}, "`prompt` must hold some text"),
        ({"latent": 1, "mode": "clamp", "strength": (-1.0,)}, "0 or more for mode clamp"),
        ({"latent": 1, "strength": ()}, "`strength` must hold at least one number"),
        ({"latent": 1, "strength": (math.inf,)}, "`strength` must be finite"),
        ({"latent": 1, "max_new_tokens": 0}, "`max_new_tokens` must be at least 1"),
        ({"latent": 1, "temperature": -0.5}, "`temperature` must be finite and 0 or more"),
        ({"latent": 1, "strenght": (1.0,)}, "Did you mean 'strength'"),
    ],
)
def test_config_says_what_is_wrong(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SteerConfig(run=Path("nowhere"), **settings)


def test_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run.json"):
        steer(SteerConfig(run=tmp_path, latent=1))


@pytest.mark.slow
def test_quick_benchmark_of_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", data="stdlib")
    out = tmp_path / "found.json"
    lines = steer(SteerConfig(run=run, site="layers.4", benchmark=True, quick=True, max_new_tokens=12, out=out))
    results = json.loads(out.read_text())
    assert list(results["methods"]) == list(METHODS)
    assert len(results["concepts"]) == 2
    assert lines[-1] == str(out)
