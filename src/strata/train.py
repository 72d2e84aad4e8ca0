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
from strata.errors import UserError
from strata.lm.model import LanguageModel
from strata.lm.precision import fast_dtype
from strata.log import MetricsFile, Progress
from strata.sae.learner import Learner
from strata.sae.model import SAE

_NORMALIZATION_ROWS = 2**16


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a training leaves behind while it runs, and how often.

    Attributes:
        folder: run folder for metrics.jsonl and checkpoints; None records nothing.
        resume: go on from the folder's last checkpoint.
        log_every_steps: steps between two lines.
        checkpoint_every_steps: steps between two checkpoints.
        progress: show a progress bar or lines on stderr.
    """

    folder: Path | None = None
    resume: bool = False
    log_every_steps: int = 10
    checkpoint_every_steps: int = 500
    progress: bool = True


@dataclass(frozen=True)
class Trained:
    """What came out of a training.

    Attributes:
        saes: by site, in the model's own scale.
        dead: by site, the share of latents that did not fire in the last `window_rows` rows.
        n_steps: steps of the whole run.
        seconds: of the whole run, resumed parts included, and of the SAE steps alone.
    """

    saes: dict[str, SAE]
    dead: dict[str, dict[str, float]]
    n_steps: int
    seconds: dict[str, float]


def train(
    source: RowSource,
    config: SAEConfig,
    *,
    init: dict[str, SAE] | None = None,
    recording: Recording = Recording(),
    metadata: dict[str, dict[str, Any]] | None = None,
) -> Trained:
    """Train one SAE per site of the source, side by side on the same batches.

    Args:
        source: activations that were collected before, or a stream.
        config: of every SAE.
        init: SAEs to start from, by site.
        recording: what to leave behind.
        metadata: by site, what the SAEs say of their origin.

    Raises:
        UserError: fewer rows than one batch, k larger than d_sae, activations that are not finite, or nothing to
            resume.
    """
    n_steps = source.n_rows() * config.num_epochs // config.batch_size
    if n_steps == 0:
        raise UserError(
            f"The text must give at least one batch of `batch_size`={config.batch_size} rows. It gives"
            f" {source.n_rows()} a pass."
            " Give more text or lower batch_size."
        )
    rows = source.shuffled(batch_size=config.batch_size, n_epochs=config.num_epochs, seed=config.seed)
    learners = _make_learners(rows, config, n_steps=n_steps, init=init or {})
    first_step, seconds_before = _restore(learners, recording)
    seconds = _loop(
        learners, rows, config, recording=recording, steps=(first_step, n_steps), seconds_before=seconds_before
    )
    window_rows = {site: learner.window_steps * config.batch_size for site, learner in learners.items()}
    return Trained(
        saes={site: learner.finish((metadata or {}).get(site)) for site, learner in learners.items()},
        dead={s: {"dead_share": ln.dead_share(), "dead_window_rows": window_rows[s]} for s, ln in learners.items()},
        n_steps=n_steps,
        seconds=seconds,
    )


def _make_learners(rows: ShuffledRows, config: SAEConfig, *, n_steps: int, init: dict[str, SAE]) -> dict[str, Learner]:
    sample = rows.sample(_NORMALIZATION_ROWS)
    return {
        site: Learner(
            config,
            n_steps=n_steps,
            sample=site_rows,
            site=site,
            score_dtype=fast_dtype(site_rows.device),
            init=init.get(site),
        )
        for site, site_rows in sample.items()
    }


def _loop(
    learners: dict[str, Learner],
    rows: ShuffledRows,
    config: SAEConfig,
    *,
    recording: Recording,
    steps: tuple[int, int],
    seconds_before: float,
) -> dict[str, float]:
    """The training loop; gives the seconds in total and in the SAE steps (on CUDA: in launching them)."""
    step, n_steps = steps
    folder = recording.folder
    metrics = MetricsFile(folder / "metrics.jsonl" if folder else None, keep_to_step=step if recording.resume else None)
    start = last_time = time.perf_counter()
    last_step, sae_seconds = step, 0.0
    with Progress(n_steps=n_steps, first_step=step, shown=recording.progress) as progress:
        for batch in rows.batches(start_step=step):
            before = time.perf_counter()
            for site, learner in learners.items():
                learner.step(batch[site])
            step += 1
            now = time.perf_counter()
            sae_seconds += now - before
            progress.advance(step)
            if step % recording.log_every_steps == 0 or step == n_steps:
                statistics = {site: learner.statistics() for site, learner in learners.items()}
                _check_finite(statistics, step=step)
                rate = (step - last_step) * config.batch_size / (now - last_time)
                last_time, last_step = now, step
                metrics.write(
                    {
                        "step": step,
                        "rows": step * config.batch_size,
                        "seconds": round(seconds_before + now - start, 3),
                        "rows_per_second": round(rate, 1),
                        "learning_rate": next(iter(learners.values())).schedule.at(step - 1),
                        "sites": statistics,
                    }
                )
                progress.show(step, rows_per_second=rate, sites=statistics)
            if folder and (step % recording.checkpoint_every_steps == 0 and step < n_steps):
                _save(learners, folder, step=step, seconds=seconds_before + time.perf_counter() - start)
    metrics.close()
    assert step == n_steps, f"{step} of {n_steps} batches came"
    return {"total": seconds_before + time.perf_counter() - start, "sae": sae_seconds}


def _check_finite(statistics: dict[str, dict[str, float]], *, step: int) -> None:
    for site, values in statistics.items():
        if not values["loss"] < float("inf"):  # NaN too
            raise UserError(
                f"Activations must be finite and the training stable. The loss of {site} is {values['loss']} at step"
                f" {step}."
                " Lower lr, or load the language model in fp32 or bf16."
            )


def _save(learners: dict[str, Learner], folder: Path, *, step: int, seconds: float) -> None:
    state = {
        "step": step,
        "seconds": seconds,
        "learners": {site: learner.state() for site, learner in learners.items()},
    }
    save_checkpoint(folder / "checkpoints", step=step, state=state)


def _restore(learners: dict[str, Learner], recording: Recording) -> tuple[int, float]:
    """Steps and seconds of the run before, 0 and 0 for a new one."""
    if not recording.resume:
        return 0, 0.0
    assert recording.folder is not None, "resume without a folder"
    device = next(iter(learners.values())).last_fired_step.device
    state = load_checkpoint(recording.folder / "checkpoints", device=device)
    if set(state["learners"]) != set(learners):
        raise UserError(
            f"`resume` needs the sites of the run before: {', '.join(state['learners'])}. Got {', '.join(learners)}."
        )
    for site, learner in learners.items():
        learner.load_state(state["learners"][site])
    return state["step"], state["seconds"]


class Trainer:
    """Trains an SAE on activations that were collected before.

    Args:
        config: the SAE and its training.
        init: an SAE to start from (warm start, fine-tuning).
        progress: show a progress bar or lines on stderr.
    """

    def __init__(self, config: SAEConfig, init: SAE | None = None, *, progress: bool = True) -> None:
        self.config, self.init, self.progress = config, init, progress

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
        recording = Recording(progress=self.progress)
        return train(source, self.config, init=init, recording=recording, metadata=origins(source)).saes[site]


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
    sites: list[str] | None = None,
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
        sites=list(lm.sites if sites is None else sites),
        n_tokens=n_tokens,
        buffer_tokens=buffer_tokens,
        lm_dtype=lm_dtype,
    )
    return train(stream, config, init=init, recording=Recording(progress=progress), metadata=origins(stream)).saes
