"""What one training step of an SAE does, counted in the units that hardware is paid in."""

from dataclasses import astuple, dataclass
from typing import Literal

_REVIVAL_ROWS, _REVIVAL_LATENTS = 512, 1024  # the most that the revival term looks at (strata.sae.revival, .learner)
_DEAD_SHARE = 0.05  # assumed of the latents; what runs have shown stands in docs/dead-latents.md
_WEIGHT_BYTES = 26  # per weight: two moments and the weight read and written, its copy in the precision that selects


@dataclass(frozen=True, kw_only=True)
class SAEShape:
    """What of an SAE decides its cost.

    Attributes:
        d_in: width of the rows.
        d_sae: latents.
        k: active latents per row.
        architecture: the gate, as `strata.config.train.SAEConfig.architecture`.
        n_sites: layers that share it (groups), 1 without.
        d_out: width of what a transcoder predicts; None of an SAE.
        skip: a transcoder with a skip connection, a matrix of d_out·d_in.
    """

    d_in: int
    d_sae: int
    k: int
    architecture: str = "topk"
    n_sites: int = 1
    d_out: int | None = None
    skip: bool = False


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """A number for each part of a step; of what, the classes below say."""

    product_flops: float
    n_scores: float
    sparse_flops: float
    n_weights: float
    n_numbers: float
    revival_flops: float
    n_steps: float


@dataclass(frozen=True, kw_only=True)
class StepWork(_Parts):
    """One step of one SAE on `batch_size` rows.

    Attributes:
        product_flops: of the one dense product, 2·rows·d_in·d_sae; of a skip connection also its product and its
            gradient, 4·rows·d_in·d_out.
        n_scores: pre-activations looked at once for the selection, rows·d_sae.
        sparse_flops: of what fired: decoding and its two gradients, 6·rows·k·d_out; the encoder's gradient and scoring
            the winners again, 4·rows·k·d_in. Together 10·rows·k·d_in of an SAE.
        n_weights: of encoder, decoder and skip connection, which the optimiser reads and writes; 2·d_in·d_sae of an
            SAE.
        n_numbers: of the rows, which are normalised, shifted and subtracted, rows·d_in, and of a transcoder's targets.
        revival_flops: of the dead latents' term, four products of at most 512 rows with the dead latents, of which
            there are assumed to be 5 % of all, at most 1,024.
        n_steps: 1; what does not depend on any width.
    """

    n_steps: float = 1.0

    @property
    def flops(self) -> float:
        """Multiplications and additions, as `strata.costs.flops.sae_step_flops` counts them; revival apart."""
        return self.product_flops + self.sparse_flops

    def n_bytes(self, score_bytes: int = 4) -> float:
        """Bytes that travel between memory and processor if nothing but a chunk of scores stays in a cache.

        Scores are written and read once; of what fired each of five passes reads a row of d_in numbers per entry; the
        optimiser takes 26 bytes a weight (all latents counted; those that are not listed take none); rows are read and
        written five times in all.
        """
        gathered = self.sparse_flops / 2 * 4
        return 2 * score_bytes * self.n_scores + gathered + _WEIGHT_BYTES * self.n_weights + 5 * 4 * self.n_numbers


def step_work(sae: SAEShape, *, batch_size: int, revives: bool = True) -> StepWork:
    """The work of one step of one SAE.

    Args:
        sae: its shape.
        batch_size: rows.
        revives: with a revival method.
    """
    d_in, d_sae, d_out = sae.d_in, sae.d_sae, sae.d_out or sae.d_in
    skipping = d_in * d_out if sae.skip else 0
    n_dead = min(_REVIVAL_LATENTS, _DEAD_SHARE * d_sae) if revives else 0
    return StepWork(
        product_flops=2.0 * batch_size * (d_in * d_sae + 2 * skipping),
        n_scores=float(batch_size * d_sae),
        sparse_flops=batch_size * sae.k * (4.0 * d_in + 6.0 * d_out),
        n_weights=float(d_sae * (d_in + d_out) + skipping),
        n_numbers=float(batch_size * (d_in + (sae.d_out or 0))),
        revival_flops=2 * 2.0 * min(_REVIVAL_ROWS, batch_size) * n_dead * (d_in + d_out),
    )


@dataclass(frozen=True, kw_only=True)
class StepSeconds(_Parts):
    """What a machine needs for each unit of `StepWork`, in seconds.

    Attributes:
        product_flops: per FLOP of the dense product.
        n_scores: per score.
        sparse_flops: per FLOP of what fired.
        n_weights: per weight.
        n_numbers: per number of the rows.
        revival_flops: per FLOP of the revival term.
        n_steps: per step.
    """

    def of(self, work: StepWork) -> float:
        """Seconds of a step."""
        return sum(unit * count for unit, count in zip(astuple(self), astuple(work), strict=True))


Kind = Literal["measured", "assumed"]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast a machine is, measured there (`strata plan --calibrate`) or assumed from its data sheet.

    Attributes:
        name: of the machine, in words.
        kind: "measured" or "assumed".
        source: where the numbers come from, in words: the date of the measurement, or data sheet and assumed shares.
        step: seconds of an SAE step's parts. SAEs that are trained side by side take their turns, each as long as
            alone.
        forward_flops_per_second: of the language model's forward.
        copy_bytes_per_second: of memory, read and write together.
        disk_read_bytes_per_second: sequential, not from the system's cache.
        disk_write_bytes_per_second: sequential, until it is on the disk.
        tokenised_per_second: tokens.
        memory_bytes: RAM of the machine.
        device_bytes: memory of one accelerator; 0 without one.
        start_seconds: until a process has imported what it needs, loaded a small model and opened a text.
        prepared_per_second: numbers of the sample from which an SAE starts: its normalisation and first weights.
    """

    name: str
    kind: Kind
    source: str
    step: StepSeconds
    forward_flops_per_second: float
    copy_bytes_per_second: float
    disk_read_bytes_per_second: float
    disk_write_bytes_per_second: float
    tokenised_per_second: float
    memory_bytes: float
    device_bytes: float = 0.0
    start_seconds: float = 5.0
    prepared_per_second: float = 3e7
