"""What a run is: frozen descriptions, checked when they are made and never rewritten."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from strata.config.settings import Auto, check_kinds, folder_named_after, names_unknown_settings, require
from strata.durations import Duration

_WINDOW_ROWS = 500_000

Architecture = Literal["topk", "batchtopk", "matryoshka", "jumprelu", "relu", "gated"]
Parallel = Literal["auto", "saes", "data", "latents"]
RevivalMethod = Literal["lift", "auxk", "ghost", "resample", "none"]
Revival = Literal["auto", RevivalMethod]


@names_unknown_settings
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
    """What brings dead latents back: "auxk" (Gao et al. 2024), "lift" (the same, and their biases rise until they
    fire), "ghost" (Jermyn & Templeton 2024), "resample" (Bricken et al. 2023) or "none"; "auto" is "lift"."""
    use_ghost_grads: bool = False
    """The same as revival="ghost"."""
    revival_coefficient: float = 1.0
    """Weight of the AuxK term (the paper: 1/32). Ghost gradients scale themselves."""
    centring: bool = True
    """Subtract each site's mean before training (and fold it into the biases afterwards). Without it large means, which
    many models have in a few dimensions, kill latents (docs/dead-latents.md)."""
    dead_feature_window: int | Auto = "auto"
    """Steps without firing after which a latent counts as dead; "auto" is 1000, a quarter of the run, or 500,000 rows,
    whichever is least."""
    seed: int = 0
    """Seed of the initial weights and of the shuffling."""

    def __post_init__(self) -> None:
        check_kinds(self)
        require(self.seed >= 0, "SAEConfig.seed", "be at least 0", self.seed, "Give a whole number.")
        for name in ("expansion_factor", "k", "num_epochs", "batch_size", "text_batch_size"):
            value = getattr(self, name)
            require(value >= 1, f"SAEConfig.{name}", "be at least 1", value, "Give a positive number.")
        if self.lr != "auto":
            require(self.lr > 0, "SAEConfig.lr", "be above 0", self.lr, 'Give a learning rate such as 1e-3, or "auto".')
        if self.dead_feature_window != "auto":
            window = self.dead_feature_window
            require(window >= 1, "SAEConfig.dead_feature_window", "be at least 1 step", window, 'Or give "auto".')
        require(
            self.revival_coefficient >= 0,
            "SAEConfig.revival_coefficient",
            "be at least 0",
            self.revival_coefficient,
            'To switch revival off give revival="none".',
        )
        self._check_sparsity()
        contradiction = self.use_ghost_grads and self.revival not in ("auto", "ghost")
        require(
            not contradiction,
            "SAEConfig.revival",
            'be "ghost" or "auto" when use_ghost_grads=True',
            repr(self.revival),
            "Leave one of the two out.",
        )
        Duration.parse(self.warmup, setting="SAEConfig.warmup")
        Duration.parse(self.decay, setting="SAEConfig.decay")

    def _check_sparsity(self) -> None:
        require(self.bandwidth > 0, "SAEConfig.bandwidth", "be above 0", self.bandwidth, "0.1 is usual.")
        if self.sparsity_coefficient != "auto":
            rule, given = "be at least 0", self.sparsity_coefficient
            require(given >= 0, "SAEConfig.sparsity_coefficient", rule, given, 'Or give "auto".')
        ends = self.matryoshka_prefixes
        ascending = len(ends) > 0 and list(ends) == sorted(set(ends)) and ends[0] > 0 and ends[-1] == 1.0
        require(
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
        require(
            self.k <= d_sae,
            "SAEConfig.k",
            "be in [1, d_sae]",
            f"k={self.k} with d_sae={d_sae}",
            "Lower k or widen the SAE.",
        )
        return d_sae

    def revival_method(self) -> RevivalMethod:
        """The revival method that the two fields choose together."""
        if self.use_ghost_grads:
            return "ghost"
        return "lift" if self.revival == "auto" else self.revival

    def window_steps(self, n_steps: int) -> int:
        """Steps without firing after which a latent is dead, in a run of n_steps."""
        if self.dead_feature_window == "auto":
            return max(1, min(1000, n_steps // 4, _WINDOW_ROWS // self.batch_size))
        return self.dead_feature_window


@names_unknown_settings
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run from text to a folder of SAEs: what `strata train` does."""

    model: str = "auto"
    """The language model: "demo" (embedded), a Hugging Face id, or a local folder; "auto" is that of the store given as
    `activations`, else "demo"."""
    data: str = "auto"
    """The text: "stdlib" (the Python standard library's source), a file or folder (txt, jsonl, parquet), or a Hugging
    Face dataset id; "auto" is that of the store given as `activations`, else "stdlib"."""
    activations: Literal["stream", "collected"] | Path = "stream"
    """Where activations come from: "stream" runs the language model while training, "collected" runs it first and keeps
    them in memory, a folder is a store that `strata collect` wrote."""
    sites: tuple[str, ...] = ("middle",)
    """Where to read activations, e.g. layers.6 layers.6.mlp; "middle" is the middle layer, "all" every layer
    (of a store: of its sites)."""
    groups: str = "none"
    """Layers that share one SAE: "none" trains one per site; "auto" measures first how near layers are to each other,
    as `strata groups` does, and groups them; a path is what `strata groups` wrote, or another run; or the groups
    themselves, [[0, 1, 2], [3, 4]]. Takes the place of `sites`."""
    target_site: str = "same"
    """What is predicted from the activations: "same" is these themselves (an SAE), another site makes a transcoder."""
    skip: bool = False
    """Give a transcoder a skip connection."""
    n_tokens: int | Literal["all"] = "all"
    """Rows of each site to train on in one epoch; "all" is the whole text (counted first). A shorter text is read
    again when streaming."""
    context_tokens: int = 256
    """Length of the packed sequences, in tokens."""
    buffer_tokens: int | Auto = "auto"
    """Rows per site in the shuffle buffer; "auto" is 65,536, or 4 batches or 4 forward passes where that is more."""
    sae: SAEConfig = field(default_factory=SAEConfig)
    """The SAEs, one per site or group of sites."""
    sweep: tuple[str, ...] = ()
    """Settings of `sae` of which several values are trained side by side on the same rows, e.g. k=16,32 seed=0,1; all
    combinations."""
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
    parallel: Parallel = "auto"
    """What several processes (torchrun) share: "saes" deals the SAEs out to them, "data" shares the rows of each batch,
    "latents" the latents of each SAE (TopK); "auto" is "saes" where there is one for every process, else "latents"
    where an SAE is too large for a CUDA device, else "data". The language model runs on all of them."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    random_weights: bool = False
    """Give the language model new random weights: the baseline that tells what of an SAE's quality comes from what the
    model has learnt."""
    held_out_tokens: int = 32_768
    """Tokens of held-out documents on which the SAEs are evaluated at the end."""
    held_out_rows: int = 4096
    """Rows of held-out documents on which they are measured while they train; 0 measures nothing."""
    held_out_every: str = "10%"
    """Distance between two such measurements, as a duration; they are made when a line is logged."""
    log_every_steps: int = 10
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: str = "10%"
    """Distance between two checkpoints, as a duration: "10%", "500 steps", "1M tokens"."""
    keep_checkpoints: int = 2
    """Checkpoints that stay while it trains, the newest ones."""
    keep_buffer: bool = False
    """Keep the shuffle buffer's activations in checkpoints too (streaming): larger ones, but going on runs the language
    model for new rows only. The result is the same."""
    loggers: tuple[Literal["wandb", "tensorboard"], ...] = ()
    """Where the lines of metrics.jsonl go besides: wandb, tensorboard."""
    report: bool = True
    """Evaluate on held-out text and write report/index.html at the end."""

    def __post_init__(self) -> None:
        check_kinds(self)
        for name in ("checkpoint_every", "held_out_every"):
            Duration.parse(getattr(self, name), setting=name)
        require(self.held_out_rows >= 0, "held_out_rows", "be at least 0", self.held_out_rows, "0 measures nothing.")
        for name in ("held_out_tokens", "log_every_steps", "keep_checkpoints"):
            value = getattr(self, name)
            require(value >= 1, name, "be at least 1", value, "Give a positive number.")
        require(
            self.context_tokens >= 2, "context_tokens", "be at least 2", self.context_tokens, "128 to 1024 is usual."
        )
        if self.n_tokens != "all":
            rule = f"be at least one batch of {self.sae.batch_size} rows"
            require(self.n_tokens >= self.sae.batch_size, "n_tokens", rule, self.n_tokens, "Lower sae.batch_size.")
        require(bool(self.sites), "sites", "name at least one site", "none", 'Give e.g. layers.3, or "all".')
        grouped = self.groups != "none"
        alone = self.sites in (("middle",), ("all",))
        require(not grouped or alone, "groups", "be given without sites", " ".join(self.sites), "Leave sites out.")
        require(
            not grouped or self.target_site == "same", "groups", "be given without target_site", self.target_site,
            "Leave one of the two out.",
        )  # fmt: skip
        require(not (self.resume and self.overwrite), "resume", "not be given with overwrite", "both", "Choose one.")

    def folder(self) -> Path:
        """The run folder: `out`, or runs/<model>-<data> made from their last path components; runs/<store> of a store
        whose model and data were not named.
        """
        if self.out != "auto":
            return Path(self.out)
        stored = self.activations not in ("stream", "collected")
        if stored and self.model == self.data == "auto":
            return Path("runs") / Path(self.activations).name
        return folder_named_after(self.model, self.data, inside="runs")
