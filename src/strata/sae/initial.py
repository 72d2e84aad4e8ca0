"""Weights at the start of a training: random ones of the right scale, or those of an SAE that exists."""

import torch
from jaxtyping import Float
from torch import Tensor

from strata.config.layer_groups import Group
from strata.errors import UserError
from strata.kernels import select
from strata.kernels.entries import SparseEntries
from strata.kernels.pytorch import unit_rows_
from strata.sae.folding import GroupSpaces, Spaces, unfold
from strata.sae.group import GroupSAE
from strata.sae.model import SAE, Transcoder
from strata.sae.rules.base import Params, Rule
from strata.shapes import lengths

_SAMPLE_ROWS = 1024


def first_rows(
    spaces: Spaces | GroupSpaces, sample: Tensor, target_sample: Tensor | None, layers: Tensor | None
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"] | None]:
    """The few normalised rows of a sample, and of its target (transcoders), that random weights are fitted to."""
    own = spaces.of(None if layers is None else layers[:_SAMPLE_ROWS])
    target = None if target_sample is None else own.output.apply(target_sample[:_SAMPLE_ROWS])
    return own.source.apply(sample[:_SAMPLE_ROWS]), target


def random_weights(
    rule: Rule,
    inputs: Float[Tensor, "n d_in"],
    target: Float[Tensor, "n d_out"] | None,
    *,
    seed: int,
    skip: bool,
) -> Params:
    """Random unit encoder rows, scaled so that the first reconstructions have the right length.

    The decoder is the encoder's transpose. A transcoder's decoder row is instead the direction in which the target lies
    where its latent fires, random where it never does.

    Args:
        rule: which tensors beside encoder and decoder there are.
        inputs: normalised rows; see `first_rows`.
        target: normalised rows of a transcoder's target; None for an SAE.
        seed: of the random directions.
        skip: with a skip connection, which starts at 0.
    """
    generator, device = torch.Generator().manual_seed(seed), inputs.device
    W_enc = torch.randn(rule.d_sae, inputs.shape[1], generator=generator).to(device)
    unit_rows_(W_enc)
    zeros = torch.zeros(rule.d_sae, device=device)
    pre, indices = select.select_topk(inputs, W_enc, zeros, rule.k)
    entries = SparseEntries.of_topk(indices, rule.d_sae)
    values = pre.relu().view(-1)
    if target is None:
        W_dec, target = W_enc.clone(), inputs
    else:
        W_dec = entries.weight_gradient(values, target)
        never = torch.randn(rule.d_sae, target.shape[1], generator=generator).to(device)
        W_dec = torch.where(lengths(W_dec).unsqueeze(1) > 0, W_dec, never)
        unit_rows_(W_dec)
    first = entries.decode(values, W_dec)
    factor = (target * first).sum() / first.square().sum().clamp_min(1e-12)
    params = {"W_enc": W_enc * factor, "W_dec": W_dec, "b_dec": torch.zeros(target.shape[1], device=device)}
    own = rule.own_tensors(_score_of_rank(inputs, W_enc, k=rule.k))
    params |= rule.scaled(own, factor)
    if skip:
        params["W_skip"] = torch.zeros(target.shape[1], inputs.shape[1], device=device)
    return params


def weights_of(init: SAE, rule: Rule, spaces: Spaces, *, skip: bool = False) -> Params:
    """The weights of an SAE that exists, in normalised space (warm start, fine-tuning).

    Raises:
        UserError: another shape than the config asks for, or a gate that cannot be trained on by the rule.
    """
    d_in, d_out = len(spaces.source.mean), len(spaces.output.mean)
    if (init.d_in, init.d_out, init.d_sae) != (d_in, d_out, rule.d_sae):
        raise UserError(
            f"`init` must have the shape that the config asks for. Got d_in={init.d_in}, d_out={init.d_out},"
            f" d_sae={init.d_sae}; wanted d_in={d_in}, d_out={d_out}, d_sae={rule.d_sae}."
            f" Set expansion_factor={init.d_sae // init.d_in}."
        )
    has_skip = isinstance(init, Transcoder) and init.W_skip is not None
    if isinstance(init, Transcoder) != (spaces.target is not None) or has_skip != skip:
        raise UserError(
            "`init` must be an SAE for an SAE, and a transcoder for a transcoder, both with a skip connection or both"
            f" without. Got {'a transcoder' if isinstance(init, Transcoder) else 'an SAE'}"
            f" {'with' if has_skip else 'without'} skip connection."
        )
    params, gate, b_enc = unfold(init, spaces)
    rule.own_tensors(b_enc.new_ones(()))  # what the rule keeps beside its tensors starts anew
    own = rule.from_gate(gate, b_enc)
    if own is None:
        raise UserError(
            f"`init` must have a gate that architecture={rule.config.architecture!r} can go on with. Got"
            f" {gate.architecture!r}. Choose the architecture with which it was trained."
        )
    return params | own


def _score_of_rank(inputs: Float[Tensor, "n d_in"], W_enc: Float[Tensor, "d_sae d_in"], *, k: int) -> Tensor:
    """The score above which lie k per row, on average over the rows; above 0."""
    zeros = W_enc.new_zeros(len(W_enc))
    keep = inputs.new_ones(len(inputs))
    _, _, smallest = select.select_batch_topk(inputs, W_enc, zeros, n_entries=k * len(inputs), keep=keep)
    return smallest.clamp_min(1e-3)


def one_layer(init: SAE | GroupSAE, group: Group | None) -> SAE:
    """What training starts from, as the SAE of one layer: that of the group's first."""
    if isinstance(init, SAE):
        return init
    return init.at(init.sites[0] if group is None else group.sites[0])
