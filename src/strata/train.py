"""Training SAEs: what was prepared, and the ways into it from Python."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from strata.activations.collected import Activations
from strata.activations.harvest import token_stream
from strata.activations.store import rows_of
from strata.activations.stream import Stream
from strata.assignments import assign, sites_read
from strata.config.layer_groups import checked_groups
from strata.config.train import SAEConfig
from strata.errors import UserError
from strata.lm.loading import chosen_device
from strata.lm.model import LanguageModel
from strata.loop import run_loop
from strata.prepare import Prepared, prepare
from strata.recording import Recording
from strata.sae.group import GroupSAE
from strata.sae.model import SAE


@dataclass(frozen=True)
class Trained:
    """What came out of a training.

    Attributes:
        saes: by key (a site or group, with what is swept), in the model's own scale; of several processes those that
            this one trained.
        dead: by key, the share of latents that did not fire in the last `dead_window_rows` rows.
        layer_rows: by key and site, the rows that were trained on, attention sinks left out.
        n_steps: steps of the whole run.
        seconds: of the whole run, resumed parts included: `total`, in the `sae` steps, and waiting for `rows` (the
            language model, when streaming). On CUDA the two parts say how long launching took.
    """

    saes: dict[str, SAE | GroupSAE]
    dead: dict[str, dict[str, float]]
    layer_rows: dict[str, dict[str, int]]
    n_steps: int
    seconds: dict[str, float]


def train(prepared: Prepared, recording: Recording | None = None) -> Trained:
    """Train what was prepared, side by side on the same batches.

    Raises:
        UserError: a loss that is not finite, or nothing to resume.
        Interrupted: a signal came, and a checkpoint is written.
    """
    learners, ranks = prepared.learners, prepared.spread.ranks
    seconds = run_loop(prepared, recording or Recording())
    dead = {
        key: {"dead_share": learner.dead_share(), "dead_window_rows": learner.window_steps * prepared.batch_size}
        for key, learner in learners.items()
    }
    layer_rows = {key: learner.layer_rows for key, learner in learners.items()}
    parts = ranks.gathered_objects((dead, layer_rows))
    return Trained(
        saes={key: learner.finish(prepared.metadata[key]) for key, learner in learners.items()},
        dead=_by_key(prepared, [part for part, _ in parts]),
        layer_rows=_by_key(prepared, [part for _, part in parts]),
        n_steps=prepared.n_steps,
        seconds=seconds,
    )


def _by_key(prepared: Prepared, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What processes say of what they trained, in the order of the run."""
    found = {key: one for part in parts for key, one in part.items()}
    return {key: found[key] for key in prepared.metadata}


class Trainer:
    """Trains an SAE on activations that were collected before.

    Args:
        config: the SAE and its training.
        init: an SAE to start from (warm start, fine-tuning).
        device: where to train, "auto" (CUDA where there is one), "cpu", "cuda:1"; the rows may lie elsewhere.
        progress: show a progress bar or lines on stderr; False is silent whatever `recording` says.
        recording: what it leaves behind while it runs, and whether it goes on from that.
    """

    def __init__(
        self,
        config: SAEConfig,
        init: SAE | None = None,
        *,
        device: str = "auto",
        progress: bool = True,
        recording: Recording | None = None,
    ) -> None:
        self.config, self.init = config, init
        self.recording = _recording(recording, progress)
        self.device = str(chosen_device(device))

    def train(self, acts: Any, *, held_out: Activations | Tensor | None = None) -> SAE:
        """The SAE of one site's activations.

        Args:
            acts: Activations of one site, a Tensor [rows d_in], or a store of one site or its folder.
            held_out: rows of the same site to measure now and then while it trains.

        Raises:
            UserError: several sites, too few rows, or rows that are not finite.
        """
        source = rows_of(acts)
        if len(source.sites) != 1:
            raise UserError(
                f"`Trainer.train` takes the activations of one site. Got {', '.join(source.sites)}. Give"
                f" acts['{source.sites[0]}'], or use strata.train_suite."
            )
        site = source.sites[0]
        init = {} if self.init is None else {site: self.init}
        watched = {} if held_out is None else {site: next(iter(Activations.of(held_out).values()))}
        prepared = prepare(source, assign([site], self.config, init=init), device=self.device, held_out=watched)
        sae = train(prepared, self.recording).saes[site]
        assert isinstance(sae, SAE)
        return sae


def train_suite(
    lm: LanguageModel,
    texts: Any,
    *,
    sites: list[str] | str | None = None,
    groups: Sequence[Sequence[int | str]] | None = None,
    config: SAEConfig | Sequence[SAEConfig],
    target_sites: Mapping[str, str] | None = None,
    skip: bool = False,
    n_tokens: int | None = None,
    context_tokens: int | None = None,
    buffer_tokens: int | None = None,
    lm_dtype: str = "auto",
    init: Mapping[str, SAE | GroupSAE] | None = None,
    held_out: Mapping[str, Tensor] | None = None,
    progress: bool = True,
    recording: Recording | None = None,
) -> dict[str, Any]:
    """Train one SAE per site, or one per group of layers, from one pass of the language model over the text, streaming.

    Args:
        lm: the language model.
        texts: anything that `strata.lm.text.open_texts` takes: a list or iterator of str, a path, token ids, a dataset.
        sites: where to read; None is every layer.
        groups: layers that share one SAE, as numbers or sites, e.g. [[0, 1, 2], [3, 4]]; it sees for every token the
            activation of one of them, drawn uniformly, in that layer's own normalisation. In place of `sites`.
        config: of every SAE; a list is a sweep, which trains one SAE per site and config on the same rows. They share
            `batch_size`, `num_epochs`, `text_batch_size` and, for the order of the rows, the first one's seed.
        target_sites: site → the site that a transcoder there predicts; sites that are not named get SAEs.
        skip: transcoders get a skip connection.
        n_tokens: rows of one epoch; None is the whole text.
        context_tokens: length of the packed sequences; None is the model's own, at most 1024.
        buffer_tokens: rows per site in the shuffle buffer; None is 65,536 or more.
        lm_dtype: precision of the forward, "auto", "fp32" or "bf16".
        init: SAEs to start from, by site (or group's name).
        held_out: rows of other text to measure now and then, by site, as `collect_activations` gives them.
        progress: show a progress bar or lines on stderr; False is silent whatever `recording` says.
        recording: what it leaves behind while it runs, and whether it goes on from that.

    Returns:
        Site to SAE, in the order of `sites`. A transcoder is found under `layers.3.to.layers.4`, what a sweep trained
        under site and settings, `layers.3/k=16`. With groups a `GroupSAE` each, under `layers.0-2` (`layers.3` of one
        layer); `suite["layers.0-2"].at("layers.1")` is an ordinary SAE.

    Raises:
        UserError: what cannot be done; an iterator of texts with `recording.resume` is one such thing.
        Interrupted: a signal came, and a checkpoint is written.
    """
    if groups is not None and sites is not None:
        raise UserError("`groups` is given in place of `sites`. Got both. Leave one of the two out.")
    named = lm.sites if sites is None else [sites] if isinstance(sites, str) else list(sites)
    together = None if groups is None else checked_groups(groups, lm.sites)
    assignments = assign(named, config, target_sites=target_sites, skip=skip, init=init, groups=together)
    text_batch_size = next(iter(assignments.values())).config.text_batch_size
    tokens = token_stream(lm, texts, context_tokens=context_tokens, text_batch_size=text_batch_size)
    wanted = _recording(recording, progress)
    if wanted.resume and tokens.one_shot:
        raise UserError(
            "`resume` needs texts that can be read again from their start. Got an iterator, which can be read only"
            " once; give a list, a path or a dataset."
        )
    read = sites_read(assignments)
    stream = Stream(lm, tokens, sites=read, n_tokens=n_tokens, buffer_tokens=buffer_tokens, lm_dtype=lm_dtype)
    settings = {"n_tokens": n_tokens, "buffer_tokens": buffer_tokens, "lm_dtype": lm_dtype}
    saes = train(prepare(stream, assignments, held_out=held_out, settings=settings), wanted).saes
    if groups is None:
        return saes
    return {key: GroupSAE({assignments[key].site: sae}) if isinstance(sae, SAE) else sae for key, sae in saes.items()}


def train_at_site(
    lm: LanguageModel,
    dataset: Any,
    site: str | None,
    *,
    target_site: str | None = None,
    config: SAEConfig | Sequence[SAEConfig],
    **options: Any,
) -> SAE:
    """One SAE (or, with a target site, one transcoder) at a site, None being the middle layer: see `train_suite`.

    Raises:
        UserError: several configs, and whatever `train_suite` refuses.
    """
    if not isinstance(config, SAEConfig):
        raise UserError(
            f"`config` must be one SAEConfig. Got {type(config).__name__}. For a sweep call strata.train_suite, which"
            f" gives one result per config."
        )
    name = lm.middle_site if site is None else site
    targets = {} if target_site is None else {name: target_site}
    [sae] = train_suite(lm, dataset, sites=[name], target_sites=targets, config=config, **options).values()
    return sae


def _recording(given: Recording | None, progress: bool) -> Recording:
    chosen = given or Recording()
    return chosen if progress else replace(chosen, progress=False)
