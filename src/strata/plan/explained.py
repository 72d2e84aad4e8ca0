"""The formulas, units and assumptions of a plan: what `--explain` shows."""

from dataclasses import asdict

from strata.costs.step import Rates, StepWork
from strata.plan.subject import Subject
from strata.plan.tables import aligned, wrapped

_FORMULAS = """\
LM FLOP: tokens · Σ over blocks to the deepest site of (2·P + 4·C·H·d_head), P the block's matrix parameters (of
experts the active ones), C the context, attention counted in full. Streaming pays it in every epoch, a store or
memory once. A multiplication and its addition are two FLOPs.

SAE FLOP: rows · Σ over SAEs of (2·d·h + 10·k·d), h latents of which k fire; of a transcoder to d_out numbers
2·d·h + 4·k·d + 6·k·d_out, with a skip connection 4·d·d_out more. Revival of dead latents is not in
it, nor is the optimiser; both are in the seconds.

moved B: per step of an SAE 8 bytes a score, 20·k·d per row for what fired, 26 bytes a weight, 20 bytes a number
of the rows; rows into and out of the shuffle buffer; a store written and read; the language model's weights
once per forward. What stays in a cache is not told apart.

disk B: SAEs, checkpoints (one more than are kept, while it is written), and the store: a row takes 4·d (fp32),
2·d (fp16, bf16) or d + 4 (int8) bytes, and up to an eighth more for int8's outlier channels, which is not
counted.

time: nothing overlaps; the sum of start, tokenising, language model, disk, copies, SAE steps, held-out rows,
held-out text, evaluation and examples. The language model takes its measured seconds per token, else FLOPs over
the machine's rate.

tokenising: all of it where the text is counted before (n_tokens "all"), else what the language model's seconds
do not hide.

disk: bytes over the measured bandwidth; a store below half of the memory is read from the disk in the first
epoch alone. copies: rows into and out of the buffer; to an accelerator at 25 GB/s (assumption).

held-out rows: their forward once, then 2·d·h per row and SAE at each measurement. held-out text: 32 tokens are
read for each that is taken. evaluation: per held-out token one whole pass, one from each site on with zeros, one
from each site on per SAE, one with all, and 44 bytes per logit of each. examples: a forward to the deepest site
and 2·d·h per token and SAE.

RAM B, device B: the largest of the phases: collecting, joining rows, first weights, steps, finished copies, the
evaluation (three times the logits of one pass, 256 MB each at most, and half as much again), the examples.

break-even: streaming costs 2P/R seconds a token, P parameters below the sites (half of the forward's FLOPs), R
FLOP/s; reading costs b/D, b = d·bytes, D the disk's bandwidth: equal at P = b·R/(2·D). With writing at W and n
passes: P = b·R/2·(1/W + n/D)/(n − 1).

against pre-training: measuring and evaluating are the held-out rows' forward and encodings, the evaluation, a
pass for each setting's examples, and finding groups. Of a sweep all settings are trained, and the features
of one (its widest) are counted as F.

groups: every SAE sees as many rows as one of a single layer and the language model's pass is the same, so that
only the SAEs' work falls, in proportion to their number.
"""


def explanation(subject: Subject, rates: Rates) -> list[str]:
    """All formulas, the machine's rates, and one step of the first SAE with its numbers put in."""
    start = f"start: {rates.start_seconds:.2g} s for the process ({rates.kind}) and the weights read from the disk."
    lines = [line for text in (*_FORMULAS.split("\n\n"), start) for line in wrapped(f"- {text}", indent="  ")]
    return ["Formulas and assumptions", *lines, "", *_rates(rates), "", *_step(subject, rates)]


def _rates(rates: Rates) -> list[str]:
    shown = {key: value for key, value in asdict(rates).items() if isinstance(value, float)}
    rows = [[name.replace("_", " "), f"{value:.4g}"] for name, value in shown.items()]
    return [*wrapped(f"Rates of {rates.name}, {rates.kind} ({rates.source})"), *aligned(["", ""], rows)]


def _step(subject: Subject, rates: Rates) -> list[str]:
    """Counts, seconds per unit and seconds of each part of a step."""
    sae = subject.saes[0]
    work: StepWork = sae.work(subject.config.sae.batch_size)
    units = asdict(rates.step)
    rows = [
        [name.replace("_", " "), f"{count:.4g}", f"{units[name]:.3g}", f"{1e3 * count * units[name]:.3g}"]
        for name, count in asdict(work).items()
    ]
    title = f"One step of the SAE of {sae.sites[0]}: {subject.config.sae.batch_size:,} rows"
    return [title, *aligned(["part", "count", "s per unit", "ms"], rows)]
