"""Finished runs as others read them: what a run's folder says of itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata.atomic import read_object
from strata.errors import UserError


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
        folder: where it is.
        record: its run.json.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The description that was trained."""
        return self.record["config"]

    @property
    def data(self) -> str:
        """The text's name."""
        return self.config["data"]

    @property
    def text_batch_size(self) -> int:
        """Packed sequences per forward of its language model."""
        return self.config["sae"]["text_batch_size"]

    @property
    def random_seed(self) -> int | None:
        """Of the weights of a language model that had learned nothing (`strata.lm.random_weights`); None of others."""
        return self.config["sae"].get("seed", 0) if self.config.get("random_weights", False) else None

    @property
    def model_key(self) -> tuple[str, int | None]:
        """What two runs of the same language model have in common: its name and `random_seed`."""
        return self.config["model"], self.random_seed

    @property
    def text_key(self) -> tuple[str, int]:
        """What two runs of the same text have in common: fingerprint (else name) and context length."""
        fingerprint = self.record.get("text", {}).get("texts", {}).get("fingerprint", "unknown")
        return (self.data if fingerprint == "unknown" else fingerprint), self.config["context_tokens"]

    @property
    def rows_key(self) -> tuple[Any, ...]:
        """What two runs on the same rows have in common: text, number of rows, and whence they came."""
        return *self.text_key, self.record.get("n_rows"), self.config.get("activations", "stream")

    @property
    def hardware(self) -> str | None:
        """Where its seconds were measured, in words; None where its record does not tell."""
        told = self.record.get("hardware")
        if not told:
            return None
        device, cpu = told.get("device"), f"{told.get('cpu')}, {told.get('n_threads')} of {told.get('n_cores')} cores"
        return cpu if device == "cpu" else f"{device} ({cpu})"


def open_run(folder: Path) -> Run:
    """A finished run.

    Raises:
        UserError: no folder of a run, or one without SAEs.
    """
    path = folder / "run.json"
    if not path.is_file():
        raise UserError(
            f"A run must be a folder that `strata train` wrote. {folder} holds no run.json. Give e.g. runs/demo-stdlib."
        )
    try:
        record = read_object(path)
        known = {"model", "data", "context_tokens", "sae"} <= record["config"].keys()
        known = known and {"k", "text_batch_size"} <= record["config"]["sae"].keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        record, known = {}, False
    if not known:
        raise UserError(f"A run must have a whole run.json. {path} is damaged. Train the run again.")
    if not (folder / "sae").is_dir():
        status = record.get("status", "unknown")
        raise UserError(
            f"A run must be finished. {folder} holds no SAEs (status: {status}). Go on with strata train --resume."
        )
    return Run(folder, record)
