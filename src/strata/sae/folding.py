"""Between the normalised space of training and the model's own scale: the normalisation folded into the weights, and
out of them again. W_enc and W_dec stay; b_dec becomes σ·b_dec + μ, other biases and thresholds σ times themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from strata.config.layer_groups import Group
from strata.sae.gates import Gate
from strata.sae.group import GroupSAE
from strata.sae.model import SAE, Transcoder
from strata.sae.normalization import GroupNormalization, Normalization
from strata.sae.rules.base import Params


@dataclass(frozen=True)
class Spaces:
    """The two normalisations of a learner.

    Attributes:
        source: of the rows that are encoded.
        target: of the rows that are reconstructed; None for an SAE, whose rows are the same.
    """

    source: Normalization
    target: Normalization | None = None

    @property
    def output(self) -> Normalization:
        """Of what comes out."""
        return self.source if self.target is None else self.target

    def of(self, layer: UInt8[Tensor, " rows"] | None) -> "Spaces":
        """Those of a batch of rows: the same for all."""
        return self

    def of_site(self, number: int) -> "Spaces":
        """Those of its one site."""
        return self

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"source": vars(self.source), "target": None if self.target is None else vars(self.target)}

    def loaded(self, state: dict[str, Any]) -> "Spaces":
        """Those of a checkpoint."""
        target = state["target"]
        return Spaces(Normalization(**state["source"]), None if target is None else Normalization(**target))


@dataclass(frozen=True)
class GroupSpaces:
    """The normalisations of a group's learner.

    Attributes:
        sites: of the group.
        normalization: of each.
    """

    sites: tuple[str, ...]
    normalization: GroupNormalization

    def of(self, layer: UInt8[Tensor, " rows"] | None) -> Spaces:
        """Those of each row of a batch, by the number of the site that it is from."""
        assert layer is not None, "a group's rows need the numbers of their layers"
        return Spaces(self.normalization.of(layer))

    def of_site(self, number: int) -> Spaces:
        """Those of one site."""
        return Spaces(self.normalization.of_site(number))

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return vars(self.normalization)

    def loaded(self, state: dict[str, Any]) -> "GroupSpaces":
        """Those of a checkpoint."""
        return GroupSpaces(self.sites, GroupNormalization(**state))


def fold(params: Params, spaces: Spaces, *, gate: Gate, b_enc: Tensor, metadata: dict[str, Any]) -> SAE | Transcoder:
    """The SAE in the model's own scale. Copies.

    An SAE keeps W_enc and W_dec; every bias and threshold is multiplied by σ and b_dec becomes σ·b_dec + μ. A
    transcoder from (μi, σi) to (μo, σo): W_enc·σo/σi, b_enc ← σo·(b_enc − μi W_enc/σi), W_skip·σo/σi, b_dec ← σo·b_dec
    + μo − W_skip μi, thresholds times σo.

    Args:
        params: the weights in normalised space.
        spaces: the normalisations.
        gate: in normalised units.
        b_enc: what is added to the scores, in normalised units.
        metadata: of the SAE.
    """
    source, out = spaces.source, spaces.output
    assert isinstance(source.scale, float), "statistics of a site, not of rows"
    assert isinstance(out.scale, float), "statistics of a site, not of rows"
    weights: dict[str, Any] = {
        "W_dec": params["W_dec"].clone(),
        "b_dec": params["b_dec"] * out.scale + out.mean,
        "gate": gate.scaled(out.scale),
        "metadata": metadata,
    }
    if spaces.target is None:
        return SAE(W_enc=params["W_enc"].clone().t(), b_enc=b_enc * out.scale, **weights)
    ratio = out.scale / source.scale
    weights["W_enc"] = (params["W_enc"] * ratio).t()
    weights["b_enc"] = b_enc * out.scale - source.mean @ weights["W_enc"]
    if "W_skip" in params:
        weights["W_skip"] = params["W_skip"] * ratio
        weights["b_dec"] = weights["b_dec"] - weights["W_skip"] @ source.mean
    return Transcoder(**weights)


def fold_group(
    params: Params,
    spaces: GroupSpaces,
    finished: Sequence[tuple[Gate, Tensor]],
    *,
    metadata: dict[str, dict[str, Any]],
) -> GroupSAE:
    """The group's SAE, each layer's normalisation folded into that layer's biases and thresholds. Copies.

    Differs: the paper's code folds the first layer's factor into all of them where it caches and evaluates
    (`load_saes_by_training_clusters`).

    Args:
        params: the weights in normalised space.
        spaces: the normalisations.
        finished: of each layer the gate and what is added to the scores, in normalised units.
        metadata: of the layers, by site.
    """
    W_enc, W_dec = params["W_enc"].clone().t(), params["W_dec"].clone()  # one copy for all layers
    saes: dict[str, SAE] = {}
    for number, (site, (gate, b_enc)) in enumerate(zip(spaces.sites, finished, strict=True)):
        own = spaces.normalization.of_site(number)
        assert isinstance(own.scale, float), "statistics of a site, not of rows"
        saes[site] = SAE(
            W_enc=W_enc,
            b_enc=b_enc * own.scale,
            W_dec=W_dec,
            b_dec=params["b_dec"] * own.scale + own.mean,
            gate=gate.scaled(own.scale),
            metadata=metadata[site],
        )
    return GroupSAE(saes)


def unfold(sae: SAE, spaces: Spaces) -> tuple[Params, Gate, Tensor]:
    """The inverse of `fold`: weights, gate and encoder bias of a finished SAE in normalised space. Copies."""
    source, out = spaces.source, spaces.output
    assert isinstance(source.scale, float), "statistics of a site, not of rows"
    assert isinstance(out.scale, float), "statistics of a site, not of rows"
    device = out.mean.device
    sae_weights = {name: tensor.detach().float().to(device) for name, tensor in sae.named_parameters(recurse=False)}
    W_enc, b_enc, b_dec = sae_weights["W_enc"], sae_weights["b_enc"], sae_weights["b_dec"]
    params = {"W_dec": sae_weights["W_dec"].clone().contiguous()}
    if spaces.target is None:
        params["W_enc"] = W_enc.t().clone().contiguous()
    else:
        ratio = source.scale / out.scale
        params["W_enc"] = (W_enc * ratio).t().contiguous()
        b_enc = b_enc + source.mean @ W_enc
        if "W_skip" in sae_weights:
            params["W_skip"] = (sae_weights["W_skip"] * ratio).contiguous()
            b_dec = b_dec + sae_weights["W_skip"] @ source.mean
    params["b_dec"] = (b_dec - out.mean) / out.scale
    return params, sae.gate.scaled(1 / out.scale).to(device), b_enc / out.scale


def spaces_of(
    sample: Tensor, target_sample: Tensor | None, *, site: str, target_site: str | None, centring: bool
) -> Spaces:
    """Estimated from a sample of the site, and of the target site of a transcoder."""
    source = Normalization.estimate(sample, site=site, centring=centring)
    if target_sample is None:
        return Spaces(source)
    target_name = target_site or "the target"
    return Spaces(source, Normalization.estimate(target_sample, site=target_name, centring=centring))


def group_spaces_of(group: Group, sample: Tensor, layers: Tensor | None, *, centring: bool) -> GroupSpaces:
    """Estimated from a sample of a group's rows, each site's by itself."""
    assert layers is not None, "a group's sample needs the numbers of its layers"
    return GroupSpaces(group.sites, GroupNormalization.estimate(sample, layers, sites=group.sites, centring=centring))
