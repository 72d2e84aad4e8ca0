"""Steering methods compared: concept against fluency over strengths, the strength chosen on prompts that do not count.

For every concept a method learns from training texts, writes after held-out prompts at each of its strengths, and is
judged without a language model for the concept and by the language model, not steered, for fluency. The strength with
the best mean on the first half of the prompts is reported on the other half (as in AxBench, arXiv 2501.17148).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.errors import UserError
from strata.steer.concepts import Concept
from strata.steer.generation import Generation, generate, prompt_ids
from strata.steer.intervention import Number
from strata.steer.material import Contrast
from strata.steer.method import Applied, Lengths, Method
from strata.steer.scores import Scores, scores
from strata.steer.subject import Subject

_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What all methods have in common.

    Attributes:
        prompts: held-out; the strength is chosen on the first half of them.
        max_new_tokens: written after each at most.
        temperature: of sampling.
        seed: of sampling; the same draws for every method and strength.
    """

    prompts: tuple[str, ...]
    max_new_tokens: int
    temperature: Number
    seed: int

    def __post_init__(self) -> None:
        if len(self.prompts) < 4:
            raise UserError(f"`n_prompts` must be at least 4, in two halves. Got {len(self.prompts)}. Give more.")

    @property
    def n_choose(self) -> int:
        """Prompts on which the strength is chosen."""
        return len(self.prompts) // 2


def benchmark(
    subject: Subject,
    concepts: Sequence[tuple[Concept, Contrast]],
    methods: Sequence[Method],
    trial: Trial,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run it.

    Args:
        subject: what is steered.
        concepts: each with its training material.
        methods: that are compared; the model runs as it is in any case, as fluency refers to that.
        trial: prompts and generation.
        say: hears what has been done.

    Returns:
        JSON-able: ``concepts``, per concept and method the ``chosen`` strength with its numbers on the other prompts
        and every strength's numbers on both halves; ``methods``, means over concepts with a 95 % interval (bootstrap
        over prompts) and FLOPs; ``unsteered_perplexity``; ``seconds``.
    """
    started = time.monotonic()
    plain = _Unsteered.of(subject, trial, concepts[0][0])
    rows: dict[str, dict[str, Any]] = {concept.name: {} for concept, _ in concepts}
    parts: dict[str, list[dict[str, Tensor]]] = {method.name: [] for method in methods}
    for concept, material in concepts:
        for method in methods:
            row, tested = _tried(subject, method, concept, material, trial=trial, plain=plain)
            rows[concept.name][method.name] = row
            parts[method.name].append(tested)
            found = row["test"]
            say(f"{concept.name:<12} {method.name:<11} strength {row['chosen']:<5} score {found['score']:.3f}")
    return {
        "site": subject.site,
        "n_prompts": {"choose": trial.n_choose, "test": len(trial.prompts) - trial.n_choose},
        "max_new_tokens": trial.max_new_tokens,
        "temperature": trial.temperature,
        "seed": trial.seed,
        "unsteered_perplexity": float(torch.tensor(plain.nats).exp()),
        "lengths_tokens": {"prompt": plain.lengths.prompt, "written": plain.lengths.written},
        "forward_flops_per_token": subject.model_flops,
        "methods": {name: _summary(name, rows, tested) for name, tested in parts.items()},
        "concepts": rows,
        "seconds": time.monotonic() - started,
    }


@dataclass(frozen=True)
class _Unsteered:
    """What the language model writes by itself, on which fluency and costs are counted: the prompts' ids, the texts,
    their lengths, and the mean negative log-probability of a token of them.
    """

    prompt_ids: list[list[int]]
    written: list[Generation]
    lengths: Lengths
    nats: float

    @classmethod
    def of(cls, subject: Subject, trial: Trial, concept: Concept) -> "_Unsteered":
        ids = prompt_ids(subject.lm, trial.prompts)
        written = _write(subject, Applied(), trial)
        n_written = sum(len(one.token_ids) for one in written)
        if not n_written:
            raise UserError(
                f"The language model must write something by itself. {subject.lm.name} ended every text at once."
            )
        lengths = Lengths(prompt=sum(map(len, ids)) / len(ids), written=n_written / len(written))
        return cls(ids, written, lengths, scores(subject.lm, written, concept, prompts=ids).mean_nats)


def _write(subject: Subject, applied: Applied, trial: Trial) -> list[Generation]:
    return generate(
        subject.lm,
        [applied.prefix + prompt for prompt in trial.prompts],
        interventions=applied.interventions,
        max_new_tokens=trial.max_new_tokens,
        temperature=trial.temperature,
        seed=trial.seed,
    )


def _tried(
    subject: Subject, method: Method, concept: Concept, material: Contrast, *, trial: Trial, plain: _Unsteered
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A method on a concept: its numbers, and those of each test prompt at the strength that was chosen."""
    built = method.build(subject, material)
    judged: dict[Number, Scores] = {}
    for strength in method.strengths:
        applied = built.at(strength)
        written = plain.written if applied == Applied() else _write(subject, applied, trial)
        judged[strength] = scores(subject.lm, written, concept, prompts=plain.prompt_ids)
    choose, test = slice(0, trial.n_choose), slice(trial.n_choose, None)
    sweep = {
        str(strength): {"choose": _numbers(found, plain.nats, choose), "test": _numbers(found, plain.nats, test)}
        for strength, found in judged.items()
    }
    chosen = max(judged, key=lambda strength: sweep[str(strength)]["choose"]["score"])
    best, cost = judged[chosen], built.cost(chosen, plain.lengths)
    row = {
        "found": built.found,
        "unit": method.unit,
        "chosen": chosen,
        "test": sweep[str(chosen)]["test"],
        "strengths": sweep,
        "flops": {"training": cost.training, "concept": cost.concept, "token": cost.token},
    }
    tested = {
        "score": best.combined(plain.nats)[test],
        "concept": best.concept[test],
        "fluency": best.fluency(plain.nats)[test],
        "distinct": best.distinct[test],
    }
    return row, tested


def _numbers(found: Scores, reference: float, part: slice) -> dict[str, float]:
    some = Scores(found.concept[part], found.nats[part], found.n_tokens[part], found.distinct[part])
    return {
        "score": float(some.combined(reference).mean()),
        "concept": float(some.concept.mean()),
        "fluency": float(some.fluency(reference).mean()),
        "perplexity": float(torch.tensor(some.mean_nats).exp()),
        "distinct": float(some.distinct.mean()),
    }


def _summary(name: str, rows: dict[str, dict[str, Any]], tested: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Means over concepts of a method, on the prompts that count."""
    mine = [of_concept[name] for of_concept in rows.values()]
    means = {key: float(torch.stack([one[key] for one in tested]).mean()) for key in tested[0]}
    low, high = interval(torch.stack([one["score"] for one in tested]))
    flops = {key: sum(row["flops"][key] for row in mine) / len(mine) for key in mine[0]["flops"]}
    return {**means, "score_low": low, "score_high": high, "flops": flops}


def interval(values: Float[Tensor, "concepts prompts"]) -> tuple[float, float]:
    """95 % interval of the mean by a bootstrap over prompts, which all concepts share; concepts are taken as given."""
    random = torch.Generator().manual_seed(0)
    of_prompt = values.mean(0)
    drawn = torch.randint(len(of_prompt), (_RESAMPLES, len(of_prompt)), generator=random)
    low, high = of_prompt[drawn].mean(1).quantile(torch.tensor([0.025, 0.975]))
    return float(low), float(high)
