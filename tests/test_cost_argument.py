"""The compute argument: its formulas, how they grow, where they cross, what is printed, and the page about it."""

import json
import math
import re
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from strata.costs.flops import sae_step_flops
from strata.costs.growth import LARGEST, Law, crossing
from strata.costs.interpretation import (
    CONSTANTS,
    all_pairs,
    attribution_flops,
    chosen_constants,
    coactivation_operations,
    contrast_flops,
    edge_flops,
    explanation_flops,
    integrated_gradients_flops,
    partner_pairs,
    statistics_flops,
)
from strata.costs.pretraining import known_training_tokens, pretraining_flops
from strata.costs.step import SAEShape
from strata.errors import UserError
from strata.lm.flops import forward_flops_of
from strata.lm.model import LanguageModel
from strata.plan.against import against, formulas, render
from strata.plan.argument import Case

PAGE = Path(__file__).parents[1] / "docs" / "compute.md"
N, D_IN, D_SAE, K, N_SITES, N_ROWS, CONTEXT = 5_132_160, 192, 3072, 32, 8, 319_488, 256
LLAMA_N, LLAMA_FORWARD = 8_030_261_248, 2 * 32 * 218_103_808 + 4 * 2048 * 4096 * 32


@cache
def demo_forward() -> float:
    lm = LanguageModel("demo")
    assert sum(weight.numel() for weight in lm.model.parameters()) == N
    return forward_flops_of(lm, lm.sites, context_tokens=CONTEXT)


def demo(**changes: Any) -> dict[str, Any]:
    known = known_training_tokens("demo")
    assert known is not None
    settings: dict[str, Any] = {
        "training_tokens": known.n_tokens,
        "training_source": known.source,
        "sae_flops": N_SITES * N_ROWS * sae_step_flops(D_IN, D_SAE, K),
        "lm_flops": N_ROWS * demo_forward(),
        "n_features": N_SITES * D_SAE,
        "forward_flops_per_token": demo_forward(),
        "saes": [SAEShape(d_in=D_IN, d_sae=D_SAE, k=K)] * N_SITES,
        **changes,
    }
    constants = settings.pop("constants", None)
    return against(Case(**{"subject_parameters": N, **settings}), constants=constants)


def llama() -> dict[str, Any]:
    """Llama-3.1-8B with an SAE of 32 times its width on each of 32 layers, 4 billion tokens."""
    known, h, n_tokens = known_training_tokens("meta-llama/Llama-3.1-8B"), 131_072, 4e9
    assert known is not None
    case = Case(
        subject_parameters=LLAMA_N,
        training_tokens=known.n_tokens,
        training_source=known.source,
        sae_flops=32 * n_tokens * sae_step_flops(4096, h, 64),
        lm_flops=n_tokens * LLAMA_FORWARD,
        n_features=32 * h,
        forward_flops_per_token=LLAMA_FORWARD,
        saes=[SAEShape(d_in=4096, d_sae=h, k=64)] * 32,
    )
    return against(case)


def interpretation(found: dict[str, Any], name: str, explainer: str) -> dict[str, Any]:
    (row,) = [r for r in found["interpretation"] if (r["name"], r["explainer"]) == (name, explainer)]
    return row


def task(found: dict[str, Any], beginning: str) -> float:
    (row,) = [r for r in found["tasks"] if r["name"].startswith(beginning)]
    return row["flops"]


# pre-training


def test_pretraining_is_six_flops_per_parameter_and_token() -> None:
    assert pretraining_flops(175e9, 300e9) == pytest.approx(3.15e23)
    assert pretraining_flops(N, 7_372_800) == 6 * 5_132_160 * 7_372_800


@pytest.mark.parametrize(
    ("model", "n_tokens"),
    [
        ("demo", 7_372_800),
        ("EleutherAI/pythia-160m", 143_000 * 2_097_152),
        ("EleutherAI/pythia-6.9b-deduped", 299_892_736_000),
        ("EleutherAI/gpt-neo-1.3B", 380e9),
        ("meta-llama/Llama-2-7b-hf", 2e12),
        ("meta-llama/Meta-Llama-3-8B", 15e12),
        ("meta-llama/Llama-3.1-8B", 15e12),
        ("unsloth/Meta-Llama-3.1-70B-Instruct", 15e12),
        ("meta-llama/Llama-3.1-405B", 15.6e12),
        ("meta-llama/Llama-3.2-1B", 9e12),
        ("google/gemma-2b", 3e12),
        ("google/gemma-2-2b", 2e12),
        ("google/gemma-2-9b-it", 8e12),
        ("google/gemma-2-27b", 13e12),
        ("google/gemma-3-4b-pt", 4e12),
        ("Qwen/Qwen2-0.5B", 12e12),
        ("Qwen/Qwen2-7B-Instruct", 7e12),
        ("Qwen/Qwen2.5-7B", 18e12),
        ("Qwen/Qwen3-0.6B-Base", 36e12),
        ("Qwen/Qwen3-30B-A3B", 36e12),
        ("Qwen/Qwen3-4B-Instruct-2507", 36e12),
        ("allenai/OLMo-2-1124-7B", 4e12),
        ("allenai/OLMo-2-1124-13B", 5e12),
        ("HuggingFaceTB/SmolLM-135M", 600e9),
        ("HuggingFaceTB/SmolLM2-135M", 2e12),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 11e12),
        ("deepseek-ai/DeepSeek-V3", 14.8e12),
    ],
)
def test_tokens_of_listed_families(model: str, n_tokens: float) -> None:
    known = known_training_tokens(model)
    assert known is not None and known.n_tokens == n_tokens
    assert known.source and known.sure and known.family


@pytest.mark.parametrize(
    "model",
    [
        "openai-community/gpt2",
        "mistralai/Mistral-7B-v0.1",
        "Qwen/Qwen3-Embedding-0.6B",
        "Qwen/Qwen3-Reranker-4B",
        "Qwen/Qwen3-VL-8B-Instruct",
        "Qwen/Qwen3-Coder-30B-A3B-Instruct",
        "Qwen/Qwen2.5-Coder-7B",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        "deepseek-ai/DeepSeek-V3.1",
        "meta-llama/Llama-3.2-11B-Vision",
        "meta-llama/Llama-Guard-3-8B",
        "somebody/Llama-3.1-8B-pruned",
        "google/gemma-2-2b-sae",
        "google/codegemma-2b",
        "HuggingFaceTB/SmolLM3-3B",
        "TinyLlama/TinyLlama-1.1B-step-50K-105b",
        "EleutherAI/pythia-160m-seed1",
        "EleutherAI/pythia-1x4b",
        "models/pythia-160m",
        "demo2",
        "",
    ],
)
def test_near_misses_are_not_listed(model: str) -> None:
    assert known_training_tokens(model) is None


@pytest.mark.parametrize(("n", "tokens"), [(0, 1e9), (1e9, -1.0), (math.nan, 1e9), (1e9, math.inf)])
def test_pretraining_needs_positive_numbers(n: float, tokens: float) -> None:
    with pytest.raises(UserError, match=r"`n_(parameters|tokens)` must be positive and finite\. Got "):
        pretraining_flops(n, tokens)


# growth and crossings


def power(flops: float, exponent: Fraction | int, *, size: float = 1e8, features: float | None = None) -> Law:
    return Law(flops=flops, size=size, exponent=Fraction(exponent), n_features=features)


@pytest.mark.parametrize(("exponent", "text"), [(Fraction(5, 3), "n^(5/3)"), (1, "n"), (2, "n^2"), (0, "constant")])
def test_doubling_the_model_multiplies_by_a_power_of_two(exponent: Fraction | int, text: str) -> None:
    law = power(1e20, exponent)
    assert law.at(law.size) == pytest.approx(1e20)
    assert law.at(6e9) / law.at(3e9) == pytest.approx(2 ** float(exponent))
    assert law.growth == text


def test_a_logarithm_counts_the_features_of_the_other_size() -> None:
    law = power(1e20, 2, features=1024)
    assert law.growth == "n^2 log n"
    assert law.at(1e8 * 1024) / law.at(1e8) == pytest.approx(1024**2 * 2)  # log2 F: 10 -> 20
    with pytest.raises(UserError, match="more than one feature"):
        law.at(1e8 / 1024)


def test_powers_cross_where_they_are_equal() -> None:
    slow, fast = power(45.6, Fraction(5, 3)), power(1, 2)
    found = crossing(slow, fast)
    assert found.cheaper == "above" and found.size is not None
    assert found.size == pytest.approx(1e8 * 45.6**3)
    assert slow.at(found.size) == pytest.approx(fast.at(found.size))
    assert slow.at(found.size * 1.1) < fast.at(found.size * 1.1)
    back = crossing(fast, slow)
    assert (back.cheaper, back.size) == ("below", pytest.approx(found.size))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (power(1e5, 1, features=30_000), power(1, 2)),
        (power(3.0, 2, features=30_000), power(4.0, 2)),
        (power(0.5, 2, features=1e6), power(1.0, 2)),
        (power(0.01, 3, features=1e6), power(1.0, 2)),
        (power(2.0, Fraction(5, 3)), power(1.0, 1, features=1e9)),
        (power(1.0, 2, size=1e10), power(50.0, 1, size=1e6, features=100)),
    ],
)
def test_logarithms_cross_where_they_are_equal(one: Law, other: Law) -> None:
    found = crossing(one, other)
    assert found.size is not None
    assert one.at(found.size) == pytest.approx(other.at(found.size), rel=1e-6)
    cheaper = found.size * 1.2 if found.cheaper == "above" else found.size / 1.2
    dearer = found.size / 1.2 if found.cheaper == "above" else found.size * 1.2
    assert one.at(cheaper) < other.at(cheaper) and one.at(dearer) > other.at(dearer)


def test_curves_that_do_not_cross() -> None:
    assert crossing(power(2, 2), power(1, 2)).cheaper == "never"
    assert crossing(power(1, 2), power(2, 2)).cheaper == "always"
    assert crossing(power(1, 2), power(1, 2)).cheaper == "equal"
    assert crossing(power(1e30, Fraction(5, 3)), power(1, 2)).cheaper == "never"  # at 1e98 parameters
    assert crossing(power(1e-9, Fraction(5, 3)), power(1, 2)).cheaper == "always"  # from 1e-19 on
    assert crossing(power(16, 2, features=30_000), power(1, 2)).cheaper == "never"
    assert LARGEST == 1e30


def test_bad_laws_are_refused() -> None:
    with pytest.raises(UserError, match=r"`Law\.flops` must be positive and finite\. Got 0"):
        power(0.0, 1)
    with pytest.raises(UserError, match=r"`Law\.n_features` must be finite and at least 2.*Got 1"):
        power(1.0, 1, features=1.0)
    with pytest.raises(UserError, match="one law with a logarithm at most"):
        crossing(power(1, 2, features=10), power(1, 1, features=10))


# costs


def test_costs_by_hand() -> None:
    assert explanation_flops(10, calls=41, call_tokens=1000, explainer_parameters=8e9) == 10 * 41 * 1000 * 16e9
    assert statistics_flops(100, forward_flops=7, encode_flops=3) == 1000
    assert coactivation_operations(1e7, active=32) == pytest.approx(1.024e10)
    assert attribution_flops(100, parameters=5) == 8 * 5 * 100
    assert integrated_gradients_flops(100, parameters=5, n_sites=3, steps=10) == 3 * 10 * 6 * 5 * 100
    assert edge_flops(100, parameters=5, kept_nodes=7) == 7 * 4 * 5 * 100
    assert contrast_flops(72, tokens=128, forward_flops=3) == 2 * 72 * 128 * 3
    assert partner_pairs(1024) == 10_240 and all_pairs(1024) == 1024**2


@pytest.mark.parametrize("n_features", [1, 0, math.nan])
def test_pairs_need_two_features(n_features: float) -> None:
    with pytest.raises(UserError, match="must be finite and at least 2"):
        partner_pairs(n_features)


def test_costs_need_positive_numbers() -> None:
    with pytest.raises(UserError, match=r"`calls` must be positive and finite\. Got 0"):
        explanation_flops(10, calls=0, call_tokens=1, explainer_parameters=1)


def test_every_constant_has_a_source() -> None:
    assert all(c.source and c.unit and c.symbol and c.name == name for name, c in CONSTANTS.items())
    assert len({c.symbol for c in CONSTANTS.values()} | set("nDFeLfEk")) == len(CONSTANTS) + 8
    assert {c.assumed for c in CONSTANTS.values()} == {True, False}
    assert chosen_constants({"explain_calls": 2})["explain_calls"].source == "given"
    with pytest.raises(UserError, match=r"'explain_cals'\. Did you mean 'explain_calls'\?"):
        chosen_constants({"explain_cals": 2})
    with pytest.raises(UserError, match=r"`pair_calls` must be positive and finite\. Got -1"):
        chosen_constants({"pair_calls": -1})


# against


def test_shares_and_tasks_of_the_embedded_model() -> None:
    found = demo()
    pretraining = 6 * N * 7_372_800
    assert found["subject"]["pretraining_flops"] == pretraining
    assert found["training"]["share"] == pytest.approx(
        (N_ROWS * demo_forward() + N_SITES * N_ROWS * (2 * 192 * 3072 + 10 * 32 * 192)) / pretraining
    )
    assert task(found, "statistics") == 10e6 * (demo_forward() + N_SITES * 2 * D_IN * D_SAE)
    assert task(found, "co-activation within") == pytest.approx(10e6 * N_SITES * K**2)
    assert task(found, "co-activation across") == 10e6 * (N_SITES * K) ** 2
    assert task(found, "integrated") == N_SITES * 10 * 6 * N * 10_000
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_crossing_is_the_published_cube() -> None:
    """n·(F·c·t/(3·D))³, with the numbers of the plan; there both costs are equal."""
    found = demo()
    row = interpretation(found, "each feature, F ∝ n^(2/3)", "equal")
    assert row["cheaper"] == "above"
    assert row["size"] == pytest.approx(N * (24_576 * 41 * 1000 / (3 * 7_372_800)) ** 3)
    away = row["size"] / N
    assert row["flops"] * away ** (5 / 3) == pytest.approx(found["subject"]["pretraining_flops"] * away**2)
    halved = demo(constants={"explain_calls": 20.5})
    assert interpretation(halved, row["name"], "equal")["size"] == pytest.approx(row["size"] / 8)


def test_growth_of_each_case() -> None:
    growth = {(r["explainer"], r["name"]): (r["growth"], r["cheaper"], r["alike"]) for r in demo()["interpretation"]}
    assert growth == {
        ("fixed", "each feature, F ∝ n^(2/3)"): ("n^(2/3)", "above", False),
        ("fixed", "each feature, F ∝ n"): ("n", "above", False),
        ("fixed", "+ log2 F partners of each, F ∝ n"): ("n log n", "above", False),
        ("fixed", "+ every pair, F ∝ n"): ("n^2", "never", True),
        ("equal", "each feature, F ∝ n^(2/3)"): ("n^(5/3)", "above", False),
        ("equal", "each feature, F ∝ n"): ("n^2", "never", True),
        ("equal", "+ log2 F partners of each, F ∝ n"): ("n^2 log n", "never", False),
        ("equal", "+ every pair, F ∝ n"): ("n^3", "below", False),
    }


def test_experts_count_by_what_is_active() -> None:
    found, dense = demo(subject_parameters=10 * N, active_parameters=N), demo()
    assert found["subject"]["parameters"] == 10 * N
    assert found["interpretation"] == dense["interpretation"] and found["tasks"] == dense["tasks"]


def test_groups_share_features_but_are_encoded_per_layer() -> None:
    shapes = [SAEShape(d_in=D_IN, d_sae=D_SAE, k=K, n_sites=4)] * 2
    found, single = demo(saes=shapes, n_features=2 * D_SAE), demo()
    assert task(found, "statistics") == task(single, "statistics")
    assert task(found, "explanation") == task(single, "explanation") / 4


def test_alternatives_per_concept() -> None:
    trained, explained, means, caa = demo()["alternatives"]
    training = demo()["training"]["flops"]
    assert means["flops"] == 2 * 72 * 128 * demo_forward() and caa["flops"] == 2 * 500 * 100 * demo_forward()
    assert trained["flops"] * 24_576 == pytest.approx(training)
    assert means["for_training"] == pytest.approx(training / means["flops"])
    both = training + 24_576 * explained["flops"]
    assert caa["for_training_and_explaining"] == pytest.approx(both / caa["flops"])


def test_unknown_training_tokens_leave_shares_open() -> None:
    found = demo(training_tokens=None, training_source="not known")
    assert found["training"]["share"] is None
    assert {r["cheaper"] for r in found["interpretation"]} == {None}
    text = "\n".join(render(found))
    assert "It is not known how many tokens it was trained on" in text and "71,000" not in text


def test_without_shapes_only_what_is_known_is_shown() -> None:
    names = [r["name"] for r in demo(saes=())["tasks"]]
    assert not [n for n in names if n.startswith(("statistics", "co-activation", "integrated"))]
    assert [n for n in names if n.startswith("attribution")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sae_flops": 0}, r"`sae_flops` must be positive and finite\. Got 0"),
        ({"lm_flops": -1.0}, r"`lm_flops` must not be negative\. Got -1\.0\. Give 0 if a store is read"),
        ({"n_features": 1}, r"`n_features` must be finite and at least 2 for pairs\. Got 1"),
        ({"explainer_parameters": 0}, r"`explainer_parameters` must be positive"),
        ({"training_tokens": -5}, r"`n_tokens` must be positive and finite\. Got -5"),
        ({"active_parameters": 0}, r"`active_parameters` must be positive"),
        ({"constants": {"calls": 3}}, r"Got 'calls'"),
    ],
)
def test_bad_plans_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        demo(**change)


@pytest.mark.parametrize("found", [demo, llama], ids=["demo", "llama"])
def test_lines_fit(found: Any) -> None:
    lines = [*render(found()), *formulas(found())]
    assert max(map(len, lines)) <= 110
    assert not [line for line in lines if line != line.rstrip() or "nan" in line.split()]


def test_explained_numbers_give_the_stated_result() -> None:
    """What --explain prints as put in is multiplied out again."""
    found = demo()
    assert [r["formula"] for r in found["training"]["parts"]] == ["as planned"] * 2
    rows = [r for r in (*found["tasks"], *found["interpretation"], *found["alternatives"]) if r["numbers"]]
    assert len(rows) == 8 + 8 + 4
    for row in rows:
        assert re.fullmatch(r"[\d.e+·/() ]+", row["numbers"])
        assert eval(row["numbers"].replace("·", "*")) == pytest.approx(row["flops"], rel=1e-6), row["name"]
    text = "\n".join(formulas(found))
    for constant in CONSTANTS.values():
        assert f"  {constant.symbol} = " in text
    assert text.count("Assumption: ") >= 5


# the page


def shown(size: float) -> str:
    return f"{size / 1e9:.3g} B" if size >= 1e9 else f"{size / 1e6:.3g} M" if size >= 1e6 else f"{size:.3g}"


def times(share: float) -> str:
    return f"{float(f'{share:.3g}'):,.10g} ×"


def sensitivity() -> list[tuple[str, dict[str, Any]]]:
    return [
        ("as above", demo()),
        ("half the calls per feature (20.5)", demo(constants={"explain_calls": 20.5})),
        ("one call per feature, no scores", demo(constants={"explain_calls": 1})),
        ("200 tokens per call (a cache that costs nothing)", demo(constants={"call_tokens": 200})),
        ("one SAE instead of eight", demo(n_features=D_SAE)),
        ("20 tokens of training per parameter", demo(training_tokens=20 * N, training_source="given")),
    ]


def test_the_page_shows_what_the_code_computes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert "\n```text\n" + "\n".join(render(demo())) + "\n```\n" in page
    for change, found in sensitivity():
        row = interpretation(found, "each feature, F ∝ n^(2/3)", "equal")
        assert f"| {change} | {times(row['share'])} | {shown(row['size'])} |" in page
    for title, found in (("the embedded model", demo()), ("Llama-3.1-8B", llama())):
        units, pairs = (interpretation(found, name, "equal") for name in
                        ("each feature, F ∝ n^(2/3)", "+ every pair, F ∝ n"))  # fmt: skip
        cells = (
            shown(found["subject"]["active_parameters"]),
            times(found["subject"]["training_tokens"] / found["subject"]["parameters"]).rstrip(" ×"),
            f"{100 * found['training']['share']:.2g} %",
            *(times(r["share"]) for r in (units, pairs)),
            shown(units["size"]),
        )
        assert f"| {title} | {' | '.join(cells)} |" in page


def test_the_page_names_every_constant_that_it_can() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for c in CONSTANTS.values():
        assert f"| {c.symbol} | {c.value:,.0f} | {c.unit} | {c.source} |" in page


def test_the_pages_sentences_carry_the_computed_numbers() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    found, large = demo(), llama()
    fixed = [interpretation(found, f"each feature, F ∝ {growth}", "fixed") for growth in ("n^(2/3)", "n")]
    _, explained, means, _ = found["alternatives"]
    pairs = interpretation(found, "+ every pair, F ∝ n", "equal")
    large_units, large_pairs = (
        interpretation(large, f"{name}, F ∝ n", "equal") for name in ("each feature", "+ every pair")
    )
    for sentence in (
        f"**The SAEs themselves are cheap**: {100 * found['training']['share']:.1f} % of the model's training",
        f"it is {times(fixed[0]['share']).rstrip(' ×')} times the training of this model",
        f"win sooner, above {shown(fixed[0]['size'])} and {shown(fixed[1]['size'])}",
        f"with more than {pairs['size']:.0f} parameters",
        f"one gets {means['for_training']:.0f} directions by difference of means",
        f"as much as {round(explained['flops'] / means['flops'], -2):,.0f} of them",
        f"explaining every feature is {100 * large_units['share']:.1f} % of training",
        f"Every pair is {large_pairs['share']:.0f} times the training of Llama-3.1-8B",
    ):
        assert sentence in page, sentence
