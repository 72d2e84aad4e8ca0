"""Training SAEs: the loop, and the ways into it from Python."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from strata.activations.collected import Activations
from strata.activations.harvest import token_stream
from strata.activations.source import RowSource, ShuffledRows
from strata.activations.stream import Stream
from strata.checkpoint import load_checkpoint, save_checkpoint
from strata.config import SAEConfig
from strata.durations import Duration
from strata.errors import UserError
from strata.lm.loading import chosen_device
from strata.lm.model import LanguageModel
from strata.lm.precision import fast_dtype
from strata.log import MetricsFile, Progress
from strata.sae.learner import Learner
from strata.sae.model import SAE

_NORMALIZATION_ROWS = 2**16
_TENTH = Duration(10.0, "percent")


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a training leaves behind while it runs, and how often.

    Attributes:
        folder: run folder for metrics.jsonl and checkpoints; None records nothing.
        resume: go on from the folder's last checkpoint.
        log_every_steps: steps between two lines.
        checkpoint_every: distance between two checkpoints.
        progress: show a progress bar or lines on stderr.
    """

    folder: Path | None = None
    resume: bool = False
    log_every_steps: int = 10
    checkpoint_every: Duration = _TENTH
    progress: bool = True


@dataclass(frozen=True)
class Trained:
    """What came out of a training.

    Attributes:
        saes: by site, in the model's own scale.
        dead: by site, the share of latents that did not fire in the last `dead_window_rows` rows.
        n_steps: steps of the whole run.
        seconds: of the whole run, resumed parts included: `total`, in the `sae` steps, and waiting for `rows` (the
            language model, when streaming). On CUDA the two parts say how long launching took.
    """

    saes: dict[str, SAE]
    dead: dict[str, dict[str, float]]
    n_steps: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Prepared:
    """A training that can begin: everything that its input can be wrong about has been looked at.

    Attributes:
        config: of every SAE.
        learners: by site, normalised and initialised.
        rows: in their shuffled order.
        n_steps: of the whole run.
        metadata: by site, what the SAEs will say of their origin.
    """

    config: SAEConfig
    learners: dict[str, Learner]
    rows: ShuffledRows
    n_steps: int
    metadata: dict[str, dict[str, Any]]


def prepare(
    source: RowSource, config: SAEConfig, *, init: dict[str, SAE] | None = None, device: str | None = None
) -> Prepared:
    """Look at the source and make one SAE per site ready for training.

    Args:
        source: activations that were collected before, or a stream.
        config: of every SAE.
        init: SAEs to start from, by site.
        device: where the SAEs are trained; None is where the rows are.

    Raises:
        UserError: fewer rows than one batch, k larger than d_sae, activations that are not finite, or an `init` that
            does not fit.
    """
    for site in source.sites:
        config.d_sae(source.d_in(site))
    unknown = set(init or {}) - set(source.sites)
    if unknown:
        raise UserError(
            f"`init` names a site that is not trained: {unknown.pop()!r}. Trained are {', '.join(source.sites)}."
        )
    n_steps = source.n_rows() * config.num_epochs // config.batch_size
    if n_steps == 0:
        raise UserError(
            f"The text must give at least one batch of `batch_size`={config.batch_size} rows. It gives"
            f" {source.n_rows()} a pass. Give more text or lower batch_size."
        )
    rows = source.shuffled(batch_size=config.batch_size, n_epochs=config.num_epochs, seed=config.seed)
    learners = {}
    for site in source.sites:
        sample = rows.sample(_NORMALIZATION_ROWS, site=site).to(device)
        dtype = fast_dtype(sample.device)
        start = (init or {}).get(site)
        learners[site] = Learner(config, n_steps=n_steps, sample=sample, site=site, score_dtype=dtype, init=start)
    return Prepared(config, learners, rows, n_steps, origins(source))


def train(prepared: Prepared, recording: Recording = Recording()) -> Trained:
    """Train what was prepared: one SAE per site, side by side on the same batches.

    Raises:
        UserError: a loss that is not finite, or nothing to resume.
    """
    learners = prepared.learners
    step, seconds = _restore(learners, recording) if recording.resume else (0, {"total": 0.0, "sae": 0.0, "rows": 0.0})
    _loop(prepared, recording, step=step, seconds=seconds)
    batch_size = prepared.config.batch_size
    return Trained(
        saes={site: learner.finish(prepared.metadata[site]) for site, learner in learners.items()},
        dead={
            site: {"dead_share": learner.dead_share(), "dead_window_rows": learner.window_steps * batch_size}
            for site, learner in learners.items()
        },
        n_steps=prepared.n_steps,
        seconds=seconds,
    )


def _loop(prepared: Prepared, recording: Recording, *, step: int, seconds: dict[str, float]) -> None:
    """The training loop, from `step` to the end; adds to `seconds` as it goes."""
    learners, n_steps, batch_size = prepared.learners, prepared.n_steps, prepared.config.batch_size
    folder = recording.folder
    log_file = MetricsFile(
        folder / "metrics.jsonl" if folder else None, keep_to_step=step if recording.resume else None
    )
    checkpoint_steps = max(1, recording.checkpoint_every.steps(n_steps=n_steps, batch_size=batch_size))
    batches = prepared.rows.batches(start_step=step)
    logged_step, logged_seconds = step, seconds["total"]
    with log_file as metrics, Progress(n_steps=n_steps, first_step=step, shown=recording.progress) as progress:
        while step < n_steps:
            start = time.perf_counter()
            batch = next(batches)
            got_rows = time.perf_counter()
            for site, learner in learners.items():
                learner.step(batch[site].to(learner.device))
            step += 1
            end = time.perf_counter()
            for part, spent in (("rows", got_rows - start), ("sae", end - got_rows), ("total", end - start)):
                seconds[part] += spent
            progress.advance(step)
            if step % recording.log_every_steps == 0 or step == n_steps:
                statistics = {site: learner.statistics() for site, learner in learners.items()}
                _check_finite(statistics, step=step)
                rate = (step - logged_step) * batch_size / (seconds["total"] - logged_seconds)
                logged_step, logged_seconds = step, seconds["total"]
                metrics.write(
                    {
                        "step": step,
                        "rows": step * batch_size,
                        "tokens": step * batch_size,  # a token is one row of every site
                        "seconds": round(seconds["total"], 3),
                        "rows_per_second": round(rate, 1),
                        "learning_rate": next(iter(learners.values())).schedule.at(step - 1),
                        "sites": statistics,
                    }
                )
                progress.show(step, rows_per_second=rate, sites=statistics)
            if folder and step % checkpoint_steps == 0 and step < n_steps:
                state = {site: learner.state() for site, learner in learners.items()}
                content = {"step": step, "seconds": seconds, "learners": state}
                save_checkpoint(folder / "checkpoints", step=step, state=content)


def _check_finite(statistics: dict[str, dict[str, float]], *, step: int) -> None:
    for site, values in statistics.items():
        if not values["loss"] < float("inf"):  # NaN too
            raise UserError(
                f"Activations must be finite and the training stable. The loss of {site} is {values['loss']} at step"
                f" {step}."
                " Lower lr, or load the language model in fp32 or bf16."
            )


def _restore(learners: dict[str, Learner], recording: Recording) -> tuple[int, dict[str, float]]:
    """Bring the learners to the last checkpoint of the folder; gives its step and the seconds spent until then."""
    assert recording.folder is not None, "resume without a folder"
    device = next(iter(learners.values())).device
    state = load_checkpoint(recording.folder / "checkpoints", device=device)
    if set(state["learners"]) != set(learners):
        before = ", ".join(state["learners"])
        raise UserError(f"`resume` needs the sites of the run before: {before}. Got {', '.join(learners)}.")
    for site, learner in learners.items():
        learner.load_state(state["learners"][site])
    return state["step"], state["seconds"]


class Trainer:
    """Trains an SAE on activations that were collected before.

    Args:
        config: the SAE and its training.
        init: an SAE to start from (warm start, fine-tuning).
        device: where to train, "auto" (CUDA where there is one), "cpu", "cuda:1"; the rows may lie elsewhere.
        progress: show a progress bar or lines on stderr.
    """

    def __init__(
        self, config: SAEConfig, init: SAE | None = None, *, device: str = "auto", progress: bool = True
    ) -> None:
        self.config, self.init, self.progress = config, init, progress
        self.device = str(chosen_device(device))

    def train(self, acts: Activations | Tensor) -> SAE:
        """The SAE of one site's activations.

        Args:
            acts: Activations of one site, or a Tensor [rows d_in].

        Raises:
            UserError: several sites, too few rows, or rows that are not finite.
        """
        source = Activations.of(acts)
        if len(source.sites) != 1:
            raise UserError(
                f"`Trainer.train` takes the activations of one site. Got {', '.join(source.sites)}. Give"
                f" acts['{source.sites[0]}'],"
                " or use strata.train_suite."
            )
        site = source.sites[0]
        init = {} if self.init is None else {site: self.init}
        prepared = prepare(source, self.config, init=init, device=self.device)
        return train(prepared, Recording(progress=self.progress)).saes[site]


def origins(source: RowSource) -> dict[str, dict[str, Any]]:
    """What the SAEs of a source say of where they come from, by site: the names under which SAELens and SAEBench look
    for it.
    """
    description = source.describe()
    model, text = description.get("model", {}), description.get("text", {})
    return {
        site: {
            "model_name": model.get("name"),
            "hf_model_name": model.get("name"),
            "model_class_name": "AutoModelForCausalLM",
            "hook_name": _hook_name(site),
            "hook_head_index": None,
            "site": site,
            "context_size": text.get("context_tokens"),
            "dataset_path": text.get("texts", {}).get("source"),
            "strata": description,
        }
        for site in source.sites
    }


def _hook_name(site: str) -> str:
    """TransformerLens' name of a residual or sub-block site, by which SAELens, SAEBench and Neuronpedia know it; else
    the site itself.
    """
    parts = site.split(".")
    hooks = {(): "hook_resid_post", ("mlp",): "hook_mlp_out", ("attn",): "hook_attn_out"}
    if len(parts) in (2, 3) and parts[0] == "layers" and tuple(parts[2:]) in hooks:
        return f"blocks.{parts[1]}.{hooks[tuple(parts[2:])]}"
    return site


def train_suite(
    lm: LanguageModel,
    texts: Any,
    *,
    sites: list[str] | str | None = None,
    config: SAEConfig,
    n_tokens: int | None = None,
    context_tokens: int | None = None,
    buffer_tokens: int | None = None,
    lm_dtype: str = "auto",
    init: dict[str, SAE] | None = None,
    progress: bool = True,
) -> dict[str, SAE]:
    """Train one SAE per site from one pass of the language model over the text, streaming.

    Args:
        lm: the language model.
        texts: anything that `strata.lm.text.open_texts` takes: a list or iterator of str, a path, token ids, a dataset.
        sites: where to read; None is every layer.
        config: of every SAE.
        n_tokens: rows of one epoch; None is the whole text.
        context_tokens: length of the packed sequences; None is the model's own, at most 1024.
        buffer_tokens: rows per site in the shuffle buffer; None is 65,536 or more.
        lm_dtype: precision of the forward, "auto", "fp32" or "bf16".
        init: SAEs to start from, by site.
        progress: show a progress bar or lines on stderr.

    Returns:
        Site to SAE, in the order of `sites`.
    """
    tokens = token_stream(lm, texts, context_tokens=context_tokens, text_batch_size=config.text_batch_size)
    stream = Stream(
        lm,
        tokens,
        sites=lm.sites if sites is None else [sites] if isinstance(sites, str) else list(sites),
        n_tokens=n_tokens,
        buffer_tokens=buffer_tokens,
        lm_dtype=lm_dtype,
    )
    return train(prepare(stream, config, init=init), Recording(progress=progress)).saes
