"""What a run is: frozen descriptions, checked when they are made and never rewritten."""

import functools
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from strata.durations import Duration
from strata.errors import UserError, did_you_mean

Auto = Literal["auto"]
Architecture = Literal["topk", "batchtopk", "matryoshka", "jumprelu", "relu", "gated"]
Revival = Literal["auto", "auxk", "ghost", "resample", "none"]


def _require(ok: bool, setting: str, rule: str, given: object, way_out: str) -> None:
    if not ok:
        raise UserError(f"`{setting}` must {rule}. Got {given}. {way_out}")


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of the annotated kind; whole numbers are real ones too, and nothing but a bool is a bool."""
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in options)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in options)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, options[0]) for item in value)
    if kind in (int, float):
        return not isinstance(value, bool) and isinstance(value, Integral if kind is int else Real)
    return isinstance(value, str | Path if kind is Path else kind)


def _named(kind: Any) -> str:
    """The kind as a person would say it."""
    if get_origin(kind) is Literal:
        return " or ".join(repr(option) for option in get_args(kind))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_named(option) for option in get_args(kind))
    words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", Path: "a path"}
    return words.get(kind, "a tuple of texts" if get_origin(kind) is tuple else getattr(kind, "__name__", str(kind)))


def _check_kinds(config: Any) -> None:
    """That every field holds what its annotation says.

    Raises:
        UserError: one does not.
    """
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, kind):
            raise UserError(f"`{type(config).__name__}.{name}` must be {_named(kind)}. Got {value!r}.")


Described = TypeVar("Described")


def _names_unknown_settings(cls: type[Described]) -> type[Described]:
    """Class decorator: an unknown keyword is a UserError that names the nearest setting."""
    known = [field.name for field in fields(cls)]  # pyright: ignore[reportArgumentType]
    make = cls.__init__

    @functools.wraps(make)
    def __init__(self: Any, **settings: Any) -> None:
        for name in settings:
            if name not in known:
                raise UserError(f"`{cls.__name__}` has no setting {name!r}.{did_you_mean(name, known)}")
        make(self, **settings)

    cls.__init__ = __init__  # pyright: ignore[reportAttributeAccessIssue]
    return cls


@_names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """One sparse autoencoder and how it is trained. docs/LOG.md says what chose the learning rates."""

    architecture: Architecture = "topk"
    """The gate: "topk" keeps the k largest pre-activations of every row (Gao et al. 2024), "batchtopk" the k per row
    largest of the whole batch (Bussmann et al. 2024), "matryoshka" the same with nested dictionaries (Bussmann et al.
    2025), "jumprelu" those above a learned threshold (Rajamanoharan et al. 2024b), "relu" all positive ones, with an L1
    penalty (Bricken et al. 2023), "gated" those that a gate of their own opens (Rajamanoharan et al. 2024a)."""
    expansion_factor: int = 16
    """Latents per dimension of the site: d_sae = expansion_factor · d_in."""
    k: int = 32
    """Active latents per row (L0), in [1, d_sae]: exact for "topk", on average for the others."""
    num_epochs: int = 1
    """Passes over the text or the collected activations."""
    batch_size: int = 4096
    """Rows (activation vectors) per step and SAE."""
    text_batch_size: int = 32
    """Packed sequences per language-model forward (streaming and collecting)."""
    lr: float | Auto = "auto"
    """Peak learning rate of Adam for the encoder (bias and decoder go faster); "auto" chooses it from width and batch
    size (see strata.sae.optim.auto_learning_rate)."""
    warmup: str = "5%"
    """Linear warm-up from 0, as a duration: "5%", "200 steps", "1M tokens"."""
    decay: str = "30%"
    """Linear decay to 0 at the end of the run, as a duration."""
    sparsity_coefficient: float | Auto = "auto"
    """Weight of the sparsity penalty of "jumprelu", "relu" and "gated"; "auto" is steered so that L0 becomes k. A fixed
    one gives the L0 that comes of it."""
    bandwidth: float = 0.1
    """Width of the kernel through which "jumprelu" learns its thresholds, in units of the normalised pre-activations
    (activations have a mean square of 1 per dimension)."""
    matryoshka_prefixes: tuple[float, ...] = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)
    """Ends of the nested dictionaries of "matryoshka", as shares of d_sae."""
    revival: Revival = "auto"
    """What brings dead latents back: "auxk" (Gao et al. 2024), "ghost" (Jermyn & Templeton 2024), "resample" (Bricken
    et al. 2023) or "none"; "auto" is "auxk"."""
    use_ghost_grads: bool = False
    """The same as revival="ghost"."""
    revival_coefficient: float = 1.0
    """Weight of the AuxK term (the paper: 1/32). Ghost gradients scale themselves."""
    centring: bool = True
    """Subtract each site's mean before training (and fold it into the biases afterwards). Without it large means, which
    many models have in a few dimensions, kill latents (docs/dead-latents.md)."""
    dead_feature_window: int | Auto = "auto"
    """Steps without firing after which a latent counts as dead; "auto" is 1000 or a quarter of the run, whichever is
    less."""
    seed: int = 0
    """Seed of the initial weights and of the shuffling."""

    def __post_init__(self) -> None:
        _check_kinds(self)
        _require(self.seed >= 0, "SAEConfig.seed", "be at least 0", self.seed, "Give a whole number.")
        for name in ("expansion_factor", "k", "num_epochs", "batch_size", "text_batch_size"):
            value = getattr(self, name)
            _require(value >= 1, f"SAEConfig.{name}", "be at least 1", value, "Give a positive number.")
        if self.lr != "auto":
            _require(
                self.lr > 0, "SAEConfig.lr", "be above 0", self.lr, 'Give a learning rate such as 1e-3, or "auto".'
            )
        if self.dead_feature_window != "auto":
            window = self.dead_feature_window
            _require(window >= 1, "SAEConfig.dead_feature_window", "be at least 1 step", window, 'Or give "auto".')
        _require(
            self.revival_coefficient >= 0,
            "SAEConfig.revival_coefficient",
            "be at least 0",
            self.revival_coefficient,
            'To switch revival off give revival="none".',
        )
        self._check_sparsity()
        contradiction = self.use_ghost_grads and self.revival not in ("auto", "ghost")
        _require(
            not contradiction,
            "SAEConfig.revival",
            'be "ghost" or "auto" when use_ghost_grads=True',
            repr(self.revival),
            "Leave one of the two out.",
        )
        Duration.parse(self.warmup, setting="SAEConfig.warmup")
        Duration.parse(self.decay, setting="SAEConfig.decay")

    def _check_sparsity(self) -> None:
        _require(self.bandwidth > 0, "SAEConfig.bandwidth", "be above 0", self.bandwidth, "0.1 is usual.")
        if self.sparsity_coefficient != "auto":
            rule, given = "be at least 0", self.sparsity_coefficient
            _require(given >= 0, "SAEConfig.sparsity_coefficient", rule, given, 'Or give "auto".')
        ends = self.matryoshka_prefixes
        ascending = len(ends) > 0 and list(ends) == sorted(set(ends)) and ends[0] > 0 and ends[-1] == 1.0
        _require(
            ascending,
            "SAEConfig.matryoshka_prefixes",
            "be ascending shares of d_sae that end with 1.0",
            ends,
            "For example (0.125, 0.5, 1.0).",
        )

    def d_sae(self, d_in: int) -> int:
        """Latents of an SAE on activations of width d_in.

        Raises:
            UserError: k is larger than that.
        """
        d_sae = self.expansion_factor * d_in
        _require(
            self.k <= d_sae,
            "SAEConfig.k",
            "be in [1, d_sae]",
            f"k={self.k} with d_sae={d_sae}",
            "Lower k or widen the SAE.",
        )
        return d_sae

    def revival_method(self) -> Literal["auxk", "ghost", "resample", "none"]:
        """The revival method that the two fields choose together."""
        if self.use_ghost_grads:
            return "ghost"
        return "auxk" if self.revival == "auto" else self.revival

    def window_steps(self, n_steps: int) -> int:
        """Steps without firing after which a latent is dead, in a run of n_steps."""
        if self.dead_feature_window == "auto":
            return max(1, min(1000, n_steps // 4))
        return self.dead_feature_window


@_names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run from text to a folder of SAEs: what `strata train` does."""

    model: str = "demo"
    """The language model: "demo" (embedded), a Hugging Face id, or a local folder."""
    data: str = "stdlib"
    """The text: "stdlib" (the Python standard library's source), a file or folder (txt, jsonl, parquet), or a Hugging
    Face dataset id."""
    sites: tuple[str, ...] = ("middle",)
    """Where to read activations, e.g. layers.6 layers.6.mlp; "middle" is the middle layer, "all" every layer."""
    n_tokens: int | Literal["all"] = "all"
    """Rows of each site to train on in one epoch; "all" is the whole text (counted first). A shorter text is read
    again."""
    context_tokens: int = 256
    """Length of the packed sequences, in tokens."""
    buffer_tokens: int | Auto = "auto"
    """Rows per site in the shuffle buffer; "auto" is 65,536, or 4 batches where that is more."""
    sae: SAEConfig = field(default_factory=SAEConfig)
    """The SAEs, one per site."""
    out: Path | Auto = "auto"
    """Run folder; "auto" is runs/<model>-<data>."""
    resume: bool = False
    """Go on from the last checkpoint of the run folder."""
    overwrite: bool = False
    """Delete a run folder that exists already."""
    device: str = "auto"
    """"auto" (CUDA where there is one), "cpu", "cuda", "cuda:1"."""
    lm_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the language model's forward; "auto" is bf16 where the hardware multiplies it fast."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    held_out_tokens: int = 32_768
    """Tokens of held-out documents on which the SAEs are evaluated."""
    log_every_steps: int = 10
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: str = "10%"
    """Distance between two checkpoints, as a duration: "10%", "500 steps", "1M tokens"; only the last one is kept."""
    report: bool = True
    """Evaluate on held-out text and write report/index.html at the end."""

    def __post_init__(self) -> None:
        _check_kinds(self)
        Duration.parse(self.checkpoint_every, setting="checkpoint_every")
        for name in ("held_out_tokens", "log_every_steps"):
            value = getattr(self, name)
            _require(value >= 1, name, "be at least 1", value, "Give a positive number.")
        _require(
            self.context_tokens >= 2, "context_tokens", "be at least 2", self.context_tokens, "128 to 1024 is usual."
        )
        if self.n_tokens != "all":
            rule = f"be at least one batch of {self.sae.batch_size} rows"
            _require(self.n_tokens >= self.sae.batch_size, "n_tokens", rule, self.n_tokens, "Lower sae.batch_size.")
        _require(bool(self.sites), "sites", "name at least one site", "none", 'Give e.g. layers.3, or "all".')
        _require(not (self.resume and self.overwrite), "resume", "not be given with overwrite", "both", "Choose one.")

    def folder(self) -> Path:
        """The run folder: `out`, or runs/<model>-<data> made from their last path components."""
        if self.out != "auto":
            return Path(self.out)
        return Path("runs") / f"{Path(self.model).name}-{Path(self.data).stem}"
