"""What interpreting features costs, in FLOPs, next to steering without features; with the constants that go in.

A forward is counted as 2 FLOPs per parameter and token, a backward as two forwards (Kaplan et al. 2020, arXiv
2001.08361, section 2.1). Attention's own products are left out, which is little for prompts of about 1,000 tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from strata.errors import UserError, did_you_mean

FORWARD_FLOPS = 2.0  # per parameter and token
BACKWARD_FORWARDS = 2.0  # a backward costs this many forwards
ASSUMPTION = "assumption"
Number = int | float


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A number that the argument needs and no configuration tells.

    Attributes:
        name: by which it can be given.
        symbol: in the formulas.
        value: in its unit.
        unit: in words.
        source: who says so, or what begins with "assumption".
    """

    name: str
    symbol: str
    value: float
    unit: str
    source: str

    @property
    def assumed(self) -> bool:
        """Whether nobody but us says so."""
        return self.source.startswith(ASSUMPTION)


def _constant(name: str, symbol: str, value: Number, unit: str, source: str) -> Constant:
    return Constant(name=name, symbol=symbol, value=float(value), unit=unit, source=source)


_DELPHI = "EleutherAI/delphi's defaults"
CONSTANTS: Mapping[str, Constant] = {
    constant.name: constant
    for constant in (
        _constant(
            "explain_calls", "c", 41, "calls of the explainer per feature",
            f"{_DELPHI}: 1 explanation, and 2 scores of 100 examples, 5 in a prompt",
        ),
        _constant(
            "call_tokens", "t", 1000, "tokens per call",
            f"{ASSUMPTION}: about 800 that all prompts share (a cache saves most of their work) and 200 of its own",
        ),
        _constant("simulated_sequences", "q", 10, "simulated sequences per feature", f"{ASSUMPTION}: one per decile"),
        _constant(
            "sequence_tokens", "u", 992, "tokens per simulated sequence",
            f"{ASSUMPTION}: 800 of examples, and 64 tokens that take 3 each in the simulator's table",
        ),
        _constant("pair_calls", "p", 1, "calls of the explainer per pair of features", f"{ASSUMPTION}: the least"),
        _constant("statistics_tokens", "T", 10e6, "tokens", f"{_DELPHI}: tokens whose activations are cached"),
        _constant("prompt_tokens", "P", 10_000, "tokens", f"{ASSUMPTION}: 100 prompts of 100 tokens"),
        _constant(
            "gradient_steps", "S", 10, "points between clean and patched", "Marks et al. 2024, arXiv 2403.19647"
        ),
        _constant("kept_nodes", "V", 1000, "features whose edges are looked at", f"{ASSUMPTION}: a circuit's size"),
        _constant(
            "contrast_pairs", "m", 72, "pairs of texts per concept",
            "AxBench (arXiv 2501.17148), card of its data: 72 positive and 72 negative examples",
        ),
        _constant("contrast_tokens", "a", 128, "tokens per text", f"{ASSUMPTION}: a short answer"),
        _constant(
            "caa_pairs", "g", 500, "pairs of prompts per behaviour", f"{ASSUMPTION}: of hundreds of questions with two"
            " answers, as in Rimsky et al. 2023, arXiv 2312.06681",
        ),
        _constant("caa_tokens", "b", 100, "tokens per prompt", f"{ASSUMPTION}: a question and its answer's letter"),
    )
}  # fmt: skip


def chosen_constants(given: Mapping[str, Number]) -> dict[str, Constant]:
    """All constants, some with values that a user gives.

    Raises:
        UserError: an unknown name, or a value that is not positive and finite.
    """
    for name, value in given.items():
        if name not in CONSTANTS:
            raise UserError(
                f"A constant of the compute argument must be one of those listed. Got {name!r}."
                f"{did_you_mean(name, CONSTANTS)}"
            )
        _check(**{name: value})
    return {
        name: replace(constant, value=float(given[name]), source="given") if name in given else constant
        for name, constant in CONSTANTS.items()
    }


def explanation_flops(n_units: Number, *, calls: Number, call_tokens: Number, explainer_parameters: Number) -> float:
    """FLOPs of explaining units (features, or pairs of them) with an explainer, scoring included: units·c·t·2·e.

    Args:
        n_units: how many.
        calls: c, of the explainer per unit.
        call_tokens: t, per call, read and written alike.
        explainer_parameters: e; of one with experts, those active for a token.
    """
    _check(n_units=n_units, calls=calls, call_tokens=call_tokens, explainer_parameters=explainer_parameters)
    return n_units * calls * call_tokens * FORWARD_FLOPS * explainer_parameters


def partner_pairs(n_features: Number) -> float:
    """Pairs if each feature is looked at with log2 F others: F·log2 F.

    Raises:
        UserError: fewer than two features.
    """
    if not (n_features >= 2 and math.isfinite(n_features)):
        raise UserError(f"`n_features` must be finite and at least 2 for pairs. Got {n_features}. Give more features.")
    return n_features * math.log2(n_features)


def all_pairs(n_features: Number) -> float:
    """Ordered pairs of features, one with itself included: F²."""
    _check(n_features=n_features)
    return float(n_features) ** 2


def statistics_flops(n_tokens: Number, *, forward_flops: Number, encode_flops: Number) -> float:
    """FLOPs of one pass that gathers what dashboards show: T·(f + E); what is done with the k that fired is less.

    Args:
        n_tokens: T.
        forward_flops: f, of the language model as far as the deepest site, per token.
        encode_flops: E, of all encoders, Σ 2·d·h, per token.
    """
    _check(n_tokens=n_tokens, forward_flops=forward_flops, encode_flops=encode_flops)
    return float(n_tokens) * (forward_flops + encode_flops)


def coactivation_operations(n_tokens: Number, *, active: Number) -> float:
    """Increments of a sparse count of which features fire together: T·a².

    Args:
        n_tokens: T.
        active: features that fire on a token: k for one site, Σ k for pairs across sites.
    """
    _check(n_tokens=n_tokens, active=active)
    return float(n_tokens) * active**2


def attribution_flops(n_tokens: Number, *, parameters: Number) -> float:
    """FLOPs of attribution patching (AtP) for all features of all sites: two forwards and one backward, 8·n·P.

    Args:
        n_tokens: P, of the prompts.
        parameters: n, of the whole model, since the metric is at its end.
    """
    _check(n_tokens=n_tokens, parameters=parameters)
    return n_tokens * (2 + BACKWARD_FORWARDS) * FORWARD_FLOPS * parameters


def integrated_gradients_flops(n_tokens: Number, *, parameters: Number, n_sites: Number, steps: Number) -> float:
    """FLOPs of integrated gradients, one site at a time: L·S forwards and backwards, L·S·6·n·P."""
    _check(n_tokens=n_tokens, parameters=parameters, n_sites=n_sites, steps=steps)
    return n_sites * steps * n_tokens * (1 + BACKWARD_FORWARDS) * FORWARD_FLOPS * parameters


def edge_flops(n_tokens: Number, *, parameters: Number, kept_nodes: Number) -> float:
    """FLOPs of the edges among the features of a circuit: one backward for each that was kept, V·4·n·P."""
    _check(n_tokens=n_tokens, parameters=parameters, kept_nodes=kept_nodes)
    return kept_nodes * n_tokens * BACKWARD_FORWARDS * FORWARD_FLOPS * parameters


def contrast_flops(n_pairs: Number, *, tokens: Number, forward_flops: Number) -> float:
    """FLOPs of one steering vector from contrasting texts: two forwards per pair, 2·m·a·f.

    The same for a difference of means (over all tokens, texts not paired) and for contrastive activation addition
    (paired prompts, read at one position, arXiv 2312.06681): what differs is how many texts and how long.

    Args:
        n_pairs: m, texts with the concept, and as many without.
        tokens: a, per text.
        forward_flops: f, as far as the layer that is steered, per token.
    """
    _check(n_pairs=n_pairs, tokens=tokens, forward_flops=forward_flops)
    return 2.0 * n_pairs * tokens * forward_flops


def _check(**values: Number) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f"`{name}` must be positive and finite. Got {value}. Give another.")
