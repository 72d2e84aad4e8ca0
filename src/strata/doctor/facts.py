"""What a run says of itself before its first step, from any version of run.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from strata.doctor.expectation import described_sae, mapping
from strata.sae.optim import Schedule
from strata.sae.rules.registry import has_penalty

Source = Literal["stream", "memory", "store"]

_MODES: dict[str, Source] = {"stream": "stream", "collected": "memory", "store": "store"}
_LEAST_BUFFER = 65_536


@dataclass(frozen=True, kw_only=True)
class SAEFacts:
    """One SAE; None is what the run does not tell.

    Attributes:
        d_in: width of the rows.
        d_sae: latents.
        k: wanted active latents per row.
        architecture: the gate.
        window_steps: steps without firing after which a latent is dead.
        revival: the method, "none" among them.
        centring: whether the mean is subtracted.
        steered: the sparsity coefficient is steered so that L0 becomes k.
        warmup_steps: of the learning rate.
        decay_steps: of the learning rate.
        transcodes: predicts another site.
    """

    d_in: int | None = None
    d_sae: int | None = None
    k: int | None = None
    architecture: str = "topk"
    window_steps: int | None = None
    revival: str | None = None
    centring: bool = True
    steered: bool = False
    warmup_steps: int | None = None
    decay_steps: int | None = None
    transcodes: bool = False


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A run.

    Attributes:
        saes: by key.
        status: "training" or "trained"; None while it is watched.
        n_steps: of the whole run.
        batch_size: rows of a step.
        context_tokens: length of the packed sequences.
        source: where the rows come from: a language model as they are used, memory, a store; None if that is not told.
        buffer_rows: of the shuffle buffer; None without one.
        forward_rows: tokens of one forward pass; None when rows are not streamed.
        n_epochs: passes over the text.
        on_cpu: where it is trained; None if that is not told.
        predicted: seconds as `strata plan` predicts them, with "kind" and "rates"; empty if nothing is.
        seconds: of the parts, at the end.
    """

    saes: Mapping[str, SAEFacts]
    status: str | None = None
    n_steps: int | None = None
    batch_size: int | None = None
    context_tokens: int | None = None
    source: Source | None = None
    buffer_rows: int | None = None
    forward_rows: int | None = None
    n_epochs: int = 1
    on_cpu: bool | None = None
    predicted: Mapping[str, Any]
    seconds: Mapping[str, float]

    @property
    def n_rows(self) -> int | None:
        """Rows of the whole run."""
        return None if self.n_steps is None or self.batch_size is None else self.n_steps * self.batch_size

    @property
    def usual_buffer_rows(self) -> int:
        """Of the shuffle buffer if nothing else is asked for."""
        return max(_LEAST_BUFFER, 4 * (self.forward_rows or 0), 4 * (self.batch_size or 0))

    @property
    def shuffled_ahead(self) -> int:
        """Rows that a stream reads before its first step, and does not have to read for its last ones; else 0."""
        if self.forward_rows is None:
            return 0
        rows = self.buffer_rows or self.usual_buffer_rows
        return rows if self.n_rows is None else min(rows, self.n_rows)


def facts_of(record: Mapping[str, Any], *, folder: Path | None = None) -> Facts:
    """What run.json, or a training that begins, tells.

    Args:
        record: run.json, or as much of it as there is.
        folder: of the run, where old records leave the widths to the SAEs' own files.
    """
    config = mapping(record.get("config"))
    settings = mapping(config.get("sae"))
    batch_size = _whole(record.get("batch_size"), settings.get("batch_size"))
    context = _whole(record.get("context_tokens"), config.get("context_tokens"))
    n_steps = _whole(record.get("n_steps"))
    keys = list(mapping(record.get("saes")) or mapping(record.get("dead")))
    told = {key: _told(record, key, config=config, n_steps=n_steps, folder=folder) for key in keys}
    source = _source(record, config)
    streams = source == "stream"
    buffer_tokens, sequences = _whole(config.get("buffer_tokens")), _whole(settings.get("text_batch_size"))
    forward = _whole(record.get("forward_rows"), sequences * context if streams and sequences and context else None)
    device = mapping(record.get("hardware")).get("device")
    return Facts(
        saes={key: _sae_facts(one) for key, one in told.items()},
        status=record.get("status"),
        n_steps=n_steps,
        batch_size=batch_size,
        context_tokens=context,
        source=source,
        buffer_rows=_whole(record.get("buffer_rows"), buffer_tokens if streams else None),
        forward_rows=forward,
        n_epochs=_whole(record.get("n_epochs"), settings.get("num_epochs")) or 1,
        on_cpu=None if device is None else device == "cpu",
        predicted=mapping(record.get("predicted")),
        seconds={key: float(value) for key, value in mapping(record.get("seconds")).items() if value is not None},
    )


def _source(record: Mapping[str, Any], config: Mapping[str, Any]) -> Source | None:
    """Where rows come from; old records, which do not say, are of streams."""
    if record.get("forward_rows") is not None:
        return "stream"
    if record.get("mode") in _MODES:
        return _MODES[record["mode"]]
    if not config:
        return None
    return _MODES.get(config.get("activations", "stream"), "store")


def _told(
    record: Mapping[str, Any], key: str, *, config: Mapping[str, Any], n_steps: int | None, folder: Path | None
) -> dict[str, Any]:
    """All that is known of an SAE: its description, what follows from that, its files, its entry in the record."""
    settings = {**mapping(config.get("sae")), **_swept(key)}
    found = dict(settings)
    if folder is not None:
        found |= _of_files(folder / "sae" / key)
    described = described_sae(settings)
    if described is not None and n_steps is not None:
        schedule = Schedule(described, d_sae=found.get("d_sae") or 1, n_steps=n_steps)
        found |= {"window_steps": described.window_steps(n_steps), "revival": described.revival_method()}
        found |= {"warmup_steps": schedule.warmup_steps, "decay_steps": schedule.decay_steps}
    window_rows = mapping(mapping(record.get("dead")).get(key)).get("dead_window_rows")
    if window_rows and settings.get("batch_size"):
        found["window_steps"] = round(window_rows / settings["batch_size"])
    found["transcodes"] = config.get("target_site", "same") != "same"
    return found | dict(mapping(mapping(record.get("saes")).get(key)))


def _sae_facts(told: Mapping[str, Any]) -> SAEFacts:
    numbers = {name: _whole(told.get(name)) for name in ("d_in", "d_sae", "k", "window_steps")}
    numbers |= {name: _whole(told.get(name)) for name in ("warmup_steps", "decay_steps")}
    architecture = str(told.get("architecture", "topk"))
    return SAEFacts(
        **numbers,
        architecture=architecture,
        revival=told.get("revival"),
        centring=bool(told.get("centring", True)),
        steered=has_penalty(architecture) and told.get("sparsity_coefficient", "auto") == "auto",
        transcodes=bool(told.get("transcodes")) or told.get("target_site") is not None,
    )


def _of_files(folder: Path) -> dict[str, Any]:
    for name in ("cfg.json", "group.json"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
            return {key: found[key] for key in ("d_in", "d_sae")}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}


def _swept(key: str) -> dict[str, Any]:
    """The settings in the name of a sweep's SAE, `layers.3/k=16,seed=1`."""
    found: dict[str, Any] = {}
    label = next((part for part in key.split("/") if "=" in part), "")
    for word in filter(None, label.split(",")):
        name, _, value = word.partition("=")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = {"True": True, "False": False}.get(value, value)
    return found


def _whole(*values: Any) -> int | None:
    """The first that is a number."""
    known = (value for value in values if isinstance(value, int | float) and not isinstance(value, bool))
    return next((int(value) for value in known), None)
