"""The language model that a run was trained on, loaded again and checked."""

from strata.errors import UserError
from strata.evaluate.runs import Run
from strata.lm.model import LanguageModel
from strata.lm.random_weights import with_random_weights


def language_model_of(run: Run, *, device: str = "auto", trust_remote_code: bool = False) -> LanguageModel:
    """The model of a run; one that had learned nothing gets the same random weights.

    Args:
        run: the run.
        device: "auto", "cpu", "cuda", "cuda:1".
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        UserError: it cannot be loaded.
    """
    name, seed = run.model_key
    lm = LanguageModel(name, device=device, trust_remote_code=trust_remote_code)
    return lm if seed is None else with_random_weights(lm, seed=seed)


def check_weights(lm: LanguageModel, run: Run) -> None:
    """That the model is the one that the run was trained on.

    Raises:
        UserError: its weights are others.
    """
    if run.record.get("model", {}).get("weights_sha256") not in (None, lm.fingerprint()["weights_sha256"]):
        raise UserError(
            f"A run's language model must be the one that it was trained on. The weights of {lm.name!r} are no longer"
            f" those of {run.folder}. Put the model back, or train again."
        )
