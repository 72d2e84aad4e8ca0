"""`strata steer`: text with and without a feature side by side, or steering methods compared."""

import math
import tempfile
import textwrap
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from strata.atomic import write_json
from strata.config.steer import SteerConfig
from strata.costs.steering import addition_flops, clamp_flops
from strata.errors import UserError
from strata.lm.model import LanguageModel
from strata.lm.text import open_texts
from strata.log import say
from strata.steer.benchmark import Trial, benchmark
from strata.steer.concepts import named_concepts
from strata.steer.generation import Generation, generate
from strata.steer.intervention import NO_STRENGTH, Feature, Intervention, Strength
from strata.steer.material import contrast, pieces, prompts
from strata.steer.method import Method
from strata.steer.methods import named_methods
from strata.steer.opened import OpenedRun, opened_run
from strata.steer.tables import table
from strata.visible_text import visible

_COLUMN = 58
_N_TEXTS, _N_PAIRS = 96, 96
_PROMPT_TOKENS = 48
_QUICK_CONCEPTS, _QUICK_PROMPTS, _QUICK_TEXTS, _QUICK_STRENGTHS = 2, 12, 32, 3


def steer(config: SteerConfig) -> list[str]:
    """The lines for stdout.

    Raises:
        UserError: no such run, site or latent, a feature that never fires where its maximum is the unit, a prompt
            that is too long, or results that are there already or cannot be written.
    """
    if not config.benchmark:
        return side_by_side(opened_run(config), config)
    out = config.results()
    _check_writable(out, overwrite=config.overwrite)
    results = compare(opened_run(config), config)
    try:
        write_json(out, results)
    except OSError as error:
        raise _unwritable(out, error) from error
    return [*table(results), "", str(out)]


def _check_writable(out: Path, *, overwrite: bool) -> None:
    """Before anything is computed."""
    if out.is_dir():
        raise UserError(f"`out` must be a file. {out} is a folder. Give a file in it, e.g. {out / 'steering.json'}.")
    if out.exists() and not overwrite:
        raise UserError(f"`out` must be a new file. {out} exists. Give another, or --overwrite.")
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> UserError:
    return UserError(f"`out` must be a file that can be written. {out}: {error.strerror or error}. Give another.")


def side_by_side(run: OpenedRun, config: SteerConfig) -> list[str]:
    """What the model writes by itself on the left, and with the feature on the right, for each strength."""
    assert config.latent != "none"
    lm, sae, feature = run.subject.lm, run.subject.sae, Feature(run.subject.sae, config.latent)
    plain = _write(lm, config, ())
    adds = config.mode == "add"
    cost = addition_flops(sae.d_in) if adds else clamp_flops(sae.d_in, sae.d_sae)
    share = 100 * cost / run.subject.model_flops
    lines = [
        f"{run.key}, latent {config.latent}, {config.mode}: {cost:,.0f} FLOPs per token, {share:.2g} % of a forward."
    ]
    if explanation := run.explanation(config.latent):
        lines += textwrap.wrap(f"Explained as: {visible(explanation)}", 2 * _COLUMN + 3)
    for strength in _strengths(run, config):
        one = Intervention(
            site=run.subject.site,
            direction=feature,
            mode=config.mode,
            strength=strength,
            positions=config.positions,
        )
        lines += ["", *_columns(config.prompt, plain, _write(lm, config, (one,)), _named(config, strength))]
    return lines


def compare(run: OpenedRun, config: SteerConfig) -> dict[str, Any]:
    """The benchmark's results, with the settings that made them."""
    lm, n_texts = run.subject.lm, _QUICK_TEXTS if config.quick else _N_TEXTS
    tokenizer: Any = lm.tokenizer
    if tokenizer is None:
        raise UserError(f"The benchmark must have a model with a tokenizer. {lm.name} has none. Give --latent instead.")
    if math.isnan(run.subject.sae_training_flops):
        raise UserError(
            f"The benchmark must know what training cost. The record of {run.run.folder}, or the configuration of"
            f" {lm.name}, does not tell. Train the run again."
        )
    concepts, methods = named_concepts(config.concepts), named_methods(config.methods)
    if config.quick:
        concepts, methods = concepts[:_QUICK_CONCEPTS], [_fewer(method) for method in methods]
    pool = pieces(open_texts(run.run.data, split="train"))
    trial = Trial(
        prompts=tuple(
            prompts(
                open_texts(run.run.data, split="held_out"),
                n=min(config.n_prompts, _QUICK_PROMPTS) if config.quick else config.n_prompts,
                fits=lambda text: len(tokenizer(text)["input_ids"]) <= _PROMPT_TOKENS,
            )
        ),
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )
    learned = [(one, contrast(one, pool, n_texts=n_texts, n_pairs=n_texts)) for one in concepts]
    results = benchmark(run.subject, learned, methods, trial, say=say)
    about = {"run": run.run.folder.name, "model": lm.name, "sae": run.key, "n_texts": n_texts, "quick": config.quick}
    return {**about, **results}


def _fewer(method: Method) -> Method:
    """A method with the strengths in the middle of its own."""
    given = method.strengths
    first = max(0, (len(given) - _QUICK_STRENGTHS + 1) // 2)
    some: Any = method
    return replace(some, strengths=given[first : first + _QUICK_STRENGTHS])


def _strengths(run: OpenedRun, config: SteerConfig) -> list[Strength]:
    assert config.latent != "none"
    if config.mode in NO_STRENGTH:
        return [Strength(value=0)]
    first = run.strength(1.0, unit=config.unit, latent=config.latent)
    return [replace(first, value=value) for value in config.strength]


def _named(config: SteerConfig, strength: Strength) -> str:
    """The heading of the steered text."""
    if config.mode in NO_STRENGTH:
        return config.mode
    if strength.unit == "absolute":
        return f"{config.mode} {strength.value:g}"
    words = {"max_activation": "the maximum", "norm": "the mean norm"}[strength.unit]
    return f"{config.mode} {strength.value:g} x {words} {strength.size:.3g} = {strength.amount:.3g}"


def _write(lm: LanguageModel, config: SteerConfig, interventions: tuple[Intervention, ...]) -> Generation:
    return generate(
        lm,
        [config.prompt],
        interventions=interventions,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )[0]


def _columns(prompt: str, plain: Generation, steered: Generation, heading: str) -> list[str]:
    """Two texts side by side under their headings."""
    left, right = (_wrapped(prompt + one.text) for one in (plain, steered))
    rows = [("by itself", heading), ("-" * _COLUMN, "-" * _COLUMN), *zip_longest(left, right, fillvalue="")]
    return [f"{one:<{_COLUMN}} | {other}".rstrip() for one, other in rows]


def _wrapped(text: str) -> list[str]:
    """Lines that fit a column; what no terminal should get is a picture of itself."""
    found: list[str] = []
    for line in text.expandtabs(4).split("\n"):
        found += textwrap.wrap(visible(line), _COLUMN, drop_whitespace=False, replace_whitespace=False) or [""]
    return found
