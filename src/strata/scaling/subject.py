"""The language model whose rows a sweep was trained on, and what its own training cost."""

from collections.abc import Mapping
from typing import Any

from strata.config.scaling import ScalingConfig
from strata.costs.pretraining import known_training_tokens, pretraining_flops
from strata.errors import UserError
from strata.lm.outline import outline
from strata.plan.model import Model


def subject_of(record: Mapping[str, Any], config: ScalingConfig) -> dict[str, Any]:
    """Parameters, tokens and where they are from, and the FLOPs of 6·N·tokens, N being those that a token passes.

    Args:
        record: of the sweep.
        config: `training_tokens`, and whether code of the model may run.

    Returns:
        `name`, `n_parameters`, `counted_parameters`, `n_tokens`, `source`, `flops`, None where unknown, and `doubt`: a
        sentence where it is not known whether a token passes all parameters, else None.
    """
    model = record["model"]
    n_parameters, name = model.get("n_parameters"), str(model.get("name"))
    known = known_training_tokens(name)
    if config.training_tokens != "auto":
        tokens, source = float(config.training_tokens), "given"
    else:
        tokens, source = (known.n_tokens, known.source) if known else (None, "not known: give --training-tokens")
    found = {"name": name, "n_parameters": n_parameters, "n_tokens": tokens, "source": source}
    if not (n_parameters and tokens):
        return found | {"counted_parameters": n_parameters, "flops": None, "doubt": None}
    counted, why = _passed(model, name, float(n_parameters), trust_remote_code=config.trust_remote_code)
    doubt = (
        f"6·N·tokens of the language model counts all of its parameters. If a token passes only some of them, as with"
        f" experts, its training cost less ({why})."
    )
    flops = pretraining_flops(counted, tokens)
    return found | {"counted_parameters": counted, "flops": flops, "doubt": doubt if why else None}


def _passed(
    model: Mapping[str, Any], name: str, n_parameters: float, *, trust_remote_code: bool
) -> tuple[float, str | None]:
    """The parameters that a token passes, by the model's outline; all of them, and why, where it cannot be had."""
    if name == model.get("model_class"):
        return n_parameters, "the store names no checkpoint of it"
    try:
        lm = outline(name, trust_remote_code=trust_remote_code)
    except UserError as error:
        return n_parameters, f"its outline cannot be made: {str(error).rstrip('.')}"
    drawn = Model.of(lm, context_tokens=1, lm_dtype="auto", device="cpu", on_device=False)
    if drawn.n_parameters != n_parameters:
        return n_parameters, f"{name} has another number of parameters than the model of the store"
    if drawn.active_parameters is not None:
        return drawn.active_parameters, None
    experts = any("experts" in part.split(".") for part, _ in lm.model.named_parameters())
    return n_parameters, "how many of its experts a token passes is not known" if experts else None
