"""How well an SAE reconstructs rows of its site, and a transcoder predicts its target: what needs no language model."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from strata.evaluate.sums import ReconstructionSums
from strata.sae import metrics
from strata.sae.group import GroupSAE
from strata.sae.model import SAE, Transcoder
from strata.sae.normalization import Normalization

_CHUNK_ROWS = 8192
_LOGGED = ("fvu", "l0", "silent_share")


@torch.inference_mode()
def reconstruction_quality(sae: SAE, x: Float[Tensor, "rows d_in"], *, site: str = "the activations") -> dict[str, Any]:
    """The part of an SAE's evaluation that needs no language model, on rows of its site.

    Attention sinks are told from all rows given: `Normalization`, farther from the median row than ten times the median
    distance.

    Args:
        sae: the SAE.
        x: held-out rows in the model's scale; taken to the SAE's device a few thousand at a time.
        site: whose rows these are, for errors.

    Returns:
        The numbers of `strata.evaluate.sums.ReconstructionSums.numbers`.

    Raises:
        UserError: fewer than two rows, not finite, or all equal.
    """
    normalization = Normalization.estimate(x, site=site)
    sums = ReconstructionSums(sae.d_sae)
    for part in torch.split(x, _CHUNK_ROWS):
        rows = part.float()
        code = sae.encode_sparse(rows.to(sae.device))
        sums.add(rows, sae.decode(code), code, kept=~normalization.is_sink(rows))
    return sums.numbers(site=site)


@torch.inference_mode()
def prediction_quality(
    transcoder: SAE, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"], *, site: str = "the target"
) -> dict[str, Any]:
    """What `reconstruction_quality` says of an SAE, of a transcoder: its prediction against the target's rows.

    Args:
        transcoder: predicts the target from x.
        x: held-out rows of the site that is read, in the model's scale.
        target: the same rows of the target site.
        site: the target's name, for errors.

    Returns:
        The keys of `reconstruction_quality`, each of the target. Rows are sinks, and left out
        of all but ``fvu_with_sinks``, where they are attention sinks of either site.

    Raises:
        UserError: fewer than two rows, not finite, or all equal.
    """
    x, target = x.float(), target.float()
    kept = ~Normalization.estimate(x).is_sink(x) & ~Normalization.estimate(target, site=site).is_sink(target)
    predicted = torch.empty_like(target)
    fired = torch.zeros(transcoder.d_sae, dtype=torch.bool)
    n_active = 0
    for start in range(0, len(x), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        rows = x[part].to(transcoder.device)
        code = transcoder.encode_sparse(rows)
        y = transcoder.decode(code)
        if isinstance(transcoder, Transcoder) and transcoder.W_skip is not None:
            y = y + rows.to(transcoder.dtype) @ transcoder.W_skip.t()
        predicted[part] = y.to(predicted.device, predicted.dtype)
        active = (code.values > 0) & kept[part].to(code.values.device).unsqueeze(1)
        fired[code.indices[active].cpu()] = True
        n_active += int(active.sum())
    with_sinks = metrics.fvu(target, predicted)
    y, y_hat = target[kept], predicted[kept]
    measured = (
        metrics.explained_variance, metrics.fvu, metrics.mse, metrics.cosine, metrics.l2_ratio,
        metrics.relative_reconstruction_bias,
    )  # fmt: skip
    numbers = {function.__name__: function(y, y_hat).item() for function in measured}
    numbers |= {"l0": n_active / int(kept.sum()), "silent_share": 1 - fired.float().mean().item()}
    numbers |= {"n_sink_rows": len(x) - len(y), "fvu_with_sinks": with_sinks.item()}
    return {name: value if abs(value) < float("inf") else None for name, value in numbers.items()}


def logged_quality(
    sae: SAE | GroupSAE, rows: Mapping[str, Tensor], *, site: str, target_site: str | None = None
) -> dict[str, float | None]:
    """``fvu``, ``l0`` and ``silent_share`` on held-out rows: the few numbers that a training logs.

    Args:
        sae: as it is now; of a group's the numbers are means over its layers.
        rows: by site held-out rows in the model's scale [rows d_in].
        site: what the SAE reads.
        target_site: what a transcoder predicts.
    """
    if isinstance(sae, GroupSAE):
        found = [logged_quality(sae.at(layer), rows, site=layer) for layer in sae.sites]
        return {key: _mean([numbers[key] for numbers in found]) for key in _LOGGED}
    x = rows[site]
    found = reconstruction_quality(sae, x) if target_site is None else prediction_quality(sae, x, rows[target_site])
    return {key: found[key] for key in _LOGGED}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
