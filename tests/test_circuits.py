"""Feature circuits: effects against exact patching, identities of circuits, what a pass costs, and bad input."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from strata.errors import UserError
from strata.evaluate import attribution as attribution_module
from strata.evaluate.attribution import attribute
from strata.evaluate.circuits import circuit_scores
from strata.evaluate.tasks.base import TaskPairs
from strata.lm.model import LanguageModel
from strata.lm.sites import first_tensor
from strata.sae.gates import JumpReLU, TopK
from strata.sae.model import SAE, Transcoder
from tiny_models import N_LAYERS, VOCABULARY, WIDTH, shared_language_model, tiny_model, tiny_tokenizer

SEQ = 6
D_SAE = 48


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these wait for a second thread longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Square(nn.Module):
    """Makes the logits quadratic in the last site."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square()


def headed(norm: nn.Module, tokenizer: Any = None) -> LanguageModel:
    """A model in fp64 whose last site meets only `norm` and a linear head."""
    model: Any = tiny_model("gpt2").double()
    model.transformer.ln_f = norm
    return LanguageModel(model, tokenizer=tokenizer)


def random_sae(seed: int = 0, *, d_in: int = WIDTH, jump: bool = False) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    W_dec = nn.functional.normalize(torch.randn(D_SAE, d_in, generator=generator), dim=1)
    b_enc, b_dec = (0.1 * torch.randn(n, generator=generator) for n in (D_SAE, d_in))
    gate = JumpReLU(torch.full((D_SAE,), 0.3)) if jump else TopK(8)
    return SAE(W_enc=W_dec.t().clone(), b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, gate=gate)


def exact_sae() -> SAE:
    """Reconstructs everything: the positive and the negative part of every coordinate."""
    W_dec = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    zeros = torch.zeros(2 * WIDTH), torch.zeros(WIDTH)
    return SAE(W_enc=W_dec.t().clone(), b_enc=zeros[0], W_dec=W_dec, b_dec=zeros[1], gate=TopK(WIDTH))


def suite(lm: LanguageModel, *, jump: bool = False) -> dict[str, SAE]:
    return {site: random_sae(i, jump=jump).to(lm.dtype) for i, site in enumerate(lm.sites)}


def some_pairs(n: int = 4, *, seed: int = 0, seq: int = SEQ) -> TaskPairs:
    """Prompts that differ at two positions."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(2, VOCABULARY, (n, seq), generator=generator)
    corrupt = clean.clone()
    corrupt[:, 1:3] = torch.randint(2, VOCABULARY, (n, 2), generator=generator)
    answer, wrong = torch.randint(2, VOCABULARY, (2, n), generator=generator)
    return TaskPairs("random", clean, corrupt, answer, wrong)


def n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@contextmanager
def counted_blocks(lm: LanguageModel) -> Iterator[dict[str, int]]:
    """How often the last block runs forwards and backwards."""
    counts = {"forward": 0, "backward": 0}
    block = lm.model.get_submodule(lm.site(lm.sites[-1]).path)

    def count(direction: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[direction] += 1

        return hook

    handles = [
        block.register_forward_hook(count("forward")),
        block.register_full_backward_hook(count("backward")),
    ]
    yield counts
    for handle in handles:
        handle.remove()


def m_by_hand(lm: LanguageModel, pairs: TaskPairs, ids: Tensor, edits: Mapping[str, Callable] | None = None) -> float:
    """Mean logit difference with plain hooks: site → edit of x."""

    def hook(edit: Callable) -> Callable:
        def run(module: Any, args: Any, output: Any) -> Any:
            x = edit(first_tensor(output))
            return (x, *output[1:]) if isinstance(output, tuple) else x

        return run

    modules = {site: lm.model.get_submodule(lm.site(site).path) for site in edits or {}}
    handles = [modules[site].register_forward_hook(hook(edit)) for site, edit in (edits or {}).items()]
    with torch.no_grad():
        last = lm.logits(ids)[:, -1]
    for handle in handles:
        handle.remove()
    places = torch.arange(len(ids))
    return float((last[places, pairs.answer_ids] - last[places, pairs.wrong_ids]).double().mean())


def site_values(lm: LanguageModel, sae: SAE, pairs: TaskPairs, site: str) -> dict[str, Tensor]:
    """x, dense latents and error of both sides."""
    found = {}
    for side, ids in (("clean", pairs.clean_ids), ("corrupt", pairs.corrupt_ids)):
        x = lm.activations(ids, site)[site]
        latents = sae.encode(x)
        found |= {side: x, f"{side}_f": latents, f"{side}_error": x - sae.decode(latents)}
    return found


@pytest.mark.parametrize("jump", [False, True])
def test_effects_are_those_of_exact_patching_where_m_is_linear(jump: bool) -> None:
    lm, pairs, site = headed(nn.Identity()), some_pairs(), f"layers.{N_LAYERS - 1}"
    sae = random_sae(jump=jump).double()
    found = attribute(lm, {site: sae}, pairs, batch_size=3)
    values = site_values(lm, sae, pairs, site)
    m_clean = m_by_hand(lm, pairs, pairs.clean_ids)
    difference = values["corrupt_f"] - values["clean_f"]

    def effect(change: Tensor) -> float:
        return m_by_hand(lm, pairs, pairs.clean_ids, {site: lambda x: x + change}) - m_clean

    exact = torch.tensor([effect(difference[..., i : i + 1] * sae.W_dec[i]) for i in range(D_SAE)], dtype=torch.float64)
    assert (exact.abs() > 1e-3).sum() > 5
    torch.testing.assert_close(found.sites[site].effects, exact, rtol=1e-9, atol=1e-9)
    error = effect(values["corrupt_error"] - values["clean_error"])
    assert abs(error) > 1e-3
    assert found.sites[site].error_effect == pytest.approx(error, rel=1e-9)
    assert found.sites[site].total == pytest.approx(m_by_hand(lm, pairs, pairs.corrupt_ids) - m_clean, rel=1e-9)
    assert found.m_clean == pytest.approx(m_clean) and found.n_pairs == 4
    assert found.m_corrupt - found.m_clean == pytest.approx(found.sites[site].total, rel=1e-9)


def test_integrated_gradients_are_complete() -> None:
    """Exactly for a quadratic m at one step; for the real model the closer, the more steps; at any residual site."""
    last = f"layers.{N_LAYERS - 1}"
    lm, pairs = headed(Square()), some_pairs()
    single = {last: random_sae().double()}
    found = attribute(lm, single, pairs, method="integrated", n_steps=1)
    assert found.sites[last].total == pytest.approx(found.m_corrupt - found.m_clean, rel=1e-9)
    at_clean = attribute(lm, single, pairs).sites[last].total
    assert at_clean != pytest.approx(found.m_corrupt - found.m_clean, rel=0.05)

    lm = LanguageModel(tiny_model("gpt2").double())
    saes = suite(lm)
    misses = {}
    for n_steps in (1, 4, 24):
        found = attribute(lm, saes, pairs, method="integrated", n_steps=n_steps)
        wanted = found.m_corrupt - found.m_clean
        misses[n_steps] = [abs(at.total - wanted) for at in found.sites.values()]
    for few, some, many in zip(*misses.values(), strict=True):
        assert many < some < few and many < 0.01 * abs(wanted)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_gradient_against_finite_differences(architecture: str) -> None:
    """With SAEs at all sites, later sites respond as the model does: nothing is lost or counted twice."""
    model = tiny_model(architecture).double()
    lm, pairs = LanguageModel(model), some_pairs(2)
    saes = suite(lm) | {"layers.1.mlp": random_sae(7).double()}
    found = attribute(lm, saes, pairs)
    for site in ("layers.0", "layers.1", "layers.1.mlp"):
        sae = saes[site]
        values = site_values(lm, sae, pairs, site)
        difference = values["corrupt_f"] - values["clean_f"]
        for i in found.sites[site].strongest(3).tolist():
            step = 1e-5 * difference[..., i : i + 1] * sae.W_dec[i]
            ends = [
                m_by_hand(lm, pairs, pairs.clean_ids, {site: lambda x, change=sign * step: x + change})
                for sign in (-1, 1)
            ]
            assert abs(found.sites[site].effects[i]) > 1e-3
            assert float(found.sites[site].effects[i]) == pytest.approx((ends[1] - ends[0]) / 2e-5, rel=1e-5)


def test_passes() -> None:
    lm, pairs = LanguageModel(tiny_model("gpt2")), some_pairs()
    saes = suite(lm)
    with counted_blocks(lm) as counts:
        found = attribute(lm, saes, pairs)
    assert counts == {"forward": 2, "backward": 1}
    # Two sites that lie before the counted block: a graph that starts at the last site does not lead through it.
    with counted_blocks(lm) as counts:
        attribute(lm, {site: saes[site] for site in lm.sites[:2]}, pairs, method="integrated", n_steps=5)
    assert counts == {"forward": 2 + 2 * 5, "backward": 2 * 5}
    with counted_blocks(lm) as counts:
        circuit_scores(lm, saes, pairs, found, sizes=[4, 8, 4], with_error=True)
    assert counts == {"forward": 2 + 2 * 2, "backward": 0}


@pytest.mark.parametrize("method", ["attribution", "integrated"])
def test_batches_change_nothing(method: str) -> None:
    lm, pairs = LanguageModel(tiny_model("gpt2").double()), some_pairs(5)
    saes = suite(lm)
    whole, parts = (attribute(lm, saes, pairs, method=method, n_steps=2, batch_size=size) for size in (5, 2))
    for site in saes:
        torch.testing.assert_close(whole.sites[site].effects, parts.sites[site].effects)
        torch.testing.assert_close(whole.sites[site].mean_latents, parts.sites[site].mean_latents)
        torch.testing.assert_close(whole.sites[site].mean_error, parts.sites[site].mean_error)
        assert whole.sites[site].error_effect == pytest.approx(parts.sites[site].error_effect)
    assert whole.m_clean == pytest.approx(parts.m_clean)
    scores = [circuit_scores(lm, saes, pairs, whole, sizes=[6], with_error=True, batch_size=n) for n in (5, 2)]
    assert scores[0]["circuits"][0]["m_circuit"] == pytest.approx(scores[1]["circuits"][0]["m_circuit"])


def test_means_are_per_position_over_both_sides() -> None:
    lm, pairs = LanguageModel(tiny_model("gpt2").double()), some_pairs()
    saes = suite(lm)
    found = attribute(lm, saes, pairs, batch_size=3)
    values = site_values(lm, saes["layers.1"], pairs, "layers.1")
    for mean, key in (("mean_latents", "_f"), ("mean_error", "_error")):
        expected = torch.cat([values[f"clean{key}"], values[f"corrupt{key}"]]).mean(0)
        torch.testing.assert_close(getattr(found.sites["layers.1"], mean), expected)


@pytest.fixture
def halves() -> tuple[TaskPairs, TaskPairs]:
    return some_pairs(8).split(5)


def test_whole_and_empty_circuits_score_exactly(halves: tuple[TaskPairs, TaskPairs]) -> None:
    lm = shared_language_model("gpt2")
    saes = suite(lm)
    found = attribute(lm, saes, halves[0])
    scores = circuit_scores(lm, saes, halves[1], found, sizes=[0, 5, D_SAE], with_error=True)
    assert scores["m_model"] == pytest.approx(m_by_hand(lm, halves[1], halves[1].clean_ids), rel=1e-5)
    assert [circuit["size"] for circuit in scores["circuits"]] == [0, 5, D_SAE]
    empty, some, whole = scores["circuits"]
    assert (empty["faithfulness"], empty["completeness"]) == (0, 1)
    assert (whole["faithfulness"], whole["completeness"]) == (1, 0)
    assert (whole["m_circuit"], whole["m_without"]) == (scores["m_model"], scores["m_empty"])
    assert some["faithfulness"] not in (0, 1) and some["completeness"] not in (0, 1)
    assert (scores["n_pairs"], scores["with_error"]) == (3, True)


@pytest.mark.parametrize("with_error", [True, False])
@pytest.mark.parametrize("jump", [True, False])
def test_circuits_against_dense_arithmetic(halves: tuple[TaskPairs, TaskPairs], with_error: bool, jump: bool) -> None:
    lm = LanguageModel(tiny_model("gpt2").double())
    saes, pairs = suite(lm, jump=jump), halves[1]
    found = attribute(lm, saes, halves[0])
    scores = circuit_scores(lm, saes, pairs, found, sizes=[6], with_error=with_error)

    def run(kept: Mapping[str, Tensor]) -> float:
        def edit(site: str) -> Callable:
            sae, at = saes[site], found.sites[site]

            def ablate(x: Tensor) -> Tensor:
                latents = sae.encode(x)
                error = x - sae.decode(latents) if with_error else at.mean_error
                return sae.decode(torch.where(kept[site], latents, at.mean_latents)) + error

            return ablate

        return m_by_hand(lm, pairs, pairs.clean_ids, {site: edit(site) for site in saes})

    largest = {site: at.effects.abs().argsort(descending=True)[:6] for site, at in found.sites.items()}
    circuit = {site: torch.zeros(D_SAE, dtype=torch.bool).scatter(0, top, True) for site, top in largest.items()}
    without = {site: ~own for site, own in circuit.items()}
    m_model, m_empty = (
        m_by_hand(lm, pairs, pairs.clean_ids),
        run({site: torch.zeros(D_SAE, dtype=torch.bool) for site in saes}),
    )
    got = scores["circuits"][0]
    assert scores["m_empty"] == pytest.approx(m_empty)
    assert got["m_circuit"] == pytest.approx(run(circuit)) and got["m_without"] == pytest.approx(run(without))
    assert got["faithfulness"] == pytest.approx((run(circuit) - m_empty) / (m_model - m_empty))
    assert got["completeness"] == pytest.approx((run(without) - m_empty) / (m_model - m_empty))


def test_exact_saes_need_no_error(halves: tuple[TaskPairs, TaskPairs]) -> None:
    """All features of SAEs that reconstruct everything are the model, with and without the error."""
    lm = shared_language_model("gpt2")
    saes = {site: exact_sae() for site in lm.sites}
    found = attribute(lm, saes, halves[0])
    assert all(abs(at.error_effect) < 1e-4 for at in found.sites.values())
    for with_error in (True, False):
        scores = circuit_scores(lm, saes, halves[1], found, sizes=[2 * WIDTH], with_error=with_error)
        assert scores["circuits"][0]["faithfulness"] == pytest.approx(1, abs=1e-4)


def test_strongest_are_the_largest_in_size() -> None:
    lm = shared_language_model("gpt2")
    found = attribute(lm, suite(lm), some_pairs()).sites["layers.1"]
    assert found.strongest(3).tolist() == found.effects.abs().argsort(descending=True)[:3].tolist()
    assert (found.effects < 0).any() and (found.effects > 0).any()
    assert len(found.strongest(10 * D_SAE)) == D_SAE


def test_special_tokens_keep_their_own_activations() -> None:
    """Their positions are all error, are left out of the means, and no circuit changes them."""
    lm, site = headed(Square(), tiny_tokenizer()), f"layers.{N_LAYERS - 1}"
    saes, pairs = suite(lm), some_pairs(seed=3)
    pairs.clean_ids[:, 0] = pairs.corrupt_ids[:, 0] = 0
    pairs.clean_ids[1, 2] = 0
    found = attribute(lm, saes, pairs, method="integrated", n_steps=1)
    assert found.sites[site].mean_latents[0].abs().max() == found.sites[site].mean_error[0].abs().max() == 0
    x = torch.cat([lm.activations(ids, site)[site][:, 2] for ids in (pairs.clean_ids, pairs.corrupt_ids)])
    rows = torch.arange(8) != 1
    torch.testing.assert_close(found.sites[site].mean_latents[2], saes[site].encode(x[rows]).mean(0))
    assert found.sites[site].total == pytest.approx(found.m_corrupt - found.m_clean, rel=1e-9)

    nothing_but = torch.zeros_like(pairs.clean_ids)
    special = TaskPairs("special", nothing_but, nothing_but, pairs.answer_ids, pairs.wrong_ids)
    scores = circuit_scores(lm, saes, special, found, sizes=[0, 3], with_error=False)
    assert scores["m_empty"] == scores["m_model"]
    # Nothing is left to be explained: no score, instead of a number made of rounding.
    assert [(circuit["faithfulness"], circuit["completeness"]) for circuit in scores["circuits"]] == [(None, None)] * 2


@pytest.mark.parametrize("architecture", ["falcon", "opt", "gemma2", "mixtral"])
def test_other_architectures(architecture: str) -> None:
    """Blocks that return tuples, outputs that are written into, outputs without a batch axis, experts."""
    lm, pairs = shared_language_model(architecture), some_pairs()
    sites = ["layers.0", "layers.1.mlp", "layers.1.attn"]
    saes = {site: random_sae(i) for i, site in enumerate(sites)}
    found = attribute(lm, saes, pairs)
    assert all(found.sites[site].effects.abs().max() > 0 for site in sites)
    assert found.m_clean == pytest.approx(m_by_hand(lm, pairs, pairs.clean_ids), rel=1e-4)
    whole = circuit_scores(lm, saes, pairs, found, sizes=[D_SAE], with_error=True)["circuits"][0]
    assert (whole["faithfulness"], whole["completeness"]) == (1, 0)


def test_the_saes_dtype_and_the_models_differ() -> None:
    lm, pairs = LanguageModel(tiny_model("gpt2").bfloat16()), some_pairs()
    saes = {site: random_sae(i) for i, site in enumerate(lm.sites)}
    for method in ("attribution", "integrated"):
        found = attribute(lm, saes, pairs, method=method)
        assert found.sites["layers.0"].effects.dtype == torch.float32
        assert found.sites["layers.0"].effects.isfinite().all()
    whole = circuit_scores(lm, saes, pairs, found, sizes=[D_SAE], with_error=True)["circuits"][0]
    assert whole["faithfulness"] == 1


def test_demo() -> None:
    """On the embedded model, whose final norm and blocks make m far from linear."""
    lm = LanguageModel("demo")
    ids = torch.randint(10, lm.vocabulary_size, (4, 8), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, 5] = ids[:, 5].roll(1)
    with torch.no_grad():
        answer, wrong = (lm.logits(side)[:, -1].argmax(1) for side in (ids, other))
    pairs = TaskPairs("demo", ids, other, answer, torch.where(answer == wrong, wrong + 1, wrong))
    sites = ["layers.5"]
    saes = {site: random_sae(i, d_in=lm.d_in(site)) for i, site in enumerate(sites)}
    found = attribute(lm, saes, pairs, method="integrated", n_steps=8)
    for site in sites:
        assert found.sites[site].total == pytest.approx(found.m_corrupt - found.m_clean, rel=0.05)
    scores = circuit_scores(lm, saes, pairs, found, sizes=[8, D_SAE], with_error=True)
    assert scores["circuits"][1]["faithfulness"] == 1


def test_gradient_modes_of_the_caller_do_not_matter() -> None:
    lm, pairs = LanguageModel(tiny_model("gpt2")), some_pairs()
    saes = suite(lm)
    with torch.no_grad():
        found = attribute(lm, saes, pairs)
    with torch.inference_mode():
        again = attribute(lm, saes, pairs)
    torch.testing.assert_close(found.sites["layers.0"].effects, again.sites["layers.0"].effects)
    assert not found.sites["layers.0"].effects.requires_grad
    assert all(weight.grad is None for weight in [*lm.model.parameters(), *saes["layers.0"].parameters()])


def test_hooks_are_removed_when_something_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, pairs = LanguageModel(tiny_model("gpt2")), some_pairs()
    saes, before = suite(lm), n_hooks(lm.model)
    found = attribute(lm, saes, pairs, method="integrated", n_steps=1)
    circuit_scores(lm, saes, pairs, found, sizes=[3], with_error=False)
    assert n_hooks(lm.model) == before
    monkeypatch.setattr(saes["layers.1"], "encode_sparse", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        circuit_scores(lm, saes, pairs, found, sizes=[3], with_error=False)
    monkeypatch.setattr(lm.model.lm_head, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attribute(lm, saes, pairs)
    assert n_hooks(lm.model) == before


def test_mistakes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, pairs = shared_language_model("gpt2"), some_pairs()
    saes, before = suite(lm), n_hooks(lm.model)
    found = attribute(lm, saes, pairs)
    with pytest.raises(
        UserError, match=r"`method` must be a way to attribute. Got 'exact'. Known are: 'attribution', 'integrated'"
    ):
        attribute(lm, saes, pairs, method="exact")
    with pytest.raises(UserError, match=r"`n_steps` must be at least 1. Got 0"):
        attribute(lm, saes, pairs, n_steps=0)
    with pytest.raises(UserError, match=r"`batch_size` must be at least 1. Got 0"):
        attribute(lm, saes, pairs, batch_size=0)
    with pytest.raises(UserError, match="`saes` must hold at least one SAE"):
        attribute(lm, {}, pairs)
    with pytest.raises(UserError, match="`pairs` must hold at least one pair"):
        attribute(lm, saes, some_pairs(0))
    with pytest.raises(UserError, match=f"d_in=5 at 'layers.1', which is {WIDTH} wide"):
        attribute(lm, {"layers.1": random_sae(d_in=5)}, pairs)
    with pytest.raises(UserError, match=r"Got BertForMaskedLM. Take a causal model"):
        attribute(shared_language_model("bert"), saes, pairs)
    own = saes["layers.1"]
    weights = {"W_enc": own.W_enc, "b_enc": own.b_enc, "W_dec": own.W_dec, "b_dec": own.b_dec}
    with pytest.raises(UserError, match=r"Got a transcoder at 'layers\.1'; leave it out"):
        attribute(lm, {"layers.1": Transcoder(**{k: w.data for k, w in weights.items()}, gate=own.gate)}, pairs)

    for sizes in ([], [-1], [D_SAE + 1]):
        with pytest.raises(UserError, match=rf"`sizes` must be .* each in \[0, {D_SAE}\].* Got \[.*\]"):
            circuit_scores(lm, saes, pairs, found, sizes=sizes, with_error=True)
    with pytest.raises(UserError, match=rf"as long as those of `attribution`, {SEQ} tokens. Got 9"):
        circuit_scores(lm, saes, some_pairs(seq=9), found, sizes=[1], with_error=True)
    with pytest.raises(UserError, match=r"`attribution` must be of the sites of `saes`, \['layers.1'\]"):
        circuit_scores(lm, {"layers.1": own}, pairs, found, sizes=[1], with_error=True)
    with pytest.raises(UserError, match=f"Got {D_SAE} features at 'layers.1', whose SAE has {2 * WIDTH}"):
        circuit_scores(lm, saes | {"layers.1": exact_sae()}, pairs, found, sizes=[1], with_error=True)
    monkeypatch.setattr(attribution_module, "_MEANS_BYTES", N_LAYERS * SEQ * D_SAE * 4 - 1)
    with pytest.raises(UserError, match=rf"\({SEQ} positions × d_sae\) take at most .* take fewer sites"):
        attribute(lm, saes, pairs)
    assert n_hooks(lm.model) == before
