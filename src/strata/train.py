"""Training SAEs: preparing a training, and the ways into it from Python."""

import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from strata.activations.collected import Activations
from strata.activations.harvest import token_stream
from strata.activations.source import RowSource, ShuffledRows, layers_of
from strata.activations.store import rows_of
from strata.activations.stream import Stream
from strata.assignments import Assignment, assign, sites_read
from strata.atomic import as_json
from strata.config.layer_groups import checked_groups
from strata.config.train import SAEConfig
from strata.distributed.rows import ExchangedRows, shared_rows
from strata.distributed.spread import Spread
from strata.errors import UserError
from strata.kernels.backend import score_dtype
from strata.lm.loading import chosen_device
from strata.lm.model import LanguageModel
from strata.loop import Prepared, Recording, run_loop
from strata.origins import origins
from strata.sae.group import GroupSAE
from strata.sae.learner import Learner
from strata.sae.model import SAE
from strata.sae.normalization import Normalization
from strata.training_facts import training_facts

_NORMALIZATION_ROWS = 2**16
_FINGERPRINT_ROWS = 256


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


def prepare(
    source: RowSource,
    assignments: Mapping[str, Assignment],
    *,
    device: str | None = None,
    held_out: Mapping[str, Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
    n_steps: int | None = None,
    spread: Spread | None = None,
) -> Prepared:
    """Look at the source and make everything that is to be trained ready for it.

    Args:
        source: activations that were collected before, or a stream.
        assignments: by key, what is trained; see `strata.assignments.assign`.
        device: where to train; None is where the rows are.
        held_out: by site, rows to measure now and then.
        settings: what else decides the rows and their order, for a training that goes on to be the same.
        n_steps: take only so many batches of the rows; None takes all.
        spread: over which processes, all of which call this; None is this one alone.

    Raises:
        UserError: fewer rows than one batch, k larger than d_sae, activations that are not finite, or an `init` that
            does not fit.
    """
    config = next(iter(assignments.values())).config
    for one in assignments.values():
        _check_width(one, source)
    n_batches = source.n_rows() * config.num_epochs // config.batch_size
    n_steps = n_batches if n_steps is None else n_steps
    if n_batches == 0:
        raise UserError(
            f"The text must give at least one batch of `batch_size`={config.batch_size} rows. It gives"
            f" {source.n_rows()} a pass. Give more text or lower batch_size."
        )
    if not 1 <= n_steps <= n_batches:
        raise UserError(f"`n_steps` must be in [1, {n_batches}], the batches of the rows. Got {n_steps}.")
    order = {"batch_size": config.batch_size, "n_epochs": config.num_epochs, "seed": config.seed}
    spread = spread or Spread()
    rows = shared_rows(source, spread, assignments, **order)
    samples = _Samples(rows, device)
    learners = _learners(assignments, samples, n_steps=n_steps, spread=spread)
    return Prepared(
        learners=learners,
        rows=samples.rows,
        seconds=samples.seconds,
        batch_size=config.batch_size,
        n_steps=n_steps,
        metadata={key: origins(source, one) for key, one in assignments.items()},
        identity=_identity(source, assignments, {"n_steps": n_steps, **(settings or {})}),
        held_out=_checked(held_out or {}, sites_read(assignments)),
        facts=training_facts(source, learners, assignments, n_steps=n_steps, spread=spread),
        spread=spread,
    )


class _Samples:
    """The rows from which learners start, of one assignment at a time: they may be large.

    Args:
        rows: of the training.
        device: where they are wanted; None is where they are.

    Attributes:
        seconds: spent on them; a stream fills its buffer for the first one.
    """

    def __init__(self, rows: ShuffledRows, device: str | None) -> None:
        self.rows, self._device, self.seconds = rows, device, 0.0
        self._kept: dict[str, Tensor] = {}

    def only(self, keys: Iterable[str | None]) -> None:
        """Let go of all others."""
        self._kept = {key: rows for key, rows in self._kept.items() if key in set(keys)}

    def of(self, key: str) -> Tensor:
        """The sample of a site, a group or its layers."""
        if key not in self._kept:
            start = time.perf_counter()
            self._kept[key] = self.rows.sample(_NORMALIZATION_ROWS, site=key).to(self._device)
            self.seconds += time.perf_counter() - start
        return self._kept[key]


def _learners(
    assignments: Mapping[str, Assignment], samples: _Samples, *, n_steps: int, spread: Spread
) -> dict[str, Learner]:
    """Those of this process. All processes look at all samples, which they may make together."""
    learners = {}
    for key, one in assignments.items():
        if not (spread.trains(key) or isinstance(samples.rows, ExchangedRows)):
            continue
        samples.only([one.site, one.target_site, layers_of(one.site)])
        own = samples.of(one.site)
        target = None if one.target_site is None else samples.of(one.target_site).to(own.device)
        layers = None if one.group is None else samples.of(layers_of(one.site))
        if not spread.trains(key):
            continue
        learners[key] = spread.learner(
            one.config,
            n_steps=n_steps,
            sample=own,
            site=one.site,
            score_dtype=score_dtype(own.device),
            init=one.init,
            target_sample=target,
            target_site=one.target_site,
            skip=one.skip,
            group=one.group,
            layers=layers,
        )
    return learners


def _check_width(assignment: Assignment, source: RowSource) -> None:
    """That k fits the latents, and that layers of a group have one width."""
    widths = {site: source.d_in(site) for site in assignment.sites}
    if len(set(widths.values())) > 1:
        raise UserError(f"`groups` must be of layers of one width. {assignment.site} has {widths}. Split it.")
    assignment.config.d_sae(widths[assignment.sites[0]])


def _identity(source: RowSource, assignments: Mapping[str, Assignment], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same for a training to go on: settings by name, what is trained, model, text."""
    configs = [asdict(one.config) for one in assignments.values()]
    by_setting = {name: [config[name] for config in configs] for name in configs[0]}
    common = {name: values[0] if values == values[:1] * len(values) else values for name, values in by_setting.items()}
    described = source.describe()
    if "model" not in described:  # rows of unknown origin are known by what some of them are
        shuffled = source.shuffled(batch_size=1, n_epochs=1, seed=0)  # whatever the seed of the training
        content = shuffled.sample(_FINGERPRINT_ROWS, site=source.sites[0]).detach().float().cpu().contiguous()
        described = described | {"rows": f"crc32:{zlib.crc32(content.numpy().tobytes()):08x}"}
    return as_json({**common, **settings, "sites": list(assignments), **described})


def _checked(held_out: Mapping[str, Tensor], sites: Sequence[str]) -> dict[str, Tensor]:
    """Held-out rows of all sites, or none of any where there are too few to measure anything."""
    if not held_out:
        return {}
    missing = [site for site in sites if site not in held_out]
    if missing:
        raise UserError(f"`held_out` must hold rows of every site. Got none of {missing[0]}. Collect them too.")
    if len(held_out[sites[0]]) < 2:
        return {}
    for site in sites:
        Normalization.estimate(held_out[site].float(), site=site)  # finite, and not all equal
    return {site: held_out[site] for site in sites}


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
