"""The price of SAEs against what the language model's own training cost, and what interpretation would add."""

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from strata.amounts import powered, sized
from strata.costs.growth import LARGEST
from strata.costs.interpretation import Number, chosen_constants
from strata.costs.pretraining import pretraining_flops
from strata.plan.argument import Case, alternative_rows, entry, interpretation_rows, task_rows

_WIDTH = 110
_SMALLEST_MODEL = 1e5  # parameters; language models have more


def against(case: Case, *, constants: Mapping[str, Number] | None = None) -> dict[str, Any]:
    """What a plan costs next to pre-training, to explaining its features, and to steering without features.

    Args:
        case: the plan and its language model.
        constants: values for some of `strata.costs.interpretation.CONSTANTS`, by name.

    Returns:
        Numbers and words that JSON can hold; FLOPs in FLOPs, sizes in parameters, shares as multiples of pre-training:
        "subject", "training" (with its "parts"), "tasks", "interpretation" (with the model sizes at which each costs as
        much as pre-training), "alternatives" (per concept), "constants".

    Raises:
        UserError: fewer than two features, or a constant that does not exist.
    """
    chosen = chosen_constants(constants or {})
    trained_on = case.training_tokens
    pretraining = None if trained_on is None else pretraining_flops(case.size, trained_on)
    parts = _parts(case)
    training = float(sum(part["flops"] for part in parts))
    tasks, interpretation = list(task_rows(chosen, case)), list(interpretation_rows(chosen, case))
    alternatives = alternative_rows(chosen, case, training=training)
    for row in (*parts, *tasks, *interpretation, *alternatives):
        row["share"] = None if pretraining is None else row["flops"] / pretraining
    return {
        "subject": {
            "parameters": float(case.subject_parameters),
            "active_parameters": float(case.size),
            "training_tokens": None if trained_on is None else float(trained_on),
            "training_source": case.training_source,
            "pretraining_flops": pretraining,
        },
        "n_features": float(case.n_features),
        "n_settings": case.n_settings,
        "explainer_parameters": float(case.explainer_parameters),
        "forward_flops_per_token": float(case.forward_flops_per_token),
        "training": {
            "flops": training,
            "share": None if pretraining is None else training / pretraining,
            "parts": parts,
        },
        "tasks": tasks,
        "interpretation": interpretation,
        "alternatives": alternatives,
        "constants": [asdict(constant) for constant in chosen.values()],
    }


def _parts(case: Case) -> list[dict[str, Any]]:
    """What the training itself consists of."""
    steps = "SAE steps" if case.n_settings == 1 else f"SAE steps of {case.n_settings} settings"
    parts = {"language model's passes": case.lm_flops, steps: case.sae_flops}
    if case.measuring_flops is not None:
        parts["measuring and evaluating"] = case.measuring_flops
    return [entry(name, flops, "n", "as planned") for name, flops in parts.items()]


def render(found: Mapping[str, Any]) -> list[str]:
    """What `against` found, as lines of at most 110 characters."""
    pretraining, size = found["subject"]["pretraining_flops"], found["subject"]["active_parameters"]
    lines = ["Against the language model's own training", *_wrapped(_trained(found["subject"]))]
    training: list[dict[str, Any]] = [*found["training"]["parts"], {"name": "together", **found["training"]}]
    lines += [f"  {r['name']:<38}{_flops(r['flops']):>12}{_percent(r['share']):>17}" for r in training]
    features, explainer = f"{found['n_features']:,.0f} features", _size(found["explainer_parameters"])
    of_one = "" if found["n_settings"] == 1 else " of one setting"
    lines += ["", f"What interpretation would add: {features}{of_one}, an explainer of {explainer} parameters"]
    lines += [f"  {'':<38}{'FLOP':>12}{'× pre-training':>17}  grows as"]
    lines += [
        f"  {r['name']:<38}{_flops(r['flops']):>12}{_count(r['share']):>17}  {r['growth']}" for r in found["tasks"]
    ]
    lines += ["", f"If everything is explained, in models of n parameters: here n = {_size(size)}, F = {features}"]
    lines += [f"  {'':<38}{'FLOP here':>12}{'× pre-training':>17}  {'grows as':<12}cheaper than training (n^2)"]
    for kind, title in (
        ("fixed", f"an explainer of {explainer} parameters"),
        ("equal", "an explainer as large as the model"),
    ):
        lines.append(f"  {title}")
        lines += [
            f"    {r['name']:<36}{_flops(r['flops']):>12}{_count(r['share']):>17}  {r['growth']:<12}{_where(r)}"
            for r in found["interpretation"]
            if r["explainer"] == kind
        ]
    lines += _wrapped("+: in addition to explaining each feature, whose price and crossing are in the rows above it.")
    lines += _wrapped(_constants_matter(found)) if pretraining else []
    lines += ["", "Steering without features: the price of one direction, and how many of them could be had instead"]
    lines += [f"  {'':<38}{'FLOP of one':>12}{'instead of SAEs':>18}{'SAEs and explaining':>22}"]
    lines += [
        f"  {r['name']:<38}{_flops(r['flops']):>12}{_count(r['for_training']):>18}"
        f"{_count(r['for_training_and_explaining']):>22}"
        for r in found["alternatives"]
    ]
    return lines


def formulas(found: Mapping[str, Any]) -> list[str]:
    """Every formula of `against` with the numbers put in, every constant with its source, every assumption."""
    subject = found["subject"]
    lines = ["Formulas: formula = numbers = FLOP"]
    if subject["pretraining_flops"]:
        numbers = f"6·{subject['active_parameters']:.8g}·{subject['training_tokens']:.8g}"
        lines += _wrapped(f"pre-training: 6·n·D = {numbers} = {subject['pretraining_flops']:.4g}")
    for row in (*found["training"]["parts"], *found["tasks"], *found["interpretation"], *found["alternatives"]):
        explainer = {"fixed": " (explainer given)", "equal": " (explainer as large as the model)"}
        name = row["name"] + explainer.get(row.get("explainer", ""), "")
        numbers = f"{row['formula']} = {row['numbers']}" if row["numbers"] else row["formula"]
        lines += _wrapped(f"{name}: {numbers} = {row['flops']:.4g}")
    lines += ["", "Symbols of this plan", *(line for symbol in _SYMBOLS for line in _wrapped(symbol))]
    lines += ["", "Constants: symbol = value unit (source)"]
    for c in found["constants"]:
        lines += _wrapped(f"{c['symbol']} = {c['value']:,.6g} {c['unit']} ({c['source']})")
    return [*lines, "", "Assumptions", *(line for assumption in _ASSUMPTIONS for line in _wrapped(assumption))]


_SYMBOLS = (
    "n: parameters of the language model (those active for a token); D: tokens that it was trained on",
    "F: latents of all SAEs, of a sweep those of one setting; L: sites; k: active latents per row",
    "e: parameters of the explainer",
    "f: FLOPs per token of a forward as far as the deepest site; E: FLOPs per token of all encoders, Σ 2·d_in·d_sae",
)
_ASSUMPTIONS = (
    (
        "A forward is 2 FLOPs per parameter and token, a backward two forwards, training 6 (Kaplan et al. 2020, arXiv"
        " 2001.08361; Hoffmann et al. 2022, arXiv 2203.15556); attention's products and work done again are left out."
    ),
    (
        "Assumption: other models of the family have width and depth ∝ n^(1/3), so width × depth, and with it the"
        " latents at one expansion factor, ∝ n^(2/3). Features ∝ n is the other assumption that people make."
    ),
    (
        "Assumption: tokens of pre-training ∝ n, in this model's ratio, so pre-training ∝ n^2. With the tokens fixed it"
        " would be ∝ n, and n^(5/3) the cheaper one only below some size."
    ),
    "Assumption: calls per feature and tokens per call do not depend on n, and one explanation per feature suffices.",
    "Assumption: rows per SAE, tokens of statistics, prompts and kept features stay as they are when n grows.",
    (
        "Assumption: an explainer as large as the model can explain it. Small models cannot explain anything: for them"
        " these rows are arithmetic, not an offer. So are crossings many orders of magnitude away."
    ),
    (
        "Co-activation counts increments, one each. Cached prompts, batching and utilisation change dollars and"
        " seconds, not these FLOPs."
    ),
    "A steering vector's price has no search for its strength and no judging in it; neither have the features'.",
)


def _trained(subject: Mapping[str, Any]) -> str:
    if not subject["pretraining_flops"]:
        return (
            "It is not known how many tokens it was trained on, so no share and no crossing can be stated. Give the"
            " number (training tokens)."
        )
    return (
        f"pre-training = 6·n·D = 6 · {_size(subject['active_parameters'])} parameters ·"
        f" {_size(subject['training_tokens'])} tokens ({subject['training_source']}) ="
        f" {_flops(subject['pretraining_flops'])}"
    )


def _constants_matter(found: Mapping[str, Any]) -> str:
    units = next(r for r in found["interpretation"] if r["explainer"] == "equal")
    if units["cheaper"] != "above":
        return f"n^(5/3) is {units['cheaper']} the cheaper one with these constants, as far as n = {_size(LARGEST)}."
    away = math.log10(units["size"] / found["subject"]["active_parameters"])
    side = "larger" if away > 0 else "smaller"
    return (
        f"The constants decide: n^(5/3) undercuts n^2 above n·(F·c·t/(3·D))^3 = {_size(units['size'])} parameters,"
        f" {abs(away):.1f} orders of magnitude {side} than this model. They enter cubed: half the calls divide it by 8."
    )


def _where(row: Mapping[str, Any]) -> str:
    """For which models a row costs less than pre-training."""
    match row["cheaper"]:
        case None:
            return "?"
        case "above" | "below" as side:
            nowhere = "any model" if side == "above" else "no model"
            return f"{side} n = {_size(row['size'])}" + (f" ({nowhere})" if row["size"] < _SMALLEST_MODEL else "")
        case answer:
            return f"{answer} (both grow alike)" if row["alike"] else f"{answer}, as far as n = {_size(LARGEST)}"


def _wrapped(text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def _flops(value: Number) -> str:
    return sized(value, "FLOP")


def _size(value: Number) -> str:
    """A count of parameters or tokens: 480 B; beyond a thousand trillions as a power of ten."""
    if value >= 1e15:
        return powered(value)
    step = 0 if value < 1000 else min(int(math.log10(value * 1.0005) / 3), 4)
    return f"{value / 1000**step:.3g} {'KMBT'[step - 1] if step else ''}".strip()


def _percent(share: float | None) -> str:
    if share is None:
        return "?"
    if share >= 1:
        return f"{_count(share)} times it"
    return f"{powered(100 * share) if 0 < share < 1e-6 else format(100 * share, '.2g')} %"


def _count(value: Number | None) -> str:
    """A number of times, to three digits."""
    if value is None:
        return "?"
    if value >= 1e7 or 0 < value < 1e-4:
        return powered(value)
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"
