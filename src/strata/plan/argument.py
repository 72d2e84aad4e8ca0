"""The rows of the compute argument: tasks of interpretation, what they cost, how that grows, where it crosses."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from strata.config.settings import require
from strata.costs.growth import Law, crossing
from strata.costs.interpretation import (
    Constant,
    Number,
    all_pairs,
    attribution_flops,
    coactivation_operations,
    contrast_flops,
    edge_flops,
    explanation_flops,
    integrated_gradients_flops,
    partner_pairs,
    statistics_flops,
)
from strata.costs.pretraining import pretraining_flops
from strata.costs.step import SAEShape


@dataclass(frozen=True, kw_only=True)
class Case:
    """A plan and its language model, in the numbers that the argument is made of.

    Attributes:
        subject_parameters: of the language model.
        training_tokens: that it was trained on; None if nobody knows, then shares and crossings are None.
        training_source: who says so, for the reader: `KnownTokens.source`, or "given".
        sae_flops: of all SAE steps.
        lm_flops: of the language model's passes.
        n_features: F, latents of all SAEs together; of a sweep those of one setting, which alone would be explained.
        forward_flops_per_token: f, as far as the deepest site.
        active_parameters: of a model with experts, those active for a token; they count as its size n everywhere here.
        explainer_parameters: e, of the model that explains, active ones.
        saes: their shapes; without them what needs k or the sites' number is left out.
        measuring_flops: of held-out rows, finding groups and evaluating; None leaves them out of the training's price.
        n_settings: of a sweep, whose SAEs are all in `sae_flops`.

    Raises:
        UserError: a number that is not positive and finite (`lm_flops` and `measuring_flops` may be 0).
    """

    subject_parameters: Number
    training_tokens: Number | None
    training_source: str
    sae_flops: Number
    lm_flops: Number
    n_features: Number
    forward_flops_per_token: Number
    active_parameters: Number | None = None
    explainer_parameters: Number = 8e9
    saes: Sequence[SAEShape] = ()
    measuring_flops: Number | None = None
    n_settings: int = 1

    def __post_init__(self) -> None:
        positive = ("subject_parameters", "active_parameters", "sae_flops", "n_features", "forward_flops_per_token",
                    "explainer_parameters")  # fmt: skip
        for name in positive:
            value = self.size if name == "active_parameters" else getattr(self, name)
            rule, way_out = "be positive and finite", "Give the model's or the plan's number."
            require(value > 0 and math.isfinite(value), name, rule, value, way_out)
        for name in ("lm_flops", "measuring_flops"):
            value = getattr(self, name) or 0.0
            require(value >= 0 and math.isfinite(value), name, "not be negative", value, "Give 0 if a store is read.")

    @property
    def size(self) -> Number:
        """n, parameters of the language model that a token passes."""
        return self.subject_parameters if self.active_parameters is None else self.active_parameters


def entry(name: str, flops: Number, growth: str, formula: str, numbers: str = "") -> dict[str, Any]:
    """One row: its name, FLOPs, how they grow with the model's size, the formula, the numbers that were put in."""
    return {"name": name, "flops": float(flops), "growth": growth, "formula": formula, "numbers": numbers}


def task_rows(chosen: Mapping[str, Constant], case: Case) -> Iterator[dict[str, Any]]:
    """What interpretation can consist of; growth with tokens, expansion and explainer kept as they are."""
    size, saes, forward, explainer = case.size, case.saes, case.forward_flops_per_token, case.explainer_parameters
    c = {name: constant.value for name, constant in chosen.items()}
    n_tokens, prompt_tokens = c["statistics_tokens"], c["prompt_tokens"]
    n_sites = sum(sae.n_sites for sae in saes)
    if saes:
        encode = sum(2.0 * sae.d_in * sae.d_sae * sae.n_sites for sae in saes)
        flops = statistics_flops(n_tokens, forward_flops=forward, encode_flops=encode)
        yield entry("statistics of all features, one pass", flops, "n", "T·(f + E)", _put(n_tokens, (forward, encode)))
        squares = sum(sae.k**2 * sae.n_sites for sae in saes)
        flops = coactivation_operations(n_tokens, active=math.sqrt(squares))
        yield entry("co-activation within sites", flops, "n^(1/3)", "T·Σk²", _put(n_tokens, squares))
        active = sum(sae.k * sae.n_sites for sae in saes)
        flops = coactivation_operations(n_tokens, active=active)
        yield entry("co-activation across sites", flops, "n^(2/3)", "T·(Σk)²", _put(n_tokens, active, active))
    flops = attribution_flops(prompt_tokens, parameters=size)
    yield entry("attribution patching, all features", flops, "n", "8·n·P", _put(8, size, prompt_tokens))
    if saes:
        steps = c["gradient_steps"]
        flops = integrated_gradients_flops(prompt_tokens, parameters=size, n_sites=n_sites, steps=steps)
        numbers = _put(6, size, prompt_tokens, n_sites, steps)
        yield entry("integrated gradients, site by site", flops, "n^(4/3)", "6·n·P·L·S", numbers)
    nodes = c["kept_nodes"]
    flops = edge_flops(prompt_tokens, parameters=size, kept_nodes=nodes)
    yield entry("edges of the kept features", flops, "n", "4·n·P·V", _put(4, size, prompt_tokens, nodes))
    for name, formula, calls, tokens in (
        ("explanation and scores, all features", "F·c·t·2·e", c["explain_calls"], c["call_tokens"]),
        ("simulation, all features", "F·q·u·2·e", c["simulated_sequences"], c["sequence_tokens"]),
    ):
        flops = explanation_flops(case.n_features, calls=calls, call_tokens=tokens, explainer_parameters=explainer)
        yield entry(name, flops, "n^(2/3)", formula, _put(case.n_features, calls, tokens, 2, explainer))


def interpretation_rows(chosen: Mapping[str, Constant], case: Case) -> Iterator[dict[str, Any]]:
    """Explaining features for models of all sizes, and where that costs as much as pre-training.

    Rows of pairs (their names begin with "+") cost what is done in addition to explaining each feature.
    """
    size, n_features = case.size, case.n_features
    c = {name: constant.value for name, constant in chosen.items()}
    pairs, every = partner_pairs(n_features), all_pairs(n_features)
    cases = (
        ("each feature, F ∝ n^(2/3)", "F·c·t", n_features, c["explain_calls"], Fraction(2, 3), None),
        ("each feature, F ∝ n", "F·c·t", n_features, c["explain_calls"], Fraction(1), None),
        ("+ log2 F partners of each, F ∝ n", "F·log2(F)·p·t", pairs, c["pair_calls"], Fraction(1), n_features),
        ("+ every pair, F ∝ n", "F·F·p·t", every, c["pair_calls"], Fraction(2), None),
    )
    for kind, parameters, extra in (("fixed", case.explainer_parameters, 0), ("equal", size, 1)):
        for name, formula, n_units, calls, exponent, features in cases:
            flops = explanation_flops(
                n_units, calls=calls, call_tokens=c["call_tokens"], explainer_parameters=parameters
            )
            law = Law(flops=flops, size=size, exponent=exponent + extra, n_features=features)
            numbers = _put(n_units, calls, c["call_tokens"], 2, parameters)
            symbol = "e" if kind == "fixed" else "n"
            row = entry(name, flops, law.growth, f"{formula}·2·{symbol}", numbers)
            where = _where(law, case.training_tokens)
            yield {**row, "explainer": kind, "explainer_parameters": float(parameters), **where}


def _where(law: Law, training_tokens: Number | None) -> dict[str, Any]:
    if training_tokens is None:
        return {"cheaper": None, "size": None, "alike": None}
    trained = replace(
        law, flops=pretraining_flops(law.size, training_tokens), exponent=Fraction(2), n_features=None
    )  # data ∝ parameters
    found = crossing(law, trained)
    return {"cheaper": found.cheaper, "size": found.size, "alike": law.growth == trained.growth}


def alternative_rows(chosen: Mapping[str, Constant], case: Case, *, training: Number) -> list[dict[str, Any]]:
    """The price of one direction to steer along, and how many of them these SAEs and their explanations would pay."""
    n_features, explainer = case.n_features, case.explainer_parameters
    c = {name: constant.value for name, constant in chosen.items()}
    calls, tokens = c["explain_calls"], c["call_tokens"]
    explaining = explanation_flops(1, calls=calls, call_tokens=tokens, explainer_parameters=explainer)
    rows = [
        entry("a feature, trained", training / n_features, "", "planned/F", f"{training:.8g}/{n_features:.8g}"),
        entry("a feature, explained", explaining, "", "c·t·2·e", _put(calls, tokens, 2, explainer)),
    ]
    for name, formula, n_pairs, length in (
        ("a concept, difference of means", "2·m·a·f", c["contrast_pairs"], c["contrast_tokens"]),
        ("a behaviour, contrastive addition", "2·g·b·f", c["caa_pairs"], c["caa_tokens"]),
    ):
        flops = contrast_flops(n_pairs, tokens=length, forward_flops=case.forward_flops_per_token)
        rows.append(entry(name, flops, "n", formula, _put(2, n_pairs, length, case.forward_flops_per_token)))
    for row in rows:
        row["for_training"] = training / row["flops"]
        row["for_training_and_explaining"] = (training + n_features * explaining) / row["flops"]
    return rows


def _put(*factors: Number | tuple[Number, ...]) -> str:
    """The numbers of a formula: factors with dots in between, sums in brackets."""
    return "·".join(
        f"({' + '.join(f'{term:.8g}' for term in factor)})" if isinstance(factor, tuple) else f"{factor:.8g}"
        for factor in factors
    )
